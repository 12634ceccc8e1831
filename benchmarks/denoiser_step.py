"""One denoiser step: transfer and update, the fast path against the plain oracle, by precision.

    python -m benchmarks.denoiser_step                              # batch 4 on the CPU, 32 on CUDA

The plain step is tests/oracle.py's transfer (modulation expanded over the image, spectral norm at
every call), then the same denoiser in PyTorch's defaults, L1 and Adam.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.steps import Step, StepConfig, compare_precisions, random_images
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer, build_denoiser
from models.generator import normal_noise
from tests.oracle import OracleEncoder, OracleGenerator, oracle_transfer
from train_denoiser import Config as TrainConfig
from train_denoiser import State, train_step
from utils.config import Precision, parse
from utils.errors import exit_on_user_error
from utils.precision import set_float32_precision


@dataclass(frozen=True)
class Config(StepConfig):
    """Time one training step of the denoiser, the paper's RIDNet, against the plain one."""

    patch: int = 88
    border: int = 4


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    device = c.device()
    clean, reference = random_images(c, 2, c.patch, device)

    def fast(precision: Precision, compiled: bool) -> Step:
        return fast_step(c, precision, compiled, clean, reference, device)

    oracle = oracle_step(c, clean, reference, device)
    compare_precisions(c, "denoiser", oracle, fast, clean.shape, device)


def oracle_step(c: Config, clean: Tensor, reference: Tensor, device: torch.device) -> Step:
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
) -> Step:
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
