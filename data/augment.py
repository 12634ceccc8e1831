"""Augmentations as batched tensor operations; every draw comes from an explicit generator."""

import torch
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


def cutmix_mask(n: int, patch: int, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """(n, 1, patch, patch) bool: True in a box of U[P/4, 3P/4) pixels a side, with p."""
    low, high = patch // 4, 3 * patch // 4
    side = torch.randint(low, max(high, low + 1), (2, n), generator=generator)
    start = (torch.rand(2, n, generator=generator) * (patch - side + 1)).long()
    axis = torch.arange(patch)
    inside = (axis >= start[..., None]) & (axis < (start + side)[..., None])  # (2, n, P)
    used = torch.rand(n, generator=generator) < p
    return (inside[0][:, :, None] & inside[1][:, None, :] & used[:, None, None]).unsqueeze(1)


def dequantise(clean: Tensor, noisy: Tensor, generator: torch.Generator) -> Tensor:
    """Undo 8-bit steps: add U(-0.5, 0.5)/255 where there is noise, and clip (method 4, real item).

    There is noise where |noisy - clean|, summed over channels, exceeds 1e-3; elsewhere (clipped
    highlights, mostly) the sensor saw none and none is invented.
    """
    has_noise = (noisy - clean).abs_().sum(dim=1, keepdim=True) > 1e-3
    dither = torch.rand(noisy.shape, device=noisy.device, generator=generator).sub_(0.5).div_(255)
    return dither.mul_(has_noise).add_(noisy).clamp_(0, 1)
