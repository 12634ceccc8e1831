"""data.random_camera: colours survive, noise is developed as computed by hand, kinds differ."""

import dataclasses

import numpy as np
import pytest

from data.camera import CAMERA_TO_SRGB, DAYLIGHT, camera_pair, mosaic, unprocess
from data.random_camera import RandomCamera

CAMERAS = [RandomCamera.draw(np.random.default_rng([7, i])) for i in range(60)]


def flat(*colour: int, side: int = 96) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def plain(**changes: object) -> RandomCamera:
    """data.camera's own pipeline."""
    camera = RandomCamera(
        (0.002, 1e-5), DAYLIGHT, CAMERA_TO_SRGB, "gradient-corrected", 0.0, 0.0, 0.0, 0.0, 0
    )
    return dataclasses.replace(camera, **changes)


def test_every_colour_was_light() -> None:
    """White stays white, and no colour asks for light below 0 or above 1."""
    colours = np.random.default_rng(0).uniform(size=(500, 3))
    colours[:8] = [[i >> c & 1 for c in range(3)] for i in range(8)]
    for camera in CAMERAS:
        np.testing.assert_allclose(camera.matrix.sum(axis=1), 1)
        raw = unprocess(colours, camera.gains, camera.matrix)
        assert -1e-12 < raw.min() <= raw.max() < 1 + 1e-12


@pytest.mark.parametrize("demosaicing", ["gradient-corrected", "bilinear", "edge-aware"])
@pytest.mark.parametrize("jpeg", [0, 95])
def test_colours_are_kept(demosaicing: str, jpeg: int) -> None:
    """Red is red: without noise both sides show the flat photo, to 8 bits (JPEG: a step or two)."""
    camera = plain(level=(0.0, 0.0), demosaicing=demosaicing, jpeg=jpeg, luma=0.7, chroma=1.2)
    for side in camera.pair(flat(180, 90, 40), np.random.default_rng(0)):
        assert abs(side.astype(int) - [180, 90, 40]).max() <= (2 if jpeg else 1)


def test_colours_are_balanced_before_they_are_demosaiced() -> None:
    """Green on grey, noise of one strength in raw. A quarter of each of its four green neighbours
    goes into green at red and blue, beside half of red and an eighth of each of four more, times
    red's gain: neighbours share 1/4, the mean variance is that of the sites."""
    gains = (2.1, 1.0, 1.7)
    rng = np.random.default_rng(0)
    raw = mosaic(np.full((512, 512, 3), 0.3) / gains) + 0.003 * rng.standard_normal((512, 512))
    green = plain(gains=gains, matrix=np.eye(3)).develop(raw)[8:-8, 8:-8, 1]
    variance = 0.5 + sum(0.25 * (0.25 + 0.3125 * gains[c] ** 2) for c in (0, 2))
    measured = np.corrcoef(green[:, 1:].ravel(), green[:, :-1].ravel())[0, 1]
    assert abs(measured - 0.25 / variance) < 0.01  # five sigma of 496^2 pixels


def test_plain_camera_is_the_pipeline() -> None:
    photo = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    ours = plain().pair(photo, np.random.default_rng(2))
    theirs = camera_pair(photo, (0.002, 1e-5), np.random.default_rng(2))
    for a, b in zip(ours, theirs, strict=True):
        assert abs(a.astype(int) - b).max() <= 1  # luma and chroma and back, before rounding


def grey_noise(**changes: float) -> np.ndarray:
    clean, noisy = plain(**changes).pair(flat(128, 128, 128, side=256), np.random.default_rng(3))
    return (noisy.astype(float) - clean).mean(axis=2)


def test_smoothing_and_sharpening_of_grey() -> None:
    """Grey noise is weaker by a low-pass of sigma 0.7, stronger by an unsharp mask, and chroma's
    smoothing leaves it alone."""
    usual = grey_noise().std()
    assert grey_noise(luma=0.7).std() < 0.8 * usual
    assert grey_noise(sharpen=0.5).std() > 1.15 * usual
    # of noise, not of the curve: colours that were clipped to 8 bits differ a little
    assert grey_noise(chroma=1.2).std() == pytest.approx(usual, rel=0.02)


def test_contrast_scales_the_noise() -> None:
    """At middle grey the smooth step's slope is 3/2: half of it makes noise (1 + 3/2) / 2."""
    ratio = grey_noise(contrast=0.5).std() / grey_noise().std()
    assert ratio == pytest.approx(1.25, rel=0.03)


def test_kinds_differ_in_spectrum_and_colour() -> None:
    """SIDD's and RENOIR's noise (neighbours 0.38 to 0.58, red-blue -0.06 to 0.56) lies within."""
    neighbour, colour = [], []
    for i, camera in enumerate(CAMERAS):
        clean, noisy = camera.pair(flat(120, 130, 110), np.random.default_rng(i))
        noise = noisy.astype(float) - clean
        noise -= noise.mean(axis=(0, 1))
        down = (noise[1:] * noise[:-1]).mean(axis=(0, 1)) / noise.var(axis=(0, 1))
        neighbour.append(down.mean())
        colour.append(np.corrcoef(noise[..., 0].ravel(), noise[..., 2].ravel())[0, 1])
    assert min(neighbour) < 0.35 < 0.6 < max(neighbour)
    assert min(colour) < -0.06 < 0.56 < max(colour)
