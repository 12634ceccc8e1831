"""What training a denoiser on real and on synthetic noise share (docs/method.md 5)."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from data.noise import NoiseModelDistribution
from data.test_sets import CleanTestSet, PairedTestSet
from evaluation.baselines import BASELINES
from evaluation.batches import How, evaluation_mode
from evaluation.measure import evaluate_denoiser
from evaluation.protocols import Transfer
from models import NoiseTransfer, build_denoiser
from models.generator import given_noise
from models.layers import NoiseSource
from training.run import TrainingRun
from training.settings import DenoiserSettings
from utils.config import check_training
from utils.errors import require
from utils.graph import GraphedStep
from utils.padding import pad_to_multiple
from utils.training import TrainingState, warm_up_cosine
from utils.transfer_settings import MIN_REFERENCE


class State(TrainingState):
    """The denoiser, its running average, and the optimiser."""

    def __init__(self, c: DenoiserSettings, device: torch.device | str = "cpu") -> None:
        super().__init__()
        torch.manual_seed(c.seed)  # the denoiser's initial weights
        self.denoiser = build_denoiser(c.denoiser, c.width)
        self.denoiser_ema = copy.deepcopy(self.denoiser).requires_grad_(False)
        self.averaged = bool(c.ema)
        self.to(device)
        if c.compile:
            self.denoiser.compile()
        self.optimisers = {
            "denoiser": torch.optim.Adam(
                self.denoiser.parameters(), lr=c.lr, weight_decay=c.weight_decay, fused=True
            )
        }

    @property
    def result(self) -> nn.Module:
        """What is saved and validated."""
        return self.denoiser_ema if self.averaged else self.denoiser


def open_transfer(c: DenoiserSettings, device: torch.device) -> Transfer:
    """What puts the reference's noise on clean patches, as --noise says."""
    if c.noise == "noisetransfer":
        transfer = NoiseTransfer.from_checkpoint(c.nt, device)
        transfer.margin = 0  # around a patch it costs time, and did not help (docs/notebook.md)
        return transfer
    if c.noise == "real":  # the reference is the patch's own noisy one
        return lambda clean, reference, noise: reference
    return BASELINES[c.noise]


def graphed_step(
    train_step: Callable[..., dict[str, Tensor]],
    s: State,
    c: DenoiserSettings,
    transfer: Transfer,
    device: torch.device,
) -> Callable[[Tensor, Tensor, NoiseSource], dict[str, Tensor]]:
    """train_step(s, c, transfer, ...) as a CUDA graph, one a shape. NoiseTransfer's noise maps are
    drawn before, in train_step's order; the other noise, made by NumPy, is put on before."""
    generated = isinstance(transfer, NoiseTransfer)

    def step(clean: Tensor, reference: Tensor, *maps: Tensor) -> dict[str, Tensor]:
        before = s.step
        its = transfer if generated else lambda clean, noisy, noise: noisy
        values = train_step(s, c, its, clean, reference, given_noise(maps))
        s.step = before
        return values

    s.put_lr_on(device)
    graphs = GraphedStep(step, device)

    def run(clean: Tensor, reference: Tensor, noise: NoiseSource) -> dict[str, Tensor]:
        n, maps = len(clean) // c.grad_accum, []
        if generated:
            parts = [pad_to_multiple(part, 4) for part in clean.split(n)]
            maps = [m for part in parts for m in transfer.generator.noise_maps(part, noise)]
        else:
            parts = zip(clean.split(n), reference.split(n), strict=True)
            reference = torch.cat([transfer(*part, noise) for part in parts])
        values = graphs("step", (clean, reference, *maps))
        s.step += 1
        return values

    return run


def learning_rate(c: DenoiserSettings, step: int) -> float:
    if c.lr_decay == "cosine":
        return c.lr * warm_up_cosine(step, c.steps, c.warm_up)
    epochs_done = step // c.steps_per_epoch
    return c.lr * 0.5 ** sum(epochs_done >= epoch for epoch in c.halve_after)


def show(run: TrainingRun, s: State, clean: Tensor, noisy: Tensor) -> None:
    """A picture of the samples: clean | generated noise | denoised."""
    with torch.no_grad(), evaluation_mode(s.result):
        denoised = s.result(noisy)
    run.log.pictures("train/clean, generated, denoised", [clean, noisy, denoised], s.step)


def validate(
    run: TrainingRun,
    s: State,
    sets: Sequence[CleanTestSet | PairedTestSet],
    noise: NoiseModelDistribution | None = None,
) -> list[float]:
    """Mean PSNR of each test set: of its own noisy images, or its clean ones under `noise`."""
    how = How(seed=run.c.seed, limit=run.c.val_limit, device=run.device, progress=False)
    scores = [evaluate_denoiser(s.result, each, noise=noise, **how) for each in sets]
    return [run.record_validation(*of)["psnr"] for of in zip(sets, scores, strict=True)]


def check(c: DenoiserSettings) -> None:
    """UserError for numbers out of their range."""
    check_training(c)
    smallest = max(MIN_REFERENCE, 2 * c.border + 1)
    require(c.patch >= smallest, f"--patch {c.patch}: at least {smallest}, border included")
    require(
        c.embedded_size == 0 or c.embedded_size >= c.patch,
        f"--embedded-size {c.embedded_size}: 0, or at least --patch {c.patch}",
    )
    require(c.border >= 0, f"--border {c.border}: expected 0 or more")
