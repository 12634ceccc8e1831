"""AKLD of noises of known variance and correlation: what a perfect generator scores.

The figures follow from the moments of the 7x7 weighted variance, integrated here by scipy.
"""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.integrate import quad

from tests.test_noise_metrics import noise_of
from utils import metrics
from utils.noise_statistics import VARIANCE_WINDOW, neighbour_correlation


def variance_moments(autocorrelation: np.ndarray) -> tuple[float, float]:
    """E[1 / v] and E[log v] of the 7x7 weighted mean v of squared N(0, 1) noise.

    v is a sum of chi-squared variables weighted by the eigenvalues of W^1/2 R W^1/2, R the noise's
    (2-D) autocorrelation; with M(s) = E[exp(-s v)], E[1 / v] is the integral of M, and E[log v]
    that of (exp(-s) - M(s)) / s.
    """
    weights = np.outer(VARIANCE_WINDOW, VARIANCE_WINDOW).ravel()
    y, x = np.divmod(np.arange(49), 7)
    middle = len(autocorrelation) // 2
    r = autocorrelation[middle + y[:, None] - y, middle + x[:, None] - x]
    eigenvalues = np.linalg.eigvalsh(np.sqrt(np.outer(weights, weights)) * r)

    def m(s: float) -> float:
        return np.prod(1 + 2 * eigenvalues * s) ** -0.5

    inverse = quad(m, 0, np.inf)[0]
    return inverse, quad(lambda s: (np.exp(-s) - m(s)) / s, 0, np.inf)[0]


def akld_expected(fake: tuple[float, float], real: tuple[float, float], ratio: float = 1) -> float:
    """From the moments of both; the variances are independent, their ratio's mean is `ratio`."""
    log_t = math.log(ratio) + fake[1] - real[1]
    return (ratio * real[0] - 1 - log_t) / 2


# (a, 1, a) has a neighbour correlation of 2 a / (1 + 2 a^2): 0.43, as SIDD's, for a = 0.2397.
KERNEL = np.array([0.2397, 1, 0.2397]) / math.sqrt(1 + 2 * 0.2397**2)
WHITE = np.zeros((13, 13))
WHITE[6, 6] = 1
SOFT = np.outer(*[np.pad(np.correlate(KERNEL, KERNEL, "full"), 4)] * 2)
SHAPE = (6, 3, 192, 192)


def white_noise(seed: int) -> torch.Tensor:
    return noise_of(seed, SHAPE)


def soft_noise(seed: int) -> torch.Tensor:
    noise = white_noise(seed).numpy()
    for axis in (2, 3):
        noise = ndimage.correlate1d(noise, KERNEL, axis, mode="wrap")
    return torch.from_numpy(noise)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5, 2.0])
def test_akld_of_white_gaussians_of_known_variance(ratio: float) -> None:
    """(r - 1 - log r) / 2 for variances of ratio r would need an endless window; 7x7 adds to it."""
    clean = torch.zeros(SHAPE)
    measured = metrics.akld(white_noise(0) * math.sqrt(ratio), white_noise(1), clean)
    moments = variance_moments(WHITE)
    expected = akld_expected(moments, moments, ratio)
    assert expected > (ratio - 1 - math.log(ratio)) / 2
    # 5 standard errors; reflection leaves fewer pixels to 6 % of the windows: under 3 %
    tolerance = 5 * measured.std().item() / math.sqrt(len(clean)) + 0.03 * expected
    assert measured.mean().item() == pytest.approx(expected, abs=tolerance)


def test_akld_floor_and_that_it_prefers_white_noise_to_the_truth() -> None:
    """0.042 and 0.070 for two draws of white and of soft noise, 0.057 for white against soft."""
    clean = torch.zeros(SHAPE)
    white, soft = variance_moments(WHITE), variance_moments(SOFT)
    correlation = neighbour_correlation(soft_noise(1), clean)
    assert correlation.mean().item() == pytest.approx(0.43, abs=0.01)
    cases = {
        # (generated, real); the first two are draws of one noise: the floor
        ("white", "white"): (white_noise(0), white_noise(1), white, white, 0.042),
        ("soft", "soft"): (soft_noise(2), soft_noise(3), soft, soft, 0.070),
        ("white", "soft"): (white_noise(0), soft_noise(3), white, soft, 0.057),
    }
    figures = {}
    for name, (fake, real, moments_fake, moments_real, known) in cases.items():
        measured = metrics.akld(fake, real, clean)
        figures[name] = measured.mean().item()
        expected = akld_expected(moments_fake, moments_real)
        assert expected == pytest.approx(known, abs=5e-4)
        # 5 standard errors of 0.0005; reflection as above; t is clipped in a few pixels of 10^4
        assert figures[name] == pytest.approx(expected, abs=0.0025 + 0.03 * expected)
    assert figures["white", "soft"] < figures["soft", "soft"] - 0.01
