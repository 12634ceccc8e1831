"""The loss terms, each a function of network outputs: NoiseTransfer's (paper, Sec. 3.4), and ours.

Ours match moments of the generated noise to those of the real, without an adversary, and have the
encoder tell the noise's statistics. They compare distributions through statistics that one draw of
each shows, as scoring rules do (Shen and Meinshausen 2025, arXiv:2307.00835; Pacchiardi et al.
2021, arXiv:2112.08217). The weights of all terms stand in `train_noiseTransfer.py`, where an
ablation changes them. Equations: docs/method.md 4 and 9.
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.embedding import INTENSITY_BINS, LEVELS, NEIGHBOURS
from utils.filters import gaussian_blur
from utils.noise_statistics import neighbours


def contrastive_loss(
    q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.1, first: int = 0
) -> tuple[Tensor, Tensor]:
    """InfoNCE of queries against their keys, the batch's other keys and the queue.

    q: (N, d), k: (M, d) unit rows, row first + i of k the positive of row i of q; queue: (d, K)
    unit columns. M > N where keys of other processes were gathered. Returns the loss and the top-1
    accuracy in [0, 1], both scalars, means over q.
    """
    logits = torch.cat([q @ k.T, q @ queue], dim=1).float() / temperature  # (N, M + K)
    row = torch.arange(len(q), device=q.device)
    positive = first + row
    probability = logits.softmax(dim=1)[row, positive]
    accuracy = (logits.argmax(dim=1) == positive).float().mean()
    return -(probability + 1e-8).log().mean(), accuracy  # Eq. 4.2


def adversarial_loss(logits: list[Tensor], target: float) -> Tensor:
    """Eq. 4.6: cross-entropy of the stages' logit maps towards `target` (1 real, 0 generated)."""
    terms = [
        F.binary_cross_entropy_with_logits(x.float(), torch.full_like(x, target).float())
        for x in logits
    ]
    return torch.stack(terms).mean()


def feature_matching_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Eq. 4.4: L1 between feature maps, mean over stages; no gradient reaches the real side."""
    terms = [F.l1_loss(f.float(), r.detach().float()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def consistency_loss(real: Tensor, fake: Tensor) -> Tensor:
    """L1 between the images blurred by a 21x21 Gaussian (sigma 3.5): equal local colour."""
    return F.l1_loss(gaussian_blur(fake, 21, 3.5), gaussian_blur(real, 21, 3.5))  # Eq. 4.5


# ------------------------------------------------------------------ moments of the generated noise
# real, fake: the noise (noisy - clean) of the real and of the generated image, (B, 3, H, W), in
# float32. Logarithms of energies are halved: an error of 0.1 is 10 % of the standard deviation.
# second: of another draw of the generator for the same image and reference, without a gradient.


def _score(
    real: Tensor,
    fake: Tensor,
    second: Tensor | None,
    distance: Callable[[Tensor, Tensor], Tensor] = F.l1_loss,
) -> Tensor:
    """The distance of a statistic of two independent draws; with `second`, less what a draw of the
    right distribution would have as well.

    Without, the generator is paid for statistics that vary little, which are those of white noise.
    With, the gradient is the energy score's, which is least for the right distribution (Gneiting
    and Raftery 2007, DOI 10.1198/016214506000001437): of half the distance of two draws that both
    had a gradient, the same in expectation.
    """
    loss = distance(fake, real)
    return loss if second is None else loss - distance(fake, second.detach())  # Eq. 9.14


def _each(statistic: Callable[[Tensor], Tensor], *noises: Tensor | None) -> list[Tensor | None]:
    return [None if noise is None else statistic(noise) for noise in noises]


def clip_straight_through(image: Tensor) -> Tensor:
    """`image` clipped to [0, 1], as it is used; the gradient passes as if it were not."""
    return image + (image.clamp(0, 1) - image).detach()


def overflow_loss(image: Tensor) -> Tensor:
    """How far pixels are beyond [-0.5, 1.5], where no noise takes them: there the terms on the
    clipped image see nothing any more, and an untrained generator would run away."""
    return F.relu((image - 0.5).abs() - 1).mean()


NORMAL_RATIO = math.sqrt(2 / math.pi)  # mean absolute value over root mean square


@functools.cache
def cosine_transform(size: int, device: torch.device) -> Tensor:
    """(size, size) orthonormal DCT-II, a frequency a row."""
    k = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * k + 1) * k[:, None] / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, torch.float32)


def band_coefficients(noise: Tensor, size: int = 8, stride: int = 4) -> Tensor:
    """(B, 3, size^2, places): DCT coefficients of overlapping blocks, of three orthonormal
    combinations of the channels (grey first)."""
    batch, _, height, width = noise.shape
    rows = cosine_transform(size, noise.device)
    kernel = torch.einsum("ia,jb->ijab", rows, rows).reshape(-1, 1, size, size)
    mixed = torch.einsum("dc,bchw->bdhw", cosine_transform(3, noise.device), noise)
    x = F.conv2d(mixed.reshape(-1, 1, height, width), kernel, stride=stride)
    return x.view(batch, 3, size * size, -1)


def band_losses(real: Tensor, fake: Tensor, second: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Energy and shape of the distribution in each of 192 bands, pooled over the patch: scalars.

    energy: mean absolute difference of the log root mean squares: strength, spectrum and colour.
    shape: of the log ratio of mean absolute value and root mean square (Geary 1935, DOI
    10.1093/biomet/27.3-4.310; 0.80 for a normal distribution, less for heavier tails): grain has
    normal coefficients, stripes and worms of the same spectrum have heavy tails.
    """
    floor = _energy_floor(real)[:, None, None]

    def logs(noise: Tensor) -> Tensor:  # (2, B, 3, 64): energy, shape
        x = band_coefficients(noise)
        energy = (x.square().mean(3) + floor).log() / 2
        absolute = (x.abs().mean(3).square() + NORMAL_RATIO**2 * floor).log() / 2
        return torch.stack([energy, absolute - energy])

    both = _each(logs, real, fake, second)
    energy, shape = (_score(*(x if x is None else x[i] for x in both)) for i in (0, 1))
    return energy, shape  # Eq. 9.6


def local_variance_loss(real: Tensor, fake: Tensor, second: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the log root mean squares in 8x8 windows, a channel each: how the
    strength follows the picture."""
    floor = _energy_floor(real)[:, None, None, None]

    def strength(noise: Tensor) -> Tensor:
        return (F.avg_pool2d(noise.square(), 8, 4) + floor).log() / 2

    return _score(*_each(strength, real, fake, second))  # Eq. 9.7


def local_mean_loss(real: Tensor, fake: Tensor, second: Tensor | None = None) -> Tensor:
    """L1 between means of 12x12 windows, over the noise's standard deviation: no colour cast."""
    strength = real.flatten(1).std(1).clamp_min(1 / 255)[:, None, None, None]

    def means(noise: Tensor) -> Tensor:
        return F.avg_pool2d(noise, 12, 6) / strength

    return _score(*_each(means, real, fake, second))  # Eq. 9.8


def quantile_loss(
    real: Tensor, fake: Tensor, second: Tensor | None = None, size: int = 16
) -> Tensor:
    """Wasserstein-1 distance of the noise's distributions in size x size blocks of each channel,
    both over their root mean squares: skew, tails, clipping and mean where the picture is about
    constant; the strength is the others' business. Sorted values are quantiles (Villani 2003, DOI
    10.1090/gsm/058, Th. 2.18)."""
    floor = _energy_floor(real)[:, None, None, None]

    def quantiles(noise: Tensor) -> Tensor:  # (B, 3, blocks, size^2)
        blocks = noise.unfold(2, size, size).unfold(3, size, size).flatten(4).flatten(2, 3)
        strength = (blocks.square().mean(3, keepdim=True) + floor).sqrt()
        return (blocks / strength).sort(dim=-1).values

    return _score(*_each(quantiles, real, fake, second))  # Eq. 9.10


def autocorrelation_loss(
    real: Tensor, fake: Tensor, second: Tensor | None = None, max_lag: int = 5
) -> Tensor:
    """Squared difference of the normalised auto- and cross-correlations of the channels, summed
    over lags of up to max_lag in both directions (diagonals too), mean over the nine pairs."""
    height, width = (n + max_lag for n in real.shape[-2:])
    lags = torch.arange(-max_lag, max_lag + 1, device=real.device)

    def correlations(noise: Tensor) -> Tensor:  # (B, 3, 3, lags, lags)
        spectrum = torch.fft.rfft2(noise - noise.mean((2, 3), keepdim=True), s=(height, width))
        cross = spectrum[:, :, None] * spectrum[:, None].conj()
        covariance = torch.fft.irfft2(cross, s=(height, width))
        covariance = covariance[..., lags % height, :][..., lags % width]
        energy = noise.square().sum((2, 3)) + noise[0, 0].numel() / 255**2  # under it, quantisation
        return covariance / (energy[:, :, None] * energy[:, None]).sqrt()[..., None, None]

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).square().sum((3, 4)).mean()

    return _score(*_each(correlations, real, fake, second), distance)  # Eq. 9.9


def _energy_floor(noise: Tensor) -> Tensor:
    """(B,): under it an energy counts as none: a third of an 8-bit step, and 5 % of the noise."""
    return (0.3 / 255) ** 2 + 0.003 * noise.square().mean((1, 2, 3))  # Eq. 9.5


# ------------------------------------------------------------- what an embedding tells of the noise


def noise_statistics(noisy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 33) statistics of noisy - clean, and which of them the patch shows, as 0 and 1.

    Log standard deviations on [0, 1] images, of 3 channels in each of 4 equal bins of the clean
    intensity (needs 64 pixels); then, doubled, correlations of each channel with itself at each of
    NEIGHBOURS, and of red-green, green-blue, blue-red (needs noise of one 8-bit step). clean,
    noisy: (B, 3, H, W) in [0, 1].
    """
    noise = noisy - clean
    level = (clean.clamp(0, 0.999) * INTENSITY_BINS).long()
    values, shown = [], []
    for i in range(INTENSITY_BINS):
        inside = (level == i).to(noise.dtype)
        pixels = inside.sum((2, 3))
        variance = (inside * noise.square()).sum((2, 3)) / pixels.clamp_min(1)
        values.append((variance + (0.3 / 255) ** 2).log() / 2)  # Eq. 9.1
        shown.append(pixels >= 64)
    variance = noise.square().mean((2, 3)).clamp_min(1e-7)  # (B, 3)
    for down, right in NEIGHBOURS:
        there, here = neighbours(noise, down, right)
        values.append(2 * (there * here).mean((2, 3)) / variance)
    colour = (noise * noise.roll(-1, 1)).mean((2, 3))
    values.append(2 * colour / (variance * variance.roll(-1, 1)).sqrt())
    shown += [variance > (1 / 255) ** 2] * (len(NEIGHBOURS) + 1)
    return torch.cat(values, dim=1), torch.cat(shown, dim=1).to(noise.dtype)


def statistics_loss(
    told: Tensor, noisy: Tensor, clean: Tensor, signal_dependence: float = 0.0
) -> tuple[Tensor, Tensor]:
    """L1 between what the head told and the statistics that noisy shows; and that of the log
    standard deviations alone, to be logged. Scalars, means over an image's statistics, then over
    the images: the mean of a batch's parts is that of the batch.

    signal_dependence: weight, in the first, of the L1 of a channel's log standard deviations about
    their mean over the intensities that it shows: how the noise differs between these.
    """
    statistics, shown = noise_statistics(noisy, clean)
    error = (told - statistics) * shown
    loss = _mean_of_shown(error, shown)  # Eq. 9.3
    level, shown = error[:, :LEVELS], shown[:, :LEVELS]
    if signal_dependence:
        of_bin, bins = (x.unflatten(1, (INTENSITY_BINS, 3)) for x in (level, shown))
        count = bins.sum(1, keepdim=True)
        several = bins * (count > 1)
        about_mean = (of_bin - of_bin.sum(1, keepdim=True) / count.clamp_min(1)) * several
        loss = loss + signal_dependence * _mean_of_shown(about_mean.flatten(1), several.flatten(1))
    return loss, _mean_of_shown(level, shown)


def _mean_of_shown(error: Tensor, shown: Tensor) -> Tensor:
    """Of |error| (B, n), over what of an image's is shown, then over the images."""
    return (error.abs().sum(1) / shown.sum(1).clamp_min(1)).mean()
