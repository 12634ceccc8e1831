"""Run a trained denoiser over images.

    python denoise.py --input noisy_photos --output denoised --gpu 0
    python denoise.py --input photo.jpg --output out --checkpoint ckpts/synthetic/dncnn_g.pt

Input: one image, or a folder with all its sub-folders, of any size from 1x1; PNG, TIFF, JPEG, WebP
or BMP of 8 or 16 bits. Orientation tags are applied, grey and CMYK become RGB, alpha is dropped, of
several frames or pages the first is taken. Output: the same size at the same place below --output,
with EXIF data and RGB profile; 16 bits stay 16 in PNG and TIFF. Of a.jpg and a.png, which would
both become a.png, the first becomes a.jpg.png. What is in --output stays (--overwrite makes it
anew), so a second run does what the first could not. An --output inside --input is left out of the
input.

--strength blends the result with the input: where there is little noise, less may be better.
--truth names the clean images, at the same places as the noisy ones: PSNR and SSIM are printed.

An image goes through the network in tiles as large as the free memory allows, without seams: on
the CPU the process takes some 2 GB for 12 megapixels and more. RIDNet's channel attention looks at
the whole image: of large ones at evenly spread patches, which changes PSNR by less than 0.02 dB.
OUTPUT/comparison.html shows crops of the first images, pixel for pixel.
Exit status: 0 all there, 1 some skipped (named at the end), 2 stopped for the reason that the
message gives, 128 + n by signal n.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from utils.config import beside, choose_device, parse
from utils.errors import UserError, exit_on_user_error, require

if TYPE_CHECKING:  # torch takes seconds to import: --help and mistakes do not wait for it
    import numpy as np


@dataclass(frozen=True)
class Config:
    """Run a trained denoiser over images."""

    input: Path
    """A noisy image, or a folder of them; sub-folders are kept."""
    output: Path
    """Folder for the denoised images; made if missing."""
    strength: float = 1.0
    """1: the denoiser's result, 0: the input, between: a blend."""
    truth: Path | None = None
    """The clean image, or the folder of them: scores are printed."""
    format: Literal["png", "same", "tiff", "jpeg", "webp"] = "png"
    """Of the files; same: as the input's."""
    quality: int = 95
    """Of JPEG and WebP, 1 to 100; WebP of 100 is lossless."""
    overwrite: bool = False
    """Make files anew that are there already."""
    tile: int | None = None
    """Pixels a side of the tiles; by default as many as fit the free memory."""
    checkpoint: Path = Path("ckpts/sidd/ridnet_g.pt")
    """Weights of a denoiser (ridnet, dncnn or unet), or a folder that holds one <name>_g.pt."""
    gpu: str = "0"
    """CUDA device number (of a list such as 0,1 the first is used), or cpu."""


def main(argv: list[str] | None = None) -> int:
    c = parse(Config, argv)
    require(0 <= c.strength <= 1, f"--strength {c.strength}: expected 0 to 1")
    require(1 <= c.quality <= 100, f"--quality {c.quality}: expected 1 to 100")
    require(c.tile is None or c.tile >= 32, f"--tile {c.tile}: expected 32 or more")
    import torch

    from models.denoisers import denoiser_from_checkpoint
    from models.tiles import Tiler
    from utils.folder_jobs import Batch
    from utils.memory import keep_pages
    from utils.photos import read_photo
    from utils.strip import Strip

    keep_pages()
    truths = find_truths(c.truth)
    batch = Batch(c, protected=list(truths.values()))
    device = choose_device(c.gpu)
    denoiser = denoiser_from_checkpoint(find_weights(beside(c.checkpoint)), device)
    tiler = Tiler(denoiser, device, c.tile)
    strip = Strip("noisy", "denoised", *(["clean"] if truths else []))
    scores = []

    def denoise(x: torch.Tensor, top: int, left: int) -> torch.Tensor:
        return torch.lerp(x, denoiser(x), c.strength)

    def compare(source: Path, noisy: "np.ndarray", denoised: "np.ndarray") -> None:
        name = source.relative_to(c.input).with_suffix("") if c.input.is_dir() else source.stem
        path = truths.get(Path(name), truths.get(None))
        require(path is not None, f"{source}: written, but it has no partner in --truth")
        clean, _ = read_photo(path)
        require(clean.shape == noisy.shape, f"{source}: written, but {path} has another size")
        strip.add(noisy, denoised, clean)
        scores.append((*score(noisy, clean), *score(denoised, clean)))
        batch.bar.write(f"{source}: {_words(scores[-1])}", file=sys.stdout)

    def work() -> None:
        for task, noisy, tags in batch.images():
            with batch.guard(task.source):
                denoised = tiler(noisy, denoise, progress=batch.progress)
                batch.write(task.files[0], [denoised], tags)
                if truths:
                    compare(task.source, noisy, denoised)
                else:
                    strip.add(noisy, denoised)
        if scores:
            means = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
            print(f"mean of {len(scores)}: {_words(means)}")
        batch.show(strip)

    return batch.run(work)


def find_weights(checkpoint: Path) -> Path:
    """The file itself, or the only `*_g.pt` of a folder; UserError for none or several."""
    if not checkpoint.is_dir():
        return checkpoint
    files = sorted(checkpoint.glob("*_g.pt"))
    if not files:
        raise UserError(
            f"{checkpoint}: holds no denoiser (*_g.pt); train one, or name another --checkpoint"
        )
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{checkpoint}: holds {names}; name the file to use as --checkpoint")
    return files[0]


def find_truths(truth: Path | None) -> dict[Path | None, Path]:
    """Clean images by their path below `truth`, suffixes aside; None: the one for all."""
    from utils.files import list_images

    if truth is None:
        return {}
    require(truth.exists(), f"{truth}: no such image or folder; check --truth")
    if not truth.is_dir():
        return {None: truth}
    return {path.relative_to(truth).with_suffix(""): path for path in list_images(truth, [])}


def score(image: "np.ndarray", clean: "np.ndarray") -> tuple[float, float]:
    """PSNR and SSIM (NaN below 11 pixels a side) as in the tables, a strip at a time."""
    import torch
    from torch.nn.functional import avg_pool2d

    from utils.images import integer_to_float
    from utils.metrics import ssim

    height, width, _ = image.shape
    factor = max(1, round(min(height, width) / 256))  # by which SSIM averages first
    error, pooled = 0.0, []
    for y in range(0, height, 64 * factor):
        a, b = (integer_to_float(x[y : y + 64 * factor]) for x in (image, clean))
        error += (a - b).square().sum(dtype=torch.float64).item()
        if a.shape[1] >= factor:
            pooled.append([avg_pool2d(x[None], factor) for x in (a, b)])
    psnr = -10 * math.log10(error / image.size + 1e-8)
    small = [torch.cat(parts, dim=2) for parts in zip(*pooled, strict=True)]
    return psnr, ssim(*small).item() if min(small[0].shape[-2:]) >= 11 else math.nan


def _words(scores: Sequence[float]) -> str:
    """Of the noisy and the denoised image."""
    psnr, ssim, after, ssim_after = scores
    return f"PSNR {psnr:.2f} -> {after:.2f} dB, SSIM {ssim:.4f} -> {ssim_after:.4f}"


if __name__ == "__main__":
    exit_on_user_error(lambda: sys.exit(main()))
