"""What a generated image takes its noise from, and the floor: how far real noise is from itself.

| reference | is | asks |
|---|---|---|
| paired | the image's own noisy image (the paper's protocol) | is the noise the same? |
| unpaired | another noisy image of the kind (camera and ISO, or shot) | by kind alone? |
| cross | a noisy image of another kind | does the reference matter? Must be worse. |
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from evaluation.image_sets import ImagePairs
from models.layers import NoiseSource
from utils.errors import UserError
from utils.noise_statistics import VARIANCE_FLOOR, noise_level_function
from utils.seeding import derived_seed
from utils.transfer_settings import MIN_REFERENCE

ReferenceProtocol = Literal["paired", "unpaired", "cross"]

Transfer = Callable[[Tensor, Tensor, NoiseSource], Tensor]
"""transfer(clean, reference, noise) -> noisy; all (B, 3, H, W) in [0, 1]; a NoiseTransfer, say."""

OTHER_HALF = -1

# Real noise this far away is as good as another draw: neighbours correlate over two or three
# pixels, and AKLD's window has a radius of three.
FLOOR_SHIFT = 8


def reference_indices(
    test_set: ImagePairs, count: int, protocol: ReferenceProtocol, seed: int
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


def has_cross_references(test_set: ImagePairs) -> bool:
    """Whether there are two kinds of noise in the set."""
    return len({test_set.kind(i) or i for i in range(len(test_set))}) > 1


def transfer_between_halves(
    transfer: Transfer, clean: Tensor, noisy: Tensor, noise: NoiseSource
) -> Tensor:
    """Each half of `clean` with noise like that of the other half of `noisy`; both (B, 3, H, W).

    The longer side is halved. UserError if the halves are too small for a reference.
    """
    axis = 2 if clean.shape[2] > clean.shape[3] else 3
    length = clean.shape[axis]
    if length < 2 * MIN_REFERENCE:
        raise UserError(
            f"an image of {clean.shape[3]}x{clean.shape[2]} cannot be its own unpaired reference: "
            f"expected a side of {2 * MIN_REFERENCE} pixels or more; leave the protocol out, or "
            "remove the image"
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
