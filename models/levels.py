"""How strong the noise is at each intensity: measured on the reference, put right in the result.

The embedding tells badly how a reference's noise differs between intensities, and the generator,
which follows it, makes of photon noise what clipped Gaussian noise would be. Beyond the paper, for
weights with a levels.pt: docs/method.md 9, Eq. 9.17 to 9.20.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of the intensity, from black to white; closer in the dark, where clipping and photon noise leave
# the most different deviations.
EDGES = 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4
BINS = len(EDGES) + 1
KNOTS = 0.0, *EDGES, 1.0
CURVE = 3 * len(KNOTS)  # numbers of a curve of gains, of three channels
WINDOW = 6  # pixels a side
HIDDEN = 96


class Windows(NamedTuple):
    """Of images (B, 3, H, W) in [0, 1], in windows of WINDOW pixels: (B, 3, windows) each."""

    energy: Tensor
    """Mean square of what two second differences leave, which is noise more than picture."""
    intensity: Tensor


def windows(noisy: Tensor) -> Windows:
    """Immerkaer 1996, DOI 10.1006/cviu.1996.0060; of white noise, the energy is the variance. Of
    correlated noise it is less, by one factor: differences between windows stay."""
    x = noisy.float()
    rest = x[..., 2:, :] - 2 * x[..., 1:-1, :] + x[..., :-2, :]
    rest = (rest[..., 2:] - 2 * rest[..., 1:-1] + rest[..., :-2]) / 6
    both = rest.square(), x[..., 1:-1, 1:-1]
    return Windows(*(F.avg_pool2d(y, WINDOW, WINDOW // 2).flatten(2) for y in both))


def in_bins(intensity: Tensor, edges: Sequence[float] = EDGES) -> Tensor:
    """Which of the bins between the edges each of (...,) is in, as 0 and 1: (bins, ...)."""
    above = torch.stack([(intensity >= edge).to(intensity.dtype) for edge in edges])
    ones = torch.ones_like(above[:1])
    return torch.cat([ones, above]) - torch.cat([above, 0 * ones])


def measured_levels(w: Windows) -> Tensor:
    """(B, 2 BINS) of a reference: log deviation in each bin of the intensity, about that of all
    windows, mean over the channels; then which bins have windows enough, as 0 and 1.

    By the harmonic mean of the energies, in which windows with edges and texture hardly count.
    """
    floor = (0.3 / 255) ** 2 + 0.02 * w.energy.mean(2, keepdim=True)
    inverse = 1 / (w.energy + floor)
    inside = in_bins(w.intensity)
    count = inside.sum(3).permute(1, 2, 0)  # (B, 3, BINS)
    mean = (inside * inverse).sum(3).permute(1, 2, 0) / count.clamp_min(1)
    mean = torch.where(count > 0, mean, 1)
    level = (inverse.mean(2, keepdim=True) / mean).log() / 2  # Eq. 9.17
    seen = count.sum(1)
    level = (level * count).sum(1) / (seen + 4)  # few windows: little is believed
    shown = (seen >= 6).to(level.dtype)
    return torch.cat([level * shown, shown], dim=1)


class LevelGain(nn.Module):
    """By how much the generator's noise is to be stronger at each intensity, from what it was told
    and what was measured: a small network, which starts with no change."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.measured = nn.Linear(2 * BINS, CURVE, bias=False)
        self.hidden = nn.Linear(embed_dim + 2 * BINS, HIDDEN)
        self.last = nn.Linear(HIDDEN, CURVE)
        for parameter in (self.measured.weight, *self.last.parameters()):
            nn.init.zeros_(parameter)
        self.register_buffer("knots", torch.tensor(KNOTS), persistent=False)

    def forward(self, z: Tensor, measured: Tensor) -> Tensor:
        """Unit z (B, d), measured_levels (B, 2 BINS) -> log gains (B, CURVE): at KNOTS, of red, of
        green, of blue."""
        told = torch.cat([z * self.embed_dim**0.5, measured], dim=1)
        return self.measured(measured) + self.last(F.relu(self.hidden(told)))  # Eq. 9.18

    def gain(self, curve: Tensor, intensity: Tensor) -> Tensor:
        """forward's curve (B, CURVE) between the knots, at intensity (B, 3, ...) in [0, 1] ->
        factors of the same shape."""
        at_knots = curve.unflatten(1, (3, len(KNOTS)))
        slope = at_knots.diff(dim=2) / self.knots.diff()
        offset = at_knots[..., :-1] - slope * self.knots[:-1]
        x = intensity.flatten(2).contiguous()
        piece = torch.bucketize(x, self.knots[1:-1], right=True)
        line = offset.gather(2, piece) + slope.gather(2, piece) * x
        return line.exp().view_as(intensity)  # Eq. 9.19
