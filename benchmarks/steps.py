"""What the step benchmarks share: settings, the runs of each precision, and their table."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Row, compare, print_machine, print_table, write_json
from utils.config import Precision, choose_device

Step = Callable[[], None]  # one training step

# Dense bf16 products a second, from the makers' data sheets; a chip not named here has no share.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "RTX 4090": 165e12}


@dataclass(frozen=True)
class StepConfig:
    """The settings of both."""

    gpu: str = "0"
    """CUDA device number, or cpu."""
    width: int = 64
    """Of the noise networks."""
    batch: int | None = None
    """32 on CUDA, 4 on the CPU by default."""
    precisions: tuple[Precision, ...] = ()
    """fp32 and bf16 by default, on CUDA tf32 too."""
    compile: bool = False
    """Also each precision with --compile."""
    repeats: int = 5
    threads: int | None = None
    """On the CPU."""
    json: Path | None = None
    """Write all samples here."""

    def device(self) -> torch.device:
        if self.threads:
            torch.set_num_threads(self.threads)
        return choose_device(self.gpu)


def random_images(c: StepConfig, count: int, patch: int, device: torch.device) -> list[Tensor]:
    """`count` batches (B, 3, patch, patch) in [0, 1], B as set or the device's default."""
    batch = c.batch or (32 if device.type == "cuda" else 4)
    rng = torch.Generator().manual_seed(0)
    return [torch.rand((batch, 3, patch, patch), generator=rng).to(device) for _ in range(count)]


def compare_precisions(
    c: StepConfig,
    title: str,
    oracle: Step,
    fast: Callable[[Precision, bool], Step],
    shape: torch.Size,
    device: torch.device,
    graphed: Callable[[Precision], Step] | None = None,
) -> None:
    """Time the oracle against fast(precision, compiled) and, on CUDA, graphed(precision).

    shape: of a batch of images.
    """
    on_cuda = ("fp32", "tf32", "bf16")
    precisions = c.precisions or (on_cuda if device.type == "cuda" else ("fp32", "bf16"))
    runs = {"oracle": oracle}
    for precision in precisions:
        for compiled in (False, True)[: 1 + c.compile]:
            runs[precision + (", compiled" if compiled else "")] = fast(precision, compiled)
    flops = {name: count_flops(run) for name, run in runs.items()}
    if graphed is not None and device.type == "cuda":
        for precision in precisions:
            name = f"{precision}, graph"
            runs[name], flops[name] = graphed(precision), flops[precision]
    warm_up = 5 if device.type == "cuda" else 2  # a graph is captured at the fourth call
    timings = compare(runs, c.repeats, device, warm_up=warm_up)

    rows = []
    for timing in timings:
        row = timing.row(timings[0])
        row |= {"gflop_per_sample": flops[timing.name] / shape[0] / 1e9}
        row |= {"tflop_per_s": flops[timing.name] / timing.median / 1e12}
        rows.append(row | peak_share(row["tflop_per_s"], device))
    print_machine()
    print_table(f"{title} step, batch {shape[0]}, {shape[2]}x{shape[3]}, width {c.width}", rows)
    write_json(c.json, {f"{title}_step": rows})


def count_flops(step: Step) -> int:
    """Operations (2 a multiply-add) of the convolutions and matrix products in one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak_share(tflops: float, device: torch.device) -> Row:
    if device.type != "cuda":
        return {}
    name = torch.cuda.get_device_name(device)
    peak = next((peak for chip, peak in PEAK_FLOPS.items() if chip in name), None)
    return {"of_peak_bf16": f"{1e12 * tflops / peak:.1%}"} if peak else {}
