"""Distributions, correlations and levels of noise against scipy, numpy and closed forms.

What all metrics share (batches, dtypes, autocast, refusals) is tested in test_metrics.py; AKLD's
floor in test_akld_floor.py.
"""

import math

import numpy as np
import pytest
import torch
from scipy import signal, stats

from tests.test_metrics import tensors, triple
from utils import metrics

RANGES = {"unit": (256, (-1, 1)), "tails": (64, (-0.1, 0.1))}


def noise_of(seed: int, shape: tuple, sigma: float = 0.1) -> torch.Tensor:
    return sigma * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- Kullback-Leibler divergence -----------------------------------------------------------------


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


# ---- autocorrelation -----------------------------------------------------------------------------


def autocorrelation_scipy(noisy: np.ndarray, clean: np.ndarray, lag: int) -> np.ndarray:
    noise = (noisy - clean).astype(np.float64)
    noise -= noise.mean(axis=(2, 3), keepdims=True)
    _, _, h, w = noise.shape
    lags = slice(h - 1 - lag, h + lag), slice(w - 1 - lag, w + lag)
    pairs = signal.correlate2d(np.ones((h, w)), np.ones((h, w)))[lags]
    result = np.empty((len(noise), 3, 3, 2 * lag + 1, 2 * lag + 1))
    for b, c, d in np.ndindex(len(noise), 3, 3):
        # correlate2d(x, y)[k] sums x(p + k) y(p): y leads, so d goes first
        sums = signal.correlate2d(noise[b, d], noise[b, c])[lags]
        result[b, c, d] = sums / pairs / (noise[b, c].std() * noise[b, d].std())
    return result


@pytest.mark.parametrize(("size", "lag"), [((40, 56), 5), ((17, 23), 3), ((6, 31), 5), ((1, 1), 0)])
def test_autocorrelation_against_scipy(size: tuple, lag: int, device: torch.device) -> None:
    noisy, _, clean = triple((2, 3, *size))
    if size != (1, 1):
        noisy[:, 1] += 0.5 * (noisy - clean)[:, 0]  # channels with something in common
    images = tensors([noisy, clean], device)
    measured = metrics.noise_autocorrelation(*images, max_lag=lag).cpu()
    assert measured.dtype == torch.float32
    if size == (1, 1):
        assert measured.shape == (2, 3, 3, 1, 1)
        assert measured.isnan().all()  # a single pixel has no noise but a mean
        return
    np.testing.assert_allclose(measured, autocorrelation_scipy(noisy, clean, lag), atol=2e-5)
    own = measured.diagonal(dim1=1, dim2=2)[:, lag, lag]
    np.testing.assert_allclose(own, np.ones((2, 3)), atol=1e-5)


def test_autocorrelation_of_white_and_of_averaged_noise() -> None:
    """White noise has 0 but at its own lag 0; the mean of 3 pixels in a row has 2/3 and 1/3."""
    side, lag = 256, 5
    white = noise_of(0, (2, 3, side, side + 2))
    noise = torch.cat([white[:1, ..., :side], white[1:].unfold(-1, 3, 1).mean(dim=-1)])
    measured = metrics.noise_autocorrelation(0.5 + noise, torch.full_like(noise, 0.5))
    expected = torch.zeros_like(measured)
    for c in range(3):
        expected[0, c, c, lag, lag] = 1
        expected[1, c, c, lag, lag - 2 : lag + 3] = torch.tensor([1, 2, 3, 2, 1]) / 3
    # 1 / sqrt(pairs) is one sigma of white noise; of 2 x 1089 values 5 sigma is none by chance.
    # Bartlett: at most (1 + 2 (4/9 + 1/9)) = 2.1 times the variance for the averaged noise.
    interval = 5 / (side - lag)
    assert (measured - expected)[0].abs().max() < interval
    assert (measured - expected)[1].abs().max() < interval * math.sqrt(2.2)
    # and it is no narrower than it should be: the spread of white noise is 1 / side
    off = measured[0][expected[0] == 0]
    assert off.std().item() == pytest.approx(1 / side, rel=0.15)


def test_autocorrelation_knows_directions_and_channels() -> None:
    """Green is red seen one pixel down and two right: red at p is green at p + (-1, -2)."""
    white = noise_of(0, (1, 3, 65, 66))
    noise = white[..., :64, :64].clone()
    noise[:, 1] = white[:, 0, 1:, 2:]
    measured = metrics.noise_autocorrelation(noise, torch.zeros_like(noise), max_lag=2)
    # the means and variances are those of slightly different pixels
    assert measured[0, 0, 1, 2 - 1, 2 - 2].item() == pytest.approx(1, abs=0.05)
    assert measured[0, 1, 0, 2 + 1, 2 + 2].item() == pytest.approx(1, abs=0.05)
    assert measured[0, 0, 1, 2 + 1, 2 + 2].abs() < 5 / 62
    torch.testing.assert_close(measured, measured.transpose(1, 2).flip(-1, -2))


def test_autocorrelation_distance_of_known_noises() -> None:
    """White against the mean of 2x2 pixels: r = 1/2 at 4 lags, 1/4 at 4; channels independent."""
    batch, side = 8, 128
    white, other, source = (noise_of(i, (batch, 3, side + 1, side + 1)) for i in range(3))
    white, other = white[..., 1:, 1:], other[..., 1:, 1:]
    soft = torch.nn.functional.avg_pool2d(source, 2, 1)
    clean = torch.zeros_like(white)
    expected = (4 / 4 + 4 / 16) / 3
    # Squared, both images' errors of 1 / sqrt(pairs) a lag come on top: at most 1 + (sum of r^2,
    # 2.25) of them. One image's figure spreads by under 5 %: 8 images, 5 standard errors: 9 %.
    floor = 121 * (1 + 2.25) / (side - 5) ** 2
    measured = metrics.autocorrelation_distance(white, soft, clean).square().mean().item()
    assert 0.91 * expected < measured < 1.09 * expected + floor
    # strength does not matter
    stronger = metrics.autocorrelation_distance(3 * white, soft, clean).square().mean().item()
    assert stronger == pytest.approx(measured, rel=1e-4)
    # two draws of white noise; the relative spread of a sum of 1089 squares is 4 %, over 8 images
    # 1.5 %: 5 standard errors are 8 %
    floor = metrics.autocorrelation_distance(white, other, clean).square().mean().sqrt().item()
    assert floor == pytest.approx(11 * math.sqrt(2) / side, rel=0.08)
    assert (metrics.autocorrelation_distance(soft, soft, clean) == 0).all()


# ---- noise level functions -----------------------------------------------------------------------


@pytest.mark.parametrize(("size", "bins"), [((40, 56), 16), ((33, 29), 5), ((9, 9), 1)])
def test_noise_level_function_against_scipy(size: tuple, bins: int, device: torch.device) -> None:
    noisy, _, clean = triple((2, 3, *size))
    measured = metrics.noise_level_function(*tensors([noisy, clean], device), bins=bins).cpu()
    assert measured.shape == (2, 3, bins)
    for b, c in np.ndindex(2, 3):
        level, noise = clean[b, c].ravel(), (noisy - clean)[b, c].ravel()
        variance, count = (
            stats.binned_statistic(level, noise, f, bins, (0, 1)).statistic
            for f in (lambda x: np.var(x, ddof=1) if len(x) > 1 else np.nan, "count")
        )
        expected = np.where(count >= 64, variance, np.nan)
        np.testing.assert_allclose(measured[b, c], expected, rtol=1e-4)
    assert measured.isfinite().any()


def test_noise_level_function_of_known_noise() -> None:
    """Variance a x + b, as photon and read noise have; x stands for its bin's middle."""
    shape, bins, a, b = (1, 3, 256, 256), 16, 0.02, 0.001
    clean = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    noise = noise_of(1, shape, 1) * (a * clean + b).sqrt()
    measured = metrics.noise_level_function(clean + noise, clean, bins=bins)
    middles = (torch.arange(bins) + 0.5) / bins
    n = clean[0, 0].numel() / bins
    # 5 standard errors of a variance, and of its bin's mean level, whose spread is small beside it
    tolerance = 5 * math.sqrt(2 / n) * 1.02
    torch.testing.assert_close(
        measured, (a * middles + b).expand(1, 3, bins), rtol=tolerance, atol=0
    )


def test_noise_level_distance_closed_forms() -> None:
    shape = (1, 3, 256, 256)
    clean = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    noise, other = noise_of(1, shape), noise_of(2, shape)
    half = noise.clone()
    half[:, 0] *= 0.5  # one channel of three
    bright = torch.where(clean < 0.25, noise, 4 * noise)  # three quarters of the pixels
    real, n = clean + noise, clean[0, 0].numel()

    def distance(fake_noise: torch.Tensor) -> float:
        return metrics.noise_level_distance(clean + fake_noise, real, clean).item()

    assert distance(2 * noise) == pytest.approx(math.log(2), abs=1e-4)
    assert distance(half) == pytest.approx(math.log(2) / 3, abs=1e-4)
    share = (clean >= 0.25).float().mean().item()
    assert distance(bright) == pytest.approx(share * math.log(4), abs=1e-4)
    assert distance(noise + 0.1) == pytest.approx(0, abs=1e-4)  # an offset is not noise
    # Two draws: |difference of log std| has a mean of sqrt(2 / pi) sqrt(1 / n) for n pixels a bin,
    # a relative spread of sqrt(pi / 2 - 1) = 0.76; 48 bins, 5 standard errors.
    floor = math.sqrt(2 / math.pi * 16 / n)
    assert distance(other) == pytest.approx(floor, rel=5 * 0.76 / math.sqrt(48))
    # none at all: the floor of the variance, 1e-10, decides
    assert distance(0 * noise) == pytest.approx(math.log(0.1 / 1e-5), rel=1e-2)


# ---- edges that all have -------------------------------------------------------------------------


def test_constant_images_and_no_noise(device: torch.device) -> None:
    clean = torch.full((2, 3, 16, 16), 0.3, device=device)
    noisy = clean + noise_of(0, clean.shape).to(device)
    for bins in RANGES:
        assert metrics.kld(clean, clean, clean, bins=bins).tolist() == [0, 0]
    rounded = clean.clone()
    rounded[..., ::2] += 1e-7  # rounding is no noise, nor is an offset
    for same in (clean + 0.1, rounded):
        assert metrics.noise_autocorrelation(same, clean).isnan().all()
    assert metrics.autocorrelation_distance(clean, noisy, clean).isnan().all()
    one = noisy.clone()
    one[:, 1] = 0.4  # no noise in green: only what involves it is unknown
    unknown = metrics.noise_autocorrelation(one, clean).isnan().all(dim=(0, 3, 4))
    assert unknown.tolist() == [[c == 1 or d == 1 for c in range(3)] for d in range(3)]
    levels = metrics.noise_level_function(noisy, clean)
    assert levels.isfinite().nonzero()[:, 2].unique().tolist() == [4]  # 0.3 * 16 = 4.8
    expected = (noisy - clean).var(dim=(2, 3))
    torch.testing.assert_close(levels[..., 4], expected, rtol=1e-4, atol=0)
    assert metrics.noise_level_distance(clean, clean, clean).tolist() == [0, 0]


def test_few_pixels_and_levels_beyond_the_range() -> None:
    clean = torch.full((1, 3, 8, 8), 1.2)
    noisy = clean + noise_of(0, clean.shape)
    assert metrics.noise_level_function(noisy, clean).isfinite().sum() == 3  # 64 pixels: the last
    assert metrics.noise_level_function(noisy, clean)[..., -1].isfinite().all()
    few = [x[..., :7] for x in (noisy, clean)]
    assert metrics.noise_level_function(*few).isnan().all()
    assert metrics.noise_level_distance(few[1], *few).isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_image_that_is_not_finite_gives_nan_and_spoils_no_other(bad: float, which: int) -> None:
    images = tensors(triple())
    images[which][1, 0, 3, 5] = bad
    for metric in (
        metrics.kld,
        metrics.autocorrelation_distance,
        metrics.noise_level_distance,
    ):
        assert metric(*images).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("metric", [metrics.noise_autocorrelation, metrics.noise_level_function])
def test_images_of_a_batch_do_not_mix(metric, device: torch.device) -> None:
    noisy, _, clean = tensors(triple((5, 3, 33, 29)), device)
    order = torch.tensor([3, 0, 4, 1, 2], device=device)
    batch = metric(noisy, clean)
    assert torch.equal(metric(noisy, clean).nan_to_num(9), batch.nan_to_num(9))
    shuffled = metric(noisy[order], clean[order])
    torch.testing.assert_close(shuffled, batch[order], equal_nan=True)
    assert not torch.allclose(shuffled, batch, equal_nan=True)
    single = torch.cat([metric(noisy[i : i + 1], clean[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(single, batch, equal_nan=True)


def test_options_out_of_range_are_refused() -> None:
    images = tensors(triple((1, 3, 8, 5)))
    with pytest.raises(ValueError, match="unit or tails, got 'ends'"):
        metrics.kld(*images, bins="ends")
    for lag in (5, -1):
        with pytest.raises(ValueError, match=f"max_lag.*8x5, got {lag}"):
            metrics.autocorrelation_distance(*images, max_lag=lag)
    with pytest.raises(ValueError, match=r"bins.*got 0"):
        metrics.noise_level_distance(*images, bins=0)


def test_pgap_is_what_is_lost() -> None:
    assert metrics.pgap(38.25, 37.0) == 1.25
    gap = metrics.pgap(torch.tensor([38.0, 30.0]), torch.tensor([36.0, 30.5]))
    assert gap.tolist() == [2.0, -0.5]
