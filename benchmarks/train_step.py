"""One generator step: the fast path against the plain oracle, by precision.

    python -m benchmarks.train_step                                 # batch 4 on the CPU, 32 on CUDA
    python -m benchmarks.train_step --gpu 0 --repeats 50 --json train_step.json

The oracle (tests/oracle.py) is the method written down plainly, in PyTorch's defaults: two
backward passes for the networks as they come, one spectral norm a call, modulation expanded over
the image, AKLD and KS image by image. Both start from the same weights and see the same batch.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import Row, compare, print_machine, print_table, write_json
from data.items import Triplet
from models.generator import normal_noise
from tests.oracle import OracleEncoder, OracleGenerator, OracleTrainer
from train_noiseTransfer import Config as TrainConfig
from train_noiseTransfer import State, train_step
from utils.config import choose_device, parse
from utils.errors import exit_on_user_error
from utils.precision import Precision, set_float32_precision

# Dense bf16 products a second, from the makers' data sheets; a chip not named here has no share.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "RTX 4090": 165e12}


@dataclass(frozen=True)
class Config:
    """Time one training step of the generator against the plain implementation."""

    gpu: str = "0"
    """CUDA device number, or cpu."""
    width: int = 64
    batch: int | None = None
    """32 on CUDA, 4 on the CPU by default."""
    patch: int = 96
    precisions: tuple[Precision, ...] = ()
    """fp32 and bf16 by default, on CUDA tf32 too."""
    compile: bool = False
    """Also each precision with --compile."""
    repeats: int = 5
    threads: int | None = None
    """On the CPU."""
    json: Path | None = None
    """Write all samples here."""


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    device = choose_device(c.gpu)
    if c.threads:
        torch.set_num_threads(c.threads)
    batch = c.batch or (32 if device.type == "cuda" else 4)
    precisions = c.precisions or (
        ("fp32", "tf32", "bf16") if device.type == "cuda" else ("fp32", "bf16")
    )
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, c.patch, c.patch)
    items = Triplet(*(torch.rand(shape, generator=generator).to(device) for _ in range(3)))

    runs = {"oracle": oracle_step(c, items, device)}
    for precision in precisions:
        for compiled in (False, True)[: 1 + c.compile]:
            name = precision + (", compiled" if compiled else "")
            runs[name] = fast_step(c, precision, compiled, items, device)
    flops = {name: count_flops(run) for name, run in runs.items()}
    timings = compare(runs, c.repeats, device, warm_up=2)

    rows = []
    for timing in timings:
        row = timing.row(timings[0])
        row |= {"gflop_per_sample": flops[timing.name] / batch / 1e9}
        row |= {"tflop_per_s": flops[timing.name] / timing.median / 1e12}
        rows.append(row | peak_share(row["tflop_per_s"], device))
    print_machine()
    print_table(f"generator step, batch {batch}, {c.patch}x{c.patch}, width {c.width}", rows)
    write_json(c.json, {"train_step": rows})


def oracle_step(c: Config, items: Triplet, device: torch.device) -> Callable[[], None]:
    """A call is one step. cuDNN's convolutions may use TF32, its default."""
    torch.manual_seed(0)
    encoder = OracleEncoder(c.width).to(device)
    queue = torch.nn.functional.normalize(torch.randn(128, 4096), dim=0).to(device)
    noise = normal_noise(torch.Generator(device).manual_seed(0))
    trainer = OracleTrainer(
        encoder, copy.deepcopy(encoder), OracleGenerator(c.width).to(device), queue, noise
    )

    def step() -> None:
        torch.backends.cudnn.allow_tf32 = True
        trainer.step(items.clean, items.noisy1, items.noisy2)

    return step


def fast_step(
    c: Config, precision: Precision, compiled: bool, items: Triplet, device: torch.device
):
    """A call is one `train_step` of train_noiseTransfer.py at its defaults, the paper's."""
    settings = TrainConfig(width=c.width, precision=precision, compile=compiled)
    state = State(settings, device)
    noise = normal_noise(torch.Generator(device).manual_seed(0))

    def step() -> None:
        set_float32_precision(precision)
        train_step(state, settings, items, noise)

    return step


def count_flops(step: Callable[[], None]) -> int:
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


if __name__ == "__main__":
    exit_on_user_error(main)
