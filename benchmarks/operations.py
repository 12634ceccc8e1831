"""What a GPU is asked to do in one training step, counted exactly and without a GPU.

    python -m benchmarks.operations
    python -m benchmarks.operations --names generator --kinds

Counted are the operations that PyTorch dispatches on CUDA tensors and that launch something: all
but views and allocations, each once, also where it runs as several kernels (an optimiser's step).
The tensors have no data (tests/fake_cuda.py); the step is the second, as the first fills caches.
`waits`: copies that the CPU waits for. Each launch takes a CPU some 5 to 8 microseconds: the time
that a step cannot be shorter than, whatever the GPU.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import print_table, write_json
from data.items import Triplet
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.generator import normal_noise
from tests.fake_cuda import CUDA, fake_cuda
from train_denoiser import Config as DenoiserConfig
from train_denoiser import train_step as denoiser_step
from train_noiseTransfer import Config as TrainConfig
from train_noiseTransfer import State, train_step
from training.denoisers import State as DenoiserState
from utils.config import parse
from utils.errors import exit_on_user_error
from utils.seeding import randomness


@dataclass(frozen=True)
class Config:
    """Count the device operations of one step of each training."""

    names: tuple[str, ...] = ("generator", "encoder", "ridnet", "dncnn", "unet")
    """The generator's step, the encoder's where it is alone, or that of a denoiser."""
    width: int = 64
    batch: int = 32
    patch: int = 96
    """Of generator and encoder; a denoiser's is 88."""
    kinds: bool = False
    """Also how often each operation ran."""
    json: Path | None = None
    """Write the table here."""


def count(name: str, c: Config) -> tuple[Counter[str], list[str]]:
    """The operations of one step at the paper's settings, and its waits."""
    with fake_cuda() as cuda:
        noise = normal_noise(randomness(0, device=CUDA).pixels)
        if name in ("generator", "encoder"):
            alone = dict(encoder_steps=2, w_statistics=1.0) if name == "encoder" else {}
            settings = TrainConfig(width=c.width, **alone)
            state = State(settings, CUDA)
            items = Triplet(*(_images(c.batch, c.patch) for _ in range(3)))
            arguments = state, settings, items, noise
            step = train_step
        else:
            settings = DenoiserConfig(denoiser=name, width=c.width)
            state = DenoiserState(settings, CUDA)
            transfer = NoiseTransfer(NoiseEncoder(c.width), NoiseGenerator(c.width))
            transfer.requires_grad_(False).to(CUDA)
            clean, reference = _images(c.batch, 88), _images(c.batch, 88)
            arguments = state, settings, transfer, clean, reference, noise
            step = denoiser_step
        step(*arguments)
        cuda.forget()
        step(*arguments)
        return Counter(cuda.operations), list(cuda.waits)


def _images(batch: int, patch: int) -> torch.Tensor:
    return torch.rand(batch, 3, patch, patch, device=CUDA)


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    rows = []
    for name in c.names:
        operations, waits = count(name, c)
        rows.append({"step": name, "operations": operations.total(), "waits": len(waits)})
        if c.kinds:
            print(name, ", ".join(f"{k} {n}" for k, n in operations.most_common()))
    print_table(f"device operations, width {c.width}, batch {c.batch}", rows)
    write_json(c.json, {"operations": rows})


if __name__ == "__main__":
    exit_on_user_error(main)
