"""Moment and statistics terms against scipy, the metrics, and values computed by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
import scipy.integrate
import scipy.ndimage
import scipy.stats
import torch
from torch import Tensor

from models.embedding import STATISTICS, StatisticsHead
from models.losses import (
    autocorrelation_loss,
    band_coefficients,
    band_losses,
    clip_straight_through,
    cosine_transform,
    local_mean_loss,
    local_variance_loss,
    noise_statistics,
    overflow_loss,
    quantile_loss,
    statistics_loss,
)
from utils.metrics import autocorrelation_distance

SIGMA = 20 / 255


def white(seed: int = 0, *, batch: int = 2, side: int = 128, device: str = "cpu") -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (SIGMA * torch.randn(batch, 3, side, side, generator=g)).to(device)


def correlated(noise: Tensor, taps: tuple[float, ...]) -> Tensor:
    kernel = np.array(taps) / np.linalg.norm(taps)
    out = scipy.ndimage.convolve1d(noise.numpy(), kernel, axis=-1, mode="wrap")
    return torch.from_numpy(out)


def energy(*noises: Tensor) -> Tensor:
    return band_losses(*noises)[0]


def test_cosine_transform_is_scipys() -> None:
    for size in (3, 8):
        expected = scipy.fft.dct(np.eye(size), axis=0, norm="ortho")
        np.testing.assert_allclose(cosine_transform(size, torch.device("cpu")), expected, atol=1e-7)


def test_band_coefficients_are_scipys() -> None:
    noise = white(side=24)
    found = band_coefficients(noise).view(2, 3, 8, 8, 5, 5)
    grey = noise.sum(1)[:, 4:12, 8:16] / math.sqrt(3)  # the block at row 1, column 2
    expected = scipy.fft.dctn(grey.numpy(), axes=(1, 2), norm="ortho")
    np.testing.assert_allclose(found[:, 0, :, :, 1, 2], expected, atol=1e-6)


def test_equal_noise_has_no_loss() -> None:
    x = white()
    for loss in (*band_losses(x, x), local_variance_loss(x, x), autocorrelation_loss(x, x)):
        assert loss.item() == 0
    assert local_mean_loss(x, x).item() == quantile_loss(x, x).item() == 0


def test_a_factor_on_the_noise_is_its_logarithm_and_no_other_shape(device) -> None:
    """The floors are 0.3 % of the energy at most: 1.5^2 becomes (2.25 + 0.003) / 1.003."""
    x = white(device=device)
    energy, shape = band_losses(x, 1.5 * x)
    assert energy.item() == pytest.approx(math.log(1.5), abs=2e-3)
    assert shape.item() < 2e-3
    assert local_variance_loss(x, 1.5 * x).item() == pytest.approx(math.log(1.5), abs=2e-3)
    assert autocorrelation_loss(x, 1.5 * x).item() < 1e-5


def test_shape_tells_tails() -> None:
    """Half of the picture without noise, the other half with twice the energy: the mean absolute
    value falls by sqrt(2), the energy stays. Blocks across the border, 1 in 31, blur that a bit."""
    x = white(side=256, batch=4)
    halves = x.clone()
    halves[..., :128] = 0
    halves[..., 128:] *= math.sqrt(2)
    _, shape = band_losses(x, halves)
    assert shape.item() == pytest.approx(math.log(2) / 2, abs=0.05)
    _, chance = band_losses(x, white(1, side=256, batch=4))
    assert chance.item() < 0.02


def test_local_mean_is_the_shift_over_the_deviation() -> None:
    x = white()
    shift = 0.3 * SIGMA
    assert local_mean_loss(x, x + shift).item() == pytest.approx(0.3, rel=0.02)


def test_quantile_loss_is_scipys_distance_of_the_standardised_blocks(device) -> None:
    """One channel of one block, by scipy, and the mean over all of them."""
    real, fake = white(side=32), 1.3 * white(1, side=32) + 0.02
    floor = (0.3 / 255) ** 2 + 0.003 * real.square().mean((1, 2, 3))
    each = []
    for i in range(2):
        for channel in range(3):
            for y, x in ((0, 0), (0, 16), (16, 0), (16, 16)):
                block = [n[i, channel, y : y + 16, x : x + 16].flatten() for n in (real, fake)]
                unit = [n / (n.square().mean() + floor[i]).sqrt() for n in block]
                each.append(scipy.stats.wasserstein_distance(*unit))
    found = quantile_loss(real.to(device), fake.to(device)).item()
    assert found == pytest.approx(np.mean(each), rel=1e-5)


def test_quantile_loss_sees_the_shape_and_not_the_strength() -> None:
    """Normal against uniform noise of one variance: the integral of the difference of their
    quantile functions; blocks of 256 values differ by chance besides."""
    x = white(side=256, batch=4)
    u = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)).sub(0.5) * 12**0.5 * SIGMA

    def gap(p: float) -> float:
        return abs(scipy.stats.norm.ppf(p) - 12**0.5 * (p - 0.5))

    distance, _ = scipy.integrate.quad(gap, 0, 1)
    assert quantile_loss(x, u).item() == pytest.approx(distance, rel=0.15)
    assert quantile_loss(x, 3 * x).item() < 2e-3


@pytest.mark.parametrize("axes", [(-1, -2), (-2, -1)])
def test_autocorrelation_of_a_known_kernel(axes: tuple[int, int]) -> None:
    """(a, 1, a) with a = 0.25: 4/9 at lag 1, 1/18 at lag 2, on both sides; channels independent, so
    the 9 pairs have 3 (2 (4/9)^2 + 2 (1/18)^2) / 9. Two white draws: 122 lags of 2 / N."""
    x, n = white(side=256), 256**2
    y = correlated(white(1, side=256).transpose(-1, axes[0]), (0.25, 1, 0.25))
    y = y.transpose(-1, axes[0]).contiguous()
    expected = 3 * 2 * ((4 / 9) ** 2 + (1 / 18) ** 2) / 9
    assert autocorrelation_loss(x, y).item() == pytest.approx(expected, abs=4 * 122 * 2 / n)


def test_autocorrelation_is_the_metric_squared() -> None:
    x, y = white(side=256), correlated(white(1, side=256), (0.1, 0.5, 1, 0.5, 0.1))
    y[:, 1] += 0.5 * y[:, 0]  # across channels too
    clean = torch.full_like(x, 0.5)
    metric = autocorrelation_distance(clean + y, clean + x, clean)
    # the metric divides by the number of pairs in a sum, the loss by all: up to 5/256 an axis
    assert autocorrelation_loss(x, y).item() == pytest.approx(
        metric.square().mean().item(), rel=0.05
    )


@pytest.mark.parametrize("diagonal", [1, -1])
def test_autocorrelation_sees_either_diagonal(diagonal: int) -> None:
    x = white(side=256)
    y = (x + x.roll((1, diagonal), (-2, -1))) / math.sqrt(2)
    assert autocorrelation_loss(white(1, side=256), y).item() == pytest.approx(
        3 * 2 * 0.25 / 9, abs=0.015
    )


def test_terms_have_gradients_where_there_is_no_noise() -> None:
    """Real or generated noise of zero: finite losses and gradients."""
    for real, fake in ((white(side=32), 0 * white(side=32)), (0 * white(side=32), white(side=32))):
        fake = fake.clone().requires_grad_()
        energy, shape = band_losses(real, fake)
        total = energy + shape + local_variance_loss(real, fake) + local_mean_loss(real, fake)
        total = total + autocorrelation_loss(real, fake) + quantile_loss(real, fake)
        (grad,) = torch.autograd.grad(total, fake)
        assert total.isfinite()
        assert grad.isfinite().all()


def test_clipping_lets_the_gradient_through() -> None:
    x = torch.tensor([-0.5, 0.25, 1.5], requires_grad=True)
    y = clip_straight_through(x)
    assert y.tolist() == [0, 0.25, 1]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1, 1]


# ------------------------------------------------------------------------------------- statistics


def test_statistics_tell_the_diagonals_apart() -> None:
    """x + x moved one down and one right: falling neighbours correlate by 1/2, rising ones not."""
    x = white(side=128)
    noise = (x + x.roll((1, 1), (-2, -1))) / math.sqrt(2)
    clean = torch.full_like(x, 0.5)
    values, _ = noise_statistics(clean + noise, clean)
    falling, rising = (values[:, 18:24] / 2).view(2, 2, 3).unbind(1)
    torch.testing.assert_close(falling, torch.full((2, 3), 0.5), atol=0.04, rtol=0)
    torch.testing.assert_close(rising, torch.zeros(2, 3), atol=0.04, rtol=0)


def test_statistics_of_known_noise(device) -> None:
    """Left half at 0.3 with sigma 0.02, right half at 0.6 with 0.05, three channels alike but for a
    factor; neighbours in a row correlate by 4/9, blue is red."""
    side, n = 128, 128 * 64
    clean = torch.full((1, 3, side, side), 0.3)
    clean[..., side // 2 :] = 0.6
    noise = correlated(white(side=side, batch=1) / SIGMA, (0.25, 1, 0.25))
    noise[:, 2] = noise[:, 0]
    noise *= torch.tensor([1.0, 0.5, 1.0])[:, None, None]
    noise *= torch.where(clean < 0.5, 0.02, 0.05)
    values, shown = noise_statistics((clean + noise).to(device), clean.to(device))
    assert values.shape == shown.shape == (1, STATISTICS)
    level, shown_level = values[0, :12].view(4, 3).exp().cpu(), shown[0, :12].view(4, 3)
    assert shown_level.bool().tolist() == [[False] * 3, [True] * 3, [True] * 3, [False] * 3]
    # SE of a deviation: 1 / sqrt(2 n), some more with correlation
    expected = torch.tensor([[0.02, 0.01, 0.02], [0.05, 0.025, 0.05]])
    torch.testing.assert_close(level[1:3], expected, rtol=6 / math.sqrt(2 * n), atol=0)
    right, below, falling, rising, right2, below2, colour = (values[0, 12:].cpu() / 2).view(7, 3)
    assert right.tolist() == pytest.approx([4 / 9] * 3, abs=0.03)
    assert right2.tolist() == pytest.approx([1 / 18] * 3, abs=0.03)
    for none in (below, falling, rising, below2):
        assert none.tolist() == pytest.approx([0] * 3, abs=0.03)
    assert colour.tolist() == pytest.approx([0, 0, 1], abs=0.03)
    assert shown[0, 12:].all()


def test_no_noise_shows_no_correlation_and_few_pixels_no_deviation() -> None:
    clean = torch.full((1, 3, 16, 16), 0.1)
    clean[..., :3, :] = 0.9  # 48 pixels
    values, shown = noise_statistics(clean.clone(), clean)
    assert shown[0, :12].view(4, 3)[:, 0].tolist() == [1, 0, 0, 0]
    assert not shown[0, 12:].any()
    assert values.isfinite().all()
    assert values[0, 0].item() == pytest.approx(math.log(0.3 / 255), abs=1e-5)


def test_statistics_loss_is_the_mean_over_what_is_shown() -> None:
    clean = torch.full((2, 3, 32, 32), 0.4)
    noisy = clean + white(side=32)
    statistics, shown = noise_statistics(noisy, clean)
    told = statistics + torch.where(shown.bool(), 0.25, 100.0)
    told[:, 12:] += 0.5
    loss, level = statistics_loss(told, noisy, clean)
    assert level.item() == pytest.approx(0.25, abs=1e-5)
    assert loss.item() == pytest.approx((3 * 0.25 + 21 * 0.75) / 24, abs=1e-5)


def test_signal_dependence_is_what_differs_between_intensities() -> None:
    """Red shows two, told 0.1 too high and 0.3 too low: 0.2 about their mean. Green shows two, both
    told 0.4 too high: nothing. Blue shows one: not asked."""
    clean = torch.full((1, 3, 32, 32), 0.1)
    clean[:, :2, :16] = 0.6
    noisy = clean + white(side=32, batch=1)
    statistics, _ = noise_statistics(noisy, clean)
    told = statistics.clone()
    told[0, [0, 6]] += torch.tensor([0.1, -0.3])
    told[0, [1, 7]] += 0.4
    told[0, 2] += 0.7
    plain, _ = statistics_loss(told, noisy, clean)
    loss, level = statistics_loss(told, noisy, clean, signal_dependence=3)
    assert (loss - plain).item() == pytest.approx(3 * (0.2 + 0.2) / 4, abs=1e-5)
    assert level.item() == pytest.approx((0.1 + 0.3 + 0.4 + 0.4 + 0.7) / 5, abs=1e-5)
    nothing, _ = statistics_loss(told, clean + 0 * noisy, clean, signal_dependence=3)
    assert nothing.isfinite()


def test_statistics_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    """Whatever its images show: the same batch on two processes, or in parts, is the same step."""
    clean = torch.full((4, 3, 32, 32), 0.4)
    clean[1, :, :16], clean[2, :, :, :8] = 0.1, 0.9
    noisy = clean + white(side=32, batch=4) * torch.tensor([1.0, 1, 1, 0])[:, None, None, None]
    told = torch.randn(4, STATISTICS)
    assert len({int(n) for n in noise_statistics(noisy, clean)[1].sum(1)}) > 1
    whole = statistics_loss(told, noisy, clean)
    parts = [statistics_loss(*(x[i : i + 2] for x in (told, noisy, clean))) for i in (0, 2)]
    for together, *apart in zip(whole, *parts, strict=True):
        assert together.item() == pytest.approx(sum(x.item() for x in apart) / 2, rel=1e-5)


def test_head_starts_at_a_usual_deviation_and_reads_a_direction() -> None:
    head = StatisticsHead(16)
    assert head(torch.zeros(1, 16))[0, :12].tolist() == pytest.approx([-3] * 12)
    z = torch.nn.functional.normalize(torch.ones(1, 16))
    expected = head.weight.sum(1) + head.bias  # sqrt(16) / sqrt(16)
    torch.testing.assert_close(head(z)[0], expected)


def test_overflow_is_the_way_beyond_what_noise_reaches() -> None:
    """Pixels at -1, 0.5, 1.5 and 3.5 are 0.5, 0, 0 and 2 too far."""
    image = torch.tensor([-1.0, 0.5, 1.5, 3.5], requires_grad=True)
    loss = overflow_loss(image)
    assert loss.item() == pytest.approx(2.5 / 4)
    (grad,) = torch.autograd.grad(loss, image)
    assert grad.tolist() == [-0.25, 0, 0, 0.25]


@pytest.mark.parametrize(
    "loss", [local_variance_loss, local_mean_loss, quantile_loss, autocorrelation_loss, energy]
)
def test_a_second_draw_makes_the_right_correlation_the_best(loss: Callable) -> None:
    """Half the distance of two draws subtracted, the score is proper: least at the truth. Without,
    the less a statistic varies the better, and all but the bands' energy like white noise more."""
    true, taps = 3, [(a / 10, 1.0, a / 10) for a in range(6)]
    real = correlated(white(1, batch=200, side=32), taps[true])
    two, scores = [], []
    for kernel in taps:
        fake, second = (correlated(white(i, batch=200, side=32), kernel) for i in (2, 3))
        two.append(loss(real, fake).item())
        # `second` has no gradient, hence its distance counts whole in the loss, half in the score
        scores.append((two[-1] + loss(real, fake, second).item()) / 2)
    assert np.argmin(scores) == true
    assert np.argmin(two) == {autocorrelation_loss: 2, energy: true}.get(loss, 0)


def test_no_gradient_reaches_the_second_draw() -> None:
    real, fake, second = (white(i, side=32).requires_grad_() for i in range(3))
    quantile_loss(real, fake, second).backward()
    assert fake.grad.abs().sum() > 0
    assert second.grad is None
