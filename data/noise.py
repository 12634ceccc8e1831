"""Synthetic noise, batched: Gaussian, Poisson, and Poisson followed by Gaussian (paper, Sec. 4)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseModel:
    """One noise model an image, all (B,).

    sigma: standard deviation of the Gaussian part on [0, 1] images, 0 for none.
    chi: photon count of white for the Poisson part, infinite for none.
    """

    sigma: Tensor
    chi: Tensor

    def to(self, device: torch.device) -> "NoiseModel":
        return NoiseModel(self.sigma.to(device), self.chi.to(device))


@dataclass(frozen=True)
class NoiseModelDistribution:
    """Which models are drawn: probabilities of (Gaussian, Poisson, both) and uniform ranges.

    sigma: range in 8-bit steps (of 255); chi: range in photons.
    """

    probabilities: tuple[float, float, float]
    sigma: tuple[float, float]
    chi: tuple[float, float]

    def draw(self, n: int, generator: torch.Generator) -> NoiseModel:
        weights = torch.tensor(self.probabilities, dtype=torch.float64)
        kind = torch.multinomial(weights, n, replacement=True, generator=generator)
        u = torch.rand(2, n, generator=generator)
        sigma = (self.sigma[0] + u[0] * (self.sigma[1] - self.sigma[0])) / 255
        chi = self.chi[0] + u[1] * (self.chi[1] - self.chi[0])
        return NoiseModel(
            sigma=torch.where(kind == 1, torch.zeros_like(sigma), sigma),
            chi=torch.where(kind == 0, torch.full_like(chi, torch.inf), chi),
        )


# Of the synthetic items that train the generator (method 4).
GENERATOR_NOISE = NoiseModelDistribution((0.2, 0.2, 0.6), sigma=(0, 70), chi=(5, 100))


def add_noise(clean: Tensor, model: NoiseModel, generator: torch.Generator) -> Tensor:
    """clean (B, 3, H, W) in [0, 1] -> noisy, clipped to [0, 1], not quantised.

    Poisson: counts of mean clean * chi, divided by chi; then Gaussian. `generator` lives on
    clean's device.
    """
    model = model.to(clean.device)
    sigma, chi = model.sigma[:, None, None, None], model.chi[:, None, None, None]
    has_poisson = torch.isfinite(chi)
    finite_chi = torch.where(has_poisson, chi, torch.ones_like(chi))
    shot = torch.poisson(clean * finite_chi, generator=generator) / finite_chi
    noisy = torch.where(has_poisson, shot, clean)
    normal = torch.randn(clean.shape, device=clean.device, generator=generator)
    return (noisy + sigma * normal).clamp(0, 1)
