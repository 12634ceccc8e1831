"""Will it work for my camera? What noisy photos tell, and how near they are to the training data.

    python inspect_references.py my_photos
    python inspect_references.py my_photos --output reports/my_camera --nt runs/NT

Input: a noisy photo, or a folder with all its sub-folders; sizes from 16x16 and formats as
transfer_noise.py takes references. Nothing but the photo itself is needed, no clean partner.
OUTPUT/references.csv has a row a photo, and OUTPUT/references.html shows them:

- the noise in flat areas: standard deviation by intensity and channel, correlation of neighbours;
- the share of flat area, without which neither can be told;
- the angle between the photo's embedding and the nearest kinds of noise that the generator was
  trained on, judged by thresholds of the training data, and a map of both. `python -m
  evaluation.bank` makes what this compares with, bank.npz beside the weights; without it, and for a
  bank of other weights, the rest is there.

Exit status: 0 all there, 1 some skipped (named at the end), 2 stopped for the reason that the
message gives.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from utils.config import beside, choose_device, parse
from utils.errors import exit_on_user_error, require

if TYPE_CHECKING:  # torch takes seconds to import: --help and mistakes do not wait for it
    from utils.photos import Tags

MAKE, MODEL, ISO = 0x010F, 0x0110, 0x8827  # EXIF


@dataclass(frozen=True)
class Config:
    """Compare noisy photos with the noise that a generator was trained on."""

    folder: tyro.conf.Positional[Path]
    """A noisy photo, or a folder of them, with all its sub-folders."""
    output: Path = Path("reports/references")
    """Folder for references.csv and references.html; what was there of these is replaced."""
    nt: Path = Path("ckpts/NT")
    """Folder of VUNet.pt, encoder_k.pt and bank.npz."""
    reference_patch: int | None = None
    """Embed photos in patches of so many pixels, or whole (0); by default as transfer.json says."""
    gpu: str = "0"
    """CUDA device number (of a list such as 0,1 the first is used), or cpu."""


def main(argv: list[str] | None = None) -> int:
    c = parse(Config, argv)
    require(c.folder.exists(), f"{c.folder}: no such photo or folder")
    from tqdm import tqdm

    from evaluation.reference_page import Inspected, write_report
    from evaluation.references import blind_noise, embed_photo, open_bank, warn
    from models.noise_transfer import NoiseTransfer
    from utils.files import list_images
    from utils.folder_jobs import guard, name_skipped, read_in_memory, show_any_name
    from utils.memory import keep_pages

    keep_pages()
    show_any_name()
    skipped: list[str] = []
    paths = list_images(c.folder, skipped) if c.folder.is_dir() else [c.folder]
    weights = beside(c.nt)
    network = NoiseTransfer.from_checkpoint(weights, choose_device(c.gpu), c.reference_patch)
    bank = open_bank(weights, network)
    photos: list[Inspected] = []
    for path in tqdm(paths, unit="photo"):
        with guard(path, skipped, c.output):
            pixels, tags = read_in_memory(path)
            z = network.direction(embed_photo(network, path, pixels))[0].cpu().numpy()
            noise = blind_noise(pixels)
            warned = warn(bank, z, noise.flat) if bank else []
            name = path.relative_to(c.folder) if c.folder.is_dir() else Path(path.name)
            photos.append(Inspected(printable(name.as_posix()), *camera(tags), noise, z, warned))
    write_report(c.output, photos, bank, [printable(line) for line in skipped])
    for photo in photos:
        if photo.warnings:
            print(f"{photo.name}: {photo.text}")
    name_skipped(skipped)
    doubtful = sum(bool(photo.warnings) for photo in photos)
    judged = f", {doubtful} doubtful" if bank else ", none judged: there is no bank"
    print(f"{len(photos)} photos in {c.output}/references.html{judged}, {len(skipped)} skipped")
    return 1 if skipped else 0


def printable(name: str) -> str:
    """As UTF-8; bytes that are none are shown."""
    return os.fsencode(name).decode(errors="backslashreplace")


def camera(tags: "Tags") -> tuple[str, str]:
    """Maker and model, and ISO, by the photo's EXIF data."""
    from evaluation.reference_page import UNKNOWN
    from utils.photos import EXIF_IFD

    if tags.exif is None:
        return UNKNOWN, UNKNOWN
    make, model = (str(tags.exif.get(tag) or "").strip("\0 ") for tag in (MAKE, MODEL))
    name = model if model.casefold().startswith(make.casefold()) else f"{make} {model}".strip()
    iso = tags.exif.get_ifd(EXIF_IFD).get(ISO)
    iso = iso[0] if isinstance(iso, tuple) and iso else iso
    return name or UNKNOWN, f"ISO {iso}" if isinstance(iso, int) else UNKNOWN


if __name__ == "__main__":
    exit_on_user_error(lambda: sys.exit(main()))
