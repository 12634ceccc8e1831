"""Synthetic noise, batched: Gaussian, Poisson, and Poisson followed by Gaussian (paper, Sec. 4)."""

import functools
from dataclasses import dataclass

import numpy as np
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
        counts = poisson(clean.index_select(0, at).mul_(chi), generator)
        noisy.index_copy_(0, at, counts.div_(chi))
    at = (model.sigma > 0).nonzero().squeeze(1)
    if len(at):
        sigma = _per_image(model.sigma[at], clean.device)
        normal = torch.randn(len(at), *clean.shape[1:], device=clean.device, generator=generator)
        noisy.index_add_(0, at.to(clean.device), normal.mul_(sigma))
    return noisy.clamp_(0, 1)


def _per_image(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device)[:, None, None, None]


def poisson(rate: Tensor, generator: torch.Generator) -> Tensor:
    """Counts of Poisson distributions with means `rate`, float32, any shape; as torch.poisson.

    On the CPU, for rates up to MAX_RATE, it is 5 times as fast and as exact: with g the largest
    multiple of 1 / STEPS below the rate, Poisson(rate) = Poisson(g) + Poisson(rate - g). The first
    comes from an alias table (A. J. Walker, DOI 10.1145/355744.355749): one of 256 counts, or its
    alias. The second, mostly zero, is a Poisson process of density 1 / STEPS over the pixels, its
    points kept with probability (rate - g) STEPS.
    """
    if rate.device.type != "cpu" or float(rate.max()) > MAX_RATE:
        return torch.poisson(rate, generator=generator)
    # The generator of PyTorch takes three times as long for 32 bits.
    bits = np.random.SFC64(int(torch.randint(2**62, (), generator=generator)))
    return torch.cat([_small_poisson(r, bits) for r in rate.flatten().split(BLOCK)]).view_as(rate)


STEPS = 16
MAX_RATE = 100  # chi of the method's noise models
BLOCK = 2**17  # values that fit into the second-level cache


def _small_poisson(rate: Tensor, bits: np.random.BitGenerator) -> Tensor:
    n = len(rate)
    scaled = rate * STEPS
    row = scaled.int()
    drawn = torch.from_numpy(bits.random_raw((n + 1) // 2).view(np.int32)[:n])
    slot = drawn & 255
    entry = _alias_table().index_select(0, torch.add(slot, row, alpha=256))
    alias = entry & 255
    keep = drawn < entry.bitwise_and_(-256)
    # torch.where mispredicts its branches here and takes twice as long.
    count = slot.sub_(alias).mul_(keep).add_(alias).float()

    rng = np.random.Generator(bits)
    points = rng.integers(n, size=rng.poisson(n / STEPS))
    kept = rng.random(len(points), np.float32) < scaled.sub_(row).numpy()[points]
    return count.index_add_(0, torch.from_numpy(points), torch.from_numpy(kept).float())


@functools.cache
def _alias_table() -> Tensor:
    """256 entries a rate 0, 1/STEPS, ..., MAX_RATE: int32, a 24-bit threshold above 8-bit alias.

    Thresholds are of signed 32-bit draws. Counts of 256 and more have p < 1e-36.
    """
    rate = torch.arange(MAX_RATE * STEPS + 1, dtype=torch.float64)[:, None] / STEPS
    count = torch.arange(256, dtype=torch.float64)
    pmf = torch.exp(torch.xlogy(count, rate) - rate - torch.lgamma(count + 1))
    height = (pmf / pmf.sum(dim=1, keepdim=True) * 256).numpy()  # of each slot; 1 when full
    row = np.arange(len(height))
    threshold, alias = np.ones_like(height), np.zeros_like(height, dtype=np.int64)
    for _ in range(255):  # fill the lowest slot of each row from its highest
        low, high = height.argmin(axis=1), height.argmax(axis=1)
        threshold[row, low], alias[row, low] = height[row, low], high
        height[row, high] -= 1 - height[row, low]
        height[row, low] = 1
    threshold = np.minimum(np.round(threshold * 2**24), 2**24 - 1).astype(np.int64) << 8
    return torch.from_numpy((threshold - 2**31 + alias).astype(np.int32)).flatten()
