"""Noise of references as an augmentation of kornia (pip install kornia)."""

from collections.abc import Sequence
from typing import Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from models.noise_transfer import NoiseTransfer
from models.transform import SeededNoise


class RandomReferenceNoise(IntensityAugmentationBase2D):
    """images (B, 3, H, W) or (3, H, W) in [0, 1] -> noisy: each has a reference, at random.

    transfer, references, strength: `SeededNoise`'s; the rest is kornia's, but always applied by
    default. Seeds come from torch's global generator and go into `_params`, so that
    `augment(images, params=augment._params)` adds the same noise again.
    """

    def __init__(
        self,
        transfer: NoiseTransfer,
        references: Sequence[Tensor],
        strength: float | tuple[float, float] = 1.0,
        same_on_batch: bool = False,
        p: float = 1.0,
        keepdim: bool = False,
    ) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, keepdim=keepdim)
        self.noise = SeededNoise(transfer, references, strength)

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        count = batch_shape[0]
        return {"seed": torch.randint(2**62, (1 if self.same_on_batch else count,)).expand(count)}

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        return self.noise(input, params["seed"].tolist())
