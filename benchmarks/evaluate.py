"""Evaluation: images a second by batch size, where the time goes, and time against image count.

    python -m benchmarks.evaluate --gpu cpu --json evaluate.json
    python -m benchmarks.evaluate --gpu 0 --width 64         # the paper's size, random weights

Measured is what `supp_tbl.py` does on blocks of the bundled sample, repeated: decode, transfer or
denoise, figures. The plain loop takes image by image: nothing is read ahead, the generator is the
oracle's (tests/oracle.py), AKLD and KS are numpy's, PSNR and SSIM piq's, PyTorch has its defaults
(on CUDA that is TF32; `supp_tbl.py` computes in float32).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_evaluation import oracle_networks, plain_denoiser, plain_transfer
from benchmarks.timing import Row, Timing, compare, print_machine, print_table, write_json
from data.noise import NoiseModelDistribution, add_noise
from data.sample import write_sample
from data.test_sets import PairedTestSet, find_test_sets
from evaluation.batches import full_float32
from evaluation.measure import evaluate_denoiser, evaluate_transfer
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer, build_denoiser
from models.denoisers import denoiser_from_checkpoint
from models.generator import given_noise, normal_noise, per_image_noise
from utils import metrics
from utils.config import choose_device, parse
from utils.errors import exit_on_user_error, require
from utils.noise_statistics import neighbour_correlation
from utils.seeding import randomness
from utils.transfer_settings import MIN_REFERENCE

Task = Callable[[PairedTestSet, int | None], object]  # task(test set, batch size)


@dataclass(frozen=True)
class Config:
    """Time the evaluation of a noise generator and of a denoiser."""

    gpu: str = "0"
    """CUDA device number, or cpu."""
    nt: Path = Path("ckpts/NT")
    """Noise generator: folder of VUNet.pt and encoder_k.pt."""
    sidd: Path = Path("ckpts/sidd/ridnet_g.pt")
    """Denoiser: its file."""
    width: int | None = None
    """Random networks (RIDNet) of this width in their place: time does not depend on weights."""
    side: int = 256
    """Height and width of the blocks, at most 256."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    counts: tuple[int, ...] = ()
    """Image counts of the linear fit; 4 8 16 32 on the CPU, 64 128 256 512 on CUDA by default."""
    repeats: int = 3
    cache: Path = Path("cache")
    """Where the bundled sample is written."""
    json: Path | None = None
    """Write all samples here."""


class RepeatedBlocks:
    """`count` pairs, side x side, of the sample's twelve, over and over, each decoded anew."""

    name = title = "sample"

    def __init__(self, blocks: PairedTestSet, count: int, side: int) -> None:
        self.blocks, self.count, self.side = blocks, count, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        clean, noisy = self.blocks[i % len(self.blocks)]
        return clean[:, : self.side, : self.side], noisy[:, : self.side, : self.side]

    def size(self, _i: int) -> tuple[int, int]:
        return self.side, self.side


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    good = MIN_REFERENCE <= c.side <= 256 and c.side % 4 == 0
    require(good, f"--side {c.side}: expected {MIN_REFERENCE} to 256, divisible by 4")
    require(c.repeats >= 1, f"--repeats {c.repeats}: expected 1 or more")
    require(min(c.batches, default=1) >= 1, f"--batches {c.batches}: expected 1 or more")
    device = choose_device(c.gpu)
    counts = c.counts or ((64, 128, 256, 512) if device.type == "cuda" else (4, 8, 16, 32))
    require(
        len(set(counts)) >= 3 and min(counts) >= 1, f"--counts {counts}: expected three or more"
    )
    transfer, denoiser = open_networks(c, device)
    (blocks,) = find_test_sets(write_sample(c.cache / "sample") / "test_images/sample_camera")

    def pairs(count: int) -> RepeatedBlocks:
        return RepeatedBlocks(blocks, count, c.side)

    how = dict(device=device, progress=False)
    encoder, generator = oracle_networks(transfer, device)
    tasks: dict[str, tuple[Task, Callable]] = {
        "noise": (
            lambda s, batch: evaluate_transfer(transfer, s, batch_size=batch, **how),
            lambda s: plain_transfer(encoder, generator, s, device),
        ),
        "denoising": (
            lambda s, batch: evaluate_denoiser(denoiser, s, batch_size=batch, **how),
            lambda s: plain_denoiser(denoiser, s, device),
        ),
    }
    print_machine()
    tables: dict[str, list[Row]] = {}

    def show(title: str, rows: list[Row]) -> None:
        print_table(title, rows)
        tables[title] = rows

    show(f"parts, an image {c.side}x{c.side}", parts(transfer, denoiser, blocks, c, device))
    for name, (task, plain) in tasks.items():
        rows = by_batch(task, plain, pairs, c.batches, c.repeats, device)
        show(f"{name} by batch size, {c.side}x{c.side}", rows)
    for name, (task, _) in tasks.items():
        rows, fits = by_count(task, pairs, counts, c.repeats, device)
        show(f"{name} by image count, batch size as by default", rows)
        show(f"{name}: linear fit", fits)
    write_json(c.json, tables)


def open_networks(c: Config, device: torch.device) -> tuple[NoiseTransfer, nn.Module]:
    if c.width is None:
        transfer = NoiseTransfer.from_checkpoint(c.nt, device)
        return transfer, denoiser_from_checkpoint(c.sidd, device)
    transfer = NoiseTransfer(NoiseEncoder(c.width), NoiseGenerator(c.width))
    denoiser = build_denoiser("ridnet", c.width)
    return transfer.to(device), denoiser.eval().requires_grad_(False).to(device)


# ------------------------------------------------------------------------------------ the tables


def by_batch(
    task: Task,
    plain: Callable[[PairedTestSet], object],
    pairs: Callable[[int], PairedTestSet],
    batches: tuple[int, ...],
    repeats: int,
    device: torch.device,
) -> list[Row]:
    """Images a second of the plain loop and of each batch size; speedups are over the former."""
    least = 128 if device.type == "cuda" else 8
    counts = {"plain loop": least} | {f"batch {b}": max(b, least) for b in batches}
    runs = {"plain loop": lambda: plain(pairs(least))}
    for batch in batches:
        runs[f"batch {batch}"] = lambda batch=batch: task(pairs(max(batch, least)), batch)
    timings = compare(runs, repeats, device, warm_up=int(device.type == "cuda"))
    rows: list[Row] = []
    for timing in timings:
        n = counts[timing.name]
        per_image = {"ms_per_image": timing.median * 1e3 / n}
        per_image["cpu_ms_per_image"] = timing.cpu_median * 1e3 / n
        row = timing.row() | {"images": n, "images_per_s": n / timing.median} | per_image
        plain_row = rows[0] if rows else row
        row["speedup"] = plain_row["ms_per_image"] / row["ms_per_image"]
        row["cpu_speedup"] = plain_row["cpu_ms_per_image"] / row["cpu_ms_per_image"]
        rows.append(row)
    return rows


def by_count(
    task: Task,
    pairs: Callable[[int], PairedTestSet],
    counts: tuple[int, ...],
    repeats: int,
    device: torch.device,
) -> tuple[list[Row], list[Row]]:
    """Time of each image count, and straight lines through it: by the clock and by CPU time, which
    other programs on the machine disturb less."""
    runs = {f"{n} images": lambda n=n: task(pairs(n), None) for n in counts}
    timings = compare(runs, repeats, device, warm_up=int(device.type == "cuda"))
    rows = [t.row() | {"images": n} for t, n in zip(timings, counts, strict=True)]
    fits = [
        {"time": name} | linear_fit(counts, [1e3 * get(t) for t in timings])
        for name, get in (("wall", lambda t: t.median), ("cpu", lambda t: t.cpu_median))
    ]
    return rows, fits


def linear_fit(x: tuple[int, ...], y: list[float]) -> Row:
    """Least squares y = slope x + intercept, and R^2, the share of the variance it explains."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.square(np.polyval((slope, intercept), x) - y).sum()
    total = np.square(np.asarray(y) - np.mean(y)).sum()
    return {
        "ms_per_image": float(slope),
        "ms_fixed": float(intercept),
        "r_squared": float(1 - residual / total),
    }


def parts(
    transfer: NoiseTransfer,
    denoiser: nn.Module,
    blocks: PairedTestSet,
    c: Config,
    device: torch.device,
) -> list[Row]:
    """What one image costs, part by part, at batch 1; the denoiser as `evaluate_denoiser` runs it.

    Reading, noise maps and synthetic noise are the CPU's on every device.
    """
    pair = RepeatedBlocks(blocks, 1, c.side)
    on_cpu, _ = (x[None].contiguous() for x in pair[0])
    clean, noisy = (x[None].contiguous().to(device) for x in pair[0])
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    clean_, noisy_ = (x.contiguous(memory_format=layout) for x in (clean, noisy))
    both = NoiseModelDistribution((0, 0, 1), sigma=(25, 25), chi=(30, 30))
    maps = transfer.generator.noise_maps(clean, normal_noise())

    def transfer_alone() -> None:
        transfer(clean, noisy, given_noise(maps))

    def noise_figures() -> None:
        for metric in (metrics.akld, metrics.ks, metrics.noise_std_ratio):
            metric(noisy, noisy, clean)
        for image in (noisy, noisy):
            neighbour_correlation(image, clean)

    def synthetic_noise() -> None:
        rng = randomness(0)
        add_noise(on_cpu, both.draw(1, rng.choices), rng.pixels)

    def quality_figures() -> None:
        for image in (noisy_, noisy_):
            metrics.psnr(image, clean_)
            metrics.ssim(image, clean_)

    runs = {
        "read a pair": lambda: pair[0],
        "noise maps": lambda: transfer.generator.noise_maps(clean, per_image_noise([0])),
        "transfer": transfer_alone,
        "AKLD, KS, strength, correlations": noise_figures,
        "synthetic noise": synthetic_noise,
        "denoiser": lambda: denoiser(noisy_),
        "PSNR, SSIM, twice": quality_figures,
    }
    rows = []
    with full_float32(device), torch.inference_mode():
        timings: list[Timing] = compare(runs, max(5, c.repeats), device)
        for timing in timings:
            with FlopCounterMode(display=False) as counter:
                runs[timing.name]()
            rows.append(timing.row() | {"gflop": counter.get_total_flops() / 1e9})
    return rows


if __name__ == "__main__":
    exit_on_user_error(main)
