"""Train a denoiser on synthetic noise, transferred (docs/method.md 5; paper, Sec. 4.2).

    python train_denoiser_synthetic.py --gpu 0                # the paper's setting
    python train_denoiser_synthetic.py --preset lite --run-dir runs/synthetic_lite
    python train_denoiser_synthetic.py --debug                # a minute, exercises everything

Update, presets and common settings are train_denoiser.py's. Input:
NoiseTransfer's noise on a clean patch; its reference is the same patch under Gaussian or
Poisson noise, or both. Target: the clean patch. The same command resumes an interrupted run. The
run folder ends up with <denoiser>_g.pt, or <denoiser>_<noise>_g.pt with another `--noise` (for
`--synthetic FOLDER` of supp_tbl.py and `--checkpoint` of denoise.py), checkpoints, config.json,
stats.jsonl and tensorboard/.
"""

import dataclasses
from pathlib import Path

import ignite.distributed as idist
import torch
from torch import Tensor
from tqdm import tqdm

from data.items import SyntheticItems
from data.noise import NoiseModelDistribution, add_noise
from data.prefetch import Prefetcher
from data.test_sets import CleanTestSet
from data.training import find_pairs_and_photos, find_validation_sets, open_photos
from evaluation.measure import evaluate_denoiser, mean_over_images
from models.generator import normal_noise
from train_denoiser import DEBUG as REAL_DEBUG
from train_denoiser import (
    PRESETS,
    DenoiserConfig,
    State,
    check_denoiser_training,
    learning_rate,
    open_transfer,
    show,
    train_step,
    weights_file,
)
from utils.config import parse, print_config
from utils.distributed import is_first, launch, local_batch
from utils.errors import UserError, exit_on_user_error
from utils.precision import set_float32_precision
from utils.resume import TrainingRun, saved_settings
from utils.runlog import RunLog
from utils.seeding import Randomness, randomness
from utils.training import Means, progress_bar, save_weights


@dataclasses.dataclass(frozen=True)
class Config(DenoiserConfig):
    """Train a denoiser on transferred synthetic noise."""

    run_dir: Path = Path("runs/synthetic")
    """Where the run's checkpoint, weights and logs go."""
    photos: tuple[Path, ...] = ()
    """Folders of clean photographs, such as DIV2K_train_HR; one named twice counts twice."""
    weight_decay: float = 1e-6


DEBUG = REAL_DEBUG | {"run_dir": Path("runs/debug_synthetic")}

# The reference's noise: Gaussian, Poisson or both; sigma of 255, chi in photons of white.
REFERENCE_NOISE = NoiseModelDistribution((1 / 3, 1 / 3, 1 / 3), sigma=(0, 50), chi=(5, 50))
VALIDATION_NOISE = NoiseModelDistribution((0, 0, 1), sigma=(25, 25), chi=(30, 30))


def open_items(c: Config, device: torch.device) -> SyntheticItems:
    _, photos = find_pairs_and_photos(
        c.train_images, photos=c.photos, sample_cache=c.cache / "sample" if c.debug else None
    )
    source = open_photos(photos, c.patch, c.cache, device, largest=c.reference_size)
    if source is None:
        raise UserError(f"{c.train_images}: no photographs; give their folder with --photos")
    return SyntheticItems(source)


def validate(s: State, c: Config, test_set: CleanTestSet, log: RunLog) -> float:
    """The mean PSNR; PSNR and SSIM of the test set under VALIDATION_NOISE, denoised."""
    device = next(s.result.parameters()).device
    means = mean_over_images(
        evaluate_denoiser(
            s.result,
            test_set,
            noise=VALIDATION_NOISE,
            seed=c.seed,
            limit=c.val_limit,
            device=device,
            progress=False,
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
    sets = find_validation_sets(c.test_images, paired=False, sample_cache=sample)

    s = State(c, device)
    means, total = Means(device), c.epochs * c.steps_per_epoch
    weights = weights_file(c)

    def draw(step: int) -> tuple[Tensor, Tensor, Randomness]:
        rng = randomness(c.seed, idist.get_rank(), step, device=device)
        # The reference is the same patch, with its surroundings where it is to be larger.
        surroundings = items.clean_patches(batch_size, rng, c.reference_size or None)
        start = (surroundings.shape[-1] - c.patch) // 2
        inside = slice(start, start + c.patch)
        model = REFERENCE_NOISE.draw(batch_size, rng.choices)
        reference = add_noise(surroundings, model, rng.pixels)
        if c.noise == "real":  # then it is the input, not a reference
            reference = reference[..., inside, inside].contiguous()
        return surroundings[..., inside, inside].contiguous(), reference, rng

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


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv, PRESETS, DEBUG, saved_settings)
    if c.dry_run:
        print_config(c)
        return
    check_denoiser_training(c)
    launch(train, c, c.gpu)


if __name__ == "__main__":
    exit_on_user_error(main)
