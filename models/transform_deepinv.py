"""Noise of references as a noise model of deepinv (pip install "deepinv>=0.5")."""

from collections.abc import Sequence
from typing import Any

import torch
from deepinv.physics import NoiseModel
from torch import Tensor

from models.noise_transfer import NoiseTransfer
from models.transform import SeededNoise


class ReferenceNoise(NoiseModel):
    """x (B, 3, H, W) in [0, 1] -> noisy: the images of a call have one reference, at random.

    strength: factor of the noise, one or (B,); what a call is given stays. The rest is
    `SeededNoise`'s. A call takes its seed from `rng`, or from torch's global generator without one.
    """

    def __init__(
        self,
        transfer: NoiseTransfer,
        references: Sequence[Tensor],
        strength: float | Tensor = 1.0,
        rng: torch.Generator | None = None,
    ) -> None:
        # Of `a * b`, deepinv runs what is given here, not `forward`.
        super().__init__(noise_model=self._add, rng=rng)
        self.noise = SeededNoise(transfer, references)
        self.register_buffer("strength", self._float_to_tensor(strength))

    def forward(
        self,
        x: Tensor,
        strength: float | Tensor | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        self.update_parameters(strength=strength, **kwargs)
        if self.noise.z.device != x.device:  # else `to` would take rng from under an `a * b`
            self.to(x.device)
        self.rng_manual_seed(seed)
        return self._add(x)

    def _add(self, x: Tensor) -> Tensor:
        device = self.rng.device if self.rng else None
        seed = int(torch.randint(2**62, (), generator=self.rng, device=device))
        return self.noise(x, [seed], self.strength[(..., *[None] * (x.ndim - 1))])
