"""Cameras that differ in more than their noise level: for a generator that has to know others.

With one colour matrix and one demosaicing every simulated camera's noise has the same spectrum and
the same colours, and a generator takes a real one for the nearest that it knows. Here each camera
draws, beside its level and white balance, how it develops (Brooks et al., CVPR 2019, Sec. 3,
arXiv:1811.11127, draw matrices and levels likewise): the noise's neighbours correlate by 0.2 to
0.8, red and blue by 0 to 0.7. Arrays are as in data.camera.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from data.camera import (
    balance,
    demosaic,
    mosaic,
    process,
    random_noise_level,
    raw_noise,
    to_uint8,
    unprocess,
)

Demosaicing = Literal["gradient-corrected", "bilinear", "edge-aware"]
# Grey, and two differences of colours: what phones smooth apart. Rows are orthonormal.
LUMA_CHROMA = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])


@dataclass(frozen=True)
class RandomCamera:
    """level: (beta1, beta2) of the raw noise; gains, matrix: as in data.camera; contrast: share of
    a smooth step (3 x^2 - 2 x^3) in the tone curve; luma, chroma: sigma in pixels of a Gaussian on
    grey and on colour, what weak denoising leaves; sharpen: of grey, strength of an unsharp mask of
    sigma 1; jpeg: quality of the noisy picture's file, 0: lossless.
    """

    level: tuple[float, float]
    gains: tuple[float, float, float]
    matrix: np.ndarray
    demosaicing: Demosaicing
    contrast: float
    luma: float
    chroma: float
    sharpen: float
    jpeg: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "RandomCamera":
        # Rows sum to 1 and nothing off the diagonal is positive, so that the inverse has no
        # negative element, and colours in [0, 1] were light.
        taken = rng.uniform(0, 0.8) * rng.uniform(0.5, 1, 3)
        share = rng.uniform(0.1, 0.9, 3)
        matrix = np.diag(1 + taken)
        for i in range(3):
            matrix[i, (i + 1) % 3] = -taken[i] * share[i]
            matrix[i, (i + 2) % 3] = -taken[i] * (1 - share[i])
        smooth = rng.uniform(size=2) < (0.3, 0.5)
        return cls(
            level=random_noise_level(rng),
            gains=(rng.uniform(1.3, 2.6), 1.0, rng.uniform(1.3, 2.6)),
            matrix=matrix,
            demosaicing=rng.choice(Demosaicing.__args__, p=(0.5, 0.3, 0.2)),
            contrast=rng.uniform(0, 0.7) * (rng.uniform() < 0.5),
            luma=rng.uniform(0.3, 0.9) * smooth[0],
            chroma=rng.uniform(0.3, 1.5) * smooth[1],
            sharpen=rng.uniform(0.1, 0.7) * (rng.uniform() < 0.3),
            jpeg=int(rng.integers(65, 96) * (rng.uniform() < 0.12)),
        )

    def pair(self, photo: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(clean, noisy), (H, W, 3) sRGB uint8, of a photo (H, W, 3) sRGB uint8."""
        raw = mosaic(unprocess(photo / 255, self.gains, self.matrix))
        noisy = np.clip(raw + raw_noise(raw, self.level, rng), 0, 1)
        clean, noisy = (to_uint8(self.develop(x)) for x in (raw, noisy))
        if self.jpeg:
            _, file = cv2.imencode(".jpg", noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])
            noisy = cv2.imdecode(file, cv2.IMREAD_COLOR_RGB)
        return clean, noisy

    def develop(self, raw: np.ndarray) -> np.ndarray:
        """raw in [0, 1] -> (H, W, 3) sRGB in [0, 1]."""
        srgb = process(self.interpolate(balance(raw, self.gains)), self.matrix)
        srgb = (1 - self.contrast) * srgb + self.contrast * srgb**2 * (3 - 2 * srgb)
        luma, *chroma = np.moveaxis(srgb @ LUMA_CHROMA.T, -1, 0)
        luma = gaussian_filter(luma, self.luma)
        luma = luma + self.sharpen * (luma - gaussian_filter(luma, 1.0))
        chroma = [gaussian_filter(x, self.chroma) for x in chroma]
        return np.clip(np.stack([luma, *chroma], axis=-1) @ LUMA_CHROMA, 0, 1)

    def interpolate(self, raw: np.ndarray) -> np.ndarray:
        if self.demosaicing == "gradient-corrected":
            return demosaic(raw)
        code = {"bilinear": cv2.COLOR_BayerRGGB2RGB, "edge-aware": cv2.COLOR_BayerRGGB2RGB_EA}
        values = np.round(raw * 65535).astype(np.uint16)
        return cv2.cvtColor(values, code[self.demosaicing]) / 65535
