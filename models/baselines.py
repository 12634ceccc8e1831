"""Noise models without a network, to read a generator's figures against.

Each is called as a `utils.evaluation.Transfer`: model(clean, reference, noise) -> noisy, clipped.
`noise` gives standard normal maps and is the only source of randomness; every image is worked on
alone and takes the same number of draws, so that its result does not depend on its batch.

The blind models see one noisy reference, of any size from 16 pixels a side. The oracles must be
shown the image's own noisy image, and are told what no generator is: its difference to the clean
one. Arrays are (H, W, 3) float64 sRGB in [0, 1] unless stated.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.fft import dctn
from scipy.optimize import nnls
from scipy.stats import chi2
from torch import Tensor

from data.camera import DAYLIGHT, NOISE_LEVEL, develop, mosaic, unprocess
from models.layers import NoiseSource
from utils.filters import gaussian_blur

MIN_REFERENCE = 16  # pixels a side: four blocks

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

MATCH_SIDE = 256  # pixels of the reference, a side, that the camera's level is matched on


@dataclass(frozen=True)
class Baseline:
    """A noise model; oracle: its reference must be the clean image's own noisy image."""

    model: Callable[[Tensor, Tensor, NoiseSource], Tensor]
    oracle: bool = False

    def __call__(self, clean: Tensor, reference: Tensor, noise: NoiseSource) -> Tensor:
        """clean (B, 3, H, W), reference (B, 3, h, w), or (1, 3, h, w) for all -> (B, 3, H, W).

        All in [0, 1]. Raises ValueError for a reference that is too small or, for an oracle, of
        another size than clean.
        """
        if self.oracle and reference.shape != clean.shape:
            raise ValueError(
                "an oracle's reference is the clean image's own noisy image, "
                f"got {tuple(reference.shape)} for {tuple(clean.shape)}"
            )
        if not self.oracle and min(reference.shape[-2:]) < MIN_REFERENCE:
            raise ValueError(
                f"a reference needs {MIN_REFERENCE} pixels a side, got {tuple(reference.shape)}"
            )
        return self.model(clean, reference, noise)


# -------------------------------------------------------------------------------- the noise models


def white_gaussian_blind(clean: Tensor, reference: Tensor, noise: NoiseSource) -> Tensor:
    """White Gaussian noise of the reference's strength, one sigma for all channels: blind_sigma."""
    sigma = [blind_sigma(image) for image in _arrays(reference)]
    return _add_gaussian(clean, clean.new_tensor(sigma).view(-1, 1, 1, 1), noise)


def poisson_gaussian_blind(clean: Tensor, reference: Tensor, noise: NoiseSource) -> Tensor:
    """White noise N(0, a clean + b); a, b of each channel from the reference: blind_noise_level."""
    levels = [blind_noise_level(image) for image in _arrays(reference)]
    return _add_poisson_gaussian(clean, levels, noise)


def camera_pipeline_blind(clean: Tensor, reference: Tensor, noise: NoiseSource) -> Tensor:
    """What `data.camera` adds to the clean image, at the measured level nearest to the reference's.

    The phone is *not* known: the level is matched in strength alone (`nearest_camera_level`), and
    colour matrix, white balance and tone curve are the pipeline's. The noise depends on the signal
    and is correlated as the pipeline makes it. Rounding to 8 bits adds a deviation of 0.4 / 255.
    """
    levels = [NOISE_LEVEL[nearest_camera_level(image)] for image in _arrays(reference)]
    levels = levels * (len(clean) // len(levels))
    maps = noise((len(clean), 1, *clean.shape[2:]), clean.device)
    added = [
        _camera_noise(image, level, one[0].double().cpu().numpy())
        for image, level, one in zip(_arrays(clean), levels, maps, strict=True)
    ]
    added = torch.from_numpy(np.stack(added).transpose(0, 3, 1, 2))
    return (clean + added.to(clean)).clamp(0, 1)


def white_gaussian_oracle(clean: Tensor, reference: Tensor, noise: NoiseSource) -> Tensor:
    """White Gaussian noise of the pair's own standard deviation, over all channels."""
    sigma = torch.stack([d.double().std(correction=0) for d in reference - clean])
    return _add_gaussian(clean, sigma.to(clean.dtype).view(-1, 1, 1, 1), noise)


def poisson_gaussian_oracle(clean: Tensor, reference: Tensor, noise: NoiseSource) -> Tensor:
    """White noise N(0, a clean + b); a, b of each channel by weighted least squares on the pair."""
    levels = [
        np.stack([_pair_noise_level(x, y) for x, y in zip(image, noisy, strict=True)])
        for image, noisy in zip(
            clean.double().cpu().numpy(), reference.double().cpu().numpy(), strict=True
        )
    ]
    return _add_poisson_gaussian(clean, levels, noise)


BASELINES: dict[str, Baseline] = {
    "white Gaussian, blind": Baseline(white_gaussian_blind),
    "Poisson-Gaussian, blind": Baseline(poisson_gaussian_blind),
    "camera pipeline, blind level": Baseline(camera_pipeline_blind),
    "white Gaussian, true sigma": Baseline(white_gaussian_oracle, oracle=True),
    "Poisson-Gaussian, fitted to the pair": Baseline(poisson_gaussian_oracle, oracle=True),
}
"""Title in the tables -> model."""


# ------------------------------------------------------------------------- what a reference tells


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
    return np.stack([_channel_noise_level(image[..., c]) for c in range(3)])


def nearest_camera_level(image: np.ndarray) -> tuple[str, int]:
    """The (phone, ISO) of `data.camera.NOISE_LEVEL` whose noise is as strong as the reference's.

    Judged on the image's centre: the reference's blind_sigma against that of its blurred self with
    the pipeline's noise, so that what the estimate misses is missed on both sides.
    """
    top, left = (max(0, (n - MATCH_SIDE) // 2) for n in image.shape[:2])
    image = image[top : top + MATCH_SIDE, left : left + MATCH_SIDE]
    blurred = gaussian_blur(torch.from_numpy(image.transpose(2, 0, 1))[None], 21, 3.5)
    clean = blurred[0].double().numpy().transpose(1, 2, 0).clip(0, 1)
    intensity = mosaic(unprocess(clean, DAYLIGHT)).mean()
    # An estimate is part of the reference: it has draws of its own, the same for every level.
    normal = np.random.default_rng(0).standard_normal(clean.shape[:2])

    @cache
    def sigma(setting: tuple[str, int]) -> float:
        return blind_sigma(
            np.clip(clean + _camera_noise(clean, NOISE_LEVEL[setting], normal), 0, 1)
        )

    def raw_variance(setting: tuple[str, int]) -> float:
        beta1, beta2 = NOISE_LEVEL[setting]
        return beta1 * intensity + beta2

    settings = sorted(NOISE_LEVEL, key=raw_variance)
    target = blind_sigma(image)
    i = bisect_left(settings, target, key=sigma)
    return min(settings[max(0, i - 1) : i + 1], key=lambda s: abs(sigma(s) - target))


# ------------------------------------------------------------------------------------------- parts


def _channel_noise_level(channel: np.ndarray) -> np.ndarray:
    """(a, b) of one channel (H, W): see blind_noise_level."""
    mean, energy, clipped = _blocks(channel)
    usable = clipped <= CLIPPED
    if usable.sum() >= MIN_BLOCKS:
        mean, energy = mean[usable], energy[usable]
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
    return line * lowpass


def _pair_noise_level(clean: np.ndarray, noisy: np.ndarray) -> np.ndarray:
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
    """(H, W) -> of each whole block its mean (N,), the squares of its orthonormal DCT (N, 8, 8) and
    the share of its pixels at 0 or 1 (N,)."""
    rows, columns = (n // BLOCK for n in channel.shape)
    x = channel[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    x = x.swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)
    clipped = ((x <= 0) | (x >= 1)).mean(axis=(1, 2))
    return x.mean(axis=(1, 2)), dctn(x, axes=(1, 2), norm="ortho") ** 2, clipped


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


def _camera_noise(clean: np.ndarray, level: tuple[float, float], normal: np.ndarray) -> np.ndarray:
    """(H, W, 3): what raw noise of this level, `normal` (H, W) times its deviation, becomes."""
    beta1, beta2 = level
    raw = mosaic(unprocess(clean, DAYLIGHT))
    noisy = np.clip(raw + np.sqrt(beta1 * raw + beta2) * normal, 0, 1)
    return (develop(noisy, DAYLIGHT).astype(float) - develop(raw, DAYLIGHT)) / 255


def _add_poisson_gaussian(clean: Tensor, levels: list[np.ndarray], noise: NoiseSource) -> Tensor:
    """levels: (3, 2), a and b of each channel, for each image or one for all."""
    a, b = clean.new_tensor(np.stack(levels))[..., None, None].unbind(2)
    return _add_gaussian(clean, (a * clean + b).sqrt(), noise)


def _add_gaussian(clean: Tensor, sigma: Tensor, noise: NoiseSource) -> Tensor:
    return (clean + sigma * noise(tuple(clean.shape), clean.device)).clamp(0, 1)


def _arrays(images: Tensor) -> list[np.ndarray]:
    """(B, 3, H, W) -> B arrays (H, W, 3)."""
    return list(images.double().permute(0, 2, 3, 1).cpu().numpy())
