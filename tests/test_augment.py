"""Flips, turns, CutMix boxes and dequantisation (method 4): numpy, and counts of each outcome."""

import math

import numpy as np
import pytest
import torch

from data.augment import cutmix_mask, dequantise, draw_flip_turn, flip_turn


def generator(device: torch.device | str = "cpu", seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def test_flip_turn_is_numpys(device: torch.device) -> None:
    """All eight, each of other pixels, in mixed order; eight different results of one image."""
    flip = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0, 1], dtype=torch.bool)
    turns = torch.tensor([3, 0, 1, 2, 1, 0, 3, 2, 0])
    images = torch.arange(9 * 2 * 5 * 5, dtype=torch.float32).view(9, 2, 5, 5)
    images[:] = images + images[:1]
    out = flip_turn(images.to(device), flip, turns)
    assert out.device.type == device.type
    for image, result, f, k in zip(images, out, flip.tolist(), turns.tolist(), strict=True):
        expected = np.stack([np.rot90(np.fliplr(c) if f else c, k) for c in image.numpy()])
        np.testing.assert_array_equal(result.cpu().numpy(), expected)

    same = images[:1].expand(8, -1, -1, -1)
    out = flip_turn(same, torch.arange(8) >= 4, torch.arange(8) % 4)
    assert len(out.flatten(1).unique(dim=0)) == 8


def test_flips_and_turns_are_uniform() -> None:
    """Counts of the eight outcomes: n/8, SE sqrt(n 1/8 7/8)."""
    n = 8000
    flip, turns = draw_flip_turn(n, generator())
    assert flip.dtype == torch.bool
    counts = (turns + 4 * flip).bincount()
    assert len(counts) == 8
    assert (counts - n / 8).abs().max() <= 5 * math.sqrt(n * 7 / 64)


def boxes(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Start and side (n, 2) of the box in each mask (n, 1, P, P), along rows and columns.

    Fails unless each mask is one full rectangle.
    """
    patch = mask.shape[-1]
    spans = torch.stack([mask.any(dim=3).squeeze(1), mask.any(dim=2).squeeze(1)], dim=1).int()
    start, side = spans.argmax(dim=-1), spans.sum(dim=-1)
    assert torch.equal(start + side, patch - spans.flip(-1).argmax(dim=-1))
    assert torch.equal(side.prod(dim=1), mask.sum(dim=(1, 2, 3)))
    return start, side


@pytest.mark.parametrize("patch", [16, 32, 96])
def test_cutmix_boxes(patch: int) -> None:
    """With p 0.5 (5 sqrt(n / 4)); sides integers of [P/4, 3P/4), uniform; inside the patch."""
    n = 4000
    mask = cutmix_mask(n, patch, generator(), 0.5, (0.25, 0.75))
    assert mask.shape == (n, 1, patch, patch)
    assert mask.dtype == torch.bool
    used = mask.any(dim=(1, 2, 3))
    assert abs(used.sum() - n / 2) <= 5 * math.sqrt(n / 4)
    start, side = boxes(mask[used])
    low, high = patch // 4, 3 * patch // 4
    assert side.min() == low
    assert side.max() == high - 1
    assert start.min() == 0
    assert (start + side).max() == patch
    # The mean of an integer uniform on k values: SE sqrt((k^2 - 1) / 12 / m)
    m, k = len(side), high - low
    tolerance = 5 * math.sqrt((k * k - 1) / 12 / m)
    assert (side.double().mean(dim=0) - (low + high - 1) / 2).abs().max() <= tolerance


def test_cutmix_boxes_lie_anywhere() -> None:
    """Given its side s, every start in 0..P-s is as likely, for rows and columns on their own.

    A cell of (s, start) expects e = m / 8 / (P - s + 1) of m boxes: SE sqrt(e); one of (height,
    width) expects m / 64; starts of rows and columns correlate by 0, SE 1 / sqrt(m).
    """
    patch, n = 16, 20_000
    mask = cutmix_mask(n, patch, generator(), 1.0, (0.25, 0.75))
    assert mask.any(dim=(1, 2, 3)).all()
    start, side = boxes(mask)
    for axis in (0, 1):
        for s in range(4, 12):
            counts = start[side[:, axis] == s, axis].bincount(minlength=patch - s + 1)
            assert len(counts) == patch - s + 1
            expected = n / 8 / (patch - s + 1)
            assert (counts - expected).abs().max() <= 5 * math.sqrt(expected)
    sides = ((side[:, 0] - 4) * 8 + side[:, 1] - 4).bincount(minlength=64)
    assert (sides - n / 64).abs().max() <= 5 * math.sqrt(n / 64)
    centre = (start / (patch - side)).double().T
    assert torch.corrcoef(centre)[0, 1].abs() <= 5 / math.sqrt(n)


def test_dither_is_uniform_over_one_step(device: torch.device) -> None:
    """Within 0.5/255, mean 0 and variance 1/12 of a step; another draw for every value.

    SE of the mean: sqrt(1 / 12 / N). Of the variance, the fourth central moment of U(-0.5, 0.5)
    being 1/80: sqrt((1/80 - 1/144) / N).
    """
    clean = torch.full((2, 3, 64, 64), 100 / 255, device=device)
    noisy = clean + 20 / 255
    out = dequantise(clean, noisy, generator(device))
    assert out.device.type == device.type
    added = (out - noisy).double().cpu() * 255
    n = added.numel()
    assert added.abs().max() <= 0.5 + 1e-4  # float32
    assert added.abs().max() > 0.49
    assert added.mean().abs() <= 5 * math.sqrt(1 / 12 / n)
    assert (added.var() - 1 / 12).abs() <= 5 * math.sqrt((1 / 80 - 1 / 144) / n)
    correlation = torch.corrcoef(added.flatten(0, 1).flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() <= 5 / math.sqrt(64 * 64)


def test_dither_only_where_there_is_noise(device: torch.device) -> None:
    """The noise, summed over channels, has to exceed 1e-3; then all three channels are dithered.

    Darker counts as much as brighter.
    """
    clean = torch.full((1, 3, 4, 512), 0.5, device=device)
    noise = torch.zeros_like(clean)
    noise[:, :, 1] = 0.9e-3 / 3
    noise[:, :, 2] = 1.1e-3 / 3
    noise[:, 1, 3] = -20 / 255
    noisy = clean + noise
    out = dequantise(clean, noisy, generator(device))
    assert torch.equal(out[:, :, :2], noisy[:, :, :2])
    changed = (out[:, :, 2:] != noisy[:, :, 2:]).float()
    assert changed.mean(dim=(0, 3)).min() > 0.99


def test_dither_is_clipped(device: torch.device) -> None:
    clean = torch.full((1, 3, 32, 32), 0.5, device=device)
    noisy = torch.zeros_like(clean)
    noisy[..., 16:] = 1
    out = dequantise(clean, noisy, generator(device))
    assert out.min() == 0
    assert out.max() == 1
    # Half of the draws point outwards: 5 sqrt(n / 4) of 1536
    for part, end in ((out[..., :16], 0), (out[..., 16:], 1)):
        assert abs((part == end).sum() - part.numel() / 2) <= 5 * math.sqrt(part.numel() / 4)
