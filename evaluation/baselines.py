"""What to read scores against: noise models and denoisers without a network.

Each noise model is a Transfer (evaluation/protocols.py), model(clean, reference, noise) -> noisy,
clipped. `noise` gives standard normal maps and is the only source of randomness; every image is
worked on alone and takes the same number of draws, so that its result does not depend on its batch.

The blind models see one noisy reference, of any size from 16 pixels a side. The oracles must be
shown the image's own noisy image, and are told what no generator is: its difference to the clean
one. Arrays are (H, W, 3) float64 sRGB in [0, 1] unless stated.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor

from data.camera import DAYLIGHT, NOISE_LEVEL, develop, mosaic, unprocess
from evaluation.blind_noise_level import blind_noise_level, blind_sigma, pair_noise_level
from evaluation.protocols import Transfer
from models.layers import NoiseSource
from utils.errors import UserError
from utils.filters import gaussian_blur
from utils.transfer_settings import MIN_REFERENCE

MATCH_SIDE = 256  # pixels of the reference, a side, that the camera's level is matched on


@dataclass(frozen=True)
class Baseline:
    """A noise model; title: in tables; oracle: its reference must be the clean image's own noisy
    image."""

    title: str
    model: Transfer
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
        np.stack([pair_noise_level(x, y) for x, y in zip(image, noisy, strict=True)])
        for image, noisy in zip(
            clean.double().cpu().numpy(), reference.double().cpu().numpy(), strict=True
        )
    ]
    return _add_poisson_gaussian(clean, levels, noise)


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


BASELINES: dict[str, Baseline] = {
    "gaussian": Baseline("white Gaussian, blind", white_gaussian_blind),
    "poisson-gaussian": Baseline("Poisson-Gaussian, blind", poisson_gaussian_blind),
    "camera": Baseline("camera pipeline, blind level", camera_pipeline_blind),
    "gaussian-oracle": Baseline("white Gaussian, true sigma", white_gaussian_oracle, oracle=True),
    "poisson-gaussian-oracle": Baseline(
        "Poisson-Gaussian, fitted to the pair", poisson_gaussian_oracle, oracle=True
    ),
}


# ------------------------------------------------------------------------------------------- parts


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


# ---------------------------------------------------------------------------------------- denoisers


def require_bm3d() -> Callable:
    """The package's function for colour images; UserError where it is not installed."""
    try:
        from bm3d import bm3d_rgb
    except ImportError as error:
        raise UserError("BM3D: the package bm3d is missing; pip install bm3d") from error
    return bm3d_rgb


def bm3d(noisy: Tensor) -> Tensor:
    """BM3D (Dabov et al. 2007, DOI 10.1109/TIP.2007.901238) of (B, 3, H, W) in [0, 1].

    By its authors' package, free for research alone and hence no requirement. It expects white
    noise of one strength, and is told `blind_sigma`.
    """
    bm3d_rgb = require_bm3d()
    return _one_by_one(lambda image: bm3d_rgb(image, blind_sigma(image)), noisy)


def non_local_means(noisy: Tensor) -> Tensor:
    """Non-local means (Buades et al. 2005, DOI 10.1109/CVPR.2005.38) of (B, 3, H, W) in [0, 1].

    By OpenCV, of 8 bits, in its usual windows; as strength it is told `blind_sigma`.
    """

    def denoise(image: np.ndarray) -> np.ndarray:
        strength = 255 * blind_sigma(image)
        image = np.rint(255 * image).astype(np.uint8)
        return cv2.fastNlMeansDenoisingColored(image, None, strength, strength, 7, 21) / 255

    return _one_by_one(denoise, noisy)


def _one_by_one(denoise: Callable[[np.ndarray], np.ndarray], noisy: Tensor) -> Tensor:
    denoised = np.stack([denoise(image) for image in _arrays(noisy)])
    return torch.from_numpy(denoised).permute(0, 3, 1, 2).to(noisy)
