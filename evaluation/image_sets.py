"""Test sets: what the evaluation asks of one, and clean images under noise of known parameters.

data.test_sets finds those on the disk, data.cross_scene makes one.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from data.noise import NoiseModelDistribution, add_noise, known_correlation
from utils.seeding import randomness


class CleanImages(Protocol):
    """RGB images of any sizes, float32 (3, H, W) in [0, 1]."""

    name: str
    title: str  # in tables

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Tensor: ...

    def size(self, i: int) -> tuple[int, int]:
        """(H, W), without reading the image."""

    def image_name(self, i: int) -> str: ...


class ImagePairs(Protocol):
    """Clean images, each with a noisy one of its size."""

    name: str
    title: str

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """(clean, noisy), float32 (3, H, W) in [0, 1]."""

    def size(self, i: int) -> tuple[int, int]: ...

    def image_name(self, i: int) -> str: ...

    def kind(self, i: int) -> str | None:
        """Equal for images with noise of one kind, camera and ISO, say; None: not known."""

    def second_shot(self, i: int) -> int | None:
        """The index of another noisy image of the same scene and kind, if there is one."""


class KnownNoise:
    """Clean images with synthetic noise of known parameters, as a test set of pairs.

    Image i is the clean image i // M under model i % M of the M in `models`, title -> fixed
    setting; its kind is that title. correlations: title -> what the noise of neighbours correlates
    by (`known_correlation`); the others' is white. At most `limit` clean images, of each its middle
    of at most `side` pixels a side; before them come three uniform ones of 128x128 pixels.
    """

    FLAT = (0.25, 0.5, 0.75)

    def __init__(
        self,
        clean: CleanImages,
        models: Mapping[str, NoiseModelDistribution],
        limit: int,
        side: int = 256,
        seed: int = 0,
        correlations: Mapping[str, float] | None = None,
    ) -> None:
        self.clean, self.models, self.side, self.seed = clean, models, side, seed
        self.correlations = {k: known_correlation(r) for k, r in (correlations or {}).items()}
        self.name, self.title = clean.name, clean.title
        self.count = min(limit, len(clean))

    def __len__(self) -> int:
        return (len(self.FLAT) + self.count) * len(self.models)

    def clean_image(self, i: int) -> Tensor:
        k = i // len(self.models)
        if k < len(self.FLAT):
            return torch.full((3, 128, 128), self.FLAT[k])
        return middle(self.clean[k - len(self.FLAT)], self.side)

    def is_flat(self, i: int) -> bool:
        return i // len(self.models) < len(self.FLAT)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        clean = self.clean_image(i)
        rng = randomness(self.seed, i)
        model = self.models[self.kind(i)].draw(1, rng.choices)
        correlation = self.correlations.get(self.kind(i))
        return clean, add_noise(clean[None], model, rng.pixels, correlation)[0]

    def kind(self, i: int) -> str:
        return list(self.models)[i % len(self.models)]

    def second_shot(self, i: int) -> None:
        return None

    def size(self, i: int) -> tuple[int, int]:
        if self.is_flat(i):
            return 128, 128
        height, width = self.clean.size(i // len(self.models) - len(self.FLAT))
        return min(height, self.side), min(width, self.side)

    def image_name(self, i: int) -> str:
        k = i // len(self.models)
        if self.is_flat(i):
            return f"flat_{self.FLAT[k]}"
        return self.clean.image_name(k - len(self.FLAT))


def middle(image: Tensor, side: int) -> Tensor:
    """(..., H, W) -> its middle of at most `side` pixels a side."""
    top, left = (max(n - side, 0) // 2 for n in image.shape[-2:])
    return image[..., top : top + side, left : left + side]
