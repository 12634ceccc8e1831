"""Gaussian blur against scipy, torchvision and OpenCV."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur as torchvision_blur

from utils.filters import gaussian_blur, gaussian_kernel1d

SETTINGS = [(21, 3.5), (7, 1.4), (11, 1.5), (3, 0.8)]  # method 4 and 6: L_cons, AKLD, SSIM
# float32 sums of at most 42 products of values in [0, 1], weights adding up to 1
TOLERANCE = 2e-6


def images(height: int = 34, width: int = 27) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "sigma"), SETTINGS)
def test_kernel_is_opencvs(size: int, sigma: float) -> None:
    kernel = gaussian_kernel1d(size, sigma)
    assert kernel.dtype == torch.float32
    expected = cv2.getGaussianKernel(size, sigma).squeeze(1)
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("size", "sigma"), SETTINGS)
def test_blur_is_torchvisions_and_scipys(device: torch.device, size: int, sigma: float) -> None:
    """Reflection about the border pixel's centre: "reflect" in torch, "mirror" in scipy."""
    x = images()
    out = gaussian_blur(x.to(device), size, sigma)
    assert out.device.type == device.type
    out = out.cpu()
    torch.testing.assert_close(out, torchvision_blur(x, size, sigma), atol=TOLERANCE, rtol=0)
    expected = scipy.ndimage.gaussian_filter(
        x.double().numpy(), sigma, mode="mirror", radius=size // 2, axes=(2, 3)
    )
    np.testing.assert_allclose(out.numpy(), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("size", "sigma"), SETTINGS)
def test_valid_is_the_interior(device: torch.device, size: int, sigma: float) -> None:
    x, radius = images().to(device), size // 2
    inside = gaussian_blur(x, size, sigma, padding="valid")
    assert inside.shape == (2, 3, 34 - 2 * radius, 27 - 2 * radius)
    whole = gaussian_blur(x, size, sigma)[..., radius:-radius, radius:-radius]
    torch.testing.assert_close(inside, whole, atol=TOLERANCE, rtol=0)


def test_constant_image_keeps_its_value(device: torch.device) -> None:
    """Also an image just large enough to reflect: side 11 for a radius of 10."""
    x = torch.tensor([0.0, 0.3, 1.0], device=device).view(1, 3, 1, 1).expand(1, 3, 11, 11)
    torch.testing.assert_close(gaussian_blur(x, 21, 3.5), x.clone(), atol=TOLERANCE, rtol=0)


def test_half_precision_is_computed_in_float32(device: torch.device) -> None:
    x = images().bfloat16().to(device)
    out = gaussian_blur(x, 21, 3.5)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, gaussian_blur(x.float(), 21, 3.5))


def test_gradient_is_the_adjoint() -> None:
    """<blur x, y> = <x, gradient>, by scipy: L_cons is trained through the blur."""
    x, y = images().requires_grad_(), images().flip(0)
    (gradient,) = torch.autograd.grad((gaussian_blur(x, 21, 3.5) * y).sum(), x)
    delta = torch.zeros(1, 1, 34, 27)
    delta[0, 0, 2, 25] = 1  # near two borders: reflected parts add up
    response = scipy.ndimage.gaussian_filter(
        delta.double().numpy(), 3.5, mode="mirror", radius=10, axes=(2, 3)
    )
    expected = (response * y.numpy()).sum(axis=(2, 3))
    np.testing.assert_allclose(gradient[:, :, 2, 25].numpy(), expected, atol=1e-5)
