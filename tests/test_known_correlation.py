"""Noise of a known correlation of neighbours: moments against theory."""

import math

import pytest
import torch
from torch import Tensor

from data.noise import add_noise, known_correlation
from tests.test_noise import INF, N, constant, generator, model


@pytest.mark.parametrize("neighbour", [0, 0.2, 0.4, 0.6, math.sqrt(0.5)])
def test_known_correlation(neighbour: float) -> None:
    """Along both axes as asked for, its square along the diagonals, channels independent, the
    variance kept.

    A correlation of N values, themselves correlated, has at most sqrt(sum r^2 / N) as its SE, r
    over both axes' lags; the sum is that of an axis, 1 + 2 neighbour^2 + 2 second^2, squared.
    """
    clean = constant(0.5)
    noisy = add_noise(clean, model((12, INF)), generator(), known_correlation(neighbour))
    noise = (noisy - clean)[0]
    a = known_correlation(neighbour).kernel[0, 0, 0, 1] / known_correlation(neighbour).kernel.max()
    second = a.item() ** 2 / (1 + 2 * a.item() ** 2)
    tolerance = 5 * (1 + 2 * neighbour**2 + 2 * second**2) / math.sqrt(N)

    def correlation(x: Tensor, y: Tensor) -> float:
        return torch.corrcoef(torch.stack([x.ravel(), y.ravel()]))[0, 1].item()

    across = correlation(noise[..., 1:], noise[..., :-1])
    along = correlation(noise[:, 1:], noise[:, :-1])
    diagonal = correlation(noise[:, 1:, 1:], noise[:, :-1, :-1])
    assert across == pytest.approx(neighbour, abs=tolerance)
    assert along == pytest.approx(neighbour, abs=tolerance)
    assert diagonal == pytest.approx(neighbour**2, abs=tolerance)
    channels = torch.corrcoef(noise.flatten(1)).fill_diagonal_(0)
    assert channels.abs().max() < math.sqrt(3) * tolerance
    assert noise.std().item() == pytest.approx(12 / 255, rel=tolerance)


def test_correlated_noise_is_clipped_after_it_was_correlated() -> None:
    """On black half of the values are cut off, and their mean, s / sqrt(2 pi), is not amplified."""
    noisy = add_noise(constant(0.0), model((25, INF)), generator(), known_correlation(0.4))
    assert noisy.min() == 0
    # variance of a clipped normal value: s^2 (1/2 - 1 / (2 pi)); fewer independent values as above
    error = 25 / 255 * math.sqrt(0.341 / N) * (1 + 2 * 0.4**2 + 2 * 0.05**2)
    mean = 25 / 255 / math.sqrt(2 * math.pi)
    assert noisy.mean().item() == pytest.approx(mean, abs=5 * error * 1.5)


@pytest.mark.parametrize("neighbour", [-0.1, 0.71])
def test_correlations_beyond_a_kernels_are_refused(neighbour: float) -> None:
    with pytest.raises(ValueError, match=r"neighbour: expected 0 to 0\.707"):
        known_correlation(neighbour)
