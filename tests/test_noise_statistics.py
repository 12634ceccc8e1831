"""Correlations and levels of one image's noise against numpy, scipy and closed forms.

What all share with the metrics (dtypes, autocast, refusals) is tested in test_metrics.py.
"""

import math

import numpy as np
import pytest
import torch
from scipy import signal, stats

from tests.test_metrics import tensors, triple
from tests.test_noise_metrics import noise_of
from utils.noise_statistics import (
    directional_correlations,
    neighbour_correlation,
    noise_autocorrelation,
    noise_level_function,
)

# ---- neighbours ----------------------------------------------------------------------------------


def test_neighbour_correlation_of_white_and_averaged_noise() -> None:
    """White noise has 0. The mean of horizontal pairs has 1/2 horizontally, 0 vertically; of pairs
    along both axes 1/2 in both directions."""
    side = 300
    white = torch.randn(3, 3, side + 1, side + 1, generator=torch.Generator().manual_seed(0))
    white[1, :, :, :-1] = (white[1, :, :, :-1] + white[1, :, :, 1:]) / 2
    white[2, :, :, :-1] = (white[2, :, :, :-1] + white[2, :, :, 1:]) / 2
    white[2, :, :-1] = (white[2, :, :-1] + white[2, :, 1:]) / 2
    noise = 0.1 * white[:, :, :side, :side]
    clean = torch.full_like(noise, 0.5)
    measured = neighbour_correlation(clean + noise, clean)
    # six correlations of about side^2 pairs each; a correlated field has fewer independent samples,
    # at most (1 + 2 * (2/4 + 1/16)) ~ 2.1 times fewer
    tolerance = 5 * math.sqrt(2.1 / (6 * side**2))
    np.testing.assert_allclose(measured, [0, 0.25, 0.5], atol=tolerance)


def test_neighbour_correlation_signs() -> None:
    clean = torch.full((1, 3, 16, 16), 0.5)
    stripes = clean.clone()
    stripes[..., ::2] += 0.1  # columns alternate: -1 horizontally, +1 vertically
    board = stripes.clone()
    board[..., ::2, :] += 0.1
    board[..., ::2, ::2] -= 0.2
    assert neighbour_correlation(stripes, clean).item() == pytest.approx(0, abs=1e-5)
    assert neighbour_correlation(board, clean).item() == pytest.approx(-1, abs=1e-5)


def test_directional_correlations_against_numpy() -> None:
    noisy, _, clean = triple((2, 3, 17, 29))
    noise = (noisy - clean).astype(np.float64)
    ways = [
        (noise[..., :, 1:], noise[..., :, :-1]),
        (noise[..., 1:, :], noise[..., :-1, :]),
        (noise[..., 1:, 1:], noise[..., :-1, :-1]),
        (noise[..., 1:, :-1], noise[..., :-1, 1:]),
    ]
    expected = [
        [np.mean([np.corrcoef(a[i, c].ravel(), b[i, c].ravel())[0, 1] for c in range(3)])]
        for i in range(2)
        for a, b in ways
    ]
    measured = directional_correlations(*tensors([noisy, clean]))
    np.testing.assert_allclose(measured, np.reshape(expected, (2, 4)), atol=1e-5)
    mean = neighbour_correlation(*tensors([noisy, clean]))
    torch.testing.assert_close(measured[:, :2].mean(dim=1), mean)


def test_directional_correlations_tell_directions_apart() -> None:
    """Means of two pixels: in a row, in a column, along either diagonal; then of 2x2 pixels."""
    side = 300
    white = noise_of(0, (5, 3, side + 1, side + 1))
    here, right, below, across = (
        white[..., y : y + side, x : x + side] for y, x in ((0, 0), (0, 1), (1, 0), (1, 1))
    )
    noise = torch.stack(
        [
            (here + right)[0],
            (here + below)[1],
            (here + across)[2],
            (right + below)[3],
            (here + right + below + across)[4],
        ]
    )
    measured = directional_correlations(noise, torch.zeros_like(noise))
    half = torch.tensor([[0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 0.5]])
    expected = torch.cat([half, torch.tensor([[0.5, 0.5, 0.25, 0.25]])])
    # a mean over three channels of correlations from side^2 pairs; the sum of the squares of the
    # autocorrelation, 1 + 4 / 4 + 4 / 16 at most, is how many fewer independent ones there are
    assert (measured - expected).abs().max() < 5 * math.sqrt(2.25 / (3 * side**2))


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
    measured = noise_autocorrelation(*images, max_lag=lag).cpu()
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
    measured = noise_autocorrelation(0.5 + noise, torch.full_like(noise, 0.5))
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
    measured = noise_autocorrelation(noise, torch.zeros_like(noise), max_lag=2)
    # the means and variances are those of slightly different pixels
    assert measured[0, 0, 1, 2 - 1, 2 - 2].item() == pytest.approx(1, abs=0.05)
    assert measured[0, 1, 0, 2 + 1, 2 + 2].item() == pytest.approx(1, abs=0.05)
    assert measured[0, 0, 1, 2 + 1, 2 + 2].abs() < 5 / 62
    torch.testing.assert_close(measured, measured.transpose(1, 2).flip(-1, -2))


# ---- noise level functions -----------------------------------------------------------------------


@pytest.mark.parametrize(("size", "bins"), [((40, 56), 16), ((33, 29), 5), ((9, 9), 1)])
def test_noise_level_function_against_scipy(size: tuple, bins: int, device: torch.device) -> None:
    noisy, _, clean = triple((2, 3, *size))
    measured = noise_level_function(*tensors([noisy, clean], device), bins=bins).cpu()
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
    measured = noise_level_function(clean + noise, clean, bins=bins)
    middles = (torch.arange(bins) + 0.5) / bins
    n = clean[0, 0].numel() / bins
    # 5 standard errors of a variance, and of its bin's mean level, whose spread is small beside it
    tolerance = 5 * math.sqrt(2 / n) * 1.02
    torch.testing.assert_close(
        measured, (a * middles + b).expand(1, 3, bins), rtol=tolerance, atol=0
    )


# ---- what all share ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [noise_autocorrelation, noise_level_function])
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
