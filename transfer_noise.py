"""Put the noise of noisy photos on clean images (paper, Sec. 3: transfer).

    python transfer_noise.py --reference noisy.png --input photos --output noisy_photos --gpu 0
    python transfer_noise.py --reference noisy_photos --input clean --output mine --pairs --copies 2

Input: one image, or a folder with all its sub-folders, of any size from 1x1; PNG, TIFF, JPEG, WebP
or BMP of 8 or 16 bits. Orientation tags are applied, grey and CMYK become RGB, alpha is dropped, of
several frames or pages the first is taken. Output: the same size at the same place below --output,
with EXIF data and RGB profile; `name.png`, or `name_000.png`, `name_001.png`, ... with --copies;
16 bits stay 16 in PNG and TIFF. Of a.jpg and a.png, which would both become a.png, the first
becomes a.jpg.png. What is in --output stays (--overwrite makes it anew), so a second run does what
the first could not. An --output inside --input is left out of the input.

An image's noise depends on --seed, on its path relative to --input, on the copy and, with several
references, on which one it gets; not on which other images are there, nor (up to rounding) on the
device or the tiles.

--strength is a factor of the generated noise. What it is honest for: somewhat more or less of the
same noise. What it is not: another ISO, whose noise also depends on the intensity in another way.

A reference unlike what the weights were trained on, or with little flat area, is warned of where
bank.npz is beside them; inspect_references.py tells more.

An image goes through the network in tiles as large as the free memory allows, without seams: on
the CPU the process takes some 2 GB for 12 megapixels and more. OUTPUT/comparison.html shows clean,
reference and generated crops of the first images, pixel for pixel.
Exit status: 0 all there, 1 some skipped (named at the end), 2 stopped for the reason that the
message gives, 128 + n by signal n.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from utils.config import beside, choose_device, parse
from utils.errors import UserError, exit_on_user_error, require

if TYPE_CHECKING:  # torch takes seconds to import: --help and mistakes do not wait for it
    import numpy as np
    from torch import Tensor

    from evaluation.references import Bank
    from models.noise_transfer import NoiseTransfer

LARGEST_STRENGTH = 2.0


@dataclass(frozen=True)
class Config:
    """Put the noise of noisy photos on clean images."""

    reference: tuple[Path, ...]
    """Noisy photos of at least 16x16, pieces of them, or folders. No clean partner is needed."""
    input: Path
    """A clean image, or a folder of them; sub-folders are kept."""
    output: Path
    """Folder for the noisy images; made if missing."""
    use: Literal["random", "each", "mean"] = "random"
    """Of several references: one at random for each file, each in turn (in a folder of its name),
    or the mean of their embeddings."""
    strength: float = 1.0
    """Factor of the noise, 0 to 2."""
    copies: int = 1
    """Noisy versions of each image, each with noise of its own."""
    pairs: bool = False
    """Write clean/ and noisy/, by reference, as train_denoiser.py takes them."""
    format: Literal["png", "same", "tiff", "jpeg", "webp"] = "png"
    """Of the files; same: as the input's. JPEG and WebP change the noise that they store."""
    quality: int = 95
    """Of JPEG and WebP, 1 to 100; WebP of 100 is lossless."""
    overwrite: bool = False
    """Make files anew that are there already."""
    seed: int = 0
    """Another seed, other noise; the same seed, the same files."""
    tile: int | None = None
    """Pixels a side of the tiles; by default as many as fit the free memory."""
    nt: Path = Path("ckpts/NT")
    """Folder of VUNet.pt and encoder_k.pt."""
    reference_patch: int | None = None
    """Embed references in patches of so many pixels, or whole (0, as the paper does); by default
    as transfer.json in --nt says, whole if it is not there."""
    gpu: str = "0"
    """CUDA device number (of a list such as 0,1 the first is used), or cpu."""


class Reference(NamedTuple):
    name: str  # of its folder
    z: "Tensor"  # (1, d)
    crop: "np.ndarray"  # (H, W, 3), for the picture


class Variant(NamedTuple):
    """One of the files that an image becomes."""

    copy: int
    reference: int  # its number
    folder: str
    tail: str


def main(argv: list[str] | None = None) -> int:
    c = parse(Config, argv)
    check(c)
    from evaluation.references import open_bank
    from models.generator import placed_noise
    from models.noise_transfer import NoiseTransfer
    from models.tiles import Tiler
    from utils.folder_jobs import Batch
    from utils.memory import keep_pages
    from utils.seeding import derived_seed
    from utils.strip import Strip

    keep_pages()
    device = choose_device(c.gpu)
    paths, problems = find_references(c.reference)
    weights = beside(c.nt)
    network = NoiseTransfer.from_checkpoint(weights, device, c.reference_patch)
    references, errors = embed(network, paths, open_bank(weights, network))
    if c.use == "mean" and len(references) > 1:
        mean = network.mean([r.z for r in references])
        references = [references[0]._replace(name="mean", z=mean)]

    def variants(key: int) -> list[Variant]:
        found = []
        for copy in range(c.copies):
            numbers = range(len(references))
            if c.use == "random":
                numbers = [derived_seed(c.seed, key, copy, len(numbers)) % len(numbers)]
            for i in numbers:
                by_reference = c.pairs or (c.use == "each" and len(references) > 1)
                tail = f"_{copy:03d}" if c.copies > 1 else ""
                found.append(Variant(copy, i, references[i].name if by_reference else "", tail))
        return found

    sides = ("clean", "noisy") if c.pairs else ("",)
    batch = Batch(c, lambda key: [v[2:] for v in variants(key)], sides, protected=paths)
    batch.skipped += problems + errors
    tiler = Tiler(network.generator, device, c.tile)
    strip = Strip("clean", "reference", "generated")

    def work() -> None:
        for task, clean, tags in batch.images():
            for v, files in zip(variants(task.key), task.files, strict=True):
                if batch.is_there(files):
                    continue
                with batch.guard(task.source):
                    reference = references[v.reference]
                    # Of the first reference in turn what it gives alone.
                    others = (v.reference,) if c.use == "each" and v.reference else ()
                    seed = derived_seed(c.seed, task.key, v.copy, *others)

                    def generate(x, top, left, z=reference.z, seed=seed):
                        return network.generate(x, z, placed_noise([seed], top, left), c.strength)

                    noisy = tiler(clean, generate, progress=batch.progress)
                    batch.write(files, [clean, noisy] if c.pairs else [noisy], tags)
                    strip.add(clean, reference.crop, noisy)
        batch.show(strip)

    return batch.run(work)


def check(c: Config) -> None:
    require(len(c.reference) > 0, "--reference: expected at least one noisy photo")
    require(
        c.copies >= 1 and c.seed >= 0,
        f"--copies {c.copies} --seed {c.seed}: expected at least 1 and at least 0",
    )
    require(
        0 <= c.strength <= LARGEST_STRENGTH,
        f"--strength {c.strength}: expected 0 to {LARGEST_STRENGTH:g}; for more, take a reference "
        "with more noise",
    )
    require(1 <= c.quality <= 100, f"--quality {c.quality}: expected 1 to 100")
    require(c.tile is None or c.tile >= 32, f"--tile {c.tile}: expected 32 or more")


def find_references(given: tuple[Path, ...]) -> tuple[list[Path], list[str]]:
    """The images that are given or in given folders, and what is none."""
    from utils.files import list_images

    found, problems = [], []
    for path in given:
        found += list_images(path, problems) if path.is_dir() else [path]
    require(len(found) > 0, f"{given[0]}: holds no image that can be read; check --reference")
    return found, problems


def label(paths: list[Path]) -> list[str]:
    """Names of folders, one a reference: its stem, with its number where that is not the only."""
    count = Counter(path.stem.casefold() for path in paths)
    return [
        path.stem if count[path.stem.casefold()] == 1 else f"{path.stem}_{i:03d}"
        for i, path in enumerate(paths)
    ]


def embed(
    network: "NoiseTransfer", paths: list[Path], bank: "Bank | None"
) -> tuple[list[Reference], list[str]]:
    """Those that can be used, and what is wrong with the others; UserError where all are.

    What speaks against one by its `bank` is printed.
    """
    from evaluation.references import blind_noise, embed_photo, warn
    from utils.photos import read_photo
    from utils.strip import crop

    found, errors = [], []
    for name, path in zip(label(paths), paths, strict=True):
        try:
            pixels, _ = read_photo(path)
            z = embed_photo(network, path, pixels)
            found.append(Reference(name, z, crop(pixels)))
            if bank is not None:
                for warned in warn(
                    bank, network.direction(z)[0].cpu().numpy(), blind_noise(pixels).flat
                ):
                    print(f"warning: {path}: {warned.text}", file=sys.stderr)
        except UserError as error:
            errors.append(str(error))
    if not found:
        raise UserError(errors[0])
    return found, errors


if __name__ == "__main__":
    exit_on_user_error(lambda: sys.exit(main()))
