"""Noise models beside the generator: known noise is found again, and put on any image."""

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import convolve1d
from torch import Tensor

from data.camera import NOISE_LEVEL, camera_pair, noise_level
from evaluation.baselines import BASELINES, nearest_camera_level, non_local_means
from evaluation.blind_noise_level import blind_noise_level, blind_sigma
from models.generator import per_image_noise
from tests.helpers import images
from utils.noise_statistics import neighbour_correlation

WHITE, POISSON, CAMERA, WHITE_ORACLE, POISSON_ORACLE = BASELINES
BLIND = [title for title, model in BASELINES.items() if not model.oracle]


def ones(shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
    """A "noise" that shows the standard deviation a model gives each pixel."""
    return torch.ones(shape, device=device)


def ramp(side: int = 256) -> np.ndarray:
    """(side, side, 3) from 0.25 to 0.75."""
    return np.tile(np.linspace(0.25, 0.75, side)[None, :, None], (side, 1, 3))


def add_noise(image: np.ndarray, a: np.ndarray, b: np.ndarray, seed: int = 0) -> np.ndarray:
    normal = np.random.default_rng(seed).standard_normal(image.shape)
    return np.clip(image + np.sqrt(a * image + b) * normal, 0, 1)


def to_tensor(*arrays: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(arrays).transpose(0, 3, 1, 2)).float()


def photo(name: str) -> np.ndarray:
    """A bundled photo at half size, its own noise averaged."""
    x = getattr(skimage.data, name)() / 255
    h, w = (n // 2 for n in x.shape[:2])
    return x[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean(axis=(1, 3))


def line_errors(x: np.ndarray, a: float, b: float, dof: int) -> np.ndarray:
    """Standard errors of (a, b) by least squares, weighted by the true variance v = a x + b; each
    measured variance has the squared error 2 v^2 / dof."""
    design = np.stack([x, np.ones_like(x)], axis=1) / (a * x + b)[:, None]
    return np.sqrt(np.diag(np.linalg.inv(design.T @ design * dof / 2)))


# --------------------------------------------------------------------- what a reference tells


@pytest.mark.parametrize(
    ("a", "b"),
    [((0, 0, 0), (0.0015, 0.004, 0.0002)), ((0.01, 0.005, 0.002), (0, 0, 0)), ((0.004,) * 3,) * 2],
)
def test_blind_noise_level_finds_each_channels_line(a, b):
    """5 standard errors; blocks have 61 degrees of freedom. 2% of the variance at mid-grey more:
    the block test cuts at an estimated limit, and 3-sigma tails are clipped at the ramp's end."""
    noisy = add_noise(ramp(), np.array(a), np.array(b))
    centres = np.tile(ramp()[0, :, 0].reshape(-1, 8).mean(axis=1), 32)
    for channel, found in enumerate(blind_noise_level(noisy)):
        truth = a[channel], b[channel]
        slack = 0.02 * (0.5 * truth[0] + truth[1])
        errors = line_errors(centres, *truth, dof=61)
        assert abs(found[0] - truth[0]) < 5 * errors[0] + slack
        assert abs(found[1] - truth[1]) < 5 * errors[1] + slack
        assert (found >= 0).all()


@pytest.mark.parametrize("sigma", [0.01, 0.04, 0.1])
def test_blind_sigma_on_a_flat_image(sigma: float):
    """3 x 61 x 1024 degrees of freedom: a standard error of 0.16% of sigma; 1% allows 6."""
    flat = np.full((256, 256, 3), 0.5)
    assert blind_sigma(add_noise(flat, 0, sigma**2)) == pytest.approx(sigma, rel=0.01)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket"])
@pytest.mark.parametrize(("a", "b"), [(0, (25 / 255) ** 2), (1 / 30, 0), (0.01, 0.0004)])
def test_texture_adds_little(name: str, a: float, b: float):
    """Texture is taken for noise here and there: too strong, up to 15% (measured), never too weak
    by more than what clipping takes (sigma is 0.1 of the range)."""
    clean = photo(name)
    true = np.sqrt((a * clean + b).mean())
    assert 0.97 < blind_sigma(add_noise(clean, a, b)) / true < 1.15


def test_correlated_noise_is_not_underestimated():
    """Kernel (1/4, 1, 1/4) a direction: variance (9/8)^2, neighbour correlation 4/9, as a phone's.

    Its standard error is below 1%: 3 x 1024 blocks of some 30 degrees of freedom.
    A Laplacian finds 0.42 of this strength, a block's variance without correction 0.95.
    """
    noise = np.random.default_rng(0).standard_normal((256, 256, 3))
    for axis in (0, 1):
        noise = convolve1d(noise, [0.25, 1, 0.25], axis=axis, mode="wrap")
    sigma = 0.05 * 9 / 8
    assert blind_sigma(0.5 + 0.05 * noise) == pytest.approx(sigma, rel=0.03)


def test_clipped_areas_do_not_hide_the_noise():
    """Half of the picture is black or white, where noise shows half or not at all."""
    clean = np.concatenate([np.zeros((64, 256, 3)), ramp(256), np.ones((192, 256, 3))])
    sigma = 0.03
    found = blind_noise_level(add_noise(clean, 0, sigma**2))
    assert np.sqrt(found @ [0.5, 1]) == pytest.approx([sigma] * 3, rel=0.03)


@pytest.mark.parametrize("grey", [0, 0.5, 1])
def test_no_noise_gives_no_noise(grey: float):
    reference = torch.full((1, 3, 32, 40), grey)
    clean = images(1, 2, 3, 21, 18)
    for title in (WHITE, POISSON):
        noisy = BASELINES[title](clean, reference, per_image_noise([1, 2]))
        assert torch.allclose(noisy, clean, atol=1e-6)
    for title in (WHITE_ORACLE, POISSON_ORACLE):
        noisy = BASELINES[title](clean, clean, per_image_noise([1, 2]))
        assert torch.equal(noisy, clean)


# ------------------------------------------------------------------------------ what is generated


def test_poisson_gaussian_puts_the_reference_line_on_another_image():
    a, b = 0.01, 0.0005
    reference = to_tensor(add_noise(ramp(), a, b))
    clean = torch.linspace(0.3, 0.6, 40).expand(1, 3, 30, 40)
    sigma = BASELINES[POISSON](clean, reference, ones) - clean
    # the line inside the ramp: its variance within 3%, some 5 standard errors (1024 blocks)
    assert torch.allclose(sigma, (a * clean + b).sqrt(), rtol=0.03)


def test_white_gaussian_is_white_and_of_one_sigma():
    reference = to_tensor(add_noise(np.full((256, 256, 3), 0.5), 0, 0.05**2))
    clean = torch.full((1, 3, 64, 64), 0.5)
    noise = BASELINES[WHITE](clean, reference, per_image_noise([3])) - clean
    n = noise.numel()  # standard errors: of sigma 1 / sqrt(2n), of a correlation 1 / sqrt(n)
    assert noise.std().item() == pytest.approx(0.05, rel=5 / np.sqrt(2 * n) + 0.01)
    noisy = clean + noise
    assert abs(neighbour_correlation(noisy, clean).item()) < 5 / np.sqrt(n)


def test_white_gaussian_oracle_has_the_pairs_deviation():
    clean = images(0, 2, 3, 33, 20) * 0.2 + 0.4
    noisy = clean + torch.tensor([0.02, 0.05])[:, None, None, None] * images(1, 2, 3, 33, 20)
    sigma = BASELINES[WHITE_ORACLE](clean, noisy, ones) - clean
    expected = (noisy - clean).double().numpy().reshape(2, -1).std(axis=1)
    assert sigma[:, 0, 0, 0].numpy() == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(sigma, sigma[:, :1, :1, :1].expand_as(sigma), atol=1e-6)


@pytest.mark.parametrize(("a", "b"), [(0.01, 0.0005), (0, 0.002), (0.005, 0)])
def test_poisson_gaussian_oracle_finds_each_pixels_deviation(a: float, b: float):
    """A pixel's squared noise has one degree of freedom; sigma's error is half the variance's."""
    clean, scale = ramp(), np.array([1, 2, 0.5])
    noisy = add_noise(clean, a * scale, b * scale)
    x = to_tensor(clean)
    sigma = (BASELINES[POISSON_ORACLE](x, to_tensor(noisy), ones) - x)[0, :, 0].double().numpy()
    for channel, factor in enumerate(scale):
        errors = line_errors(clean[..., channel].ravel(), a * factor, b * factor, dof=1)
        line = clean[0, :, channel]
        variance = (a * line + b) * factor
        tolerance = 5 * (errors[0] * line + errors[1]) / (2 * variance) + 0.005  # clipped tails
        assert (abs(sigma[channel] / np.sqrt(variance) - 1) < tolerance).all()


def test_where_the_variance_is_no_line_the_oracle_keeps_its_mean():
    rng = np.random.default_rng(1)
    clean = photo("chelsea")
    noisy = clean + 0.1 * clean * (1 - clean) * rng.standard_normal(clean.shape)
    x = to_tensor(clean)
    sigma = BASELINES[POISSON_ORACLE](x, to_tensor(noisy), ones) - x
    assert (sigma**2).mean().item() == pytest.approx(((noisy - clean) ** 2).mean(), rel=0.05)


# ------------------------------------------------------------------------------- camera pipeline


def colourful(side: int = 160) -> np.ndarray:
    """(side, side, 3) uint8, smooth and not grey."""
    y, x = np.mgrid[:side, :side] / side
    return np.round(255 * np.stack([0.2 + 0.5 * x, 0.3 + 0.4 * y, 0.6 - 0.4 * x * y], -1)).astype(
        np.uint8
    )


@pytest.mark.parametrize("setting", [("GP", 100), ("N6", 400), ("S6", 3200)])
def test_camera_level_is_found_again(setting: tuple[str, int]):
    """Phones share levels, so the strength is what counts: raw variance within 15% at mid-grey's
    linear 0.2 (levels lie 2 to 4 times apart in a phone; the estimate's error is about 1%), and the
    generated noise is as strong and as correlated as data.camera's own with fresh draws."""
    clean, noisy = camera_pair(colourful(), noise_level(*setting), np.random.default_rng(5))
    found = nearest_camera_level(noisy / 255)
    raw = [NOISE_LEVEL[s][0] * 0.2 + NOISE_LEVEL[s][1] for s in (found, setting)]
    assert raw[0] == pytest.approx(raw[1], rel=0.15)

    x, real = to_tensor(clean / 255), to_tensor(noisy / 255)
    fake = BASELINES[CAMERA](x, real, per_image_noise([2]))
    assert (fake - x).std().item() == pytest.approx((real - x).std().item(), rel=0.08)
    correlation = neighbour_correlation(real, x).item()
    assert correlation > 0.3
    assert neighbour_correlation(fake, x).item() == pytest.approx(correlation, abs=0.04)


def test_without_noise_the_camera_is_at_its_weakest():
    found = nearest_camera_level(np.full((64, 64, 3), 0.5))
    assert found == min(NOISE_LEVEL, key=lambda s: NOISE_LEVEL[s][0])


# -------------------------------------------------------------------------------- all of them


def pairs(height: int, width: int, n: int = 3) -> tuple[Tensor, Tensor]:
    """Grey levels down to 0 and up to 1, noise of a different strength each."""
    clean = (images(4, n, 3, height, width) * 1.4 - 0.2).clamp(0, 1)
    sigma = torch.linspace(0.02, 0.15, n)[:, None, None, None]
    generator = torch.Generator().manual_seed(0)
    return clean, (clean + sigma * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("title", BASELINES)
def test_any_size_in_range_repeatable(title: str, device: torch.device):
    clean, noisy = (x.to(device) for x in pairs(37, 51))
    reference = noisy if BASELINES[title].oracle else noisy[..., :29, 4:49]
    state = torch.random.get_rng_state()
    first, again, other = (
        BASELINES[title](clean, reference, per_image_noise(seeds))
        for seeds in ([1, 2, 3], [1, 2, 3], [4, 5, 6])
    )
    assert first.shape == clean.shape
    assert first.dtype == clean.dtype
    assert first.device == clean.device
    assert 0 <= first.min() < first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    noise = (first - clean)[(clean > 0.2) & (clean < 0.8)]
    assert 0.003 < noise.std() < 0.4
    if title != CAMERA:  # clipped there: without noise from below or above, half are untouched
        assert first[clean == 1].eq(1).float().mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("title", BASELINES)
def test_an_image_does_not_depend_on_its_batch(title: str, device: torch.device):
    clean, noisy = (x.to(device) for x in pairs(40, 24))
    batch = BASELINES[title](clean, noisy, per_image_noise([7, 8, 9]))
    for i, seed in enumerate([7, 8, 9]):
        one = slice(i, i + 1)
        alone = BASELINES[title](clean[one], noisy[one], per_image_noise([seed]))
        assert torch.equal(alone, batch[one])


@pytest.mark.parametrize("title", BLIND)
def test_one_reference_serves_a_batch(title: str):
    clean, noisy = pairs(24, 24)
    shared = BASELINES[title](clean, noisy[1:2], per_image_noise([1, 2, 3]))
    repeated = BASELINES[title](clean, noisy[1:2].repeat(3, 1, 1, 1), per_image_noise([1, 2, 3]))
    assert torch.equal(shared, repeated)


def test_which_are_oracles():
    assert BLIND == [WHITE, POISSON, CAMERA]
    clean = images(0, 1, 3, 32, 32)
    for title in (WHITE_ORACLE, POISSON_ORACLE):
        with pytest.raises(ValueError, match="own noisy image"):
            BASELINES[title](clean, clean[..., :16, :16], ones)
    for title in BLIND:
        with pytest.raises(ValueError, match="16 pixels a side"):
            BASELINES[title](clean, clean[..., :15], ones)
        assert BASELINES[title](clean, clean[..., :16, :16], ones).isfinite().all()


@pytest.mark.parametrize("quality", [50, 75, 90])
def test_blocks_that_jpeg_left_without_noise(quality: int) -> None:
    """Most smooth blocks are constant: the fit has nothing to go on, and still gives a level."""
    photo = skimage.data.coffee()[:256, :256, ::-1]
    data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    level = blind_noise_level(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] / 255)
    assert np.isfinite(level).all()
    assert level.min() >= 0


def test_non_local_means_takes_noise_away_and_keeps_colours() -> None:
    """Of a flat colour the mean stays, and of white noise of 15 less than a third is left."""
    colour = torch.tensor([0.7, 0.4, 0.2])[None, :, None, None]
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 15 / 255
    denoised = non_local_means((colour + noise).clamp(0, 1))
    assert denoised.shape == noise.shape
    left = denoised - colour
    assert left.std() < noise.std() / 3
    # a mean of 4096 pixels is off by 15 / 64 of 255, four times of which is 1
    assert left.mean((0, 2, 3)).abs().max() < 1.5 / 255
