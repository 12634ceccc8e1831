"""PSNR and SSIM against scikit-image and closed forms."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests.test_metrics import QUALITY_METRICS, tensors, triple
from utils import metrics


def ssim_skimage(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two (H, W, 3) by Wang et al.'s window: sigma 1.5, cut off at 3.5 sigma: 11 taps."""
    return structural_similarity(
        x.astype(np.float64),
        y.astype(np.float64),
        data_range=1,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


@pytest.mark.parametrize("size", [(64, 80), (97, 51), (256, 256)])
def test_psnr_and_ssim_against_skimage(size: tuple) -> None:
    fake, _, clean = (np.clip(a, 0, 1) for a in triple((2, 3, *size)))
    a, b = tensors([fake, clean])
    measured = metrics.psnr(a, b).tolist(), metrics.ssim(a, b).tolist()
    for i in range(2):
        x, y = fake[i].transpose(1, 2, 0), clean[i].transpose(1, 2, 0)
        # piq adds 1e-8 to a squared error of 1e-3 or more: 4e-5 dB
        psnr = peak_signal_noise_ratio(y, x, data_range=1)
        assert measured[0][i] == pytest.approx(psnr, abs=1e-4)
        assert measured[1][i] == pytest.approx(ssim_skimage(x, y), abs=1e-5)


def test_psnr_closed_form() -> None:
    a = torch.full((1, 3, 16, 16), 0.5)
    # a difference of 0.1: 20 dB, less 10 log10(1 + 1e-8 / 0.01) = 4e-6 dB
    assert metrics.psnr(a, a + 0.1).item() == pytest.approx(20, abs=1e-4)


def test_ssim_averages_large_images_first() -> None:
    """From 384 pixels on: f = 2 at 512, as the docstring says; none below."""
    fake, _, clean = (np.clip(a, 0, 1) for a in triple((1, 3, 512, 520)))
    a, b = tensors([fake, clean])
    halved = [torch.nn.functional.avg_pool2d(x, 2) for x in (a, b)]
    assert metrics.ssim(a, b).item() == pytest.approx(metrics.ssim(*halved).item(), abs=1e-6)
    x, y = (t[0, :, :383].permute(1, 2, 0).double().numpy() for t in (a, b))
    expected = ssim_skimage(x, y)  # of the full size
    measured = metrics.ssim(a[..., :383, :], b[..., :383, :]).item()
    assert measured == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("metric", QUALITY_METRICS)
def test_unclipped_images_are_refused(metric) -> None:
    a = torch.full((1, 3, 16, 16), 0.5)
    with pytest.raises(AssertionError):
        metric(a + 0.6, a)
