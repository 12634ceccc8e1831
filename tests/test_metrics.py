"""Metrics against the published figures, numpy, scipy and closed forms."""

import math

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from tests.golden import recipe
from utils import metrics
from utils.noise_statistics import local_noise_variance, neighbour_correlation

NOISE_METRICS = [
    metrics.akld,
    metrics.ks,
    metrics.kld,
    metrics.noise_std_ratio,
    metrics.autocorrelation_distance,
    metrics.directional_distance,
    metrics.noise_level_distance,
    metrics.worst_noise_level,
]
QUALITY_METRICS = [metrics.psnr, metrics.ssim]
PAIR_METRICS = [*QUALITY_METRICS, metrics.mean_shift, neighbour_correlation]


def triple(shape: tuple = (3, 3, 40, 56), seed: int = 0) -> list[np.ndarray]:
    """fake, real, clean, float32, not clipped; every image has noise of its own strength."""
    r = np.random.default_rng(seed)
    clean = r.random(shape)
    sigma = r.uniform(0.02, 0.2, (2, shape[0], 1, 1, 1))
    fake, real = (clean + s * r.standard_normal(shape) * (0.5 + clean) for s in sigma)
    return [x.astype(np.float32) for x in (fake, real, clean)]


def tensors(arrays: list[np.ndarray], device: torch.device | str = "cpu") -> list[torch.Tensor]:
    return [torch.from_numpy(a).to(device) for a in arrays]


# ---- outside truth -------------------------------------------------------------------------------


def variance_numpy(noisy: np.ndarray, clean: np.ndarray) -> np.ndarray:
    squared = (noisy.astype(np.float64) - clean) ** 2
    window = cv2.getGaussianKernel(7, 0).ravel()  # OpenCV's own table for 7 taps
    for axis in (-2, -1):  # scipy's "mirror" is torch's "reflect"
        squared = ndimage.correlate1d(squared, window, axis, mode="mirror")
    return np.maximum(squared, 1e-10)


def akld_numpy(fake: np.ndarray, real: np.ndarray, clean: np.ndarray) -> np.ndarray:
    t = np.clip(variance_numpy(fake, clean) / variance_numpy(real, clean), 0.1, 10)
    return ((t - 1 - np.log(t)) / 2).mean(axis=(1, 2, 3))


def ks_numpy(fake: np.ndarray, real: np.ndarray, clean: np.ndarray) -> np.ndarray:
    def distribution(noise: np.ndarray) -> np.ndarray:
        counts, _ = np.histogram(noise, bins=256, range=(-1, 1))
        return np.cumsum(counts) / noise.size

    return np.array(
        [
            np.abs(distribution(f - c) - distribution(r - c)).max()
            for f, r, c in zip(fake, real, clean, strict=True)
        ]
    )


def test_golden(golden: dict, device: torch.device) -> None:
    shape = (1, 3, 64, 80)
    clean = recipe.image(7, shape)
    r = np.random.RandomState(8)
    real = np.clip(clean + 0.10 * r.standard_normal(shape), 0, 1).astype(np.float32)
    fake = np.clip(clean + 0.07 * r.standard_normal(shape), 0, 1).astype(np.float32)
    fake, real, clean = tensors([fake, real, clean], device)
    expected = golden["metrics"]
    assert metrics.akld(fake, real, clean).item() == pytest.approx(expected["akld"], abs=1e-4)
    assert metrics.ks(fake, real, clean).item() == pytest.approx(expected["ks"], abs=1e-4)
    assert metrics.psnr(clean, fake).item() == pytest.approx(expected["psnr"], abs=1e-4)
    assert metrics.ssim(clean, fake).item() == pytest.approx(expected["ssim"], abs=1e-4)
    v, expected = local_noise_variance(real, clean).cpu(), expected["sigma_real"]
    assert list(v.shape) == expected["shape"]
    # variances near 0.01: 1e-6 is 1e-4 of the figure
    assert v.mean().item() == pytest.approx(expected["mean"], abs=1e-6)
    assert v.std().item() == pytest.approx(expected["std"], abs=1e-6)
    assert v.flatten()[:4].tolist() == pytest.approx(expected["first"], abs=1e-6)
    assert v.flatten()[-4:].tolist() == pytest.approx(expected["last"], abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 3, 40, 56), (2, 3, 17, 4), (1, 3, 5, 31)])
def test_against_numpy(shape: tuple, device: torch.device) -> None:
    arrays = triple(shape)
    images = tensors(arrays, device)
    fake, real, clean = arrays
    for noisy, noisy_tensor in ((fake, images[0]), (real, images[1])):
        v = local_noise_variance(noisy_tensor, images[2]).cpu().numpy()
        np.testing.assert_allclose(v, variance_numpy(noisy, clean), rtol=1e-5)
    np.testing.assert_allclose(metrics.akld(*images).cpu(), akld_numpy(*arrays), rtol=1e-5)
    np.testing.assert_allclose(metrics.ks(*images).cpu(), ks_numpy(*arrays), atol=1e-6)
    ratio = np.std(fake - clean, axis=(1, 2, 3)) / np.std(real - clean, axis=(1, 2, 3))
    np.testing.assert_allclose(metrics.noise_std_ratio(*images).cpu(), ratio, rtol=1e-5)
    correlation = [
        np.mean(
            [
                np.corrcoef(a.ravel(), b.ravel())[0, 1]
                for channel in noise
                for a, b in ((channel[:, 1:], channel[:, :-1]), (channel[1:], channel[:-1]))
            ]
        )
        for noise in fake - clean
    ]
    measured = neighbour_correlation(images[0], images[2]).cpu()
    np.testing.assert_allclose(measured, correlation, atol=1e-5)


def test_ks_bins_are_numpys_to_the_last_bit() -> None:
    """Noise on the edges, one float32 step beside them, and at both ends of [-1, 1]."""
    edges = np.linspace(-1, 1, 257, dtype=np.float32)
    values = np.concatenate([edges, np.nextafter(edges, -1), np.nextafter(edges, 1)])
    values = np.concatenate([values, [-1e-9, 1e-9, -0.0]]).astype(np.float32)
    values = values[np.abs(values) <= 1]
    fake = np.resize(values, (1, 3, 20, 30))  # all values, many of them twice
    real = np.random.default_rng(1).uniform(-1, 1, fake.shape).astype(np.float32)
    arrays = [fake, real, np.zeros_like(fake)]
    counts = metrics._histogram(torch.from_numpy(fake))[0].numpy()
    np.testing.assert_array_equal(counts, np.histogram(fake, bins=256, range=(-1, 1))[0])
    np.testing.assert_allclose(metrics.ks(*tensors(arrays)), ks_numpy(*arrays), atol=1e-7)


def test_ks_counts_noise_beyond_the_range_in_the_outermost_bins() -> None:
    clean = torch.zeros(1, 3, 8, 8)
    fake, real = clean + 1.5, clean.clone()
    fake[:, :, ::2] = -1.5
    # below -1: half of fake, none of real; from 0 on: all of real, half of fake
    assert metrics.ks(fake, real, clean).item() == 0.5
    assert metrics.ks(fake, fake.clamp(-1, 1), clean).item() == 0


def test_ks_of_two_gaussians() -> None:
    """The distance of N(0, s) and N(0, 2 s): s = 25.6 bins, so that binning is negligible."""
    n = 3 * 256 * 256
    noise = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    clean = torch.zeros(1, 3, 256, 256)
    x = np.linspace(0, 10, 100001)
    expected = np.max(stats.norm.cdf(x) - stats.norm.cdf(x / 2))
    measured = metrics.ks(0.2 * noise[:1], 0.1 * noise[1:], clean).item()
    # each empirical distribution is off by 0.5 / sqrt(n) at most (one sigma): 5 sigma of both.
    # binning: the difference is flat at its largest, half a bin changes it by less than 1e-3
    assert measured == pytest.approx(expected, abs=5 * math.sqrt(2 * 0.25 / n) + 1e-3)


def test_akld_of_constant_noise() -> None:
    """Constant |noise| has that local variance exactly; t is clipped to [0.1, 10]."""
    clean = torch.full((4, 3, 12, 10), 0.5)
    real = clean + 0.125
    factor = torch.tensor([1.0, 1.5, 8.0, 0.0]).view(4, 1, 1, 1)
    fake = clean + 0.125 * factor
    t = [1.0, 2.25, 10.0, 0.1]
    expected = [(x - 1 - math.log(x)) / 2 for x in t]
    np.testing.assert_allclose(metrics.akld(fake, real, clean), expected, atol=1e-5)


# ---- correlation and strength --------------------------------------------------------------------


def test_strength_ignores_a_constant_shift() -> None:
    fake, real, clean = tensors(triple())
    plain = metrics.noise_std_ratio(fake, real, clean)
    shifted = metrics.noise_std_ratio(fake + 0.1, real - 0.2, clean)
    torch.testing.assert_close(plain, shifted, rtol=1e-4, atol=0)


# ---- degenerate images ---------------------------------------------------------------------------


def test_without_noise() -> None:
    clean = torch.full((2, 3, 16, 16), 0.3)
    assert metrics.akld(clean, clean, clean).tolist() == [0, 0]
    assert metrics.ks(clean, clean, clean).tolist() == [0, 0]
    assert (local_noise_variance(clean, clean) == torch.tensor(1e-10)).all()
    assert metrics.noise_std_ratio(clean, clean, clean).isnan().all()
    assert neighbour_correlation(clean, clean).isnan().all()
    # a constant offset is a mean, not noise, also after rounding
    assert neighbour_correlation(clean + 0.1, clean).isnan().all()
    noisy = clean + 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert metrics.noise_std_ratio(clean, noisy, clean).tolist() == [0, 0]
    assert metrics.psnr(clean, clean).tolist() == pytest.approx([80, 80])
    assert metrics.ssim(clean, clean).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_image_that_is_not_finite_shows(bad: float) -> None:
    fake, real, clean = tensors(triple())
    fake[1, 0, 3, 5] = bad
    measured = metrics.ks(fake, real, clean)
    assert measured.isnan().tolist() == [False, True, False]
    assert math.isnan(metrics.akld(fake, real, clean)[1]) or bad == math.inf


# ---- what all share ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", NOISE_METRICS)
def test_images_of_a_batch_do_not_mix(metric, device: torch.device) -> None:
    images = tensors(triple((5, 3, 33, 29)), device)
    order = torch.tensor([3, 0, 4, 1, 2], device=device)
    batch = metric(*images)
    assert batch.shape == (5,)
    assert len(set(batch.tolist())) == 5
    torch.testing.assert_close(metric(*(x[order] for x in images)), batch[order])
    single = torch.cat([metric(*(x[i : i + 1] for x in images)) for i in range(5)])
    torch.testing.assert_close(single, batch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    images = [x.clamp(0, 1).to(dtype) for x in tensors(triple(), device)]
    wide = [x.float() for x in images]
    for metric in NOISE_METRICS:
        narrow = metric(*images)
        assert narrow.dtype == torch.float32
        assert torch.equal(narrow, metric(*wide))
    for metric in PAIR_METRICS:
        assert torch.equal(metric(*images[:2]), metric(*wide[:2]))


def test_autocast_changes_nothing_and_no_gradient_is_kept(device: torch.device) -> None:
    images = [x.clamp(0, 1) for x in tensors(triple(), device)]
    images[0].requires_grad_()
    for metric, inputs in [(m, images) for m in NOISE_METRICS] + [
        (m, images[:2]) for m in PAIR_METRICS
    ]:
        plain = metric(*inputs)
        with torch.autocast(device.type, torch.bfloat16):
            assert torch.equal(metric(*inputs), plain)
        assert not plain.requires_grad


def test_layouts_and_names_of_arguments() -> None:
    images = tensors(triple())
    channels_last = [x.to(memory_format=torch.channels_last) for x in images]
    named = dict(zip(("fake", "real", "clean"), images, strict=True))
    for metric in NOISE_METRICS:
        torch.testing.assert_close(metric(*channels_last), metric(*images))
        assert torch.equal(metric(**named), metric(*images))
    clipped, clipped_last = ([x.clamp(0, 1) for x in y[:2]] for y in (images, channels_last))
    for metric in PAIR_METRICS:
        torch.testing.assert_close(metric(*clipped_last), metric(*clipped))


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 3, 16, 16), (2, 3, 16, 16), (1, 3, 16, 16)],  # would broadcast
        [(3, 16, 16)] * 3,
        [(2, 1, 16, 16)] * 3,
    ],
)
@pytest.mark.parametrize("metric", NOISE_METRICS)
def test_other_shapes_are_refused(metric, shapes: list[tuple]) -> None:
    with pytest.raises(ValueError, match="expected"):
        metric(*(torch.zeros(s) for s in shapes))


def test_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        metrics.psnr(*[torch.zeros(1, 3, 16, 16, dtype=torch.uint8)] * 2)
