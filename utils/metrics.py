"""How like real noise is generated noise, and how well is an image restored (method 6).

Every function takes batches of RGB images (B, 3, H, W) of one shape, in [0, 1] unless a line says
otherwise, and returns one float32 figure an image, (B,), on the images' device; options go by name.
All of them compute in float32, whatever the dtype of the images and under autocast, and record no
gradient. Tensors that are not such batches, or differ in shape or device, raise ValueError, as do
options out of range. `pgap` alone takes figures. What one image's noise is like:
utils/noise_statistics.py.
"""

from typing import Literal

import piq
import torch
from torch import Tensor

from utils.noise_statistics import (
    MIN_BIN_PIXELS,
    NO_NOISE,
    VARIANCE_FLOOR,
    directional_correlations,
    local_noise_variance,
    noise_autocorrelation,
    noise_levels,
    of_images,
)

KS_BINS = 256  # on [-1, 1], so the edges are the multiples of 1/128
KLD_BINS = {"unit": (256, 1.0), "tails": (64, 0.1)}  # how many, on [-limit, limit]
# The share of a channel's pixels that an intensity needs to be called the worst one: by chance
# alone, the worst of many bins of few pixels each is far off.
WORST_BIN_SHARE = 0.01


@of_images
def akld(fake: Tensor, real: Tensor, clean: Tensor) -> Tensor:
    """Average KL divergence of real from generated noise, both locally N(0, v); 0 is best.

    fake, real: noisy images of `clean`; neither needs to be clipped. The ratio t = v_fake / v_real
    of local variances is clipped to [0.1, 10]; AKLD = mean of (t - 1 - log t) / 2. (DANet, Yue et
    al., ECCV 2020, in the form of method 6.)

    Two independent draws of one noise do not score 0: a local variance comes from n effective
    pixels (white noise: 24.8), so t has a mean of about n / (n - 2), and AKLD a floor of about
    1 / (n - 2): 0.042 for white noise, 0.070 for noise of neighbour correlation 0.43, as in
    photographs. White noise of the same variance scores 0.057 against the latter, better than the
    truth, as its own estimates vary less: read AKLD beside the correlations.
    """
    t = local_noise_variance(fake, clean) / local_noise_variance(real, clean)
    t = t.clamp(0.1, 10)
    return ((t - 1 - t.log()) / 2).mean(dim=(1, 2, 3))


@of_images
def ks(fake: Tensor, real: Tensor, clean: Tensor) -> Tensor:
    """Kolmogorov-Smirnov distance between the distributions of two images' noise, in [0, 1].

    fake, real: noisy images of `clean`. The distributions are histograms over all pixels and
    channels, 256 bins on [-1, 1], each closed on its left and the last on both sides, as
    numpy.histogram's. Noise beyond [-1, 1], possible only in images that are not clipped, counts in
    the outermost bins, so that both histograms hold every pixel. NaN for an image that is not
    finite.
    """
    excess = _histogram(fake - clean) - _histogram(real - clean)
    distance = excess.cumsum(dim=1).abs().amax(dim=1) / clean[0].numel()
    return _nan_unless_finite(distance.float(), fake, real, clean)


@of_images
def kld(
    fake: Tensor, real: Tensor, clean: Tensor, *, bins: Literal["unit", "tails"] = "unit"
) -> Tensor:
    """Kullback-Leibler divergence KL(real || generated) of the noise's histograms, in nats; 0 best.

    fake, real: noisy images of `clean`. Histograms over all pixels and channels of an image:
    - "unit": 256 bins on [-1, 1] (as NAFlow and PNG report). Each is 2 grey levels wide: coarse
      for weak noise;
    - "tails": 64 bins on [-0.1, 0.1] (as NeCA reports). Blind to what happens beyond.
    Bins are closed on the left; the outermost two are open, noise beyond the range counts there.

    Half a pixel is added to every bin of both histograms (Jeffreys' prior), so that the figure is
    finite, never negative, and 0 for equal histograms alone. Publications do not agree on empty
    bins or do not tell; leaving out the bins that either histogram lacks, as some code does, gives
    a generator without any noise a negative score, better than the truth.

    Two draws of one noise score about (occupied bins - 1) / (3 H W), not 0. NaN for an image that
    is not finite; ValueError for other `bins`.
    """
    if bins not in KLD_BINS:
        raise ValueError(f"bins: expected {' or '.join(KLD_BINS)}, got {bins!r}")
    count, limit = KLD_BINS[bins]
    p, q = (_histogram(noisy - clean, count, limit) + 0.5 for noisy in (real, fake))
    # both sum to the same, so that their ratio needs no normalisation
    divergence = (p * (p / q).log()).sum(dim=1) / (clean[0].numel() + count / 2)
    return _nan_unless_finite(divergence, fake, real, clean)


def _histogram(noise: Tensor, count: int = KS_BINS, limit: float = 1.0) -> Tensor:
    """(B, count) int64 counts on [-limit, limit], the outermost bins open.

    Scaling by a power of two, as for a limit of 1, is exact, so no value crosses an edge. Integer
    sums do not depend on their order: the counts are deterministic on every device.
    """
    half = count // 2
    scaled = noise.flatten(1).nan_to_num() * (half / limit)
    bins = scaled.floor_().clamp_(-half, half - 1).long().add_(half)
    counts = torch.zeros(len(noise), count, dtype=torch.int64, device=noise.device)
    return counts.scatter_add_(1, bins, torch.ones_like(bins))


def _nan_unless_finite(figures: Tensor, *images: Tensor) -> Tensor:
    finite = sum(images).isfinite().all(dim=(1, 2, 3))
    return figures.masked_fill(~finite, torch.nan)


@of_images
def noise_std_ratio(fake: Tensor, real: Tensor, clean: Tensor) -> Tensor:
    """Strength: standard deviation of the generated noise over that of the real; 1 is best.

    NaN where the real image has no noise (standard deviation below 1e-6).
    """
    strength = (real - clean).std(dim=(1, 2, 3))
    ratio = (fake - clean).std(dim=(1, 2, 3)) / strength
    return ratio.masked_fill(strength < NO_NOISE, torch.nan)


@of_images
def mean_shift(fake: Tensor, real: Tensor) -> Tensor:
    """Colour cast: how far the generated noise's mean is from the real one's, in 8-bit steps.

    fake, real: noisy images of one clean image, which cancels. The absolute difference of the
    means over the image, of the channel where it is largest; 0 is best. Two draws of one white
    noise of standard deviation s (of 255) have 1.9 s / sqrt(H W): 0.18 for s = 25, 256x256.
    """
    return 255 * (fake - real).mean(dim=(2, 3)).abs().amax(dim=1)


@of_images
def directional_distance(fake: Tensor, real: Tensor, clean: Tensor) -> Tensor:
    """How far apart the four `directional_correlations` are: their mean absolute difference.

    0 is best. Unlike `neighbour_correlation`, it sees horizontal correlation where the real noise
    has vertical, and diagonal neighbours. Strength does not matter. Two draws of one white noise
    have about 0.65 / sqrt(H W), the mean over three channels of either: 0.0025 for 256x256. NaN
    where a channel of either image has no noise.
    """
    difference = directional_correlations(fake, clean) - directional_correlations(real, clean)
    return difference.abs().mean(dim=1)


@of_images
def autocorrelation_distance(
    fake: Tensor, real: Tensor, clean: Tensor, *, max_lag: int = 5
) -> Tensor:
    """How far apart the noise correlations of two images are, over space and channels; 0 is best.

    The root of the squared difference of `noise_autocorrelation`, summed over the lags and averaged
    over the 9 pairs of channels. Strength does not matter. White noise against noise of known
    correlation r, its channels independent, has sqrt(sum of r^2 over the lags but 0, / 3). Two
    draws of one white noise have about (2 max_lag + 1) sqrt(2 / (H W)): 0.061 for 256x256.

    NaN where a channel of either image has no noise. ValueError as `noise_autocorrelation`.
    """
    difference = noise_autocorrelation(fake, clean, max_lag=max_lag)
    difference -= noise_autocorrelation(real, clean, max_lag=max_lag)
    return difference.square().sum(dim=(3, 4)).mean(dim=(1, 2)).sqrt()


@of_images
def noise_level_distance(fake: Tensor, real: Tensor, clean: Tensor, *, bins: int = 16) -> Tensor:
    """How far apart two noise level functions are: 0 is best, log 2 = 0.69 is a factor of 2.

    The mean absolute difference of the logarithms of the standard deviations, over channels and the
    bins that `noise_level_function` fills, weighted by their pixels. Variances are floored at
    1e-10. Two draws of one Gaussian noise have about sqrt(2 / (pi n)) for n pixels a bin: 0.012 for
    256x256 pixels spread over 16 bins.

    NaN where no bin has 64 pixels, and for an image that is not finite. ValueError for fewer than 1
    bin.
    """
    ratio, count = _noise_level_ratios(fake, real, clean, bins)
    total = ratio.abs().nan_to_num() * count
    distance = total.sum(dim=(1, 2)) / count.sum(dim=(1, 2))  # 0 / 0 where no bin is filled
    return _nan_unless_finite(distance, fake, real, clean)


@of_images
def worst_noise_level(fake: Tensor, real: Tensor, clean: Tensor, *, bins: int = 16) -> Tensor:
    """The largest of what `noise_level_distance` averages: log 2 where the strength is wrong by a
    factor of 2 at one intensity of one channel.

    Over the bins that hold 1 % of the channel's pixels, and 64. Two draws of one Gaussian noise
    have about 2.5 / sqrt(n) for n pixels in each of 48 bins: 0.04 for 256x256 pixels.

    NaN where there is no such bin, and for an image that is not finite. ValueError for fewer than 1
    bin.
    """
    ratio, count = _noise_level_ratios(fake, real, clean, bins)
    often = count >= WORST_BIN_SHARE * clean[0, 0].numel()
    worst = ratio.abs().masked_fill(~often, -1).nan_to_num(-1).amax(dim=(1, 2))
    return _nan_unless_finite(worst.masked_fill(worst < 0, torch.nan), fake, real, clean)


def _noise_level_ratios(
    fake: Tensor, real: Tensor, clean: Tensor, bins: int
) -> tuple[Tensor, Tensor]:
    """(B, 3, bins): log of the generated over the real standard deviation, and how many pixels it
    is from: NaN and 0 where there are too few."""
    (v_fake, count), (v_real, _) = (noise_levels(x, clean, bins) for x in (fake, real))
    ratio = v_fake.clamp_min(VARIANCE_FLOOR) / v_real.clamp_min(VARIANCE_FLOOR)
    return ratio.log() / 2, count * (count >= MIN_BIN_PIXELS)


def pgap(psnr_real: Tensor | float, psnr_generated: Tensor | float) -> Tensor | float:
    """PSNR gap, in dB: what a denoiser loses by training on generated instead of real noise.

    psnr_real, psnr_generated: PSNR on the same real test images, of two denoisers of one
    architecture and budget, trained on the same clean images with their real noise and with
    generated noise. Any shape: tensors go image by image, and the mean gap is the gap of the means.
    0 means that the generated noise is as good to train on; below 0 it is better.
    (DANet, Yue et al., ECCV 2020.)
    """
    return psnr_real - psnr_generated


@of_images
def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, peak 1, by piq: 1e-8 is added to the squared error, so
    equal images have 80 dB.

    Clip first: piq raises AssertionError for values outside [0, 1].
    """
    return piq.psnr(a, b, data_range=1.0, reduction="none")


@of_images
def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity by piq: 11x11 Gaussian window, sigma 1.5, mean over the channels
    (Wang et al. 2004, DOI 10.1109/TIP.2003.819861).

    piq's default is kept: images are first averaged over f x f pixels, f = round(min(H, W) / 256).
    That changes nothing below 384 pixels (f = 1): SIDD blocks and BSDS500 are measured as they are,
    larger images at about 256. H and W of 11 or more. Clip first: piq raises AssertionError for
    values outside [0, 1].
    """
    # cuDNN's default, TF32, has a mantissa of 10 bits: too few for variances as differences.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return piq.ssim(a, b, data_range=1.0, reduction="none")
