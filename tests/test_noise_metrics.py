"""Distances between two noises in distribution, correlation and level: scipy and closed forms.

What all metrics share (batches, dtypes, autocast, refusals) is tested in test_metrics.py; AKLD's
floor in test_akld_floor.py; statistics of one noise in test_noise_statistics.py.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tests.test_metrics import tensors, triple
from utils import metrics
from utils.noise_statistics import noise_autocorrelation, noise_level_function

RANGES = {"unit": (256, (-1, 1)), "tails": (64, (-0.1, 0.1))}


def noise_of(seed: int, shape: tuple, sigma: float = 0.1) -> torch.Tensor:
    return sigma * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- autocorrelation -----------------------------------------------------------------------------


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


def test_directional_distance_of_known_noises() -> None:
    """Horizontal pairs' means (1/2, 0, 0, 0) against vertical ones' (0, 1/2, 0, 0): 1/4, which the
    neighbour correlation, 1/4 for both, does not see; against white noise 1/8."""
    shape, side = (1, 3, 300, 301), 300
    white, source = noise_of(0, (1, 3, side, side)), noise_of(1, shape)
    across = source[..., 1:] + source[..., :-1]
    along = across.transpose(2, 3)
    clean = torch.zeros_like(white)

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return metrics.directional_distance(a, b, clean).item()

    # Four correlations of variance 1.5 / (3 side^2) at most; 5 standard errors of both means of
    # four, had they nothing in common. The two that are 0 add up to two of them.
    tolerance = 5 * math.sqrt(2 * 1.5 / (3 * side**2))
    assert distance(across, along) == pytest.approx(1 / 4, abs=tolerance)
    assert distance(across, white) == pytest.approx(1 / 8, abs=tolerance)
    assert distance(3 * across, across) == pytest.approx(0, abs=1e-6)
    white, other = (noise_of(i, (64, 3, 64, 64)) for i in (2, 3))
    floor = metrics.directional_distance(white, other, torch.zeros_like(white)).mean().item()
    # The mean size of a normal value is sqrt(2 / pi) deviations, which here are sqrt(2 / 3) / 64;
    # relative spread 0.76 each, 4 x 64 of them. Borders: 63 pairs where there are 64 pixels.
    expected = math.sqrt(2 / math.pi * 2 / 3) / 64
    assert floor == pytest.approx(expected, rel=5 * 0.76 / math.sqrt(4 * 64) + 1 / 63)


# ---- colour cast ---------------------------------------------------------------------------------


def test_mean_shift_is_that_of_the_worst_channel_in_8_bit_steps() -> None:
    _, real, _ = tensors(triple())
    cast = torch.tensor([[1.0, -2.5, 0.5], [0.0, 0.0, 0.0], [-4.0, 3.0, 4.5]])
    shift = metrics.mean_shift(real + cast[..., None, None] / 255, real)
    torch.testing.assert_close(shift, torch.tensor([2.5, 0, 4.5]), atol=1e-3, rtol=0)
    # It is of the mean: what noise does around it is no cast.
    torch.testing.assert_close(
        metrics.mean_shift(real.flip(2), real), torch.zeros(3), atol=1e-3, rtol=0
    )


def test_mean_shift_of_two_draws_has_its_known_floor() -> None:
    """The largest of three |N(0, s sqrt(2 / (H W)))|: 1.3258 of them on average (quadrature)."""
    side, n = 32, 512
    noise, other = (noise_of(i, (n, 3, side, side), 25 / 255) for i in range(2))
    x = np.linspace(0, 8, 100001)
    largest = np.trapezoid(1 - (2 * stats.norm.cdf(x) - 1) ** 3, x)
    expected = largest * 25 * math.sqrt(2) / side
    # relative spread of the largest of three: 0.44; 5 standard errors of n
    measured = metrics.mean_shift(noise, other).mean().item()
    assert measured == pytest.approx(expected, rel=5 * 0.44 / math.sqrt(n))


# ---- noise level functions -----------------------------------------------------------------------


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


def test_worst_noise_level_closed_forms() -> None:
    shape = (1, 3, 256, 256)
    clean = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    clean[..., :2, :] = 0.99  # 512 pixels more in the last bin
    noise, other = noise_of(1, shape), noise_of(2, shape)
    one_bin = torch.where((clean >= 0.25) & (clean < 0.3125), noise / 4, noise)
    one_bin[:, :2] = noise[:, :2]  # of one channel

    def worst(fake_noise: torch.Tensor) -> float:
        return metrics.worst_noise_level(clean + fake_noise, clean + noise, clean).item()

    assert worst(2 * noise) == pytest.approx(math.log(2), abs=1e-4)
    assert worst(one_bin) == pytest.approx(math.log(4), abs=1e-3)
    assert worst(noise + 0.1) == pytest.approx(0, abs=1e-4)
    # Two draws: the largest of 48 |N(0, 1 / sqrt(4096))|, below 1.4 of them with p 0.0002, above
    # 4.5 with p 0.0003.
    assert 1.4 / 64 < worst(other) < 4.5 / 64


def test_worst_noise_level_leaves_rare_intensities_out() -> None:
    """0.9 % of the pixels do not count, 1.1 % do; both count in the mean distance."""
    noise = noise_of(0, (1, 3, 256, 256))
    for pixels, counts in ((590, False), (721, True)):
        clean = torch.full_like(noise, 0.5)
        clean.flatten(2)[..., :pixels] = 0.1
        fake = torch.where(clean < 0.25, 3 * noise, noise) + clean
        worst = metrics.worst_noise_level(fake, clean + noise, clean).item()
        assert worst == pytest.approx(math.log(3) * counts, abs=1e-4)
        mean = metrics.noise_level_distance(fake, clean + noise, clean).item()
        assert mean == pytest.approx(math.log(3) * pixels / 65536, rel=1e-2)


# ---- edges that all have -------------------------------------------------------------------------


def test_constant_images_and_no_noise(device: torch.device) -> None:
    clean = torch.full((2, 3, 16, 16), 0.3, device=device)
    noisy = clean + noise_of(0, clean.shape).to(device)
    for bins in RANGES:
        assert metrics.kld(clean, clean, clean, bins=bins).tolist() == [0, 0]
    rounded = clean.clone()
    rounded[..., ::2] += 1e-7  # rounding is no noise, nor is an offset
    for same in (clean + 0.1, rounded):
        assert noise_autocorrelation(same, clean).isnan().all()
    assert metrics.autocorrelation_distance(clean, noisy, clean).isnan().all()
    one = noisy.clone()
    one[:, 1] = 0.4  # no noise in green: only what involves it is unknown
    unknown = noise_autocorrelation(one, clean).isnan().all(dim=(0, 3, 4))
    assert unknown.tolist() == [[c == 1 or d == 1 for c in range(3)] for d in range(3)]
    levels = noise_level_function(noisy, clean)
    assert levels.isfinite().nonzero()[:, 2].unique().tolist() == [4]  # 0.3 * 16 = 4.8
    expected = (noisy - clean).var(dim=(2, 3))
    torch.testing.assert_close(levels[..., 4], expected, rtol=1e-4, atol=0)
    for metric in (metrics.noise_level_distance, metrics.worst_noise_level):
        assert metric(clean, clean, clean).tolist() == [0, 0]
    assert metrics.directional_distance(one, noisy, clean).isnan().all()


def test_few_pixels_and_levels_beyond_the_range() -> None:
    clean = torch.full((1, 3, 8, 8), 1.2)
    noisy = clean + noise_of(0, clean.shape)
    assert noise_level_function(noisy, clean).isfinite().sum() == 3  # 64 pixels: the last
    assert noise_level_function(noisy, clean)[..., -1].isfinite().all()
    few = [x[..., :7] for x in (noisy, clean)]
    assert noise_level_function(*few).isnan().all()
    for metric in (metrics.noise_level_distance, metrics.worst_noise_level):
        assert metric(few[1], *few).isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_image_that_is_not_finite_gives_nan_and_spoils_no_other(bad: float, which: int) -> None:
    images = tensors(triple())
    images[which][1, 0, 3, 5] = bad
    for metric in (
        metrics.kld,
        metrics.autocorrelation_distance,
        metrics.directional_distance,
        metrics.noise_level_distance,
        metrics.worst_noise_level,
    ):
        assert metric(*images).isnan().tolist() == [False, True, False]


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
