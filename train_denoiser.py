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

import dataclasses
from functools import partial
from pathlib import Path
from typing import Literal

from training.settings import DenoiserSettings
from utils.config import parse
from utils.errors import UserError, exit_on_user_error


@dataclasses.dataclass(frozen=True)
class Config(DenoiserSettings):
    """Train a denoiser on transferred real noise."""

    preset: Literal["paper", "lite"] = "paper"
    """Set of defaults; explicit flags win."""
    run_dir: Path = Path("runs/sidd")
    pairs: tuple[Path, ...] = ()
    """Folders of real noisy/clean pairs; one named twice counts twice."""
    white_pairs: tuple[Path, ...] = ()
    """More of them, whose noise lost its correlation (resized): a random one is given to it."""
    weight_decay: float = 1e-5


# One row per preset: what differs from the defaults above, which are the paper's.
PRESETS = {
    "paper": {},
    "lite": dict(
        width=16, batch=8, patch=64, epochs=10, steps_per_epoch=300,
        lr=1e-3, lr_decay="cosine", warm_up=100, ema=0.995,
    ),
}  # fmt: skip
DEBUG = dict(
    width=4, batch=4, patch=32, embedded_size=0, epochs=2, steps_per_epoch=2, val_limit=2,
    log_every=1, run_dir=Path("runs/debug_sidd"),
)  # fmt: skip

if __name__ == "__main__":  # --help and mistyped flags do not wait for torch: seconds
    exit_on_user_error(partial(parse, Config, presets=PRESETS, debug=DEBUG))

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from torch import Tensor

from data.items import RealItems
from data.noise import NoiseCorrelationDistribution
from data.recipe import Recipe
from data.training_data import find_pairs_and_photos, find_validation_sets, open_real_items
from evaluation.protocols import Transfer
from models.generator import normal_noise
from models.layers import NoiseSource
from training.denoisers import (
    State,
    check,
    graphed_step,
    learning_rate,
    open_transfer,
    show,
    validate,
)
from training.run import TrainingRun
from utils.config import print_config
from utils.distributed import average_gradients, is_first, launch, local_batch
from utils.graph import captures
from utils.precision import autocast, set_float32_precision, with_cast_weights
from utils.resume import saved_settings
from utils.seeding import Randomness, randomness
from utils.training import GradientMean, apply_gradients, average_weights, save_weights

# How items are made (method 4, real items): of the noise's strength, half is scaled, in both views.
RECIPE = Recipe(
    p_alpha=0.5, alpha=(0.8, 1.0),
    p_cutmix=0.5, cutmix_sides=(0.25, 0.75),
    lost_correlation=NoiseCorrelationDistribution(p=0.9),  # of --white-pairs
)  # fmt: skip


def train_step(
    s: State,
    c: Config,
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
            denoised = with_cast_weights(s.denoiser, noisy[inner])
        loss = F.l1_loss(denoised.float(), part[inner])  # Eq. 5.1
        grads = torch.autograd.grad(loss, list(s.denoiser.parameters()))
        mean.add([grads], {"loss_l1": loss.detach()})
    (grads,), values = mean.result()
    s.step += 1
    if c.skip_nonfinite and s.skips(grads, limit=c.skip_nonfinite):
        return values

    # Clipping of the gradients would go here.
    apply_gradients(s.optimisers["denoiser"], s.denoiser.parameters(), average_gradients(grads))
    if c.ema:
        average_weights(s.denoiser_ema, s.denoiser, c.ema)
    return values


def open_items(c: Config, device: torch.device) -> RealItems:
    pairs, _ = find_pairs_and_photos(c.train_images, c.pairs, sample_cache=c.sample_cache)
    items = open_real_items(
        pairs, c.patch, c.cache, device, RECIPE, largest=c.embedded_size, white=c.white_pairs
    )
    if items is None:
        raise UserError(f"{c.train_images}: no noisy/clean pairs; give their folder with --pairs")
    return items


def train(c: Config, device: torch.device) -> None:
    """The whole run; with several devices one of its processes (see utils/distributed.py)."""
    set_float32_precision(c.precision)
    batch_size = local_batch(c.batch, c.grad_accum)
    transfer = open_transfer(c, device)
    with idist.one_rank_first(local=True):  # it decodes the images, the others find them decoded
        items = open_items(c, device)
    sets = find_validation_sets(c.test_images, paired=True, sample_cache=c.sample_cache)

    def draw(step: int) -> tuple[Tensor, Tensor, Randomness]:
        rng = randomness(c.seed, idist.get_rank(), step, device=device)
        if c.noise == "real":  # no reference
            batch = items.triplets(batch_size, rng)
            return batch.clean, batch.noisy1, rng
        # Unpaired: another place, with noise of the same kind.
        batch = items.triplets(batch_size, rng, c.embedded_size or None)
        return batch.clean, batch.noisy2, rng

    s = State(c, device)
    step = partial(train_step, s, c, transfer)
    if captures(c, device):
        step = graphed_step(train_step, s, c, transfer, device)
    with TrainingRun(c, s, device, items.stores) as run:
        for clean, reference, rng in run.steps(draw):
            s.set_lr(learning_rate(c, s.step))
            run.record(step(clean, reference, normal_noise(rng.pixels)))
            if not run.epoch_is_over:
                continue
            save_weights(s.result, c.run_dir / c.weights_file)
            show(run, s, clean[:4], transfer(clean[:4], reference[:4], normal_noise(rng.pixels)))
            if run.save_if_best(validate(run, s, sets)):
                save_weights(s.result, c.run_dir / "best" / c.weights_file)
        if is_first():
            save_weights(s.result, c.run_dir / c.weights_file)


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv, PRESETS, DEBUG, saved_settings)
    if c.dry_run:
        print_config(c)
        return
    check(c)
    launch(train, c, c.gpu)


if __name__ == "__main__":
    exit_on_user_error(main)
