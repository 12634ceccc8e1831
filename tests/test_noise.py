"""Noise models (method 4): moments and clipping against theory, and how often each is drawn."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from data.noise import (
    KNOTS,
    NoiseCorrelation,
    NoiseCorrelationDistribution,
    NoiseModel,
    NoiseModelDistribution,
    add_noise,
    correlate,
    interpolate,
    random_level,
)
from train_denoiser_synthetic import RECIPE as DENOISER
from train_noiseTransfer import RECIPE as GENERATOR

INF = math.inf
SIDE = 128
N = 3 * SIDE * SIDE  # values an image


def model(*sigma_chi: tuple[float, float]) -> NoiseModel:
    """One (sigma in 8-bit steps, chi) an image."""
    sigma, chi = torch.tensor(sigma_chi).T
    return NoiseModel(sigma / 255, chi)


def constant(*levels: float) -> Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, SIDE, SIDE).clone()


def generator(device: torch.device | str = "cpu", seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def test_mean_and_variance(device: torch.device) -> None:
    """Each image of the batch has its own model; mean x, variance x / chi + sigma^2.

    SE of the mean: sqrt(v / N). SE of the sample variance: sqrt((k4 + 2 v^2) / N), where the fourth
    cumulant k4 is x / chi^3 for counts of mean x chi divided by chi, and 0 for a Gaussian. All
    levels are 5.9 standard deviations from 0 and 1: clipping moves neither by a tenth of an SE.
    """
    settings = [
        # x, sigma, chi
        (0.5, 20, INF),
        (0.3, 5, INF),
        (0.5, 0, 100),
        (0.7, 0, 500),
        (0.5, 10, 100),
        (0.45, 5, 300),
        (0.6, 0, INF),
    ]
    clean = constant(*(x for x, _, _ in settings)).to(device)
    noisy = add_noise(clean, model(*(s[1:] for s in settings)), generator(device))
    assert noisy.device.type == device.type
    assert noisy.dtype == torch.float32
    noise = (noisy.double() - clean.double()).flatten(1).cpu()
    for n, (x, sigma, chi) in zip(noise, settings, strict=True):
        v, k4 = x / chi + (sigma / 255) ** 2, x / chi**3
        # 1e-7: levels such as 0.3 are rounded to float32
        assert abs(n.mean()) <= 5 * math.sqrt(v / N) + 1e-7
        assert abs(n.var() - v) <= 5 * math.sqrt((k4 + 2 * v * v) / N)


def test_poisson_counts_have_the_poisson_distribution(device: torch.device) -> None:
    """Counts of mean x chi, divided by chi: chi-squared test against scipy's pmf."""
    x, chi = 0.25, 20.0
    counts = add_noise(constant(x).to(device), model((0, chi)), generator(device)).cpu() * chi
    assert (counts - counts.round()).abs().max() < 1e-4
    bins = np.arange(14)  # P(count > 13) = 7e-4 goes to the last one
    found = np.bincount(counts.round().long().clamp(max=14).flatten(), minlength=15)
    p = scipy.stats.poisson.pmf(bins, x * chi)
    expected = N * np.append(p, 1 - p.sum())
    assert scipy.stats.chisquare(found, expected).pvalue > 1e-6


def test_gaussian_noise_is_normal() -> None:
    noise = (add_noise(constant(0.5), model((20, INF)), generator()) - 0.5) / (20 / 255)
    assert scipy.stats.kstest(noise.flatten().double(), "norm").pvalue > 1e-6


def test_gaussian_part_comes_after_the_poisson_part() -> None:
    """The other way round would leave whole counts."""
    counts = add_noise(constant(0.25), model((2, 20)), generator()) * 20
    # sigma = 2/255 is 0.157 counts: |N(0, 0.157)| > 0.05 in 75 % of the pixels
    assert ((counts - counts.round()).abs() > 0.05).float().mean() > 0.7


@pytest.mark.parametrize(
    ("x", "sigma", "chi"), [(0.0, 30, INF), (1.0, 30, INF), (1.0, 0, 20), (1.0, 40, 20)]
)
def test_clipped_once_after_all_noise(x: float, sigma: float, chi: float) -> None:
    """Share of pixels at 0 and 1 against theory: sums over counts k of P(k) Phi(...).

    Tolerance 5 sqrt(p q / N). Clipping between the parts as well would change (1, 40, 20).
    """
    noisy = add_noise(constant(x), model((sigma, chi)), generator())
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    if chi == INF:
        level, weight = np.array([x]), np.array([1.0])
    else:
        k = np.arange(200)
        level, weight = k / chi, scipy.stats.poisson.pmf(k, x * chi)
    s = max(sigma / 255, 1e-9)
    for end, sign in ((0, -1), (1, 1)):
        # Without a Gaussian part the level 1 itself counts as clipped: 1e-6 below it
        p = float(weight @ scipy.stats.norm.sf((end - sign * 1e-6 - level) * sign / s))
        found = (noisy == end).double().mean().item()
        assert abs(found - p) <= 5 * math.sqrt(p * (1 - p) / N) + 1e-5


def test_draws_are_independent(device: torch.device) -> None:
    """Between images, channels and neighbours: correlation 0, SE 1 / sqrt(N) of as many values."""
    models = model((20, INF), (20, INF), (0, 100), (0, 100), (10, 100), (10, 100))
    clean = constant(*[0.5] * 6).to(device)
    noise = (add_noise(clean, models, generator(device)) - clean).double().cpu()
    correlation = torch.corrcoef(noise.flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(N)
    for n in noise:
        channels = torch.corrcoef(n.flatten(1)).fill_diagonal_(0)
        assert channels.abs().max() < 5 / math.sqrt(N / 3)
        for a, b in ((n[:, 1:], n[:, :-1]), (n[..., 1:], n[..., :-1])):
            pair = torch.stack([a.flatten(), b.flatten()])
            assert torch.corrcoef(pair)[0, 1].abs() < 5 / math.sqrt(a.numel())


def test_equal_seeds_give_equal_noise(device: torch.device) -> None:
    clean, models = constant(0.2, 0.5).to(device), model((10, INF), (10, 50))
    before = clean.clone()
    first, again, other = (add_noise(clean, models, generator(device, s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first != other).any(dim=(1, 2, 3)).all()
    assert torch.equal(clean, before)


@pytest.mark.parametrize(
    ("distribution", "probabilities", "sigma", "chi"),
    [
        pytest.param(GENERATOR.noise, (0.2, 0.2, 0.6), (0, 70), (5, 100), id="generator"),
        pytest.param(DENOISER.noise, (1 / 3, 1 / 3, 1 / 3), (0, 50), (5, 50), id="denoiser"),
    ],
)
def test_published_distributions(distribution, probabilities, sigma, chi) -> None:
    """Shares within 5 sqrt(p q / n) of the method's; sigma, chi uniform, independent of each other.

    Kolmogorov-Smirnov p-values below 1e-6 would be as rare as 5 standard errors.
    """
    n = 20_000
    drawn = distribution.draw(n, generator())
    assert drawn.sigma.shape == drawn.chi.shape == (n,)
    s, c = drawn.sigma.double() * 255, drawn.chi.double()
    has_gaussian, has_poisson = s > 0, torch.isfinite(c)
    assert (has_gaussian | has_poisson).all()
    kinds = (has_gaussian & ~has_poisson, ~has_gaussian & has_poisson, has_gaussian & has_poisson)
    for kind, p in zip(kinds, probabilities, strict=True):
        assert abs(kind.double().mean() - p) <= 5 * math.sqrt(p * (1 - p) / n)
        for values, present, (low, high) in ((s, has_gaussian, sigma), (c, has_poisson, chi)):
            if (kind & present).any():
                part = values[kind]
                assert part.min() >= low
                assert part.max() <= high * (1 + 1e-6)
                uniform = scipy.stats.uniform(low, high - low)
                assert scipy.stats.kstest(part, uniform.cdf).pvalue > 1e-6
    both = kinds[2]
    correlation = torch.corrcoef(torch.stack([s[both], c[both]]))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(both.sum())


def test_sigma_is_in_8_bit_steps_and_ranges_may_be_points() -> None:
    drawn = NoiseModelDistribution((0, 0, 1), sigma=(25, 25), chi=(30, 30)).draw(4, generator())
    torch.testing.assert_close(drawn.sigma, torch.full((4,), 25 / 255))
    torch.testing.assert_close(drawn.chi, torch.full((4,), 30.0))


# --------------------------------------------------------------- noise level functions, correlation


def test_level_between_its_knots() -> None:
    level = torch.rand(4, 3, KNOTS, generator=generator())
    x = torch.rand(4, 3, 8, 9, generator=generator(seed=1))
    x[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    knots = np.linspace(0, 1, KNOTS)
    for b, c in np.ndindex(4, 3):
        expected = np.interp(x[b, c].numpy(), knots, level[b, c].numpy())
        np.testing.assert_allclose(interpolate(level, x)[b, c], expected, atol=1e-6)


def test_noise_of_a_level(device: torch.device) -> None:
    """Deviation of each channel at 0.3 and 0.65, between knots; SE: that over sqrt(2 n)."""
    level = torch.tensor([[0.01] * 5, [0.02, 0.03, 0.04, 0.05, 0.06], [0.05, 0.01, 0.01, 0.03, 0]])
    chosen = NoiseModel(
        torch.zeros(3), torch.full((3,), INF), torch.stack([level, 0 * level, level])
    )
    clean = constant(0.3, 0.3, 0.65).to(device)
    noise = (add_noise(clean, chosen, generator(device)) - clean).flatten(2).cpu()
    assert not noise[1].any()
    for image, x in ((0, 0.3), (2, 0.65)):
        expected = [np.interp(x, np.linspace(0, 1, 5), row) for row in level.numpy()]
        n = noise.shape[2]
        assert noise[image].std(1).tolist() == pytest.approx(expected, rel=5 / math.sqrt(2 * n))


def test_random_levels() -> None:
    """The mean logarithm is uniform between the ends: mean of n, SE: range / sqrt(12 n), and the
    channels' offsets, 0.25 / sqrt(3 n), the knots', the bends'. Channels differ, shapes too."""
    n = 4000
    levels = random_level(n, (1, 45), generator()).log()
    low, high = math.log(1 / 255), math.log(45 / 255)
    se = math.hypot((high - low) / math.sqrt(12 * n), 0.25 / math.sqrt(3 * n))
    assert levels.mean().item() == pytest.approx((low + high) / 2, abs=5 * se)
    rise = (levels[..., -1] - levels[..., 0]).mean(
        1
    )  # slope 0.6, and two knots' 0.1 over 3 channels
    expected = math.hypot(0.6, 0.1 * math.sqrt(2 / 3))
    assert rise.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * n))
    between = levels.mean(2).std(1).square().mean().sqrt()  # 0.25, and five knots' mean
    assert between.item() == pytest.approx(math.hypot(0.25, 0.1 / math.sqrt(5)), rel=0.05)


def test_fourth_probability_draws_levels() -> None:
    n = 3000
    distribution = NoiseModelDistribution((0.1, 0.2, 0.3, 0.4), sigma=(1, 70), chi=(5, 100))
    drawn = distribution.draw(n, generator())
    of_level = drawn.level.any(dim=(1, 2))
    kinds = torch.stack(
        [
            (drawn.sigma > 0) & (drawn.chi == INF),
            (drawn.sigma == 0) & (drawn.chi < INF),
            (drawn.sigma > 0) & (drawn.chi < INF),
            of_level,
        ]
    )
    assert (kinds.sum(0) == 1).all()  # one kind an image
    for share, p in zip(kinds.double().mean(1), distribution.probabilities, strict=True):
        assert share.item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))


def same_correlation(a: float, c: float, n: int = 1) -> NoiseCorrelation:
    kernel = torch.tensor([c, a, 1, a, c]) / math.sqrt(1 + 2 * a * a + 2 * c * c)
    return NoiseCorrelation(kernel.expand(n, 3, 2, 5), torch.eye(3).expand(n, 3, 3))


@pytest.mark.parametrize(("a", "c"), [(0.25, 0.0), (0.5, 0.2), (0.3, -0.08), (0.0, 0.0)])
def test_correlation_of_a_kernel(a: float, c: float) -> None:
    """Along both axes (2a + 2ac) / (1 + 2a^2 + 2c^2) at a pixel's distance, its square across, and
    (2c + a^2) / (...) at two; the energy stays, at the borders as inside."""
    x = torch.randn(1, 3, 256, 256, generator=generator())
    y = same_correlation(a, c)(x)
    energy = 1 + 2 * a * a + 2 * c * c
    one, two = (2 * a + 2 * a * c) / energy, (2 * c + a * a) / energy
    wide = 3 / 256  # of a correlation over 3 * 256^2 values, some of them correlated: 5 SE and more
    for shift, expected in (((0, 1), one), ((1, 0), one), ((1, 1), one * one), ((0, 2), two)):
        found = (y * y.roll(shift, (2, 3))).mean() / y.square().mean()
        assert found.item() == pytest.approx(expected, abs=wide), shift
    assert y.square().mean().item() == pytest.approx(1, abs=0.03)
    many = same_correlation(a, c)(torch.randn(1, 3, 64, 16384, generator=generator(seed=1)))
    assert many[..., 0, :].square().mean().item() == pytest.approx(1, abs=0.1)


def test_mixing_correlates_channels() -> None:
    """Rows of unit length: the channels' correlation is the product of their rows."""
    mixing = torch.nn.functional.normalize(
        torch.tensor([[1, 0.5, 0], [0, 1, 0], [0.2, 0, 1]]), dim=1
    )
    white = same_correlation(0, 0)
    y = NoiseCorrelation(white.kernel, mixing[None])(
        torch.randn(1, 3, 256, 256, generator=generator())
    )
    found = torch.corrcoef(y[0].flatten(1))
    torch.testing.assert_close(found, mixing @ mixing.T, atol=5 / 256, rtol=0)


def test_drawn_correlations() -> None:
    """1 - p are none; the others have unit kernels and rows, and neighbours in the stated range."""
    n = 3000
    drawn = NoiseCorrelationDistribution(0.7).draw(n, generator())
    torch.testing.assert_close(drawn.kernel.norm(dim=3), torch.ones(n, 3, 2))
    torch.testing.assert_close(drawn.mixing.norm(dim=2), torch.ones(n, 3))
    none = (drawn.kernel[..., 2] == 1).all(2).all(1) & (drawn.mixing == torch.eye(3)).all(2).all(1)
    assert none.double().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / n))
    k = drawn.kernel[~none]
    a = k[..., 1] / k[..., 2]
    assert a.max() <= 0.6 * 1.3 * 1.2 + 1e-6
    assert a.mean().item() == pytest.approx(0.255, abs=0.02)  # 0.3 times factors of mean 1, 0.85
    ratio = k[..., 0] / k[..., 1]
    assert ratio.min() >= -0.3 - 1e-5
    assert ratio.max() <= 0.5 + 1e-5


def test_correlated_images_are_clipped_and_centred() -> None:
    clean = constant(0.02, 0.5)
    noisy = correlate(
        add_noise(clean, model((20, INF), (20, INF)), generator()),
        clean,
        same_correlation(0.3, 0, 2),
    )
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    assert (noisy[1] - 0.5).mean().abs() < 5 * 20 / 255 / SIDE
