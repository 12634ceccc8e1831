"""How like real noise is generated noise, and how well is an image restored (method 6).

Every function takes batches of RGB images (B, 3, H, W) of one shape, in [0, 1] unless a line says
otherwise, and returns one float32 figure an image, (B,), on the images' device; options go by name.
All of them compute in float32, whatever the dtype of the images and under autocast, and record no
gradient. Tensors that are not such batches, or differ in shape or device, raise ValueError, as do
options out of range. Two functions return more than a figure an image, and `pgap` takes figures.
"""

import functools
from collections.abc import Callable
from typing import Literal

import piq
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

KS_BINS = 256  # on [-1, 1], so the edges are the multiples of 1/128
KLD_BINS = {"unit": (256, 1.0), "tails": (64, 0.1)}  # how many, on [-limit, limit]
# A variance from fewer pixels is off by 18 % or more (one sigma, sqrt(2 / 63), Gaussian noise).
MIN_BIN_PIXELS = 64
VARIANCE_FLOOR = 1e-10
# OpenCV's table for a 7-tap Gaussian of default sigma, nominally 1.4 (getGaussianKernel with sigma
# <= 0): slightly wider than the sampled Gaussian, which would move the published AKLD by 1 %.
VARIANCE_WINDOW = tuple(w / 32 for w in (1, 3.5, 7, 9, 7, 3.5, 1))
# float32 images in [0, 1] resolve 6e-8: a standard deviation below this is rounding, not noise.
NO_NOISE = 1e-6


def _metric(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Check the images, then call `function` on them in float32 and without gradients."""

    @functools.wraps(function)
    def checked(*images: Tensor, **named: Tensor) -> Tensor:
        options = {k: named.pop(k) for k in function.__kwdefaults__ or () if k in named}
        every = [*images, *named.values()]
        for x in every:
            if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
                raise ValueError(
                    f"expected floating-point (B, 3, H, W), got {tuple(x.shape)} {x.dtype}"
                )
        if len({(x.shape, x.device) for x in every}) != 1:
            raise ValueError(
                "expected images of one shape on one device, got "
                + ", ".join(f"{tuple(x.shape)} {x.device}" for x in every)
            )
        with torch.no_grad(), torch.autocast(every[0].device.type, enabled=False):
            return function(
                *(x.float() for x in images), **{k: x.float() for k, x in named.items()}, **options
            )

    return checked


@_metric
def local_noise_variance(noisy: Tensor, clean: Tensor) -> Tensor:
    """(B, 3, H, W): the 7x7 Gaussian-weighted mean of the squared noise, per channel.

    Window: VARIANCE_WINDOW along both axes. Reflect padding, floored at 1e-10; H and W of 4 or more
    (RuntimeError below). From DANet (Yue et al., ECCV 2020).
    """
    height, width = clean.shape[-2:]
    v = F.pad((noisy - clean).square(), (3, 3, 3, 3), mode="reflect")
    # Shifted sums, not convolutions, which cuDNN computes in TF32 unless told otherwise.
    v = sum(w * v[..., i : i + width] for i, w in enumerate(VARIANCE_WINDOW))
    v = sum(w * v[..., i : i + height, :] for i, w in enumerate(VARIANCE_WINDOW))
    return v.clamp_min(VARIANCE_FLOOR)


@_metric
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


@_metric
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


@_metric
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


@_metric
def noise_std_ratio(fake: Tensor, real: Tensor, clean: Tensor) -> Tensor:
    """Strength: standard deviation of the generated noise over that of the real; 1 is best.

    NaN where the real image has no noise (standard deviation below 1e-6).
    """
    strength = (real - clean).std(dim=(1, 2, 3))
    ratio = (fake - clean).std(dim=(1, 2, 3)) / strength
    return ratio.masked_fill(strength < NO_NOISE, torch.nan)


@_metric
def neighbour_correlation(noisy: Tensor, clean: Tensor) -> Tensor:
    """Pearson correlation of the noise of adjacent pixels, in [-1, 1].

    The mean over the three channels, and over horizontal and vertical neighbours. White noise has
    0; demosaiced photographs have 0.4 to 0.6. H and W of 2 or more. NaN where a channel has no
    noise (standard deviation below 1e-6).
    """
    noise = noisy - clean
    horizontal = _correlation(noise[..., :, 1:], noise[..., :, :-1])
    vertical = _correlation(noise[..., 1:, :], noise[..., :-1, :])
    return (horizontal + vertical).mean(dim=1) / 2


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """(B, C) Pearson correlation of two (B, C, H, W) over the pixels."""
    a = a - a.mean(dim=(2, 3), keepdim=True)
    b = b - b.mean(dim=(2, 3), keepdim=True)
    std_a, std_b = (x.square().mean(dim=(2, 3)).sqrt() for x in (a, b))
    correlation = (a * b).mean(dim=(2, 3)) / (std_a * std_b)
    return correlation.masked_fill(torch.minimum(std_a, std_b) < NO_NOISE, torch.nan)


@_metric
def noise_autocorrelation(noisy: Tensor, clean: Tensor, *, max_lag: int = 5) -> Tensor:
    """(B, 3, 3, 2L + 1, 2L + 1), L = max_lag: correlation of the noise across pixels and channels.

    [b, c, d, L + dy, L + dx] is the covariance of channel c at a pixel p with channel d at
    p + (dy, dx), over their standard deviations: [c, c, L, L] is 1, and white noise has 0 elsewhere
    within 1 / sqrt(H W) (one sigma). Each channel's mean over the image is removed first. A sum is
    divided by the number of pairs of pixels in it, not by H W: noise does not look less correlated
    at long lags (at the price of values just beyond [-1, 1] in tiny images).

    NaN where either channel has no noise (standard deviation below 1e-6). ValueError unless
    0 <= max_lag < H, W.
    """
    height, width = clean.shape[-2:]
    if not 0 <= max_lag < min(height, width):
        raise ValueError(f"max_lag: expected 0 <= lag < H, W of {height}x{width}, got {max_lag}")
    noise = noisy - clean
    noise = noise - noise.mean(dim=(2, 3), keepdim=True)
    # Zeros of max_lag pixels keep the lags asked for from wrapping around.
    size = [next_fast_len(side + max_lag, real=True) for side in (height, width)]
    spectrum = torch.fft.rfft2(noise, s=size)
    cross = spectrum.conj().unsqueeze(2) * spectrum.unsqueeze(1)
    lags = torch.arange(-max_lag, max_lag + 1, device=noise.device)
    sums = torch.fft.irfft2(cross, s=size)[..., lags[:, None], lags]
    pairs = (height - lags.abs())[:, None] * (width - lags.abs())
    std = noise.square().mean(dim=(2, 3)).sqrt()
    std = std.masked_fill(std < NO_NOISE, torch.nan)
    return sums / pairs / (std[:, :, None] * std[:, None])[..., None, None]


@_metric
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


@_metric
def noise_level_function(noisy: Tensor, clean: Tensor, *, bins: int = 16) -> Tensor:
    """(B, 3, bins): variance of the noise against the clean intensity, per channel.

    `bins` equal bins on [0, 1], closed on the left, the outermost two open. The variance is about
    the mean of the bin's noise and unbiased (n - 1). NaN in bins of fewer than 64 pixels.
    ValueError for fewer than 1 bin. (Liu et al. 2008, DOI 10.1109/TPAMI.2007.1176, who estimate it
    from one image; here the clean image is known.)
    """
    return _noise_levels(noisy, clean, bins)[0]


@_metric
def noise_level_distance(fake: Tensor, real: Tensor, clean: Tensor, *, bins: int = 16) -> Tensor:
    """How far apart two noise level functions are: 0 is best, log 2 = 0.69 is a factor of 2.

    The mean absolute difference of the logarithms of the standard deviations, over channels and the
    bins that `noise_level_function` fills, weighted by their pixels. Variances are floored at
    1e-10. Two draws of one Gaussian noise have about sqrt(2 / (pi n)) for n pixels a bin: 0.012 for
    256x256 pixels spread over 16 bins.

    NaN where no bin has 64 pixels, and for an image that is not finite. ValueError for fewer than 1
    bin.
    """
    (v_fake, count), (v_real, _) = (_noise_levels(x, clean, bins) for x in (fake, real))
    ratio = v_fake.clamp_min(VARIANCE_FLOOR) / v_real.clamp_min(VARIANCE_FLOOR)
    count = count * (count >= MIN_BIN_PIXELS)
    total = (ratio.log().abs() / 2).nan_to_num() * count
    distance = total.sum(dim=(1, 2)) / count.sum(dim=(1, 2))  # 0 / 0 where no bin is filled
    return _nan_unless_finite(distance, fake, real, clean)


def _noise_levels(noisy: Tensor, clean: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """(B, 3, bins) variances, NaN where there are too few pixels, and numbers of pixels."""
    if bins < 1:
        raise ValueError(f"bins: expected 1 or more, got {bins}")
    noise = (noisy - clean).flatten(2)
    level = (clean.flatten(2).nan_to_num() * bins).floor_().clamp_(0, bins - 1)
    variances, counts = [], []
    # Bin by bin: adding floats where an index says (scatter) is not deterministic on CUDA.
    for k in range(bins):
        inside = level == k
        count = inside.sum(dim=2)
        mean = noise.where(inside, 0).sum(dim=2) / count
        deviation = (noise - mean[..., None]).where(inside, 0)
        variance = deviation.square_().sum(dim=2) / (count - 1)
        variances.append(variance.masked_fill(count < MIN_BIN_PIXELS, torch.nan))
        counts.append(count)
    return torch.stack(variances, dim=2), torch.stack(counts, dim=2)


def pgap(psnr_real: Tensor | float, psnr_generated: Tensor | float) -> Tensor | float:
    """PSNR gap, in dB: what a denoiser loses by training on generated instead of real noise.

    psnr_real, psnr_generated: PSNR on the same real test images, of two denoisers of one
    architecture and budget, trained on the same clean images with their real noise and with
    generated noise. Any shape: tensors go image by image, and the mean gap is the gap of the means.
    0 means that the generated noise is as good to train on; below 0 it is better.
    (DANet, Yue et al., ECCV 2020.)
    """
    return psnr_real - psnr_generated


@_metric
def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, peak 1, by piq: 1e-8 is added to the squared error, so
    equal images have 80 dB.

    Clip first: piq raises AssertionError for values outside [0, 1].
    """
    return piq.psnr(a, b, data_range=1.0, reduction="none")


@_metric
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
