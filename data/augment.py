"""Augmentations as batched tensor operations; every draw comes from an explicit generator.

The paper's and ours: docs/method.md 4 and 9.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_flip_turn(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flips (n,) bool with p 0.5 and quarter turns (n,) in 0..3."""
    flip = torch.rand(n, generator=generator) < 0.5
    return flip, torch.randint(4, (n,), generator=generator)


def flip_turn(images: Tensor, flip: Tensor, turns: Tensor) -> Tensor:
    """Flip left-right where `flip`, then turn counter-clockwise by quarter turns.

    images: (B, C, P, P), square, of any dtype; flip: (B,) bool; turns: (B,) in 0..3.
    """
    group = (turns + 4 * flip).cpu()
    order = group.argsort()
    parts = images.index_select(0, order.to(images.device)).split(
        group.bincount(minlength=8).tolist()
    )
    parts = [
        torch.rot90(part.flip(-1) if g >= 4 else part, g % 4, dims=(2, 3))
        for g, part in enumerate(parts)
    ]
    return torch.cat(parts).index_select(0, order.argsort().to(images.device))


def replace_rows(images: Tensor, at: Tensor, rows: Tensor) -> Tensor:
    """A copy of `images` with images[at] = rows; at: on the CPU, all different.

    Copying and gathering whole images takes a fifth of the time of index_copy_ on the CPU.
    """
    source = torch.arange(len(images))
    source[at] = len(images) + torch.arange(len(at))
    return torch.cat([images, rows]).index_select(0, source.to(images.device))


def cutmix_mask(
    n: int, patch: int, generator: torch.Generator, p: float, sides: tuple[float, float]
) -> Tensor:
    """(n, 1, patch, patch) bool: with p, True in a box of sides uniform in `sides` of the patch's.

    Rounded down; the upper end is left out.
    """
    low, high = (int(share * patch) for share in sides)
    side = torch.randint(low, max(high, low + 1), (2, n), generator=generator)
    start = (torch.rand(2, n, generator=generator) * (patch - side + 1)).long()
    axis = torch.arange(patch)
    inside = (axis >= start[..., None]) & (axis < (start + side)[..., None])  # (2, n, P)
    used = torch.rand(n, generator=generator) < p
    return (inside[0][:, :, None] & inside[1][:, None, :] & used[:, None, None]).unsqueeze(1)


def some_flat(images: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """images (B, 3, H, W), of which a share p becomes its mean colour."""
    flat = (torch.rand(len(images), generator=generator) < p).to(images.device)
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    return torch.where(flat[:, None, None, None], mean, images)


def dequantise(clean: Tensor, noisy: Tensor, generator: torch.Generator) -> Tensor:
    """Undo 8-bit steps: add U(-0.5, 0.5)/255 where there is noise, and clip (method 4, real item).

    There is noise where |noisy - clean|, summed over channels, exceeds 1e-3; elsewhere (clipped
    highlights, mostly) the sensor saw none and none is invented.
    """
    has_noise = (noisy - clean).abs_().sum(dim=1, keepdim=True) > 1e-3
    dither = torch.rand(noisy.shape, device=noisy.device, generator=generator).sub_(0.5).div_(255)
    return dither.mul_(has_noise).add_(noisy).clamp_(0, 1)  # Eq. 4.14


@dataclass(frozen=True)
class SceneDistribution:
    """How clean patches are varied beyond the paper, so that noise is not told by its scene.

    blur: with p, a Gaussian of sigma uniform in this range (pixels): phones' pixels are finer than
    their lenses, resized photographs are sharp. dim: with p, contrast times a factor uniform in
    this range, then a brightness uniform in what it leaves of [0, 1].
    """

    p: float
    blur: tuple[float, float] = (0.0, 2.5)
    dim: tuple[float, float] = (0.1, 1.0)

    def apply(self, clean: Tensor, generator: torch.Generator, dim: bool = True) -> Tensor:
        """clean (B, 3, H, W) in [0, 1] -> a varied copy; dim: whether brightness changes too."""
        n = len(clean)
        u = torch.rand(5, n, generator=generator)
        sigma = self.blur[0] + u[1] * (self.blur[1] - self.blur[0])
        x = blur_each(clean, torch.where(u[0] < self.p, sigma, 0.0))
        if not dim:
            return x
        factor = self.dim[0] + u[3] * (self.dim[1] - self.dim[0])
        factor = torch.where(u[2] < self.p, factor, 1.0)
        scale, offset = torch.stack([factor, u[4] * (1 - factor)]).to(clean.device)
        return x * scale[:, None, None, None] + offset[:, None, None, None]  # Eq. 9.13


def blur_each(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image of (B, C, H, W) by a Gaussian of its own sigma (B,), in pixels; 0: not.

    sigma: on the CPU, where the largest can be asked for without waiting for the device.
    """
    radius = max(1, int(3 * sigma.max().ceil()))
    x = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (x / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(images.shape[1], dim=0)
    groups, kernel = len(kernel), kernel.to(images.device)
    padded = F.pad(images, (radius,) * 4, mode="reflect").reshape(
        1, groups, images.shape[2] + 2 * radius, -1
    )
    rows = F.conv2d(padded, kernel[:, None, None, :], groups=groups)
    return F.conv2d(rows, kernel[:, None, :, None], groups=groups).view_as(images)
