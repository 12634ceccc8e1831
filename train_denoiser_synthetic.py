"""Train a denoiser on synthetic noise, transferred (docs/method.md 5; paper, Sec. 4.2).

    python train_denoiser_synthetic.py --gpu 0                # the paper's setting
    python train_denoiser_synthetic.py --preset lite --run-dir runs/synthetic_lite
    python train_denoiser_synthetic.py --debug                # a minute, exercises everything

Input: NoiseTransfer's noise on a clean patch; its reference is the same patch under Gaussian or
Poisson noise, or both. Target: the clean patch. The same command resumes an interrupted run. The
run folder ends up with <denoiser>_g.pt, or <denoiser>_<noise>_g.pt with another `--noise` (for
`--synthetic FOLDER` of supp_tbl.py and `--checkpoint` of denoise.py), checkpoints, config.json,
stats.jsonl and tensorboard/.
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
    """Train a denoiser on transferred synthetic noise."""

    preset: Literal["paper", "lite"] = "paper"
    """Set of defaults; explicit flags win."""
    run_dir: Path = Path("runs/synthetic")
    photos: tuple[Path, ...] = ()
    """Folders of clean photographs, such as DIV2K_train_HR; one named twice counts twice."""
    weight_decay: float = 1e-6


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
    log_every=1, run_dir=Path("runs/debug_synthetic"),
)  # fmt: skip

if __name__ == "__main__":  # --help and mistyped flags do not wait for torch: seconds
    exit_on_user_error(partial(parse, Config, presets=PRESETS, debug=DEBUG))

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from torch import Tensor

from data.items import SyntheticItems
from data.noise import NoiseModelDistribution, add_noise
from data.recipe import Recipe
from data.training_data import find_pairs_and_photos, find_validation_sets, open_photos
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

# The reference's noise: Gaussian, Poisson or both; sigma of 255, chi in photons of white.
RECIPE = Recipe(noise=NoiseModelDistribution((1 / 3, 1 / 3, 1 / 3), sigma=(0, 50), chi=(5, 50)))
VALIDATION_NOISE = NoiseModelDistribution((0, 0, 1), sigma=(25, 25), chi=(30, 30))


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


def open_items(c: Config, device: torch.device) -> SyntheticItems:
    _, photos = find_pairs_and_photos(c.train_images, photos=c.photos, sample_cache=c.sample_cache)
    source = open_photos(photos, c.patch, c.cache, device, largest=c.embedded_size)
    if source is None:
        raise UserError(f"{c.train_images}: no photographs; give their folder with --photos")
    return SyntheticItems(source, RECIPE)


def train(c: Config, device: torch.device) -> None:
    """The whole run; with several devices one of its processes (see utils/distributed.py)."""
    set_float32_precision(c.precision)
    batch_size = local_batch(c.batch, c.grad_accum)
    transfer = open_transfer(c, device)
    with idist.one_rank_first(local=True):  # it decodes the images, the others find them decoded
        items = open_items(c, device)
    sets = find_validation_sets(c.test_images, paired=False, sample_cache=c.sample_cache)

    def draw(step: int) -> tuple[Tensor, Tensor, Randomness]:
        rng = randomness(c.seed, idist.get_rank(), step, device=device)
        # The reference is the same patch, with its surroundings where it is to be larger.
        surroundings = items.clean_patches(batch_size, rng, c.embedded_size or None)
        start = (surroundings.shape[-1] - c.patch) // 2
        inside = slice(start, start + c.patch)
        model = RECIPE.noise.draw(batch_size, rng.choices)
        reference = add_noise(surroundings, model, rng.pixels)
        if c.noise == "real":  # then it is the input, not a reference
            reference = reference[..., inside, inside].contiguous()
        return surroundings[..., inside, inside].contiguous(), reference, rng

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
            if run.save_if_best(validate(run, s, sets, VALIDATION_NOISE)):
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
