"""What the doctor measures on images: pure functions of arrays.

Images are (H, W, 3) uint8 RGB. Of an image above SIDE pixels a side the central SIDE x SIDE are
measured: a full photograph of SIDD-Medium would take 15 times as long and say the same.

The figures quoted beside the thresholds here and in `verdicts` were measured on 302 real
pairs: all 160 scenes of SIDD-Small (resized to 256), 12 native crops of SIDD, 30 pairs of RENOIR
and 100 of PolyU (JPEG). "Worst good" is the pair of these nearest to a threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from utils.images import integer_to_float
from utils.metrics import psnr
from utils.noise_statistics import neighbour_correlation

SIDE = 1024
REACH = 12  # pixels either way in which a displacement is looked for
LEVELS = 16  # brightness bins of 16 grey levels in which noise strength is compared
BIN_FULL = 3000  # pixels of a bin that count
# Less than two full bins is a scene as dark as the sky at night: black clips its noise, and it
# seems up to 2.3 times weaker than it is. Every scene of SIDD-Small has 7,800 or more.
MIN_COUNT = 5000

_DCT = dct(np.eye(8, dtype=np.float32), axis=0, norm="ortho")
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # JPEG's


@dataclass(frozen=True)
class PairStats:
    """std, bias: of the noise, in grey levels of 255; psnr: dB; correlation: of neighbours.

    fine_correlation: of the noise without its coarse part, which is free of brightness errors;
    noisier: see `noisier_side`; shift: (down, right) pixels, and shift_gain, see `displacement`;
    lattice: see `jpeg_lattice`, of the noisy side; levels, counts: see `flat_noise_levels`.
    """

    std: float
    bias: float
    psnr: float
    correlation: float
    fine_correlation: float
    noisier: float
    shift: tuple[int, int]
    shift_gain: float
    lattice: float
    levels: np.ndarray = field(repr=False)
    counts: np.ndarray = field(repr=False)


def measure_pair(clean: np.ndarray, noisy: np.ndarray) -> PairStats:
    """The statistics of a pair of equal size, 32 pixels a side at the least (ValueError)."""
    if clean.shape != noisy.shape or min(clean.shape[:2]) < 32:
        raise ValueError(f"expected a pair of 32x32 or more, got {clean.shape} and {noisy.shape}")
    clean, noisy = _window(clean), _window(noisy)
    noise = noisy.astype(np.float32) - clean
    a, b = integer_to_float(clean)[None], integer_to_float(noisy)[None]
    # Gaussian of 4: coarse enough to keep the correlation of demosaiced noise (4 pixels), fine
    # enough to take off what clipping and a changing exposure leave in the residual.
    fine = integer_to_float(np.zeros_like(clean))[None], _tensor(_high_pass(noise, 4))
    gray = [image.astype(np.float32) @ _LUMA for image in (clean, noisy)]
    shift, gain = displacement(*gray)
    levels, counts = flat_noise_levels(clean, noise)
    return PairStats(
        std=float(noise.std()),
        bias=float(noise.mean()),
        psnr=float(psnr(b, a)),
        correlation=float(neighbour_correlation(b, a)),
        fine_correlation=float(neighbour_correlation(fine[1], fine[0])),
        noisier=noisier_side(*gray),
        shift=shift,
        shift_gain=gain,
        lattice=jpeg_lattice(gray[1]),
        levels=levels,
        counts=counts,
    )


def noisier_side(clean: np.ndarray, noisy: np.ndarray) -> float:
    """How much more variance the noisy side has, over the variance of the noise. (H, W) float32.

    Median over the flatter half of 8x8 blocks of [var(noisy) - var(clean)] / var(noisy - clean).
    Noise that is independent of the scene gives 1; swapping the sides changes the sign alone.
    NaN without noise.
    """
    variances = [_block_variance(x) for x in (clean, noisy, noisy - clean, clean + noisy)]
    flat = np.argsort(variances[3])[: max(len(variances[3]) // 2, 8)]
    var_clean, var_noisy, var_noise = (v[flat] for v in variances[:3])
    has_noise = var_noise > 1e-6
    if not has_noise.any():
        return float("nan")
    return float(np.median((var_noisy - var_clean)[has_noise] / var_noise[has_noise]))


def displacement(clean: np.ndarray, noisy: np.ndarray) -> tuple[tuple[int, int], float]:
    """Where `noisy` fits `clean` best, (down, right) in pixels, and how much better. (H, W).

    Squared differences of the band-passed images over all displacements up to REACH: unlike phase
    correlation, which weighs all frequencies alike, it holds out against noise stronger than the
    scene. The gain is 1 - (smallest of 2 pixels and further) / (that of no displacement): below 0
    for an aligned pair, whatever its noise.
    """
    # Scenes are smooth, noise is not: 1 to 8 pixels is where the scene stands out of the noise.
    bands = [
        cv2.GaussianBlur(x, (0, 0), 1) - cv2.GaussianBlur(x, (0, 0), 8) for x in (clean, noisy)
    ]
    reach = min(REACH, min(clean.shape) // 4)
    inner = np.ascontiguousarray(bands[1][reach:-reach, reach:-reach])
    misfit = cv2.matchTemplate(bands[0], inner, cv2.TM_SQDIFF)
    here = float(misfit[reach, reach])
    if here <= 0:
        return (0, 0), 0.0
    y, x = np.unravel_index(int(misfit.argmin()), misfit.shape)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    gain = 1 - float(misfit[np.hypot(rows, columns) >= 2].min()) / here
    return (reach - int(y), reach - int(x)), gain


def jpeg_lattice(gray: np.ndarray) -> float:
    """How well the 8x8 DCT coefficients of (H, W) float32 lie on multiples of a step, in [0, 1].

    For each frequency the step of 2 to 40 with the largest mean cos(2 pi c / step) over
    coefficients |c| > step / 2; the mean over the 20 best frequencies. JPEG quantises to such
    multiples, and its traces stay in the pixels whatever the file is stored as later (Fan and de
    Queiroz, DOI 10.1109/TIP.2002.807361). Only for blocks that start at the corner.
    """
    height, width = (n // 8 * 8 for n in gray.shape)
    blocks = gray[:height, :width].reshape(height // 8, 8, width // 8, 8).transpose(0, 2, 1, 3)
    blocks = blocks.reshape(-1, 8, 8)
    blocks = blocks[:: -(-len(blocks) // 2048)]  # 2048 are plenty
    coefficients = (_DCT @ blocks @ _DCT.T).reshape(-1, 64)[:, 1:]
    size, best = np.abs(coefficients), np.zeros(63)
    for step in range(2, 41):
        used = size > step / 2
        count = used.sum(axis=0)
        fit = np.where(used, np.cos(2 * np.pi / step * coefficients), 0).sum(axis=0)
        # Of 50 coefficients of no lattice the mean cosine is 0 +- 0.1.
        best = np.maximum(best, np.where(count >= 50, fit / np.maximum(count, 1), 0))
    return float(np.sort(best)[-20:].mean())


def flat_noise_levels(clean: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(3, LEVELS) log standard deviation of the fine noise by channel and brightness, and counts.

    Robust (MAD), over the flatter half of the pixels, where a scene's texture adds nothing; bins of
    under 200 pixels and those next to black and white, where noise is clipped, count 0.
    """
    fine = np.abs(_high_pass(noise, 2))
    smooth = cv2.GaussianBlur(clean, (0, 0), 1).astype(np.float32)
    slope = np.hypot(cv2.Sobel(smooth, -1, 1, 0), cv2.Sobel(smooth, -1, 0, 1)).max(axis=-1)
    flat = slope <= np.median(slope)
    bins, fine = (smooth[flat] // (256 // LEVELS)).astype(int), fine[flat]
    levels, counts = np.zeros((3, LEVELS)), np.zeros((3, LEVELS))
    for channel in range(3):
        for level in range(1, LEVELS - 2):
            values = fine[bins[:, channel] == level, channel]
            if values.size >= 200:
                # 0.2 grey levels: below the rounding to 8 bits, 0.29, there is nothing to compare.
                levels[channel, level] = np.log(max(np.median(values) / 0.6745, 0.2))
                counts[channel, level] = min(values.size, BIN_FULL)
    return levels, counts


def noise_strengths(levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(n,) log noise strength of n images from (n, 3, LEVELS) `flat_noise_levels`; NaN where
    they count less than MIN_COUNT.

    The least-squares fit of level[i, c, b] = strength[i] + shape[c, b]: images are compared at
    equal brightness, whatever the scenes show.
    """
    strength = np.zeros(len(levels))
    for _ in range(50):  # alternating; converges in about 10
        shape = _weighted(levels - strength[:, None, None], counts, (0,))
        strength = _weighted(levels - shape, counts, (1, 2))
    return np.where(counts.sum(axis=(1, 2)) >= MIN_COUNT, strength, np.nan)


def is_gray(image: np.ndarray) -> bool:
    """Whether all three channels of the (H, W, 3) image are equal."""
    return bool((image == image[..., :1]).all())


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(32, 32) float32 grey of (H, W, 3) uint8: what `perceptual_hash` and `duplicates` compare."""
    return cv2.resize(image.astype(np.float32) @ _LUMA, (32, 32), interpolation=cv2.INTER_AREA)


def perceptual_hash(thumb: np.ndarray) -> np.ndarray:
    """(64,) bool: the signs, about their median, of the 8x8 lowest DCT coefficients (pHash)."""
    low = dct(dct(thumb, axis=0, norm="ortho"), axis=1, norm="ortho")[:8, :8].ravel().copy()
    low[0] = np.median(low[1:])  # the mean brightness says nothing
    return low > np.median(low[1:])


# Of 64 bits, and the correlation of the thumbnails. 839 different images come as near as 14 bits
# and, other ones, 0.93; the two sides of a pair differ in 3 bits (9 of 10 pairs) and 0.98 (49 of
# 50), a copy saved as JPEG or resized in less.
MAX_BITS, MIN_LIKENESS = 12, 0.95


def duplicates(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """(i, j) of all thumbnails one[i], other[j] that show the same picture."""
    if not len(one) or not len(other):
        return []
    bits = [np.array([perceptual_hash(t) for t in side], np.float32) for side in (one, other)]
    distance = bits[0] @ (1 - bits[1].T) + (1 - bits[0]) @ bits[1].T
    unit = [np.array([_unit(t) for t in side]) for side in (one, other)]
    same = (distance <= MAX_BITS) & (unit[0] @ unit[1].T >= MIN_LIKENESS)
    return [(int(i), int(j)) for i, j in np.argwhere(same)]


def _unit(thumb: np.ndarray) -> np.ndarray:
    centred = (thumb - thumb.mean()).ravel()
    return centred / max(float(np.linalg.norm(centred)), 1e-6)


def _window(image: np.ndarray) -> np.ndarray:
    # From a multiple of 8, so that the blocks of JPEG start at the corner.
    top, left = (max(n - SIDE, 0) // 16 * 8 for n in image.shape[:2])
    return np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE])


def _high_pass(x: np.ndarray, sigma: float) -> np.ndarray:
    return x - cv2.GaussianBlur(x, (0, 0), sigma)


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1)[None].copy())


def _block_variance(x: np.ndarray, k: int = 8) -> np.ndarray:
    height, width = (n // k * k for n in x.shape)
    blocks = x[:height, :width].reshape(height // k, k, width // k, k)
    return blocks.var(axis=(1, 3)).ravel()


def _weighted(x: np.ndarray, weights: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return (x * weights).sum(axis=axes) / np.maximum(weights.sum(axis=axes), 1)
