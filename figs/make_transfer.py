"""Figure 1 of the paper, as a grid: clean photos down, references across.

python -m figs.make_transfer                       # figs/transfer.png, of the bundled sample
python -m figs.make_transfer --clean a.png b.png --references noisy.png --output grid.png
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.noise import NoiseModel, add_noise
from data.sample import write_sample
from data.test_sets import find_test_sets
from models import NoiseTransfer
from utils.config import parse
from utils.errors import UserError, exit_on_user_error
from utils.evaluation import per_image_noise
from utils.images import float_to_uint8, integer_to_float, read_image, write_image


@dataclass(frozen=True)
class Config:
    """Draw a grid: clean images down, references across."""

    nt: Path = Path("ckpts/NT")
    clean: tuple[Path, ...] = ()
    """Clean images; without these and references: the bundled sample."""
    references: tuple[Path, ...] = ()
    """Noisy images."""
    output: Path = Path("figs/transfer.png")
    size: int = 176
    """Pixels a side that are shown of each, its lower left corner."""


GAP = 4
CLEAN = 1, 2, 0  # of sample_camera: cat, coffee, astronaut
CAMERA = 7, 8  # of sample_camera, as references: ISO 3200 and 800
SYNTHETIC = NoiseModel(sigma=torch.tensor([50 / 255, 0.0]), chi=torch.tensor([torch.inf, 10.0]))


def sample(size: int) -> tuple[Tensor, list[Tensor]]:
    """(N, 3, size, size) clean photos and references of the bundled sample (data/sample.py)."""
    sets = {s.name: s for s in find_test_sets(write_sample(Path("cache/sample")) / "test_images")}
    pairs, photos = sets["sample_camera"], sets["sample_photos"]
    clean = torch.stack([pairs[i][0][:, -size:, :size] for i in CLEAN])
    references = [pairs[i][1][None] for i in CAMERA]
    two = torch.stack([photos[5], photos[5]])  # under Gaussian and under Poisson noise
    references += add_noise(two, SYNTHETIC, torch.Generator().manual_seed(0)).split(1)
    return clean, references


def corner(path: Path, size: int) -> Tensor:
    image = integer_to_float(read_image(path))[:, -size:, :size]
    if image.shape[1:] != (size, size):
        raise UserError(f"{path}: smaller than --size {size}; give a smaller one")
    return image


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    size = c.size
    if bool(c.clean) != bool(c.references):
        raise UserError("--clean and --references go together; give both, or neither")
    if c.clean:
        clean = torch.stack([corner(path, size) for path in c.clean])
        references = [integer_to_float(read_image(path))[None] for path in c.references]
    else:
        clean, references = sample(size)

    transfer = NoiseTransfer.from_checkpoint(c.nt)
    rows = [[torch.ones(3, size, size), *(r[0, :, :size, :size] for r in references)]]
    noise = [per_image_noise(range(len(clean))) for _ in references]
    generated = [transfer.transfer(clean, r, n) for r, n in zip(references, noise, strict=True)]
    rows += [[clean[i], *(g[i] for g in generated)] for i in range(len(clean))]

    step = size + GAP
    grid = torch.ones(3, len(rows) * step - GAP, len(rows[0]) * step - GAP)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            height, width = image.shape[1:]
            grid[:, y * step : y * step + height, x * step : x * step + width] = image
    write_image(c.output, float_to_uint8(grid))
    print(f"-> {c.output}")


if __name__ == "__main__":
    exit_on_user_error(main)
