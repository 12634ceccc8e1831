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
    noisy = clean.clone()
    at = (model.chi < torch.inf).nonzero().squeeze(1)
    if len(at):
        chi = _per_image(model.chi[at], clean.device)
        at = at.to(clean.device)
        counts = torch.poisson(clean.index_select(0, at).mul_(chi), generator=generator)
        noisy.index_copy_(0, at, counts.div_(chi))
    at = (model.sigma > 0).nonzero().squeeze(1)
    if len(at):
        sigma = _per_image(model.sigma[at], clean.device)
        normal = torch.randn(len(at), *clean.shape[1:], device=clean.device, generator=generator)
        noisy.index_add_(0, at.to(clean.device), normal.mul_(sigma))
    return noisy.clamp_(0, 1)


def _per_image(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device)[:, None, None, None]
