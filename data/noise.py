"""Synthetic noise, batched.

Gaussian, Poisson, and Poisson followed by Gaussian (docs/method.md 4; paper, Sec. 4); beyond the
paper, Gaussian noise of a random noise level function, and random correlation for noise of any
kind (docs/method.md 9).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

KNOTS = 5  # of a noise level function: intensities 0, 1/4, 1/2, 3/4, 1
POISSON_DRAWS = 2**16  # random numbers that a CUDA thread may take for its counts, a multiple of 4
TAPS = 5  # of a correlation's kernel, an axis


@dataclass(frozen=True)
class NoiseModel:
    """One noise model per image, all (B,).

    sigma: standard deviation of the Gaussian part on [0, 1] images, 0 for none.
    chi: photon count of white for the Poisson part, infinite for none.
    level: (B, 3, KNOTS), standard deviation on [0, 1] images of signal-dependent Gaussian noise at
    KNOTS intensities of each channel, linear between them; 0 for none, None: for no image.
    """

    sigma: Tensor
    chi: Tensor
    level: Tensor | None = None

    def to(self, device: torch.device) -> "NoiseModel":
        level = None if self.level is None else self.level.to(device)
        return NoiseModel(self.sigma.to(device), self.chi.to(device), level)


@dataclass(frozen=True)
class NoiseModelDistribution:
    """Which models are drawn: probabilities of (Gaussian, Poisson, both) and uniform ranges.

    sigma: range in 8-bit steps (of 255); chi: range in photons. A fourth probability is that of a
    random noise level function, see `random_level`, of a strength log-uniform in `level` (of 255).
    """

    probabilities: tuple[float, float, float] | tuple[float, float, float, float]
    sigma: tuple[float, float]
    chi: tuple[float, float]
    level: tuple[float, float] = (1.0, 45.0)

    def draw(self, n: int, generator: torch.Generator) -> NoiseModel:
        weights = torch.tensor(self.probabilities, dtype=torch.float64)
        kind = torch.multinomial(weights, n, replacement=True, generator=generator)
        u = torch.rand(2, n, generator=generator)
        sigma = (self.sigma[0] + u[0] * (self.sigma[1] - self.sigma[0])) / 255
        chi = self.chi[0] + u[1] * (self.chi[1] - self.chi[0])
        level = None
        if self.probabilities[3:]:
            level = random_level(n, self.level, generator) * (kind == 3)[:, None, None]
        return NoiseModel(
            sigma=torch.where((kind == 0) | (kind == 2), sigma, 0.0),
            chi=torch.where((kind == 1) | (kind == 2), chi, torch.inf),
            level=level,
        )


def random_level(n: int, strength: tuple[float, float], generator: torch.Generator) -> Tensor:
    """(n, 3, KNOTS) standard deviations on [0, 1] images: noise level functions of many shapes.

    The mean over channels and knots of the logarithm is log-uniform in `strength` (of 255). Around
    it, in the logarithm: a slope over the intensity and a bend, normal, deviation 0.6 and 0.3 from
    one end to the other or the middle to the ends; a channel's own offset, 0.25; a knot's, 0.1. In
    sRGB, phones' functions rise out of the dark, bend and fall towards white (SIDD, RENOIR).
    """
    low, high = (torch.tensor(s / 255).log() for s in strength)
    base = low + (high - low) * torch.rand(n, 1, 1, generator=generator)
    x = torch.linspace(-0.5, 0.5, KNOTS)
    slope, bend = torch.randn(2, n, 1, 1, generator=generator)
    curve = 0.6 * slope * x + 0.3 * bend * (4 * x.square() - 0.5)  # Eq. 9.11
    channel = 0.25 * torch.randn(n, 3, 1, generator=generator)
    return (base + curve + channel + 0.1 * torch.randn(n, 3, KNOTS, generator=generator)).exp()


def add_noise(
    clean: Tensor,
    model: NoiseModel,
    generator: torch.Generator,
    correlation: "NoiseCorrelation | None" = None,
) -> Tensor:
    """Eq. 4.12: clean (B, 3, H, W) in [0, 1] -> noisy, clipped to [0, 1], not quantised.

    Poisson: counts of mean clean * chi, divided by chi; then Gaussian. correlation: what the noise
    goes through before it is clipped. `generator` lives on clean's device.
    """
    noisy = clean.clone()
    at = (model.chi < torch.inf).nonzero().squeeze(1)
    if len(at):
        chi = _per_image(model.chi[at], clean.device)
        at = at.to(clean.device)
        counts = torch.poisson(clean.index_select(0, at).mul_(chi), generator=generator)
        if generator.device.type == "cuda":
            # A count takes as many random numbers as it needs, but the generator moves on by 20:
            # the next draws would repeat what the counts were made of.
            generator.set_offset(generator.get_offset() + POISSON_DRAWS)
        noisy.index_copy_(0, at, counts.div_(chi))
    at = (model.sigma > 0).nonzero().squeeze(1)
    if len(at):
        sigma = _per_image(model.sigma[at], clean.device)
        normal = torch.randn(len(at), *clean.shape[1:], device=clean.device, generator=generator)
        noisy.index_add_(0, at.to(clean.device), normal.mul_(sigma))
    at = [] if model.level is None else model.level.any(dim=(1, 2)).nonzero().squeeze(1)
    if len(at):
        device_at = at.to(clean.device)
        level = model.level[at].to(clean.device)
        x = clean.index_select(0, device_at)
        normal = torch.randn(x.shape, device=clean.device, generator=generator)
        noisy.index_add_(0, device_at, normal.mul_(interpolate(level, x)))
    if correlation is not None:
        noisy = correlation(noisy.sub_(clean)).add_(clean)
    return noisy.clamp_(0, 1)


def interpolate(level: Tensor, x: Tensor) -> Tensor:
    """level (B, 3, KNOTS) at the intensities x (B, 3, H, W) in [0, 1], linear between the knots."""
    # A sum of ramps: level_0 + sum over knots of (change of slope) * max(x - knot, 0).
    slopes = level.diff(dim=2) * (KNOTS - 1)
    bends = slopes.diff(dim=2, prepend=torch.zeros_like(slopes[..., :1]))
    value = level[..., 0, None, None].expand_as(x)
    for i in range(KNOTS - 1):
        value = torch.addcmul(value, bends[..., i, None, None], (x - i / (KNOTS - 1)).relu())
    return value


@dataclass(frozen=True)
class NoiseCorrelation:
    """How white noise becomes correlated, one way per image, its energy kept.

    kernel: (B, 3, 2, TAPS), of each channel along height and width, unit sums of squares; mixing:
    (B, 3, 3), of the channels, rows of unit length.
    """

    kernel: Tensor
    mixing: Tensor

    def __call__(self, noise: Tensor) -> Tensor:
        """noise: (B, 3, H, W), independent from pixel to pixel and channel to channel."""
        batch, _, height, width = noise.shape
        kernel = self.kernel.to(noise.device).flatten(0, 1)  # (3 B, 2, TAPS)
        # Round the borders: noise reflected at them would be counted twice and be stronger there.
        x = F.pad(noise.reshape(1, 3 * batch, height, width), (TAPS // 2,) * 4, mode="circular")
        x = F.conv2d(x, kernel[:, 0, None, :, None], groups=3 * batch)
        x = F.conv2d(x, kernel[:, 1, None, None, :], groups=3 * batch)
        return torch.einsum(
            "bij,bjhw->bihw", self.mixing.to(noise.device), x.view(batch, 3, height, width)
        )


def known_correlation(neighbour: float) -> NoiseCorrelation:
    """For one image: neighbours along both axes correlate by `neighbour`, channels not at all.

    The kernel of either axis is (0, a, 1, a, 0) with 2 a / (1 + 2 a^2) = neighbour; diagonal
    neighbours have its square. ValueError outside [0, 0.707], beyond which there is no such a.
    """
    if not 0 <= neighbour <= 0.5**0.5:
        raise ValueError(f"neighbour: expected 0 to 0.707, got {neighbour}")
    a = neighbour / (1 + max(0, 1 - 2 * neighbour**2) ** 0.5)
    kernel = F.normalize(torch.tensor([0, a, 1, a, 0]), dim=0)
    return NoiseCorrelation(kernel.expand(1, 3, 2, TAPS), torch.eye(3)[None])


@dataclass(frozen=True)
class NoiseCorrelationDistribution:
    """Which correlations are drawn: none with probability 1 - p, else a camera's or stronger.

    An axis's kernel is (c, a, 1, a, c), as demosaicing, smoothing or sharpening leave one; a is
    uniform in `neighbour`, then up to 30 % more or less an axis, half to 1.2 times a channel (of
    cameras green differs from red and blue); c / a is uniform in `second`. Neighbours correlate by
    (2 a + 2 a c) / (1 + 2 a^2 + 2 c^2): at c = 0 by 0.44 for a = 0.25. Channels are mixed by up to
    `colour`.
    """

    p: float
    neighbour: tuple[float, float] = (0.0, 0.6)
    second: tuple[float, float] = (-0.3, 0.5)
    colour: float = 0.8

    def draw(self, n: int, generator: torch.Generator) -> NoiseCorrelation:
        u = torch.rand(n, 2, generator=generator)[:, None, None, :]  # (n, 1, 1, 2)
        axis = 0.7 + 0.6 * torch.rand(n, 1, 2, generator=generator)
        channel = 0.5 + 0.7 * torch.rand(n, 3, 1, generator=generator)
        a = (self.neighbour[0] + u[..., 0] * (self.neighbour[1] - self.neighbour[0])) * axis
        a = a * channel  # (n, 3, 2)
        c = a * (self.second[0] + u[..., 1] * (self.second[1] - self.second[0]))
        kernel = torch.stack([c, a, torch.ones_like(a), a, c], dim=-1)  # Eq. 9.12
        amount = self.colour * torch.rand(n, 1, 1, generator=generator)
        mixing = torch.eye(3) + amount * (torch.rand(n, 3, 3, generator=generator) - 0.35)
        white = torch.rand(n, generator=generator) >= self.p
        kernel[white] = F.one_hot(torch.tensor(TAPS // 2), TAPS).float()
        mixing[white] = torch.eye(3)
        return NoiseCorrelation(F.normalize(kernel, dim=-1), F.normalize(mixing, dim=-1))


def correlate(noisy: Tensor, clean: Tensor, correlation: NoiseCorrelation) -> Tensor:
    """noisy (B, 3, H, W) in [0, 1] with its noise, white so far, correlated; clipped to [0, 1]."""
    return correlation(noisy - clean).add_(clean).clamp_(0, 1)


def _per_image(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device)[:, None, None, None]
