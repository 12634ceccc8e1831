"""Noise in the report: pictures and correlations of known images, and what is gathered for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation import noise_section, plots
from evaluation.noise_section import NoiseSample, NoiseSection
from tests.test_plots import drawn
from tests.test_report import sample, write


def test_pictures_are_the_middle_of_the_images_to_the_level(tmp_path: Path) -> None:
    one = sample(size=(144, 164))
    page = write(tmp_path / "a.html", sections=[NoiseSection("s", [one], None, None)])

    def middle(image: Tensor) -> np.ndarray:
        return 255 * image.double().numpy().transpose(1, 2, 0)[8:136, 18:146]  # 128 of 144, 164

    generated = one.generated["NoiseTransfer"]
    for what, image in (
        ("clean", one.clean),
        ("reference", one.reference),
        ("real", one.real),
        ("generated: NoiseTransfer", generated),
        ("generated: white Gaussian", one.generated["white Gaussian"]),
    ):
        shown = page.picture(f"a.png, {what}")
        np.testing.assert_allclose(shown, middle(image), rtol=0, atol=0.501, err_msg=what)
    # The difference has a standard deviation of sqrt(0.05^2 + 0.03^2) = 0.058; 0.5 / (3 * 0.058) is
    # 2.9, and the power of two below it 2.
    assert "gain 2;" in page.text
    expected = middle((0.5 + 2 * (generated - one.real)).clamp(0, 1))
    shown = page.picture("a.png, difference ×2")
    np.testing.assert_allclose(shown, expected, rtol=0, atol=0.501)


@pytest.mark.parametrize(("std", "gain"), [(0.0, 16), (0.005, 16), (0.03, 4), (0.3, 1)])
def test_gain_lets_three_standard_deviations_fill_the_range(std: float, gain: float) -> None:
    # 0.5 / (3 std): infinite, 33, 5.6 and 0.6
    noise = std * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert noise_section._gain([noise]) == gain


def test_autocorrelation_of_a_horizontal_average_is_printed_and_drawn(tmp_path: Path) -> None:
    # Half the sum of two neighbours in a row: correlation 1/2 at lag (0, 1), 0 at (1, 0).
    white = torch.randn(2, 3, 128, 129, generator=torch.Generator().manual_seed(0))
    averaged = (white[0, ..., 1:] + white[0, ..., :-1]) / 2
    clean = torch.full((3, 128, 128), 0.5)
    one = NoiseSample(
        "a", clean, clean, clean + 0.05 * averaged, {"white": clean + 0.05 * white[1, :, :, 1:]}
    )
    page = write(tmp_path / "a.html", sections=[NoiseSection("s", [one], None, None)])
    right = [float(t.removeprefix("(0,1):")) for t in page.texts("text") if "(0,1):" in t]
    below = [float(t.removeprefix("(1,0):")) for t in page.texts("text") if "(1,0):" in t]
    # 5 standard errors, 1 / sqrt(3 * 128^2) each or less but for the noise's own correlation,
    # which makes them at most sqrt(1 + 2 / 4) times larger; and rounding to two digits.
    tolerance = 5 * np.sqrt(1.5 / (3 * 128**2)) + 0.005
    np.testing.assert_allclose(right, [0.5, 0], atol=tolerance)
    np.testing.assert_allclose(below, [0, 0], atol=tolerance)


def test_noise_level_curve_has_the_true_standard_deviation() -> None:
    # Two images of different intensities, noise of standard deviation 0.1 x intensity.
    rng = torch.Generator().manual_seed(0)
    pairs = []
    for height, intensity in ((96, 0.28125), (128, 0.71875)):  # centres of bins 4 and 11 of 16
        clean = torch.full((3, height, 128), intensity)
        pairs.append((clean + 0.1 * clean * torch.randn(clean.shape, generator=rng), clean))
    variance = noise_section._mean(noise_section._noise_variance, pairs)
    assert np.isfinite(variance).nonzero()[0].tolist() == [4, 11]
    figure = drawn(plots.noise_level_curves, {"real noise": np.sqrt(variance)})
    x, y = figure.axes[0].lines[0].get_data()
    for k, intensity, n in ((4, 0.28125, 3 * 96 * 128), (11, 0.71875, 3 * 128 * 128)):
        assert x[k] == pytest.approx(255 * intensity)
        # The standard error of a standard deviation over n values is 1 / sqrt(2 n) of it.
        assert y[k] == pytest.approx(25.5 * intensity, rel=5 / np.sqrt(2 * n))
