"""Gaussian filtering of image batches."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_kernel1d(size: int, sigma: float, device: torch.device | None = None) -> Tensor:
    """(size,) float32 samples of a Gaussian around the centre, summing to 1."""
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    return (kernel / kernel.sum()).to(device=device, dtype=torch.float32)


@functools.cache
def _kernel_on(size: int, sigma: float, device: torch.device) -> Tensor:
    """Kept, or each use would copy it to the device and wait for that."""
    with torch.inference_mode(False):  # whoever asks first, autograd may be the next
        return gaussian_kernel1d(size, sigma, device)


def gaussian_blur(image: Tensor, size: int, sigma: float, padding: str = "reflect") -> Tensor:
    """Blur (B, C, H, W) by a size x size Gaussian; computed in float32, one axis after the other.

    padding: "reflect" keeps the size; "valid" takes size - 1 off each axis.
    """
    channels = image.shape[1]
    kernel = _kernel_on(size, sigma, image.device)
    x = image.float()
    if padding == "reflect":
        x = F.pad(x, (size // 2,) * 4, mode="reflect")
    rows = kernel.view(1, 1, 1, size).expand(channels, 1, 1, size)
    columns = kernel.view(1, 1, size, 1).expand(channels, 1, size, 1)
    return F.conv2d(F.conv2d(x, rows, groups=channels), columns, groups=channels)
