"""One denoiser step: transfer and update, the fast path against the plain oracle, by precision.

    python -m benchmarks.denoiser_step                              # batch 4 on the CPU, 32 on CUDA

The plain step is tests/oracle.py's transfer (modulation expanded over the image, spectral norm at
every call), then the same denoiser in PyTorch's defaults, L1 and Adam.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import compare, print_machine, print_table, write_json
from benchmarks.train_step import count_flops, peak_share
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer, build_denoiser
from models.generator import normal_noise
from tests.oracle import OracleEncoder, OracleGenerator, oracle_transfer
from train_denoiser import Config as TrainConfig
from train_denoiser import State, train_step
from utils.config import choose_device, parse
from utils.errors import exit_on_user_error
from utils.precision import Precision, set_float32_precision


@dataclass(frozen=True)
class Config:
    """Time one training step of the denoiser against the plain implementation."""

    gpu: str = "0"
    """CUDA device number, or cpu."""
    width: int = 64
    """Of the noise generator; the denoiser is the paper's RIDNet, 64."""
    batch: int | None = None
    """32 on CUDA, 4 on the CPU by default."""
    patch: int = 88
    border: int = 4
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
    images = [torch.rand(shape, generator=generator).to(device) for _ in range(2)]

    runs = {"oracle": oracle_step(c, *images, device)}
    for precision in precisions:
        for compiled in (False, True)[: 1 + c.compile]:
            name = precision + (", compiled" if compiled else "")
            runs[name] = fast_step(c, precision, compiled, *images, device)
    flops = {name: count_flops(run) for name, run in runs.items()}
    timings = compare(runs, c.repeats, device, warm_up=2)

    rows = []
    for timing in timings:
        row = timing.row(timings[0])
        row |= {"gflop_per_sample": flops[timing.name] / batch / 1e9}
        row |= {"tflop_per_s": flops[timing.name] / timing.median / 1e12}
        rows.append(row | peak_share(row["tflop_per_s"], device))
    print_machine()
    print_table(f"denoiser step, batch {batch}, {c.patch}x{c.patch}, width {c.width}", rows)
    write_json(c.json, {"denoiser_step": rows})


def oracle_step(
    c: Config, clean: Tensor, reference: Tensor, device: torch.device
) -> Callable[[], None]:
    """A call is one step. cuDNN's convolutions may use TF32, its default."""
    torch.manual_seed(0)
    encoder = OracleEncoder(c.width).to(device).eval()
    generator = OracleGenerator(c.width).to(device).eval()
    denoiser = build_denoiser("ridnet").to(device)
    optimiser = torch.optim.Adam(denoiser.parameters(), lr=1e-4, weight_decay=1e-5)
    noise = normal_noise(torch.Generator(device).manual_seed(0))
    inner = (..., slice(c.border, -c.border), slice(c.border, -c.border))

    def step() -> None:
        torch.backends.cudnn.allow_tf32 = True
        noisy = oracle_transfer(encoder, generator, clean, reference, noise)
        loss = F.l1_loss(denoiser(noisy[inner]), clean[inner])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def fast_step(
    c: Config,
    precision: Precision,
    compiled: bool,
    clean: Tensor,
    reference: Tensor,
    device: torch.device,
) -> Callable[[], None]:
    """A call is one `train_step` of train_denoiser.py at its defaults, the paper's."""
    settings = TrainConfig(border=c.border, precision=precision, compile=compiled)
    transfer = NoiseTransfer(NoiseEncoder(c.width), NoiseGenerator(c.width))
    transfer.requires_grad_(False).to(device)
    state = State(settings, device)
    noise = normal_noise(torch.Generator(device).manual_seed(0))

    def step() -> None:
        set_float32_precision(precision)
        train_step(state, settings, transfer, clean, reference, noise)

    return step


if __name__ == "__main__":
    exit_on_user_error(main)
