"""How strong the noise is at each intensity: measured on the reference, put right in the result.

The embedding tells badly how a reference's noise differs between intensities, and the generator,
which follows it, makes of photon noise what clipped Gaussian noise would be. Beyond the paper, for
weights with a levels.pt: docs/method.md 9, Eq. 9.17 to 9.20.
"""

import math
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
MEASURED = 3 * BINS + 4  # numbers that measured_levels says of a channel
FINE, BLOCK = 6, 8  # pixels a side of the windows, which overlap by half
HIDDEN = 192


class Windows(NamedTuple):
    """Of images (B, 3, H, W) in [0, 1], in windows: (B, 3, windows) each, energies being the mean
    square of what is more noise than picture."""

    fine: Tensor
    """Energy of second differences in windows of FINE pixels: hardly any picture is in it, but of
    correlated noise it is less than the variance, by a factor that is one for all windows."""
    fine_intensity: Tensor
    block: Tensor
    """Energy beyond a plane in windows of BLOCK pixels: nearly the variance of any noise, and
    more of the picture's texture."""
    block_intensity: Tensor


def windows(noisy: Tensor) -> Windows:
    """The first by Immerkaer 1996, DOI 10.1006/cviu.1996.0060. Of white noise, both energies are
    the variance."""
    x = noisy.float()
    rest = x[..., 2:, :] - 2 * x[..., 1:-1, :] + x[..., :-2, :]
    rest = (rest[..., 2:] - 2 * rest[..., 1:-1] + rest[..., :-2]) / 6
    both = rest.square(), x[..., 1:-1, 1:-1]
    fine = (F.avg_pool2d(y, FINE, FINE // 2).flatten(2) for y in both)
    blocks = x.unfold(2, BLOCK, BLOCK // 2).unfold(3, BLOCK, BLOCK // 2)
    return Windows(*fine, *_beyond_a_plane(blocks))


def _beyond_a_plane(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, h, w, BLOCK, BLOCK) -> (B, 3, h w) mean square, by degrees of freedom; and mean.

    Without products of matrices, which autocast and TF32 would round.
    """
    mean = blocks.mean((-2, -1), keepdim=True)
    rest = blocks - mean
    slope = torch.arange(BLOCK, device=blocks.device) - (BLOCK - 1) / 2
    squares = BLOCK**2 * (BLOCK**2 - 1) / 12  # of the slope, over a block
    for axis in (slope[:, None], slope):
        rest = rest - axis * (rest * axis).sum((-2, -1), keepdim=True) / squares
    return rest.square().sum((-2, -1)).flatten(2) / (BLOCK**2 - 3), mean.flatten(2)


def in_bins(intensity: Tensor, edges: Sequence[float] = EDGES) -> Tensor:
    """Which of the bins between the edges each of (...,) is in, as 0 and 1: (bins, ...)."""
    above = torch.stack([(intensity >= edge).to(intensity.dtype) for edge in edges])
    ones = torch.ones_like(above[:1])
    return torch.cat([ones, above]) - torch.cat([above, 0 * ones])


def measured_levels(w: Windows) -> Tensor:
    """(B, 3, MEASURED) of a reference, in logarithms of the deviation: of the fine windows and of
    the blocks, how each bin of the intensity is above the whole channel; then the channel's, about
    10 of 255, and the mean of the three channels', of both; then, of the fine windows, the roots of
    the bins' shares.
    """
    bins, wholes, shares = [], [], []
    for energy, intensity in (w[:2], w[2:]):
        whole, level, count = _harmonic(energy, intensity)
        bins.append((level - whole[..., None]) * count / (count + 4))  # Eq. 9.17
        whole = whole + math.log(25.5)
        wholes += [whole, whole.mean(1, keepdim=True).expand_as(whole)]
        shares.append((count / energy.shape[2]).sqrt())
    return torch.cat([*bins, torch.stack(wholes, dim=2), shares[0]], dim=2)


def _harmonic(energy: Tensor, intensity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log root of the harmonic means, in which windows with edges and texture hardly count: of
    all windows (B, 3) and of each bin (B, 3, BINS); and the windows of each bin."""
    floor = (0.3 / 255) ** 2 + 0.02 * energy.mean(2, keepdim=True)
    inverse = 1 / (energy + floor)
    inside = in_bins(intensity)
    count = inside.sum(3).permute(1, 2, 0)
    whole = inverse.mean(2)
    level = (inside * inverse).sum(3).permute(1, 2, 0) / count.clamp_min(1)
    level = torch.where(count > 0, level, whole[..., None])
    return -whole.log() / 2, -level.log() / 2, count


class LevelGain(nn.Module):
    """By how much the generator's noise is to be stronger at each intensity, from what it was told
    and what was measured: a small network, the same for the three channels but for what it adds to
    each, which starts with no change."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        told, knots = embed_dim + MEASURED + 3, len(KNOTS)
        self.hidden = nn.Linear(told, HIDDEN)
        self.last = nn.Linear(HIDDEN, knots)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("knots", torch.tensor(KNOTS), persistent=False)
        self.register_buffer("channels", torch.eye(3), persistent=False)

    def forward(self, z: Tensor, measured: Tensor) -> Tensor:
        """Unit z (B, d), measured_levels (B, 3, MEASURED) -> log gains (B, CURVE): at KNOTS, of
        red, of green, of blue."""
        told = z[:, None].expand(-1, 3, -1) * self.embed_dim**0.5
        told = torch.cat([told, measured, self.channels.expand(len(z), 3, 3)], dim=2)
        return self.last(F.relu(self.hidden(told))).flatten(1)  # Eq. 9.18

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
