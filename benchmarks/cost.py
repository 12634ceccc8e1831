"""Whether a step's time grows linearly with batch size and with patch area.

    python -m benchmarks.cost --json benchmarks/results/cost.json

Times are fitted by a + b n, least squares; `r2` is the fit's, `per_sample_*` compares the largest
with the smallest size: 1 is proportional, less means that a fixed part is shared by more samples.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import Row, compare, print_machine, print_table, write_json
from benchmarks.train_step import fast_step
from data.items import Triplet
from utils.config import Precision, choose_device, parse
from utils.errors import exit_on_user_error


@dataclass(frozen=True)
class Config:
    """Time the generator step at several batch sizes and patch sizes."""

    gpu: str = "0"
    """CUDA device number, or cpu."""
    width: int = 64
    precision: Precision = "auto"
    batches: tuple[int, ...] = (1, 2, 3, 4)
    batch_patch: int = 64
    """Pixels a side while the batch size changes."""
    patches: tuple[int, ...] = (32, 48, 64, 80, 96)
    patch_batch: int = 1
    """Samples while the patch size changes."""
    repeats: int = 3
    threads: int | None = None
    """On the CPU."""
    json: Path | None = None


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    device = choose_device(c.gpu)
    if c.threads:
        torch.set_num_threads(c.threads)
    by_batch = measure(c, [(n, c.batch_patch) for n in c.batches], device)
    by_area = measure(c, [(c.patch_batch, side) for side in c.patches], device)
    print_machine()
    fits = []
    for name, rows in (("batch", by_batch), ("area", by_area)):
        print_table(f"generator step by {name}", rows)
        fits.append(linear_fit(name, [r[name] for r in rows], [r["median_ms"] for r in rows]))
    print_table("least squares", fits)
    write_json(c.json, {"by_batch": by_batch, "by_area": by_area, "fits": fits})


def measure(c: Config, sizes: list[tuple[int, int]], device: torch.device) -> list[Row]:
    runs = {}
    for batch, patch in sizes:
        shape = (batch, 3, patch, patch)
        rng = torch.Generator().manual_seed(0)
        items = Triplet(*(torch.rand(shape, generator=rng).to(device) for _ in range(3)))
        runs[f"{batch} of {patch}x{patch}"] = fast_step(c.width, c.precision, False, items, device)
    timings = compare(runs, c.repeats, device)
    return [
        {"batch": batch, "area": batch * patch**2, **timing.row()}
        for (batch, patch), timing in zip(sizes, timings, strict=True)
    ]


def linear_fit(name: str, sizes: list[float], times: list[float]) -> Row:
    """Least squares of time against size; the residual as R^2."""
    n, t = np.array(sizes, float), np.array(times)
    slope, fixed = np.polyfit(n, t, 1)
    residual = ((t - fixed - slope * n) ** 2).sum() / ((t - statistics.fmean(times)) ** 2).sum()
    growth = (t[-1] / n[-1]) / (t[0] / n[0])
    return {
        "against": name,
        "fixed_ms": float(fixed),
        "ms_each": float(slope),
        "r2": float(1 - residual),
        "per_sample_last_over_first": float(growth),
    }


if __name__ == "__main__":
    exit_on_user_error(main)
