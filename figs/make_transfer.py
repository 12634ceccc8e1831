"""The README's picture: four references, and their noise on other photographs beside the true one.

    python -m figs.make_transfer                       # figs/transfer.png

A row a reference, named; columns at 1:1: reference, clean, generated, and what the reference's
camera (or noise model) itself makes of the clean photograph. All of the bundled sample
(data/sample.py).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.camera import camera_pair, noise_level
from data.noise import NoiseModel, add_noise
from data.sample import Area, sample_photos
from models import NoiseTransfer
from models.generator import normal_noise
from utils.config import parse
from utils.errors import exit_on_user_error
from utils.images import float_to_uint8, integer_to_float, write_image


@dataclass(frozen=True)
class Config:
    """Draw references and their noise on other photographs."""

    nt: Path = Path("ckpts/NT")
    output: Path = Path("figs/transfer.png")


SIDE, GAP, HEAD = 220, 6, 24
COLUMNS = "", "another photo", "generated", "the true noise"
# title; a phone and its ISO, or sigma (of 255) and chi; the reference's area, the target's
ROWS = (
    ("Galaxy S6, ISO 3200", ("S6", 3200), Area("retina", 456, 720), Area("chelsea", 22, 0)),
    ("Pixel, ISO 1600", ("GP", 1600), Area("coffee", 72, 344), Area("astronaut", 256, 0)),
    ("Gaussian, sigma 25", (25, np.inf), Area("retina", 712, 720), Area("coffee", 72, 344)),
    ("Poisson, chi 10", (0, 10), Area("astronaut", 256, 256), Area("rocket", 171, 384)),
)


def pair(setting: tuple, photo: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
    """(clean, noisy), (1, 3, 256, 256) in [0, 1], of a photo (256, 256, 3) uint8."""
    if isinstance(setting[0], str):
        both = camera_pair(photo, noise_level(*setting), np.random.default_rng(seed))
        return tuple(integer_to_float(x)[None] for x in both)
    clean = integer_to_float(photo)[None]
    sigma, chi = (torch.tensor([float(x)]) for x in setting)
    return clean, add_noise(
        clean, NoiseModel(sigma / 255, chi), torch.Generator().manual_seed(seed)
    )


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    transfer, photos = NoiseTransfer.from_checkpoint(c.nt), sample_photos()
    step = SIDE + GAP
    canvas = Image.new("RGB", (4 * step - GAP, len(ROWS) * (step + HEAD) - GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=15)
    for row, (title, setting, area, target) in enumerate(ROWS):
        _, reference = pair(setting, area.cut(photos), 2 * row)
        clean, true = pair(setting, target.cut(photos), 2 * row + 1)
        noise = normal_noise(torch.Generator().manual_seed(row))
        generated = transfer.transfer(clean, reference, noise)
        top = row * (step + HEAD)
        for x, image in enumerate((reference, clean, generated, true)):
            label = title if x == 0 else COLUMNS[x]
            draw.text((x * step + 2, top + 3), label, fill="black", font=font)
            inner = np.ascontiguousarray(float_to_uint8(image[0])[-SIDE:, :SIDE])
            canvas.paste(Image.fromarray(inner), (x * step, top + HEAD))
    write_image(c.output, np.asarray(canvas))
    print(f"-> {c.output}")


if __name__ == "__main__":
    exit_on_user_error(main)
