"""What the doctor measures, against constructions whose answer is known, and skimage."""

import cv2
import numpy as np
import pytest
import skimage.data
import skimage.registration

from data.camera import camera_pair, noise_level
from data.doctor.measures import (
    displacement,
    duplicates,
    flat_noise_levels,
    is_gray,
    jpeg_lattice,
    measure_pair,
    noise_strengths,
    noisier_side,
    perceptual_hash,
    thumbnail,
)
from data.doctor.verdicts import JPEG_ABOVE, SHIFT_GAIN, STRENGTH_OFF, expected_strengths

LUMA = (0.299, 0.587, 0.114)


def gray(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) @ np.array(LUMA, np.float32)


def smooth_scene(seed: int, side: int = 256) -> np.ndarray:
    """(side, side) float32 without detail: blobs of 24 pixels, up to 60 grey levels about 128."""
    x = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(side, side)), (0, 0), 24)
    return (128 + 60 * x / np.abs(x).max()).astype(np.float32)


def gaussian(seed: int, shape: tuple[int, ...], std: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, std, shape).astype(np.float32)


def shift(image: np.ndarray, down: int, right: int) -> np.ndarray:
    padded = np.pad(image, ((16, 16), (16, 16)) + ((0, 0),) * (image.ndim - 2), mode="edge")
    height, width = image.shape[:2]
    return padded[16 - down : 16 - down + height, 16 - right : 16 - right + width]


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [1, quality])[1], cv2.IMREAD_COLOR)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A photograph and its noise of a Galaxy S6 at ISO 800."""
    photo = skimage.data.coffee()[:256, :256]
    return camera_pair(photo, noise_level("S6", 800), np.random.default_rng(0), (2.0, 1.0, 1.7))


def test_noise_of_a_known_pair() -> None:
    clean = np.full((128, 160, 3), 120, np.uint8)
    noisy = np.clip(np.round(clean + 3 + gaussian(0, clean.shape, 8)), 0, 255).astype(np.uint8)
    stats = measure_pair(clean, noisy)
    n = clean.size
    std = np.sqrt(64 + 1 / 12)  # and that of rounding
    assert stats.std == pytest.approx(std, abs=5 * std / np.sqrt(2 * n))
    assert stats.bias == pytest.approx(3, abs=5 * std / np.sqrt(n))
    # Squared error std^2 + 3^2; its relative standard error is below sqrt(2 / n) = 0.6 %.
    assert stats.psnr == pytest.approx(10 * np.log10(255**2 / (std**2 + 9)), abs=0.15)
    assert abs(stats.correlation) < 5 / np.sqrt(n / 3)  # a mean over channels of white noise's
    # Without scene the noisy side has all the variance.
    assert stats.noisier == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("std", [2.0, 15.0, 40.0])
def test_swapping_changes_the_sign(std: float) -> None:
    clean = gray(skimage.data.chelsea()[:256, :256])
    noisy = clean + gaussian(1, clean.shape, std)
    right = noisier_side(clean, noisy)
    # Of each block (1 + 2 cov(scene, noise) / var(noise)), and the covariance is as often positive.
    assert right == pytest.approx(1, abs=0.35)
    assert noisier_side(noisy, clean) == pytest.approx(-right)
    assert np.isnan(noisier_side(clean, clean))


@pytest.mark.parametrize("by", [(3, 0), (0, -3), (-2, 2), (7, -5)])
def test_displacement_of_a_smooth_scene_under_strong_noise(by: tuple[int, int]) -> None:
    clean = smooth_scene(2)
    noise = gaussian(3, clean.shape, 12)
    assert displacement(clean, clean + noise)[1] < 0
    found, gain = displacement(clean, shift(clean, *by) + noise)
    assert np.abs(np.subtract(found, by)).max() <= 1  # a scene without edges: to a pixel
    assert gain > 0


def test_displacement_is_that_of_skimage(pair: tuple[np.ndarray, np.ndarray]) -> None:
    clean, noisy = map(gray, pair)
    moved = shift(noisy, -3, 4)
    back = skimage.registration.phase_cross_correlation(clean, moved)[0]
    found, gain = displacement(clean, moved)
    assert found == (-3, 4) == tuple(-back.astype(int))
    assert gain > SHIFT_GAIN
    assert displacement(clean, noisy)[0] == (0, 0)


@pytest.mark.parametrize("quality", [50, 75, 90, 95])
def test_jpeg_is_told_from_pixels(pair: tuple[np.ndarray, np.ndarray], quality: int) -> None:
    assert jpeg_lattice(gray(pair[1])) < JPEG_ABOVE / 2
    assert jpeg_lattice(gray(as_jpeg(pair[1], quality))) > 2 * JPEG_ABOVE


def test_noise_strength_at_equal_brightness() -> None:
    # Noise with std 2 + mean / 50: on dark and bright scenes, once and three times as strong.
    levels, counts = [], []
    for seed, (mean, factor) in enumerate([(70, 1), (170, 1), (70, 3), (170, 3), (120, 1)]):
        clean = np.repeat(smooth_scene(seed)[..., None] - 128 + mean, 3, axis=2)
        noise = factor * (2 + clean / 50) * gaussian(seed, clean.shape, 1)
        pair = flat_noise_levels(np.round(clean).astype(np.uint8), noise)
        levels.append(pair[0])
        counts.append(pair[1])
    strength = noise_strengths(np.array(levels), np.array(counts))
    off = strength - strength[0]
    # 30,000 pixels in bins of 200 or more: a MAD over 200 has a standard error of 8 %, the mean
    # over all bins below 2 %.
    assert off == pytest.approx([0, 0, np.log(3), np.log(3), 0], abs=0.1)


def test_expected_strength_ignores_the_wrong_scene() -> None:
    iso = np.log2(np.repeat([100, 400, 1600], 4))
    strength = 0.35 * iso
    wrong = iso.copy()
    wrong[0] = np.log2(1600)
    expected, slope = expected_strengths(wrong, strength)
    off = np.abs(strength - expected)
    assert slope == pytest.approx(0.35)
    assert off[0] == pytest.approx(0.35 * 4)
    assert off[0] > STRENGTH_OFF > off[1:].max()
    assert np.isnan(expected_strengths(iso[:5], strength[:5])[0]).all()


def test_same_picture_smaller_noisier_and_recompressed() -> None:
    names = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "retina", "rocket")
    photos = [getattr(skimage.data, name)() for name in names]
    thumbs = [thumbnail(photo) for photo in photos]
    changed = []
    for i, photo in enumerate(photos):
        small = as_jpeg(cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), 80)
        changed.append(np.clip(small + gaussian(i, small.shape, 20), 0, 255).astype(np.uint8))
    found = duplicates(thumbs, [thumbnail(image) for image in changed])
    assert found == [(i, i) for i in range(len(names))]
    assert perceptual_hash(thumbs[0]).shape == (64,)
    crops = [thumbnail(photo[: len(photo) // 2, : photo.shape[1] // 2]) for photo in photos]
    assert duplicates(thumbs, crops) == []
    assert duplicates([], thumbs) == []


def test_gray_and_too_small_images() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    assert is_gray(image)
    image[3, 3, 1] = 1
    assert not is_gray(image)
    with pytest.raises(ValueError, match="32x32"):
        measure_pair(image[:20], image[:20])
    with pytest.raises(ValueError, match="pair"):
        measure_pair(image, image[:36])
