"""Measuring a noise generator or a denoiser on a test set, image by image (method: paper, Sec. 4).

Every random number is drawn on the CPU from (seed, image's index, pass), so that an image's figures
do not depend on the device, the batch size, the number of workers, or which other images are
measured. `supp_tbl.py` and the validation of the training scripts share these functions.

Networks compute in float32, whatever precision a run trains in: figures are compared with other
runs', other machines' and other papers', and bf16 and TF32 would move them.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.folders import CleanTestSet, PairedTestSet
from data.noise import NoiseModelDistribution, add_noise
from models.denoisers import build_denoiser
from models.layers import NoiseSource
from utils.checkpoint import load_state, load_weights
from utils.errors import UserError
from utils.metrics import akld, ks, neighbour_correlation, noise_std_ratio, psnr, ssim
from utils.seeding import derived_seed, randomness

T, R = TypeVar("T"), TypeVar("R")

Transfer = Callable[[Tensor, Tensor, NoiseSource], Tensor]
"""transfer(clean, reference, noise) -> noisy; all (B, 3, H, W) in [0, 1]; a NoiseTransfer, say."""

Denoiser = Callable[[Tensor], Tensor]
"""denoiser(noisy) -> denoised, both (B, 3, H, W); need not be clipped."""

Figures = dict[str, np.ndarray]
"""Measure -> one float64 an image, (N,), in the test set's order."""

Draw = tuple[int, int]
"""(image's index, pass)"""

Measured = dict[str, Tensor]
"""Measure -> one float32 an image of a batch, (B,), on the device."""

MIN_SIDE = 16  # the smallest reference the encoder takes; SSIM's window needs 11
PIXELS = 256 * 256  # what counts as one image of a batch: a block of SIDD validation
BATCH = 8
# Pixels of a batch by default. On a CPU more cost up to twice the time an image: feature maps leave
# the cache, and from 32 MB on the C library takes each from the system anew, which zeroes it.
BATCH_PIXELS = {"cpu": PIXELS, "cuda": BATCH * PIXELS}
NEEDS_NOISE = {"std_ratio", "corr_generated", "corr_real"}  # NaN for a pair (or channel) without
WORKERS = min(8, os.cpu_count() or 1)


def evaluate_transfer(
    transfer: Transfer,
    test_set: PairedTestSet,
    *,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    workers: int = WORKERS,
    progress: bool = True,
) -> Figures:
    """Noise generated for each clean image against its real noise; reference: its own noisy image.

    One draw an image. Returns akld, ks, std_ratio (generated over real), corr_generated and
    corr_real (correlation of neighbouring pixels' noise). limit: the first so many images;
    batch_size: in images of 256x256, larger ones go in smaller batches; None takes 8, on a CPU as
    many as have the pixels of one of 256x256.
    """

    def read(index: int, _pass: int) -> tuple[Tensor, Tensor]:
        clean, noisy = test_set[index]
        return clean, noisy

    def measure(clean: Tensor, noisy: Tensor, draws: Sequence[Draw]) -> Measured:
        noise = per_image_noise([derived_seed(seed, index) for index, _ in draws])
        fake = transfer(clean, noisy, noise).float()
        return {
            "akld": akld(fake, noisy, clean),
            "ks": ks(fake, noisy, clean),
            "std_ratio": noise_std_ratio(fake, noisy, clean),
            "corr_generated": neighbour_correlation(fake, clean),
            "corr_real": neighbour_correlation(noisy, clean),
        }

    with evaluation_mode(transfer):
        return _measure_all(
            test_set, read, measure, 1, limit, batch_size, device, workers, progress
        )


def evaluate_denoiser(
    denoiser: Denoiser,
    test_set: CleanTestSet | PairedTestSet,
    *,
    noise: NoiseModelDistribution | None = None,
    passes: int = 1,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    workers: int = WORKERS,
    progress: bool = True,
) -> Figures:
    """PSNR and SSIM of the denoised image, clipped to [0, 1], and of the noisy input.

    noise: what to put on the clean images, drawn anew for every image and pass and not quantised to
    8 bits (a fixed setting has ranges of no width); None takes the test set's own noisy images.
    Returns psnr, ssim, psnr_noisy and ssim_noisy, means over the passes. limit, batch_size: as in
    `evaluate_transfer`.
    """

    def read(index: int, pass_: int) -> tuple[Tensor, Tensor]:
        item = test_set[index]
        if noise is None:
            clean, noisy = item
            return clean, noisy
        clean = item if isinstance(item, Tensor) else item[0]
        rng = randomness(seed, index, pass_)
        return clean, add_noise(clean[None], noise.draw(1, rng.choices), rng.pixels)[0]

    def measure(clean: Tensor, noisy: Tensor, _draws: Sequence[Draw]) -> Measured:
        if noisy.device.type == "cpu":  # convolutions, SSIM's too, are up to 1.5 times faster so
            clean = clean.contiguous(memory_format=torch.channels_last)
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        denoised = denoiser(noisy).float().clamp(0, 1)
        return {
            "psnr": psnr(denoised, clean),
            "ssim": ssim(denoised, clean),
            "psnr_noisy": psnr(noisy, clean),
            "ssim_noisy": ssim(noisy, clean),
        }

    with evaluation_mode(denoiser):
        return _measure_all(
            test_set, read, measure, passes, limit, batch_size, device, workers, progress
        )


def mean_over_images(figures: Figures) -> dict[str, float]:
    """The mean of each measure; where the noise has no spread to compare, over the other images."""
    means = {}
    for name, values in figures.items():
        if name in NEEDS_NOISE and not np.isnan(values).all():
            values = values[~np.isnan(values)]
        means[name] = float(values.mean())
    return means


def white_gaussian(clean: Tensor, reference: Tensor, noise: NoiseSource) -> Tensor:
    """A `Transfer` to read the others against: white Gaussian noise of the pair's true sigma.

    It is told what no generator is, the standard deviation of reference - clean over each image.
    """
    sigma = (reference - clean).flatten(1).std(dim=1, correction=0)
    return (clean + sigma[:, None, None, None] * noise(tuple(clean.shape), clean.device)).clamp(
        0, 1
    )


def per_image_noise(seeds: Sequence[int]) -> NoiseSource:
    """Standard normal maps, each image's from a generator of its own, the same on every device."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        # From pinned memory the copy is queued: the CPU draws on while a GPU computes.
        maps = torch.empty(shape, pin_memory=device.type == "cuda")
        for one, generator in zip(maps, generators, strict=True):
            one.normal_(generator=generator)
        return maps.to(device, non_blocking=True)

    return draw


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
    deterministic algorithms, so that the same command gives the same figures."""
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


def denoiser_from_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The denoiser of a `*_g.pt` file, in evaluation mode; kind and width are read off its keys."""
    state = load_state(path)
    for name, first in (
        ("ridnet", "head.weight"),
        ("dncnn", "body.0.weight"),
        ("unet", "enc.0.0.weight"),
    ):
        if first in state:
            denoiser = build_denoiser(name, width=state[first].shape[0])
            load_weights(denoiser, path)
            return denoiser.eval().requires_grad_(False).to(device)
    raise UserError(f"{path}: not the weights of ridnet, dncnn or unet; which file is it?")


def _measure_all(
    test_set: CleanTestSet | PairedTestSet,
    read: Callable[[int, int], tuple[Tensor, Tensor]],
    measure: Callable[[Tensor, Tensor, Sequence[Draw]], Measured],
    passes: int,
    limit: int | None,
    batch_size: int | None,
    device: torch.device | str,
    workers: int,
    progress: bool,
) -> Figures:
    device = torch.device(device)
    count = len(test_set) if limit is None else min(limit, len(test_set))
    most = batch_size or BATCH
    pixels = batch_size * PIXELS if batch_size else BATCH_PIXELS.get(device.type, PIXELS)
    batches = _batches(test_set, count, passes, most, pixels)

    def load(draws: list[Draw]) -> list[Tensor]:
        sides = zip(*(read(index, pass_) for index, pass_ in draws), strict=True)
        images = [torch.stack(side) for side in sides]
        return [x.pin_memory() for x in images] if device.type == "cuda" else images

    test_set[0]  # a .mat set is read whole at the first image: here, not by all threads at once
    hidden = None if progress else True  # None: shown on a terminal, not in a log file
    measured: list[Measured] = []
    bar = tqdm(total=count * passes, desc=test_set.name, unit="img", leave=False, disable=hidden)
    with bar, full_float32(device), torch.inference_mode():
        for draws, images in zip(batches, _prefetch(load, batches, workers), strict=True):
            clean, noisy = (x.to(device, non_blocking=True) for x in images)
            measured.append(measure(clean, noisy, draws))
            bar.update(len(draws))

    # Fetched once, at the end: reading a figure makes the CPU wait for all that is queued.
    index, pass_ = np.array([draw for draws in batches for draw in draws]).reshape(-1, 2).T
    figures = {}
    for name in measured[0] if measured else ():
        table = np.empty((count, passes))
        table[index, pass_] = torch.cat([m[name] for m in measured]).cpu().numpy()
        figures[name] = table.mean(axis=1)
    return figures


def _batches(
    test_set: CleanTestSet | PairedTestSet, count: int, passes: int, most: int, pixels: int
) -> list[list[Draw]]:
    """Every image and pass to measure, in batches of one size, no larger than both limits."""
    by_size: dict[tuple[int, int], list[Draw]] = {}
    for index in range(count):
        height, width = test_set.size(index)
        if min(height, width) < MIN_SIDE:
            raise UserError(
                f"{test_set.name}: {test_set.image_name(index)} is {width}x{height}, expected at "
                f"least {MIN_SIDE} pixels a side; remove it from the test set"
            )
        by_size.setdefault((height, width), []).extend((index, p) for p in range(passes))
    batches = []
    for (height, width), draws in by_size.items():
        n = max(1, min(most, pixels // (height * width)))
        batches += [draws[i : i + n] for i in range(0, len(draws), n)]
    return batches


def _prefetch(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """function(item) for each item, in order, computed by threads a few items ahead."""
    pending: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
