"""Test sets in batches: images read ahead, measured in float32, one score per image.

A batch has images of one size, so that they stack; what an image scores does not depend on its
batch (evaluation/measure.py).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.prefetch import look_ahead
from evaluation.image_sets import CleanImages, ImagePairs
from utils.errors import UserError
from utils.memory import memory_named
from utils.transfer_settings import MIN_REFERENCE

Scores = dict[str, np.ndarray]
"""Measure -> one float64 per image, (N,), in the test set's order."""

Draw = tuple[int, int]
"""(image's index, pass)"""

Measured = dict[str, Tensor]
"""Measure -> one float32 per image of a batch, (B,), on the device."""

PIXELS = 256 * 256  # what counts as one image of a batch: a block of SIDD validation
BATCH = 8
# Pixels of a batch by default. On a CPU more cost up to twice the time an image: feature maps leave
# the cache, and from 32 MB on the C library takes each from the system anew, which zeroes it.
BATCH_PIXELS = {"cpu": PIXELS, "cuda": BATCH * PIXELS}
WORKERS = min(8, os.cpu_count() or 1)


class How(TypedDict, total=False):
    """How a test set is gone through; no score depends on more of it than `seed` and `limit`.

    limit: the first so many images; batch_size: in images of 256x256, larger ones go in smaller
    batches; None takes 8, on a CPU as many as have the pixels of one of 256x256.
    """

    seed: int
    limit: int | None
    batch_size: int | None
    device: torch.device | str
    workers: int
    progress: bool


def measure_all(
    test_set: CleanImages | ImagePairs,
    read: Callable[[int, int], tuple[Tensor, ...]],
    measure: Callable[[Sequence[Tensor], Sequence[Draw]], Measured],
    passes: int = 1,
    alike: Callable[[int], tuple] = lambda index: (),
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    workers: int = WORKERS,
    progress: bool = True,
) -> Scores:
    """Scores of `measure`, called with what `read` gave for a batch of (image, pass).

    A batch has images of one size and of one `alike`; the rest: see How.
    """
    device = torch.device(device)
    count = len(test_set) if limit is None else min(limit, len(test_set))
    most = batch_size or BATCH
    pixels = batch_size * PIXELS if batch_size else BATCH_PIXELS.get(device.type, PIXELS)
    batches = _batches(test_set, count, passes, most, pixels, alike)

    def load(draws: list[Draw]) -> list[Tensor]:
        sides = zip(*(read(index, pass_) for index, pass_ in draws), strict=True)
        images = [torch.stack(side) for side in sides]
        return [x.pin_memory() for x in images] if device.type == "cuda" else images

    test_set[0]  # a .mat set is read whole at the first image: here, not by all threads at once
    hidden = None if progress else True  # None: shown on a terminal, not in a log file
    measured: list[Measured] = []
    bar = tqdm(total=count * passes, desc=test_set.name, unit="img", leave=False, disable=hidden)
    doing, advice = f"measuring on {test_set.title}", "name another GPU, or --gpu cpu"
    with bar, full_float32(device), torch.inference_mode(), memory_named(device, doing, advice):
        for draws, images in zip(batches, look_ahead(load, batches, workers, workers), strict=True):
            images = [x.to(device, non_blocking=True) for x in images]
            measured.append(measure(images, draws))
            bar.update(len(draws))

    # Fetched once, at the end: reading a score makes the CPU wait for all that is queued.
    index, pass_ = np.array([draw for draws in batches for draw in draws]).reshape(-1, 2).T
    scores = {}
    for name in measured[0] if measured else ():
        table = np.empty((count, passes))
        table[index, pass_] = torch.cat([m[name] for m in measured]).cpu().numpy()
        scores[name] = table.mean(axis=1)
    return scores


def _batches(
    test_set: CleanImages | ImagePairs,
    count: int,
    passes: int,
    most: int,
    pixels: int,
    alike: Callable[[int], tuple],
) -> list[list[Draw]]:
    """Every image and pass to measure, in batches of one size, no larger than both limits."""
    by_size: dict[tuple, list[Draw]] = {}
    for index in range(count):
        height, width = test_set.size(index)
        if min(height, width) < MIN_REFERENCE:
            raise UserError(
                f"{test_set.name}: {test_set.image_name(index)} is {width}x{height}, expected at "
                f"least {MIN_REFERENCE} pixels a side; remove it from the test set"
            )
        group = by_size.setdefault((height, width, *alike(index)), [])
        group.extend((index, p) for p in range(passes))
    batches = []
    for (height, width, *_), draws in by_size.items():
        n = max(1, min(most, pixels // (height * width)))
        batches += [draws[i : i + n] for i in range(0, len(draws), n)]
    return batches


@contextmanager
def evaluation_mode(network: object) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in the mode it was in."""
    modules = list(network.modules()) if isinstance(network, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@contextmanager
def full_float32(device: torch.device | str) -> Iterator[None]:
    """No autocast, TF32 or reduced-precision products inside, whatever is set outside; and cuDNN's
    deterministic algorithms, so that the same command gives the same scores."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
            torch.autocast(torch.device(device).type, enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
