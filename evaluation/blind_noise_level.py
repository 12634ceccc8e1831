"""How strong the noise of one image is, read off the noisy image alone; or off a pair.

Arrays are (H, W, 3) float64 sRGB in [0, 1] unless stated.
"""

from typing import NamedTuple

import numpy as np
from scipy.fft import dctn, idctn
from scipy.optimize import nnls
from scipy.stats import chi2

BLOCK = 8  # pixels a side
# The DCT coefficients of a block that a mean and a slope of the picture fill; and their neighbours,
# which tell what noise the three hold.
SMOOTH, NEXT = ([0, 0, 1], [0, 1, 0]), ([0, 1, 2], [2, 1, 0])
COUNT = BLOCK**2 - 3  # the coefficients that are left
# The share of pure-noise blocks that the test for texture lets through: what it cuts off takes
# about 1% of the variance, too little to correct for.
KEPT = 0.99
CLIPPED = 0.05  # blocks with a larger share of pixels at 0 or 1 have lost variance
MIN_BLOCKS = 4
REWEIGHTED = 4
ROUNDS = 30  # of the fit; 3 to 15 are usual until it stands still


def blind_sigma(image: np.ndarray) -> float:
    """Standard deviation of the noise over the image and its channels, from the noisy image alone.

    The root of `blind_noise_level`'s mean variance. Not Immerkaer's Laplacian (DOI
    10.1006/cviu.1996.0060) or the wavelets' median, which see high frequencies alone: on noise
    correlated as a phone's they find less than half of the strength.
    """
    level = blind_noise_level(image)
    return float(np.sqrt((image.mean(axis=(0, 1)) * level[:, 0] + level[:, 1]).mean()))


def blind_noise_level(image: np.ndarray) -> np.ndarray:
    """(3, 2): a, b >= 0 of each channel, the noise's variance being a intensity + b.

    Intensity is that of 8x8 blocks, variance theirs beyond a plane, fitted to those without
    texture: in the spirit of Foi et al. 2008 (DOI 10.1109/TIP.2008.2001399) and Liu et al. 2014
    (DOI 10.1109/TIP.2014.2347204). A block has texture where its variance exceeds what the line
    explains; how far pure noise scatters depends on its correlation, read off the mean spectrum of
    the blocks (Satterthwaite's degrees of freedom). Texture finer than a block is taken for noise,
    noise coarser than a block is missed. a and b trade off where a channel has few intensities.
    """
    return np.stack([flat_blocks(image[..., c]).line for c in range(3)])


class FlatBlocks(NamedTuple):
    """The N whole 8x8 blocks of a channel, row by row, and what those without texture show."""

    flat: np.ndarray  # (N,) bool: without texture, and hardly clipped
    mean: np.ndarray  # (N,)
    variance: np.ndarray  # (N,): where flat, the noise's
    line: np.ndarray  # (2,): a, b of blind_noise_level
    correlation: np.ndarray  # (2,): of horizontal and vertical neighbours' noise; NaN without any


def flat_blocks(channel: np.ndarray) -> FlatBlocks:
    """Of one channel (H, W), at least 8 pixels a side; how, see blind_noise_level."""
    every_mean, coefficients, clipped = _blocks(channel)
    usable = clipped <= CLIPPED
    flat = np.zeros_like(usable)
    used = usable if usable.sum() >= MIN_BLOCKS else np.ones_like(usable)
    mean, coefficients = every_mean[used], coefficients[used]
    energy = coefficients**2
    variance = (energy.sum(axis=(1, 2)) - energy[:, *SMOOTH].sum(axis=1)) / COUNT

    # From below: the smoothest tenth of the blocks of each intensity has the least texture.
    groups = np.array_split(np.argsort(mean), np.clip(len(mean) // 32, 1, 16))
    line = _fit_line(
        np.array([mean[g].mean() for g in groups]),
        np.array([np.quantile(variance[g], 0.1) for g in groups]),
    )
    limit, lowpass = 1.5, 1.0
    for _ in range(ROUNDS):
        expected = line[0] * mean + line[1]
        expected = np.maximum(expected, 1e-6 * expected.max())
        kept = variance <= limit * expected
        if expected.max() <= 0 or kept.sum() < MIN_BLOCKS:
            break
        spectrum = (energy[kept] / expected[kept, None, None]).mean(axis=0)
        rest = spectrum.copy()
        rest[SMOOTH] = 0
        total = rest.sum()
        if total <= 0:  # JPEG leaves smooth blocks without any noise
            break
        dof = total**2 / (rest**2).sum()
        # What the three left-out coefficients hold raises the variance of correlated noise.
        lowpass = (total + 3 * spectrum[NEXT].mean()) / BLOCK**2 / (total / COUNT)
        limit = chi2.ppf(KEPT, dof) / dof
        kept = variance <= limit * expected
        if kept.sum() < MIN_BLOCKS:
            break
        new = _fit_line(mean[kept], variance[kept])
        settled = np.allclose(new, line, rtol=1e-3, atol=1e-9)
        line = new
        if settled:
            break
    every_variance = np.full(len(every_mean), np.nan)
    every_variance[used] = variance * lowpass
    flat[used] = kept
    correlation = _neighbour_correlation(coefficients[kept], line[0] * mean[kept] + line[1])
    return FlatBlocks(flat & usable, every_mean, every_variance, line * lowpass, correlation)


def _neighbour_correlation(coefficients: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """(2,), horizontal and vertical, of the noise in flat blocks of DCT coefficients (M, 8, 8).

    Exactly 0 in expectation for white noise: what the picture's mean and slopes hide is put back as
    much of the noise as their neighbouring coefficients hold.
    """
    if len(coefficients) < MIN_BLOCKS or variance.max() <= 0:
        return np.full(2, np.nan)
    x = coefficients / np.sqrt(np.maximum(variance, 1e-6 * variance.max()))[:, None, None]
    hidden = (x[:, *NEXT] ** 2).mean()
    x[:, *SMOOTH] = 0
    # The noise beyond the three, and the three themselves with their expected size.
    smooth = np.zeros((3, BLOCK, BLOCK))
    smooth[range(3), *SMOOTH] = np.sqrt(hidden * len(x))
    pixels = idctn(np.concatenate([x, smooth]), axes=(1, 2), norm="ortho")
    power = (pixels**2).mean()
    if power <= 0:
        return np.full(2, np.nan)
    sides = (pixels[:, :, 1:] * pixels[:, :, :-1]), (pixels[:, 1:] * pixels[:, :-1])
    return np.array([side.mean() for side in sides]) / power


def pair_noise_level(clean: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """(a, b) of one channel of a pair, each (H, W)."""
    # Only the mean of each intensity matters to a line; 8-bit steps are fine enough to call one.
    step = np.round(255 * clean).astype(int).ravel()
    total, x, y = (
        np.bincount(step, weights)
        for weights in (None, clean.ravel(), ((noisy - clean) ** 2).ravel())
    )
    seen = total > 0
    total = total[seen]
    return _fit_line(x[seen] / total, y[seen] / total, total)


def _blocks(channel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W) -> of each whole block its mean (N,), its orthonormal DCT (N, 8, 8) and the share of
    its pixels at 0 or 1 (N,)."""
    rows, columns = (n // BLOCK for n in channel.shape)
    x = channel[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    x = x.swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)
    clipped = ((x <= 0) | (x >= 1)).mean(axis=(1, 2))
    return x.mean(axis=(1, 2)), dctn(x, axes=(1, 2), norm="ortho"), clipped


def _fit_line(x: np.ndarray, y: np.ndarray, count: np.ndarray | float = 1.0) -> np.ndarray:
    """(a, b) >= 0 of y = a x + b; x, y (N,), y >= 0 the mean of `count` values whose spread is
    proportional to their expectation."""
    design = np.stack([x, np.ones_like(x)], axis=1)
    weight = np.sqrt(count) * np.ones_like(x)
    line = np.zeros(2)
    for _ in range(REWEIGHTED):
        line, _ = nnls(design * weight[:, None], y * weight)
        expected = design @ line
        if expected.max() <= 0:  # nothing varies
            break
        # A weight without bound where the line touches 0 would leave a single point to decide.
        weight = np.sqrt(count) / np.maximum(expected, 0.01 * expected.max())
    return line
