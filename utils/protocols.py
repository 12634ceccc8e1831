"""What a generated image takes its noise from, and the floor: how far real noise is from itself.

| reference | is | asks |
|---|---|---|
| paired | the image's own noisy image (the paper's protocol) | is the noise the same? |
| unpaired | another noisy image of the kind (camera and ISO, or shot) | by kind alone? |
| cross | a noisy image of another kind | does the reference matter? Must be worse. |
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data.noise import NoiseModelDistribution, add_noise, known_correlation
from data.test_sets import CleanTestSet, PairedTestSet
from models.layers import NoiseSource
from utils.errors import UserError
from utils.noise_statistics import VARIANCE_FLOOR, noise_level_function
from utils.seeding import derived_seed, randomness

Protocol = Literal["paired", "unpaired", "cross"]

OTHER_HALF = -1

# Real noise this far away is as good as another draw: neighbours correlate over two or three
# pixels, and AKLD's window has a radius of three.
FLOOR_SHIFT = 8


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
        clean: CleanTestSet,
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


def reference_indices(
    test_set: PairedTestSet, count: int, protocol: Protocol, seed: int
) -> list[int]:
    """Which image's noisy side each of the first `count` images takes as its reference.

    unpaired: an image of the same kind, drawn by (seed, image); OTHER_HALF, of the image's own
    noisy photo, where its kind is not known or has no other image. cross: an image of another kind,
    likewise; images of unknown kind are each their own. UserError if the whole set is of one kind.
    """
    if protocol == "paired":
        return list(range(count))
    every = range(len(test_set))
    kinds = [test_set.kind(i) or f"image {i}" for i in every]
    same = protocol == "unpaired"
    chosen = []
    for i in range(count):
        others = [j for j in every if j != i and (kinds[j] == kinds[i]) == same]
        if others:
            generator = torch.Generator().manual_seed(derived_seed(seed, i, 7))
            chosen.append(others[torch.randint(len(others), (), generator=generator)])
        elif same:
            chosen.append(OTHER_HALF)
        else:
            raise UserError(
                f"{test_set.title}: all images are of one kind of noise, {kinds[i]}; cross "
                "references need two kinds: leave the protocol out"
            )
    return chosen


def has_cross_references(test_set: PairedTestSet) -> bool:
    """Whether there are two kinds of noise in the set."""
    return len({test_set.kind(i) or i for i in range(len(test_set))}) > 1


def transfer_between_halves(transfer, clean: Tensor, noisy: Tensor, noise: NoiseSource) -> Tensor:
    """Each half of `clean` with noise like that of the other half of `noisy`; both (B, 3, H, W).

    The longer side is halved. UserError if it has less than 32 pixels.
    """
    axis = 2 if clean.shape[2] > clean.shape[3] else 3
    length = clean.shape[axis]
    if length < 32:
        raise UserError(
            f"an image of {clean.shape[3]}x{clean.shape[2]} cannot be its own unpaired reference: "
            "expected a side of 32 pixels or more; leave the protocol out, or remove the image"
        )
    (c1, c2), (n1, n2) = (x.tensor_split([length // 2], dim=axis) for x in (clean, noisy))
    return torch.cat([transfer(c1, n2, noise), transfer(c2, n1, noise)], dim=axis)


def floor_pair(
    clean: Tensor, noisy: Tensor, second: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(another draw of the real noise, the real image, the clean image), (3, H', W') each.

    second: the noise, noisy - clean, of a second shot of the scene. Without one the image's own
    noise stands in: moved by FLOOR_SHIFT pixels along both axes, of which the images lose as many,
    and scaled by the noise level function from the strength that it had there to the one it has to
    have here. (Every second pixel against the others, instead, whitens correlated noise, and gives
    too low a floor.)
    """
    if second is not None:
        return clean + second, noisy, clean
    s = FLOOR_SHIFT
    sigma = noise_sigma(clean, noisy)
    standardised = ((noisy - clean) / sigma)[..., s:, s:]
    clean, noisy, sigma = (x[..., :-s, :-s] for x in (clean, noisy, sigma))
    return clean + sigma * standardised, noisy, clean


def noise_sigma(clean: Tensor, noisy: Tensor) -> Tensor:
    """(3, H, W): the noise's standard deviation at each pixel, by its channel's intensity alone.

    The noise level function of the pair, linear between the middles of its bins; one level for the
    channel where no bin has enough pixels (images of less than 32x32).
    """
    levels = noise_level_function(noisy[None], clean[None])[0].double().cpu().numpy()
    none = np.isnan(levels).all(axis=1)
    levels[none, 0] = (noisy - clean).flatten(1).double().var(dim=1).cpu().numpy()[none]
    middles = (np.arange(levels.shape[1]) + 0.5) / levels.shape[1]
    sigma = torch.empty_like(clean)
    for channel, level, out in zip(clean, levels, sigma, strict=True):
        full = np.isfinite(level)
        variance = np.interp(channel.cpu().numpy(), middles[full], level[full])
        out.copy_(torch.from_numpy(np.sqrt(np.maximum(variance, VARIANCE_FLOOR))))
    return sigma
