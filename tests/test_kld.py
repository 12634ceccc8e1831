"""Kullback-Leibler divergence of the noise's histograms against scipy and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tests.test_metrics import tensors, triple
from tests.test_noise_metrics import RANGES, noise_of
from utils import metrics


def kld_scipy(fake: np.ndarray, real: np.ndarray, clean: np.ndarray, bins: str) -> list[float]:
    """scipy.stats.entropy of numpy's histograms; it normalises both itself."""
    count, limits = RANGES[bins]

    def histogram(noisy: np.ndarray) -> np.ndarray:
        return 0.5 + np.array(
            [np.histogram(np.clip(n, *limits), count, limits)[0] for n in noisy - clean]
        )

    return list(stats.entropy(histogram(real), histogram(fake), axis=1))


@pytest.mark.parametrize("bins", RANGES)
@pytest.mark.parametrize("shape", [(3, 3, 40, 56), (2, 3, 17, 5), (1, 3, 1, 1)])
def test_kld_against_scipy(bins: str, shape: tuple, device: torch.device) -> None:
    arrays = triple(shape)
    measured = metrics.kld(*tensors(arrays, device), bins=bins).cpu()
    np.testing.assert_allclose(measured, kld_scipy(*arrays, bins), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bins", RANGES)
def test_kld_of_8_bit_images_against_scipy(bins: str) -> None:
    """Differences of grey levels: of the edges of both ranges they only meet 0 and +-1."""
    r = np.random.default_rng(0)
    fake, real, clean = (r.integers(0, 256, (2, 3, 64, 48)) for _ in range(3))
    scale = [(a / 255).astype(np.float32) for a in (fake, real, clean)]
    exact = [fake - clean, real - clean, np.zeros_like(clean)]
    expected = kld_scipy(*(a / 255 for a in exact), bins)
    np.testing.assert_allclose(metrics.kld(*tensors(scale), bins=bins), expected, atol=1e-6)


@pytest.mark.parametrize("bins", RANGES)
@pytest.mark.parametrize(("sigma_fake", "sigma_real"), [(0.06, 0.05), (0.05, 0.06), (0.08, 0.08)])
def test_kld_of_two_gaussians(bins: str, sigma_fake: float, sigma_real: float) -> None:
    """The divergence of the two normal distributions, binned; and unbinned, where bins are fine."""
    count, limits = RANGES[bins]
    shape = (4, 3, 256, 256)
    clean = torch.zeros(shape)
    measured = metrics.kld(
        noise_of(1, shape, sigma_fake), noise_of(2, shape, sigma_real), clean, bins=bins
    )
    edges = np.linspace(*limits, count + 1)
    edges[[0, -1]] = -np.inf, np.inf
    q, p = (np.diff(stats.norm.cdf(edges / s)) for s in (sigma_fake, sigma_real))
    used = (p > 1e-300) & (q > 1e-300)
    p, q = p[used], q[used]
    log = np.log(p / q)
    expected = (p * log).sum()
    n = clean[0].numel()
    # Delta method: the variance of sum p log(p / q) from the counts of both. The second order is
    # chi-squared with a degree a bin, over n: its mean is the bias, less in bins that stay empty.
    variance = ((p * (log - expected) ** 2).sum() + (q * (p / q - 1) ** 2).sum()) / n
    variance += 2 * count / n**2
    bias = count / n
    tolerance = 5 * math.sqrt(variance / len(clean)) + bias
    assert measured.mean().item() == pytest.approx(expected, abs=tolerance)
    if bins == "unit":  # 1/128 against 0.05: the bins cost under 1 %
        ratio = sigma_real / sigma_fake
        continuous = (ratio**2 - 1) / 2 - math.log(ratio)
        assert measured.mean().item() == pytest.approx(continuous, abs=tolerance + 0.01 * expected)


def test_kld_of_two_draws_of_one_noise_has_its_known_bias() -> None:
    """Twice a multinomial of n pixels in K bins: 2 n KL / 2 is chi-squared with K - 1 degrees."""
    batch, side, bins = 64, 64, 64
    n = 3 * side**2
    generator = torch.Generator().manual_seed(0)
    # uniform over the range, so that all bins are equally full: n / K = 192 pixels
    fake, real = torch.rand(2, batch, 3, side, side, generator=generator) * 0.2 - 0.1
    measured = metrics.kld(fake, real, torch.zeros_like(real), bins="tails")
    expected = (bins - 1) / n
    # 5 standard errors; half a pixel in 192 and the next order of the expansion: 2 % together
    tolerance = 5 * math.sqrt(2 * (bins - 1) / batch) / n + 0.02 * expected
    assert measured.mean().item() == pytest.approx(expected, abs=tolerance)
    assert measured.min() > 0


def test_kld_counts_noise_beyond_the_range_and_half_a_pixel_more_by_hand() -> None:
    clean = torch.zeros(1, 3, 8, 8)  # 192 pixels
    real = torch.full_like(clean, 0.5)  # last of the 64 bins
    fake = real.clone()
    fake[:, :, ::2] = -0.2  # 96 pixels in the first
    full, half, empty = 192.5, 96.5, 0.5
    expected = (full * math.log(full / half) + empty * math.log(empty / half)) / (192 + 32)
    assert metrics.kld(fake, real, clean, bins="tails").item() == pytest.approx(expected, rel=1e-5)
    assert metrics.kld(real, real.clamp(max=0.1), clean, bins="tails").item() == 0


@pytest.mark.parametrize("bins", RANGES)
def test_kld_is_worst_without_noise(bins: str) -> None:
    """Only the bins that both have would give this generator p(0) log p(0) < 0, a record."""
    real = noise_of(0, (1, 3, 64, 64), 0.03)
    clean = torch.zeros_like(real)
    none, weak, other = (
        metrics.kld(f * real.flip(-1), real, clean, bins=bins) for f in (0, 0.5, 1)
    )
    assert none > weak > other >= 0
