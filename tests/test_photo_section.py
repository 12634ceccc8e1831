"""evaluation/photo_section.py: what demo.py shows."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from evaluation import photo_section
from evaluation.photo_section import Result, crops_html, curves_html, piece, preview, white_noise
from utils.photos import Tags


def image(height: int, width: int, low: int = 0, high: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), np.uint8)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("level", [128, 5])  # far from black, and clipped there
def test_white_noise_is_as_strong_and_white(depth: type, level: int) -> None:
    unit = np.iinfo(depth).max // 255
    clean = np.full((300, 200, 3), level * unit, depth)
    rng = np.random.default_rng(1)
    strong = np.array([4, 8, 16]) * rng.standard_normal((300, 200, 1))  # equal in the channels
    noisy = (clean + unit * strong).clip(0, 255 * unit).round().astype(depth)
    noise = (white_noise(clean, noisy).astype(float) - clean) / unit
    target = ((noisy.astype(float) - clean) / unit).std((0, 1))
    # Five standard errors of a deviation from 60,000 values, for each of two samples; rounding.
    np.testing.assert_allclose(noise.std((0, 1)), target, rtol=0.03, atol=0.05)
    correlation = np.corrcoef(noise.reshape(-1, 3).T)[~np.eye(3, dtype=bool)]
    assert abs(correlation).max() < 5 / 60_000**0.5
    noise -= noise.mean((0, 1))  # that of clipped noise differs between the channels
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / 170_000**0.5


def test_no_noise_stays_none() -> None:
    clean = image(20, 30)
    np.testing.assert_array_equal(white_noise(clean, clean), clean)


def test_pieces_lie_inside() -> None:
    pixels = image(40, 60)
    np.testing.assert_array_equal(piece(pixels, 20, 0.5, 0.5), pixels[10:30, 20:40])
    np.testing.assert_array_equal(piece(pixels, 20, 0, 1), pixels[20:, :20])
    np.testing.assert_array_equal(piece(pixels, 50, 1, 0), pixels[:, 10:])
    np.testing.assert_array_equal(piece(pixels, 99), pixels)


def test_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_section, "SHOWN", 50)
    assert preview(image(40, 100)).shape == (20, 50, 3)
    assert preview(image(1, 300)).shape == (1, 50, 3)
    deep = image(5, 7).astype(np.uint16) * 257
    np.testing.assert_array_equal(preview(deep), image(5, 7))


def test_crops_and_words() -> None:
    clean = image(300, 400, 60, 190)
    white = image(300, 400, 0, 21, seed=1).astype(int) - 10  # uniform, of variance (21^2 - 1) / 12
    noisy = (clean + white).astype(np.uint8)
    blurred = np.repeat(white[:, ::2], 2, axis=1)  # each value twice, side by side
    twice = (clean + blurred).astype(np.uint8)
    result = Result("name", Tags(), image(20, 30), clean, twice, noisy, clean)
    html = crops_html(result, 1, 0)
    # Half of the neighbours to the right are equal, those below are not: (1 / 2 + 0) / 2.
    assert re.findall(r"std\. (\S+) of 255, neighbours correlate by ([\d.]+)<", html) == [
        ("6.1", "0.25"),
        ("6.1", "0.00"),
    ]
    squared = (blurred.astype(float) ** 2).mean() / 255**2
    assert f"PSNR {-10 * np.log10(squared):.1f} → 80.0 dB" in html
    crops = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r'base64,([^"]+)"', html)
    ]
    assert len(crops) == 5
    np.testing.assert_array_equal(crops[0], image(20, 30))
    np.testing.assert_array_equal(crops[3], noisy[:256, 144:])
    same = crops_html(Result("name", Tags(), clean, clean, clean, clean), 0.5, 0.5)
    assert same.count("no noise") == 2


@pytest.mark.parametrize("size", [(16, 16), (1, 1), (300, 200)])
def test_curves_of_any_size(size: tuple[int, int]) -> None:
    """Without a warning, which numpy gives for empty means."""
    clean = image(*size, 60, 190)
    noisy = (clean + image(*size, 0, 9, seed=1)).astype(np.uint8)
    html = curves_html(Result("name", Tags(), image(16, 16), clean, noisy, noisy))
    assert html.count("<svg") == 2
    assert html.count("reference, estimated") == 1
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids)) > 0
