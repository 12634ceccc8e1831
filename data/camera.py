"""A small raw pipeline: what a phone's sensor would have added to a photograph.

An sRGB photo is taken back to the sensor (Brooks et al., "Unprocessing Images for Learned Raw
Denoising", CVPR 2019, arXiv:1811.11127), sampled through a Bayer pattern, given noise of a phone's
measured strength, and developed again. The clean side goes the same way without the noise, so that
what the pipeline does to the picture cancels and noisy - clean is noise alone: dependent on the
signal, correlated between neighbours and channels, clipped and rounded to 8 bits.

Simpler than the paper: one colour matrix, no tone curve beyond sRGB's, no recovery of highlights.
Arrays are float64 and linear unless stated; RGB is (H, W, 3), raw is (H, W) in RGGB order.
"""

import numpy as np
from scipy.ndimage import convolve

# (phone, ISO): beta1, beta2 of the raw noise's variance beta1 x + beta2, x in [0, 1]. The noise
# level functions of SIDD's phones, from Abdelhamed et al., "Noise Flow", ICCV 2019 (its code's
# table): iPhone 7, Google Pixel, Samsung Galaxy S6 Edge, Motorola Nexus 6, LG G4.
NOISE_LEVEL = {
    ("IP", 100): (0.000702, 0.000003),
    ("IP", 400): (0.000735, 0.000003),
    ("IP", 800): (0.000723, 0.000003),
    ("IP", 1600): (0.000687, 0.000002),
    ("GP", 100): (0.000228, 0.000002),
    ("GP", 400): (0.000886, 0.000005),
    ("GP", 800): (0.001764, 0.000012),
    ("GP", 1600): (0.003519, 0.000045),
    ("GP", 3200): (0.007029, 0.000179),
    ("S6", 100): (0.000479, 0.000002),
    ("S6", 400): (0.001774, 0.000002),
    ("S6", 800): (0.003696, 0.000002),
    ("S6", 1600): (0.008211, 0.000002),
    ("S6", 3200): (0.019930, 0.000002),
    ("N6", 100): (0.000473, 0.000003),
    ("N6", 400): (0.001760, 0.000013),
    ("N6", 800): (0.003476, 0.000052),
    ("N6", 1600): (0.006909, 0.000208),
    ("N6", 3200): (0.013773, 0.000833),
    ("G4", 100): (0.000739, 0.000002),
    ("G4", 400): (0.001860, 0.000002),
    ("G4", 800): (0.003356, 0.000063),
}

# Camera RGB to linear sRGB, of a phone's usual size. Rows sum to 1: white stays white. Negative off
# the diagonal: the inverse is positive, so that a photo in [0, 1] has camera colours in [0, 1].
CAMERA_TO_SRGB = np.array([[1.6, -0.5, -0.1], [-0.25, 1.5, -0.25], [0.0, -0.5, 1.5]])

DAYLIGHT = (2.1, 1.0, 1.7)  # white-balance gains of red, green and blue, each at least 1


def camera_pair(
    photo: np.ndarray,
    level: tuple[float, float],
    rng: np.random.Generator,
    gains: tuple[float, float, float] = DAYLIGHT,
) -> tuple[np.ndarray, np.ndarray]:
    """(clean, noisy), (H, W, 3) sRGB uint8, of a photo (H, W, 3) sRGB uint8 taken with raw noise of
    this level (beta1, beta2): noise_level's or random_noise_level's.

    Raises ValueError for another kind of array.
    """
    if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
        raise ValueError(f"expected (H, W, 3) uint8, got {photo.shape} {photo.dtype}")
    raw = mosaic(unprocess(photo / 255, gains))
    noisy = np.clip(raw + raw_noise(raw, level, rng), 0, 1)  # a sensor saturates
    return develop(raw, gains), develop(noisy, gains)


def exposed(photo: np.ndarray, factor: float) -> np.ndarray:
    """The photo, sRGB uint8, `factor` (at most 1) times as bright.

    In values, not in light: sRGB is nearly a power law, on which the two differ by a power.
    """
    return np.rint(photo * factor).astype(np.uint8)


def raw_noise(raw: np.ndarray, level: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Shot and read noise of `raw` (any shape, in [0, 1]): N(0, beta1 raw + beta2)."""
    beta1, beta2 = level
    return np.sqrt(beta1 * raw + beta2) * rng.standard_normal(raw.shape)


def noise_level(phone: str, iso: int) -> tuple[float, float]:
    """(beta1, beta2) of a phone at an ISO setting. ValueError: not in NOISE_LEVEL."""
    if (phone, iso) not in NOISE_LEVEL:
        known = ", ".join(f"{p} {i}" for p, i in NOISE_LEVEL)
        raise ValueError(f"no noise level for {phone} at ISO {iso}; known are {known}")
    return NOISE_LEVEL[phone, iso]


def random_noise_level(rng: np.random.Generator) -> tuple[float, float]:
    """(beta1, beta2) of some camera at some ISO: Brooks et al., CVPR 2019, Sec. 3.1: beta1
    log-uniform, beta2 log-normal around a line in log beta1.

    Their beta1 is 0.0001 to 0.012. Here it goes up to 0.03: the strongest of NOISE_LEVEL has 0.02.
    """
    log_beta1 = rng.uniform(np.log(1e-4), np.log(3e-2))
    log_beta2 = rng.normal(2.18 * log_beta1 + 1.20, 0.26)
    return float(np.exp(log_beta1)), float(np.exp(log_beta2))


def unprocess(
    srgb: np.ndarray, gains: tuple[float, float, float], matrix: np.ndarray = CAMERA_TO_SRGB
) -> np.ndarray:
    """sRGB in [0, 1] -> camera RGB in [0, 1]: the inverse of gamma, colour matrix and gains."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return linear @ np.linalg.inv(matrix).T / gains


def develop(raw: np.ndarray, gains: tuple[float, float, float]) -> np.ndarray:
    """raw in [0, 1] -> (H, W, 3) sRGB uint8."""
    return to_uint8(process(demosaic(balance(raw, gains))))


def balance(raw: np.ndarray, gains: tuple[float, float, float]) -> np.ndarray:
    """raw in [0, 1] -> the same, each colour times its gain and clipped, as cameras do.

    Before the demosaicing, which takes colours for equal in grey: with the gains after it, green's
    neighbours correlate by 0.58 and red's by 0.37; with the gains before it by 0.38 and 0.55, and
    by 0.36 and 0.51 in crops of SIDD.
    """
    balanced = raw * gains[1]
    balanced[::2, ::2], balanced[1::2, 1::2] = gains[0] * raw[::2, ::2], gains[2] * raw[1::2, 1::2]
    return np.clip(balanced, 0, 1)


def process(balanced: np.ndarray, matrix: np.ndarray = CAMERA_TO_SRGB) -> np.ndarray:
    """Balanced camera RGB -> sRGB in [0, 1]: colour matrix and gamma; clipped as cameras do."""
    linear = np.clip(np.clip(balanced, 0, 1) @ matrix.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def to_uint8(srgb: np.ndarray) -> np.ndarray:
    return np.round(255 * srgb).astype(np.uint8)


def mosaic(camera: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H, W): one colour per pixel, RGGB."""
    raw = camera[..., 1].copy()
    raw[::2, ::2] = camera[::2, ::2, 0]
    raw[1::2, 1::2] = camera[1::2, 1::2, 2]
    return raw


# Malvar, He and Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned
# color images", ICASSP 2004, DOI 10.1109/ICASSP.2004.1326587, figure 2. Measured on the developed
# noise, the neighbour correlation is 0.42; crops of SIDD have 0.38 to 0.47, plain bilinear 0.57.
# fmt: off
_GREEN = np.array([
    [ 0, 0, -1, 0,  0],
    [ 0, 0,  2, 0,  0],
    [-1, 2,  4, 2, -1],
    [ 0, 0,  2, 0,  0],
    [ 0, 0, -1, 0,  0],
]) / 8
_ALONG_ROW = np.array([  # red and blue at a green pixel between two of their kind in its row
    [ 0,  0, 0.5,  0,  0],
    [ 0, -1, 0.0, -1,  0],
    [-1,  4, 5.0,  4, -1],
    [ 0, -1, 0.0, -1,  0],
    [ 0,  0, 0.5,  0,  0],
]) / 8
_DIAGONAL = np.array([  # red at blue, blue at red
    [ 0.0, 0, -1.5, 0,  0.0],
    [ 0.0, 2,  0.0, 2,  0.0],
    [-1.5, 0,  6.0, 0, -1.5],
    [ 0.0, 2,  0.0, 2,  0.0],
    [ 0.0, 0, -1.5, 0,  0.0],
]) / 8
# fmt: on


def demosaic(raw: np.ndarray) -> np.ndarray:
    """(H, W) RGGB -> (H, W, 3), linear (not clipped), gradient-corrected bilinear interpolation."""
    # "mirror" leaves out the edge's own pixel, so the colours alternate on beyond the edge
    green, row, column, diagonal = (
        convolve(raw, kernel, mode="mirror")
        for kernel in (_GREEN, _ALONG_ROW, _ALONG_ROW.T, _DIAGONAL)
    )
    rgb = np.stack([raw] * 3, axis=-1)
    for colour, y, x in ((0, 0, 0), (2, 1, 1)):  # where red and blue are sampled
        rgb[y::2, x::2, 1] = green[y::2, x::2]
        rgb[y::2, 1 - x :: 2, colour] = row[y::2, 1 - x :: 2]
        rgb[1 - y :: 2, x::2, colour] = column[1 - y :: 2, x::2]
        rgb[1 - y :: 2, 1 - x :: 2, colour] = diagonal[1 - y :: 2, 1 - x :: 2]
    return rgb
