"""What the noise of one image is like: its local strength, correlation and noise level function.

Every function takes batches of noisy images and their clean ones, RGB (B, 3, H, W) of one shape, in
[0, 1] unless a line says otherwise, and returns float32 on the images' device, a row per image;
options go by name. All compute in float32 and record no gradient (`of_images`).
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor

# A variance from fewer pixels is off by 18 % or more (one sigma, sqrt(2 / 63), Gaussian noise).
MIN_BIN_PIXELS = 64
VARIANCE_FLOOR = 1e-10
# OpenCV's table for a 7-tap Gaussian of default sigma, nominally 1.4 (getGaussianKernel with sigma
# <= 0): slightly wider than the sampled Gaussian, which would move the published AKLD by 1 %.
VARIANCE_WINDOW = tuple(w / 32 for w in (1, 3.5, 7, 9, 7, 3.5, 1))
# float32 images in [0, 1] resolve 6e-8: a standard deviation below this is rounding, not noise.
NO_NOISE = 1e-6
# (down, right) of half of a pixel's eight neighbours; the others are these seen from the other end.
DIRECTIONS = {"horizontal": (0, 1), "vertical": (1, 0), "falling": (1, 1), "rising": (1, -1)}


def of_images(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
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


@of_images
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


@of_images
def neighbour_correlation(noisy: Tensor, clean: Tensor) -> Tensor:
    """Pearson correlation of the noise of adjacent pixels, in [-1, 1].

    The mean over the three channels, and over horizontal and vertical neighbours. White noise has
    0; demosaiced photographs have 0.4 to 0.6. H and W of 2 or more. NaN where a channel has no
    noise (standard deviation below 1e-6).
    """
    noise = noisy - clean
    horizontal, vertical = (
        _correlation(*neighbours(noise, *DIRECTIONS[d])) for d in ("horizontal", "vertical")
    )
    return (horizontal + vertical).mean(dim=1) / 2


@of_images
def directional_correlations(noisy: Tensor, clean: Tensor) -> Tensor:
    """(B, 4): Pearson correlation of the noise of adjacent pixels, in each of DIRECTIONS.

    Horizontal, vertical, and along the diagonals that fall and rise to the right; means over the
    three channels. The mean of the first two is `neighbour_correlation`. Noise filtered along both
    axes, of correlations r and s, has r s on both diagonals; filtering at an angle tells them
    apart. H and W of 2 or more. NaN where a channel has no noise (standard deviation below 1e-6).
    """
    noise = noisy - clean
    each = [_correlation(*neighbours(noise, *shift)) for shift in DIRECTIONS.values()]
    return torch.stack(each, dim=2).mean(dim=1)


def neighbours(noise: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """All pixels that have the neighbour so far down (0 or more) and right (left where negative):
    the neighbours, and the pixels."""
    height, width = noise.shape[-2:]
    there = noise[..., down:, max(right, 0) : width + min(right, 0)]
    here = noise[..., : height - down, max(-right, 0) : width - max(right, 0)]
    return there, here


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """(B, C) Pearson correlation of two (B, C, H, W) over the pixels."""
    a = a - a.mean(dim=(2, 3), keepdim=True)
    b = b - b.mean(dim=(2, 3), keepdim=True)
    std_a, std_b = (x.square().mean(dim=(2, 3)).sqrt() for x in (a, b))
    correlation = (a * b).mean(dim=(2, 3)) / (std_a * std_b)
    return correlation.masked_fill(torch.minimum(std_a, std_b) < NO_NOISE, torch.nan)


@of_images
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


@of_images
def noise_level_function(noisy: Tensor, clean: Tensor, *, bins: int = 16) -> Tensor:
    """(B, 3, bins): variance of the noise against the clean intensity, per channel.

    `bins` equal bins on [0, 1], closed on the left, the outermost two open. The variance is about
    the mean of the bin's noise and unbiased (n - 1). NaN in bins of fewer than 64 pixels.
    ValueError for fewer than 1 bin. (Liu et al. 2008, DOI 10.1109/TPAMI.2007.1176, who estimate it
    from one image; here the clean image is known.)
    """
    return noise_levels(noisy, clean, bins)[0]


def noise_levels(noisy: Tensor, clean: Tensor, bins: int) -> tuple[Tensor, Tensor]:
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
