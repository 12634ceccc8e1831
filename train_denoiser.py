"""Train a denoiser on real noise, transferred (docs/method.md 5; paper, Sec. 4.3).

    python train_denoiser.py --gpu 0                          # the paper's setting
    python train_denoiser.py --preset lite --run-dir runs/sidd_lite
    python train_denoiser.py --debug                          # a minute, exercises everything

Input: NoiseTransfer's noise on a clean patch; its reference is another noisy image of the same
kind (same ISO), never the patch's own. Target: the clean patch. `--noise` takes another model of
the noise, or the real noisy patches, for comparison. The same command resumes an interrupted run.
The run folder ends up with <denoiser>_g.pt, or <denoiser>_<noise>_g.pt (for `--sidd FOLDER` of
supp_tbl.py and `--checkpoint` of denoise.py), checkpoints, config.json, stats.jsonl, tensorboard/.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Literal

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data.items import RealItems
from data.noise import LOST_CORRELATION
from data.prefetch import Prefetcher
from data.test_sets import PairedTestSet
from data.training import (
    find_pairs_and_photos,
    find_validation_sets,
    named_pairs,
    open_real_items,
)
from evaluation.baselines import BASELINES
from evaluation.batches import evaluation_mode
from evaluation.measure import evaluate_denoiser, mean_over_images
from evaluation.protocols import Transfer
from models import NoiseTransfer, build_denoiser
from models.generator import normal_noise
from models.layers import NoiseSource
from utils.config import check_training, parse, print_config
from utils.distributed import average_gradients, is_first, launch, local_batch
from utils.errors import UserError, exit_on_user_error, require
from utils.precision import Precision, autocast, set_float32_precision
from utils.resume import TrainingRun, saved_settings
from utils.runlog import RunLog
from utils.seeding import Randomness, randomness
from utils.training import (
    GradientMean,
    Means,
    TrainingState,
    apply_gradients,
    average_weights,
    progress_bar,
    save_weights,
    warm_up_cosine,
)
from utils.transfer_settings import MIN_REFERENCE


@dataclasses.dataclass(frozen=True)
class DenoiserConfig:
    """The settings that training on real and on synthetic noise share."""

    preset: Literal["paper", "lite"] = "paper"
    """Set of defaults; explicit flags win."""
    debug: bool = False
    """A tiny run on any data at hand (the bundled sample if none) that exercises everything."""
    gpu: str = "0"
    """CUDA device numbers, such as 0 or 0,1, or cpu: a process each."""
    precision: Precision = "auto"
    """auto: bf16 on CUDA, fp32 on the CPU."""
    compile: bool = False
    """torch.compile the networks: minutes at the start, faster steps."""
    seed: int = 0
    nt: Path = Path("ckpts/NT")
    """Noise generator: folder of VUNet.pt and encoder_k.pt."""
    noise: Literal["noisetransfer", "gaussian", "poisson-gaussian", "real"] = "noisetransfer"
    """Noise of the input: generated; white Gaussian or Poisson-Gaussian noise fitted to the
    reference alone; or the patch's own noise (the ceiling: needs pairs)."""

    # Data
    train_images: Path = Path("train_images")
    """Searched for training images where their folders are not given."""
    test_images: Path = Path("test_images")
    """Searched for validation sets; whatever fits is used."""
    cache: Path = Path("cache")
    """Where decoded images are kept."""

    # Network
    denoiser: Literal["ridnet", "dncnn", "unet"] = "ridnet"
    width: int = 64

    # Optimisation
    batch: int = 32
    """Of all processes together."""
    grad_accum: int = 1
    """Parts in which a process takes its batch: less memory, the same step."""
    patch: int = 88
    """Pixels a side for the generator; border are cut off each side for the denoiser."""
    border: int = 4
    reference_size: int = 0
    """Pixels a side of the reference, for a generator trained on larger ones; 0: patch (paper)."""
    epochs: int = 200
    steps_per_epoch: int = 5000
    lr: float = 1e-4
    lr_decay: Literal["halve", "cosine"] = "halve"
    """halve: after the epochs below; cosine: down to zero, after warm_up steps of linear rise."""
    halve_after: tuple[int, ...] = (150, 170, 190)
    warm_up: int = 0
    ema: float = 0.0
    """Decay a step of the averaged weights that are saved and validated; 0: the last (paper)."""

    # Running
    max_minutes: float | None = None
    """Stop, saved, after this long; the same command goes on."""
    keep: int = 2
    """Checkpoints kept, the newest, beside the best by validation."""
    skip_nonfinite: int = 0
    """Leave out steps whose gradients are not finite, at most so many in a row."""
    log_every: int = 100
    val_limit: int | None = None
    """Images a validation set; all by default."""
    dry_run: bool = False
    """Print the resolved configuration and leave."""


@dataclasses.dataclass(frozen=True)
class Config(DenoiserConfig):
    """Train a denoiser on transferred real noise."""

    run_dir: Path = Path("runs/sidd")
    """Where the run's checkpoint, weights and logs go."""
    pairs: tuple[Path, ...] = ()
    """Folders of real noisy/clean pairs; one named twice counts twice."""
    white_pairs: tuple[Path, ...] = ()
    """More of them, whose noise lost its correlation (resized): a random one is given to it."""
    weight_decay: float = 1e-5


# One row a preset: what differs from the defaults above, which are the paper's.
PRESETS = {
    "paper": {},
    "lite": dict(
        width=16, batch=8, patch=64, epochs=10, steps_per_epoch=300,
        lr=1e-3, lr_decay="cosine", warm_up=100, ema=0.995,
    ),
}  # fmt: skip
DEBUG = dict(
    width=4, batch=4, patch=32, reference_size=0, epochs=2, steps_per_epoch=2, val_limit=2,
    log_every=1, run_dir=Path("runs/debug_sidd"),
)  # fmt: skip


class State(TrainingState):
    """The denoiser, its running average, and the optimiser."""

    def __init__(self, c: DenoiserConfig, device: torch.device | str = "cpu") -> None:
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


def open_transfer(c: DenoiserConfig, device: torch.device) -> Transfer:
    """What puts the reference's noise on clean patches, as --noise says."""
    if c.noise == "noisetransfer":
        return NoiseTransfer.from_checkpoint(c.nt, device)
    if c.noise == "real":  # the reference is the patch's own noisy one
        return lambda clean, reference, noise: reference
    return BASELINES[c.noise]


def weights_file(c: DenoiserConfig) -> str:
    return f"{c.denoiser}_g.pt" if c.noise == "noisetransfer" else f"{c.denoiser}_{c.noise}_g.pt"


def train_step(
    s: State,
    c: DenoiserConfig,
    transfer: Transfer,
    clean: Tensor,
    reference: Tensor,
    noise: NoiseSource,
) -> dict[str, Tensor]:
    """One step of method 5; returns the logged values. clean, reference: (B, 3, P, P)."""
    # The outermost pixels saw the padding of every convolution of the generator.
    inner = (..., slice(c.border, -c.border or None), slice(c.border, -c.border or None))
    mean, n = GradientMean(c.grad_accum), len(clean) // c.grad_accum
    for part, its_reference in zip(clean.split(n), reference.split(n), strict=True):
        with autocast(c.precision, clean.device):
            noisy = transfer(part, its_reference, noise)  # clipped, no gradient
            denoised = s.denoiser(noisy[inner])
        loss = F.l1_loss(denoised.float(), part[inner])  # Eq. 5.1
        grads = torch.autograd.grad(loss, list(s.denoiser.parameters()))
        mean.add([grads], {"loss_l1": loss.detach()})
    (grads,), values = mean.result()
    s.step += 1
    if c.skip_nonfinite and s.skips(grads, limit=c.skip_nonfinite):
        return values

    apply_gradients(s.optimisers["denoiser"], s.denoiser.parameters(), average_gradients(grads))
    if c.ema:
        average_weights(s.denoiser_ema, s.denoiser, c.ema)
    return values


def learning_rate(c: DenoiserConfig, step: int) -> float:
    if c.lr_decay == "cosine":
        return c.lr * warm_up_cosine(step, c.epochs * c.steps_per_epoch, c.warm_up)
    epochs_done = step // c.steps_per_epoch
    return c.lr * 0.5 ** sum(epochs_done >= epoch for epoch in c.halve_after)


def open_items(c: Config, device: torch.device) -> RealItems:
    pairs, _ = find_pairs_and_photos(
        c.train_images, c.pairs, sample_cache=c.cache / "sample" if c.debug else None
    )
    items = open_real_items(
        pairs,
        c.patch,
        c.cache,
        device,
        largest=c.reference_size,
        white=named_pairs(c.white_pairs),
        correlation=LOST_CORRELATION if c.white_pairs else None,
    )
    if items is None:
        raise UserError(f"{c.train_images}: no noisy/clean pairs; give their folder with --pairs")
    return items


def show(log: RunLog, s: State, clean: Tensor, noisy: Tensor) -> None:
    """A picture of up to four samples: clean | generated noise | denoised."""
    with torch.no_grad(), evaluation_mode(s.result):
        denoised = s.result(noisy)
    log.pictures("train/clean, generated, denoised", [clean, noisy, denoised], s.step)


def validate(s: State, c: Config, test_set: PairedTestSet, log: RunLog) -> float:
    """The mean PSNR; PSNR and SSIM of the test set's own noisy images, denoised."""
    device = next(s.result.parameters()).device
    means = mean_over_images(
        evaluate_denoiser(
            s.result, test_set, seed=c.seed, limit=c.val_limit, device=device, progress=False
        )
    )
    log.scalars(f"val/{test_set.name}", means, s.step)
    tqdm.write(f"  {test_set.title}: " + ", ".join(f"{k} {v:.4f}" for k, v in means.items()))
    return means["psnr"]


def train(c: Config, device: torch.device) -> None:
    """The whole run; with several devices one of its processes (see utils/distributed.py)."""
    set_float32_precision(c.precision)
    batch_size = local_batch(c.batch, c.grad_accum)
    transfer = open_transfer(c, device)
    with idist.one_rank_first(local=True):  # it decodes the images, the others find them decoded
        items = open_items(c, device)
    sample = c.cache / "sample" if c.debug else None
    sets = find_validation_sets(c.test_images, paired=True, sample_cache=sample)

    s = State(c, device)
    means, total = Means(device), c.epochs * c.steps_per_epoch
    weights = weights_file(c)

    def draw(step: int) -> tuple[Tensor, Tensor, Randomness]:
        rng = randomness(c.seed, idist.get_rank(), step, device=device)
        if c.noise == "real":  # no reference
            batch = items.triplets(batch_size, rng)
            return batch.clean, batch.noisy1, rng
        # Unpaired: another place, with noise of the same kind.
        batch = items.triplets(batch_size, rng, c.reference_size or None)
        return batch.clean, batch.noisy2, rng

    with TrainingRun(c, s) as run, Prefetcher(draw, s.step, total, device) as batches:
        log, bar = RunLog(c.run_dir, c), progress_bar(total, s.step)
        for clean, reference, rng in batches:
            if run.must_stop():
                break
            s.set_lr(learning_rate(c, s.step))
            values = train_step(s, c, transfer, clean, reference, normal_noise(rng.pixels))
            means.update(values, s.step)
            bar.update()

            if s.step % c.log_every == 0:
                numbers = means.read()
                bar.set_postfix({k: f"{v:.4f}" for k, v in numbers.items()})
                numbers |= {"lr": learning_rate(c, s.step - 1), "waiting": batches.waiting_share}
                log.scalars("train", numbers, s.step)
            if s.step % c.steps_per_epoch == 0 and is_first():
                bar.write(f"Epoch {s.step // c.steps_per_epoch} of {c.epochs}")
                run.save()
                save_weights(s.result, c.run_dir / weights)
                noisy = transfer(clean[:4], reference[:4], normal_noise(rng.pixels))
                show(log, s, clean[:4], noisy)
                psnr_of_sets = [validate(s, c, test_set, log) for test_set in sets]
                if sets and run.save_if_best(sum(psnr_of_sets) / len(sets)):
                    save_weights(s.result, c.run_dir / "best" / weights)
        bar.close()
        if is_first():
            run.save()
            save_weights(s.result, c.run_dir / weights)
        log.close()
        state = "finished" if s.step >= total else "stopped, the same command goes on"
        print(f"{state} after step {s.step}; {c.run_dir / weights} written")
    run.exit()


def check_denoiser_training(c: DenoiserConfig) -> None:
    """UserError for numbers out of their range."""
    check_training(c)
    smallest = max(MIN_REFERENCE, 2 * c.border + 1)
    require(c.patch >= smallest, f"--patch {c.patch}: at least {smallest}, border included")
    require(
        c.reference_size == 0 or c.reference_size >= c.patch,
        f"--reference-size {c.reference_size}: 0, or at least --patch {c.patch}",
    )
    require(c.border >= 0, f"--border {c.border}: expected 0 or more")


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv, PRESETS, DEBUG, saved_settings)
    if c.dry_run:
        print_config(c)
        return
    check_denoiser_training(c)
    launch(train, c, c.gpu)


if __name__ == "__main__":
    exit_on_user_error(main)
