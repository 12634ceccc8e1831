"""One generator step: the fast path against the plain oracle, by precision.

    python -m benchmarks.train_step                                 # batch 4 on the CPU, 32 on CUDA
    python -m benchmarks.train_step --gpu 0 --repeats 50 --json train_step.json

The oracle (tests/oracle.py) is the method written down plainly, in PyTorch's defaults: two
backward passes for the networks as they come, one spectral norm a call, modulation expanded over
the image, AKLD and KS image by image. Both start from the same weights and see the same batch.
"""

import copy
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.steps import Step, StepConfig, compare_precisions, random_images
from data.items import Triplet
from models.generator import normal_noise
from tests.oracle import OracleEncoder, OracleGenerator, OracleTrainer
from train_noiseTransfer import Config as TrainConfig
from train_noiseTransfer import State, graphed_step, train_step
from utils.config import Precision, parse
from utils.errors import exit_on_user_error
from utils.precision import set_float32_precision


@dataclass(frozen=True)
class Config(StepConfig):
    """Time one training step of the generator against the plain implementation."""

    patch: int = 96


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    device = c.device()
    items = Triplet(*random_images(c, 3, c.patch, device))

    def fast(precision: Precision, compiled: bool) -> Step:
        return fast_step(c.width, precision, compiled, items, device)

    def graphed(precision: Precision) -> Step:
        return fast_step(c.width, precision, False, items, device, graph=True)

    oracle = oracle_step(c, items, device)
    compare_precisions(c, "train", oracle, fast, items.clean.shape, device, graphed)


def oracle_step(c: Config, items: Triplet, device: torch.device) -> Step:
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
    width: int,
    precision: Precision,
    compiled: bool,
    items: Triplet,
    device: torch.device,
    graph: bool = False,
) -> Step:
    """A call is one `train_step` of train_noiseTransfer.py at its defaults, the paper's."""
    settings = TrainConfig(width=width, precision=precision, compile=compiled)
    state = State(settings, device)
    noise = normal_noise(torch.Generator(device).manual_seed(0))

    one = graphed_step(state, settings, device) if graph else partial(train_step, state, settings)

    def step() -> None:
        set_float32_precision(precision)
        one(items, noise)

    return step


if __name__ == "__main__":
    exit_on_user_error(main)
