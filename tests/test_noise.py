"""Noise models (method 4): moments and clipping against theory, and how often each is drawn."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from data.noise import GENERATOR_NOISE, NoiseModel, NoiseModelDistribution, add_noise

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


def reference_noise() -> NoiseModelDistribution:
    from train_denoiser_synthetic import REFERENCE_NOISE  # the script that owns it; slow to import

    return REFERENCE_NOISE


@pytest.mark.parametrize(
    ("distribution", "probabilities", "sigma", "chi"),
    [
        pytest.param(lambda: GENERATOR_NOISE, (0.2, 0.2, 0.6), (0, 70), (5, 100), id="generator"),
        pytest.param(reference_noise, (1 / 3, 1 / 3, 1 / 3), (0, 50), (5, 50), id="denoiser"),
    ],
)
def test_published_distributions(distribution, probabilities, sigma, chi) -> None:
    """Shares within 5 sqrt(p q / n) of the method's; sigma, chi uniform, independent of each other.

    Kolmogorov-Smirnov p-values below 1e-6 would be as rare as 5 standard errors.
    """
    n = 20_000
    drawn = distribution().draw(n, generator())
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
