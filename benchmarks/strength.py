"""How strong known noise comes out: by --strength, and by the size of the reference.

    python -m benchmarks.strength                       # the bundled photographs
    python -m benchmarks.strength --photos FOLDER

First table: deviation of generated noise over that of true noise of so many times the strength,
clipped likewise; on a grey field from noise on one, on photographs, each the reference of the next,
and on a grey field from each photograph, which may hardly tell (a black one). Second: deviation on
a grey field from whole references over its mean from references of 64 pixels of the same
photograph. Means over the photographs, with the least and the largest.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import Row, print_machine, print_table, write_json
from data.folders import photo_folder
from data.noise import NoiseModel, add_noise, known_correlation
from data.sample import sample_photos
from evaluation.image_sets import middle
from evaluation.noise_tables import KNOWN_CORRELATIONS, KNOWN_NOISE
from models import NoiseTransfer
from models.generator import normal_noise
from utils.config import parse
from utils.errors import exit_on_user_error, require
from utils.images import integer_to_float, read_uint8

GREY = torch.full((1, 3, 192, 192), 0.5)
SIZES = 64, 128, 256, 512, 1024


@dataclass(frozen=True)
class Config:
    """Print both tables."""

    nt: Path = Path("ckpts/NT")
    photos: Path | None = None
    """Folder of clean photographs; by default the bundled ones."""
    seed: int = 0
    json: Path | None = None


def noisy(clean: Tensor, name: str, rng: torch.Generator, strength: float = 1.0) -> Tensor:
    """`clean` under so many times the noise of KNOWN_NOISE, clipped to [0, 1]."""
    model = KNOWN_NOISE[name].draw(1, torch.Generator())
    chi = model.chi.item()
    if chi < math.inf:  # a multiple of Poisson noise is not Poisson noise
        counts = torch.poisson(clean * chi, generator=rng)
        return (clean + strength * (counts / chi - clean)).clamp(0, 1)
    scaled = NoiseModel(strength * model.sigma, model.chi)
    neighbour = KNOWN_CORRELATIONS.get(name)
    return add_noise(clean, scaled, rng, known_correlation(neighbour) if neighbour else None)


def summary(ratios: Sequence[float]) -> str:
    return f"{statistics.mean(ratios):.3f} ({min(ratios):.2f}-{max(ratios):.2f})"


def by_strength(nt: NoiseTransfer, photos: Sequence[Tensor], name: str, seed: int) -> Iterator[Row]:
    rng = torch.Generator().manual_seed(seed)
    grey = [GREY] * len(photos)
    told = {
        "a grey field": [nt.embed(noisy(image, name, rng)) for image in grey],
        "photographs": [nt.embed(noisy(middle(photo, 256), name, rng)) for photo in photos],
    }
    targets = [middle(photo, 192) for photo in photos]
    for source, where, images in (
        ("a grey field", "a grey field", grey),
        ("photographs", "photographs", targets[1:] + targets[:1]),
        ("photographs", "a grey field", grey),
    ):
        row: Row = {"noise": name, "of": source, "on": where}
        for strength in (0.5, 1.0, 2.0):
            ratios = []
            for z, clean in zip(told[source], images, strict=True):
                true = noisy(clean, name, rng, strength) - clean
                ratios.append(deviation(nt, clean, z, rng, strength) / true.std().item())
            row[f"x {strength:g}"] = summary(ratios)
        yield row


def by_size(nt: NoiseTransfer, photos: Sequence[Tensor], name: str, seed: int) -> Row:
    rng = torch.Generator().manual_seed(seed)
    ratios: dict[int, list[float]] = {size: [] for size in SIZES[1:]}
    for photo in photos:
        image = noisy(middle(photo, SIZES[-1]), name, rng)
        tops, lefts = ([i * (n - 64) // 3 for i in range(4)] for n in image.shape[-2:])
        small = [image[..., y : y + 64, x : x + 64] for y in tops for x in lefts]
        base = statistics.mean(deviation(nt, GREY, nt.embed(part), rng) for part in small)
        for size in SIZES[1:]:
            if max(image.shape[-2:]) >= size:
                z = nt.embed(middle(image, size))
                ratios[size].append(deviation(nt, GREY, z, rng) / base)
    return {"noise": name} | {str(size): summary(r) for size, r in ratios.items() if r}


def deviation(
    nt: NoiseTransfer, clean: Tensor, z: Tensor, rng: torch.Generator, strength: float = 1.0
) -> float:
    return (nt.generate(clean, z, normal_noise(rng), strength) - clean).std().item()


@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    nt = NoiseTransfer.from_checkpoint(c.nt)
    images = (
        list(sample_photos().values()) if c.photos is None
        else [read_uint8(path) for path in photo_folder(c.photos)]
    )  # fmt: skip
    require(bool(images), f"{c.photos}: holds no images")
    photos = [integer_to_float(image)[None] for image in images]
    print_machine()
    strengths = [row for name in KNOWN_NOISE for row in by_strength(nt, photos, name, c.seed)]
    print_table("Deviation over that of true noise of so many times the strength", strengths)
    sizes = [by_size(nt, photos, name, c.seed) for name in KNOWN_NOISE]
    print_table("Deviation over that from references of 64 pixels, by the reference's size", sizes)
    write_json(c.json, {"strength": strengths, "size": sizes})


if __name__ == "__main__":
    exit_on_user_error(main)
