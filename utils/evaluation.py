"""Measuring a noise generator or a denoiser on a test set, image by image (method: paper, Sec. 4).

Every random number is drawn on the CPU from (seed, image's index, pass), so that an image's figures
do not depend on the device, the batch size, the number of workers, or which other images are
measured. `supp_tbl.py` and the validation of the training scripts share these functions.

Networks compute in float32, whatever precision a run trains in: figures are compared with other
runs', other machines' and other papers', and bf16 and TF32 would move them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.noise import NoiseModelDistribution, add_noise
from data.prefetch import look_ahead
from data.test_sets import CleanTestSet, PairedTestSet
from models.denoisers import build_denoiser
from models.layers import NoiseSource
from utils.checkpoint import load_state, load_weights
from utils.errors import UserError
from utils.metrics import (
    akld,
    autocorrelation_distance,
    directional_distance,
    kld,
    ks,
    mean_shift,
    noise_level_distance,
    noise_std_ratio,
    psnr,
    ssim,
    worst_noise_level,
)
from utils.noise_statistics import DIRECTIONS, directional_correlations, neighbour_correlation
from utils.protocols import (
    OTHER_HALF,
    Protocol,
    floor_pair,
    reference_indices,
    transfer_between_halves,
)
from utils.seeding import derived_seed, randomness

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

NoiseMeasures = Callable[[Tensor, Tensor, Tensor], Measured]
"""measures(fake, real, clean), (B, 3, H, W) each: `noise_figures` or `scene_figures`."""

MIN_SIDE = 16  # the smallest reference the encoder takes; SSIM's window needs 11
PIXELS = 256 * 256  # what counts as one image of a batch: a block of SIDD validation
BATCH = 8
# Pixels of a batch by default. On a CPU more cost up to twice the time an image: feature maps leave
# the cache, and from 32 MB on the C library takes each from the system anew, which zeroes it.
BATCH_PIXELS = {"cpu": PIXELS, "cuda": BATCH * PIXELS}
# NaN for a pair (or a channel) without noise; the flat ratio for all but flat images.
NEEDS_NOISE = {
    *("std_ratio", "std_ratio_flat", "corr_generated", "corr_real", "acf", "nlf", "nlf_worst"),
    *("corr_distance", *(f"corr_{d}{of}" for d in DIRECTIONS for of in ("", "_real"))),
}
WORKERS = min(8, os.cpu_count() or 1)


def evaluate_transfer(
    transfer: Transfer,
    test_set: PairedTestSet,
    *,
    reference: Protocol | Sequence[int] = "paired",
    measures: NoiseMeasures | None = None,
    draws: int = 1,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    workers: int = WORKERS,
    progress: bool = True,
) -> Figures:
    """Noise generated for each clean image against its real noise: `measures`, `noise_figures`.

    reference: what the noise is taken from (utils/protocols.py), or for each image the index of the
    one whose noisy side it is. draws: noisy images an image; its figures are their means. limit:
    the first so many images; batch_size: in images of 256x256, larger ones go in smaller batches;
    None takes 8, on a CPU as many as have the pixels of one of 256x256.
    """
    count = len(test_set) if limit is None else min(limit, len(test_set))
    if isinstance(reference, str):
        reference = reference_indices(test_set, count, reference, seed)
    references, measures = reference, measures or noise_figures

    def read(index: int, _pass: int) -> tuple[Tensor, ...]:
        clean, noisy = test_set[index]
        other = references[index]
        return clean, noisy, noisy if other in (index, OTHER_HALF) else test_set[other][1]

    def measure(images: Sequence[Tensor], batch: Sequence[Draw]) -> Measured:
        clean, noisy, other = images
        # The first draw's seed is (seed, image): more draws do not change it.
        noise = per_image_noise([derived_seed(seed, *(d if d[1] else d[:1])) for d in batch])
        if references[batch[0][0]] == OTHER_HALF:
            fake = transfer_between_halves(transfer, clean, noisy, noise)
        else:
            fake = transfer(clean, other, noise)
        return measures(fake.float(), noisy, clean)

    def alike(index: int) -> tuple:
        """Images of one batch have it in common: the sizes of what is stacked, and the call."""
        other = references[index]
        return other == OTHER_HALF, None if other in (index, OTHER_HALF) else test_set.size(other)

    with evaluation_mode(transfer):
        return _measure_all(
            test_set, read, measure, draws, limit, batch_size, device, workers, progress, alike
        )


def evaluate_floor(
    test_set: PairedTestSet,
    *,
    measures: NoiseMeasures | None = None,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    workers: int = WORKERS,
    progress: bool = True,
) -> Figures:
    """Real noise against another draw of it (`floor_pair`): the best that any model can reach.

    Nothing is random; `seed` is taken so that all evaluations are called alike.
    """

    def read(index: int, _pass: int) -> tuple[Tensor, ...]:
        clean, noisy = test_set[index]
        other = test_set.second_shot(index)
        if other is None:
            return floor_pair(clean, noisy, None)
        second_clean, second_noisy = test_set[other]
        return floor_pair(clean, noisy, second_noisy - second_clean)

    def measure(images: Sequence[Tensor], _draws: Sequence[Draw]) -> Measured:
        return (measures or noise_figures)(*images)

    def alike(index: int) -> tuple:
        return (test_set.second_shot(index) is None,)

    return _measure_all(
        test_set, read, measure, 1, limit, batch_size, device, workers, progress, alike
    )


def noise_figures(fake: Tensor, real: Tensor, clean: Tensor) -> Measured:
    """Every measure of generated against real noise, (B,) each (utils/metrics.py).

    std_ratio: generated over real; corr_generated, corr_real: of neighbouring pixels; acf and nlf:
    distances of the autocorrelations and of the noise level functions.
    """
    return {
        "akld": akld(fake, real, clean),
        "ks": ks(fake, real, clean),
        "kld": kld(fake, real, clean, bins="unit"),
        "kld_tails": kld(fake, real, clean, bins="tails"),
        "std_ratio": noise_std_ratio(fake, real, clean),
        "corr_generated": neighbour_correlation(fake, clean),
        "corr_real": neighbour_correlation(real, clean),
        "acf": autocorrelation_distance(fake, real, clean),
        "nlf": noise_level_distance(fake, real, clean),
    }


def scene_figures(fake: Tensor, real: Tensor, clean: Tensor) -> Measured:
    """What can go wrong with noise of another scene, (B,) each (utils/metrics.py).

    std_ratio, and by intensity and channel nlf (mean) and nlf_worst; mean_shift, the colour cast;
    corr_<direction> and corr_<direction>_real, and corr_distance between them; akld.
    """
    generated, true = (directional_correlations(x, clean).unbind(1) for x in (fake, real))
    return {
        "std_ratio": noise_std_ratio(fake, real, clean),
        "nlf": noise_level_distance(fake, real, clean),
        "nlf_worst": worst_noise_level(fake, real, clean),
        "mean_shift": mean_shift(fake, real),
        **{f"corr_{d}": r for d, r in zip(DIRECTIONS, generated, strict=True)},
        **{f"corr_{d}_real": r for d, r in zip(DIRECTIONS, true, strict=True)},
        "corr_distance": directional_distance(fake, real, clean),
        "akld": akld(fake, real, clean),
    }


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

    def measure(images: Sequence[Tensor], _draws: Sequence[Draw]) -> Measured:
        clean, noisy = images
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
    read: Callable[[int, int], tuple[Tensor, ...]],
    measure: Callable[[Sequence[Tensor], Sequence[Draw]], Measured],
    passes: int,
    limit: int | None,
    batch_size: int | None,
    device: torch.device | str,
    workers: int,
    progress: bool,
    alike: Callable[[int], tuple] = lambda index: (),
) -> Figures:
    """Figures of `measure`, called with what `read` gave for a batch of (image, pass).

    A batch has images of one size and of one `alike`.
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
    with bar, full_float32(device), torch.inference_mode():
        for draws, images in zip(batches, look_ahead(load, batches, workers, workers), strict=True):
            images = [x.to(device, non_blocking=True) for x in images]
            measured.append(measure(images, draws))
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
    test_set: CleanTestSet | PairedTestSet,
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
        if min(height, width) < MIN_SIDE:
            raise UserError(
                f"{test_set.name}: {test_set.image_name(index)} is {width}x{height}, expected at "
                f"least {MIN_SIDE} pixels a side; remove it from the test set"
            )
        group = by_size.setdefault((height, width, *alike(index)), [])
        group.extend((index, p) for p in range(passes))
    batches = []
    for (height, width, *_), draws in by_size.items():
        n = max(1, min(most, pixels // (height * width)))
        batches += [draws[i : i + n] for i in range(0, len(draws), n)]
    return batches
