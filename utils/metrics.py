"""How like real noise is generated noise, and how well is an image restored (method 6).

Every function takes batches of RGB images (B, 3, H, W) of one shape, in [0, 1] unless a line says
otherwise, and returns one float32 figure an image, (B,), on the images' device. All of them compute
in float32, whatever the dtype of the images and under autocast, and record no gradient. Tensors
that are not such batches, or differ in shape or device, raise ValueError.
"""

import functools
from collections.abc import Callable

import piq
import torch
import torch.nn.functional as F
from torch import Tensor

KS_BINS = 256  # on [-1, 1], so the edges are the multiples of 1/128
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
                *(x.float() for x in images), **{k: x.float() for k, x in named.items()}
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
    finite = (fake + real + clean).isfinite().all(dim=(1, 2, 3))
    return distance.float().masked_fill(~finite, torch.nan)


def _histogram(noise: Tensor) -> Tensor:
    """(B, KS_BINS) int64 counts. Scaling by a power of two is exact, so no value crosses an edge.

    Integer sums do not depend on their order: the counts are deterministic on every device.
    """
    half = KS_BINS // 2
    bins = (noise.flatten(1).nan_to_num() * half).floor_().clamp_(-half, half - 1).long().add_(half)
    counts = torch.zeros(len(noise), KS_BINS, dtype=torch.int64, device=noise.device)
    return counts.scatter_add_(1, bins, torch.ones_like(bins))


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
