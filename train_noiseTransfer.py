"""Train the noise encoder and the noise generator (method: paper, Sec. 3; arXiv:2301.13554).

    python train_noiseTransfer.py --gpu 0                     # the paper's setting
    python train_noiseTransfer.py --preset lite --run-dir runs/lite
    python train_noiseTransfer.py --debug                     # a minute, exercises everything

The same command resumes an interrupted run. The run folder ends up with VUNet.pt, encoder_q.pt
and encoder_k.pt (the weights that other scripts take by `--nt FOLDER`), best/ with those of the
best validation, checkpoints, config.json, stats.jsonl and tensorboard/.
"""

import copy
import dataclasses
from functools import partial
from pathlib import Path
from typing import Literal

import ignite.distributed as idist
import torch
from torch import Tensor
from tqdm import tqdm

from data.folders import PairedTestSet
from data.items import P_REAL, GeneratorItems, SyntheticItems, Triplet
from data.prefetch import Prefetcher
from data.training import find_pairs_and_photos, find_validation_sets, open_photos, open_real_items
from models.encoder import NoiseEncoder
from models.generator import NoiseGenerator, no_noise, normal_noise
from models.layers import (
    NoiseSource,
    compile_blocks,
    converge_spectral_norm,
    shared_spectral_norm,
)
from models.losses import (
    adversarial_loss,
    consistency_loss,
    contrastive_loss,
    feature_matching_loss,
)
from models.noise_transfer import (
    MIN_REFERENCE,
    SETTINGS,
    KeyQueue,
    NoiseTransfer,
    momentum_update,
    write_reference_patch,
)
from utils.config import check_training, parse, print_config
from utils.distributed import (
    average_gradients,
    gather_rows,
    is_first,
    launch,
    local_batch,
)
from utils.errors import exit_on_user_error, require
from utils.evaluation import Transfer, evaluate_transfer, mean_over_images
from utils.metrics import akld, ks
from utils.precision import Precision, autocast, forward_dtype, set_float32_precision
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


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the noise encoder and generator."""

    preset: Literal["paper", "lite"] = "paper"
    """Set of defaults; explicit flags win."""
    ablation: str = "none"
    """A row of ABLATIONS, such as no-contrastive, on top of the preset."""
    debug: bool = False
    """A tiny run on any data at hand (the bundled sample if none) that exercises everything."""
    gpu: str = "0"
    """CUDA device numbers, such as 0 or 0,1, or cpu: a process each."""
    precision: Precision = "auto"
    """auto: bf16 on CUDA, fp32 on the CPU."""
    compile: bool = False
    """torch.compile the networks: minutes at the start, faster steps."""
    run_dir: Path = Path("runs/NT")
    """Where the run's checkpoint, weights and logs go."""
    seed: int = 0

    # Data
    train_images: Path = Path("train_images")
    """Searched for SIDD, paired folders and photographs where the next two are not given."""
    pairs: tuple[Path, ...] = ()
    """Folders of real pairs, SIDD or clean/ with noisy/; one named twice counts twice."""
    photos: tuple[Path, ...] = ()
    """Folders of clean photographs, such as DIV2K_train_HR; one named twice counts twice."""
    test_images: Path = Path("test_images")
    """Validation sets; whatever is present is used."""
    cache: Path = Path("cache")
    """Where decoded images are kept."""
    p_real: float = P_REAL
    """Share of real items (paper: 320 of 1120)."""

    # Networks
    width: int = 64
    embed_dim: int = 128
    inject_noise: bool = True
    """Random maps in the generator's SFT layers, its only source of randomness."""
    reference_patch: int = 0
    """How the trained weights embed a reference: in patches of this size, or whole (0, paper);
    saved beside them as transfer.json, and used in validation."""

    # Contrastive learning
    reference: Literal["unpaired", "paired"] = "unpaired"
    """What is embedded as the noise to transfer: noisy2, of another place, or noisy1 itself."""
    queue_size: int = 4096
    momentum: float = 0.999
    temperature: float = 0.1

    # Weights of the loss terms: the generator's, and the encoder's contrastive one
    w_gan: float = 1.0
    w_fm_gan: float = 100.0
    w_consistency: float = 100.0
    w_contra_adv: float = 1.0
    w_fm_noise: float = 100.0
    w_contra: float = 1.0

    # Optimisation
    batch: int = 32
    """Of all processes together."""
    grad_accum: int = 1
    """Parts in which a process takes its batch: less memory, the same step."""
    patch: int = 96
    reference_sizes: tuple[int, ...] = ()
    """Of the reference noisy2's patch, one drawn a batch; none given: --patch, as in the paper."""
    epochs: int = 200
    steps_per_epoch: int = 2000
    lr: float = 1e-4
    lr_decay: Literal["constant", "cosine"] = "constant"
    """cosine: down to zero over the whole run, after warm_up steps of linear rise."""
    warm_up: int = 0
    betas: tuple[float, float] = (0.5, 0.99)
    weight_decay: float = 1e-7
    ema: float = 0.0
    """Decay a step of the averaged generator that is saved and validated; 0: the last (paper)."""

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


# One row a preset: what differs from the defaults above, which are the paper's.
PRESETS = {
    "paper": {},
    # A few thousand steps instead of 400,000: small patches, a higher rate, and a key encoder that
    # keeps up. Less weight on the L1 terms, more on the adversarial one: two draws of noise differ
    # least where one of them is weak, so the L1 terms alone would have none. See ckpts/README.md.
    "lite": dict(
        width=16, batch=4, patch=48, epochs=13, steps_per_epoch=200, p_real=0.85,
        reference_sizes=(48, 96), reference_patch=64,
        lr=2e-3, lr_decay="cosine", warm_up=100, ema=0.99, queue_size=1024, momentum=0.99,
        w_gan=5.0, w_fm_gan=2.0, w_consistency=25.0, w_fm_noise=2.0,
    ),
}  # fmt: skip
# What differs from the preset; benchmarks/ablate.py trains and tabulates them.
ABLATIONS = {
    "none": {},
    "no-contrastive": dict(w_contra=0.0, w_contra_adv=0.0),
    "no-contra-adv": dict(w_contra_adv=0.0),
    "no-consistency": dict(w_consistency=0.0),
    "no-feature-matching": dict(w_fm_gan=0.0, w_fm_noise=0.0),
    "no-adversarial": dict(w_gan=0.0),
    "paired-reference": dict(reference="paired"),
    "no-noise-injection": dict(inject_noise=False),
    "embed-32": dict(embed_dim=32),
    "embed-512": dict(embed_dim=512),
    "queue-256": dict(queue_size=256),
    "queue-16384": dict(queue_size=16384),
    "temperature-0.05": dict(temperature=0.05),
    "temperature-0.2": dict(temperature=0.2),
}
DEBUG = dict(
    width=4, batch=4, patch=32, reference_sizes=(), reference_patch=16, epochs=2,
    steps_per_epoch=2, queue_size=16, val_limit=2, log_every=1, run_dir=Path("runs/debug_NT"),
)  # fmt: skip


class State(TrainingState):
    """Encoders, generator (and its running average), key queue; an optimiser for each of E_q, G."""

    def __init__(self, c: Config, device: torch.device | str = "cpu") -> None:
        super().__init__()
        torch.manual_seed(c.seed)  # the networks' initial weights
        self.encoder_q = NoiseEncoder(c.width, c.embed_dim)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.generator = NoiseGenerator(c.width, c.embed_dim)
        self.generator_ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.keys = KeyQueue(c.embed_dim, c.queue_size)
        self.to(device)
        adam = dict(lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=True)
        self.optimisers = {
            "encoder": torch.optim.Adam(self.encoder_q.parameters(), **adam),
            "generator": torch.optim.Adam(self.generator.parameters(), **adam),
        }
        if c.compile:
            # Not E_q: a compiled block computes all its gradients whenever it is asked for any,
            # and E_q's graph is walked twice, each time for some of them.
            compile_blocks(self.encoder_k, self.generator)


def train_step(s: State, c: Config, batch: Triplet, noise: NoiseSource) -> dict[str, Tensor]:
    """One step of method 4: generator, encoder, key encoder, queue; returns the logged values.

    Nothing of E_q changes before its own update, so both gradients are taken of one forward pass.
    `batch` is this process's part of the global one; with --grad-accum it goes through in parts.
    """
    e_q, e_k, g = s.encoder_q, s.encoder_k, s.generator
    n, device = len(batch.clean) // c.grad_accum, batch.clean.device
    reference = batch.noisy1 if c.reference == "paired" else batch.noisy2
    with shared_spectral_norm(e_q, e_k, g, dtype=forward_dtype(c.precision, device)):
        with torch.no_grad(), autocast(c.precision, device):
            z = torch.cat([e_k.embed(part)[1] for part in reference.split(n)])  # (B, d)
        keys = gather_rows(z)  # of all processes; row i of z is row first + i of keys
        first = len(z) * idist.get_rank()
        mean = GradientMean(c.grad_accum)
        for i in range(0, len(z), n):
            part = Triplet(*(x[i : i + n] for x in (batch.clean, batch.noisy1, batch.noisy2)))
            mean.add(*gradients(s, c, part, z[i : i + n], keys, first + i, noise))
    (grads_g, grads_e), values = mean.result()
    s.step += 1
    if c.skip_nonfinite and s.skips([*grads_g, *grads_e], limit=c.skip_nonfinite):
        return values

    apply_gradients(s.optimisers["generator"], g, average_gradients(grads_g))
    apply_gradients(s.optimisers["encoder"], e_q, average_gradients(grads_e))
    momentum_update(e_k, e_q, c.momentum)
    s.keys.enqueue(keys)
    if c.ema:
        average_weights(s.generator_ema, g, c.ema)
    return values


def gradients(
    s: State, c: Config, part: Triplet, z: Tensor, keys: Tensor, first: int, noise: NoiseSource
) -> tuple[list[tuple[Tensor, ...]], dict[str, Tensor]]:
    """Losses of a part of the batch, [their gradients for G, for E_q], and the logged values."""
    e_q, g = s.encoder_q, s.generator
    clean, noisy1 = part.clean, part.noisy1
    with autocast(c.precision, clean.device):
        fake = clean + g(clean, z, noise)  # not clipped

        f_real, q_real = e_q.embed(noisy1)
        f_fake, q_fake = e_q.embed(fake)
        g_real, d_real = e_q.discriminate(clean, noisy1, z)
        g_fake, d_fake = e_q.discriminate(clean, fake, z)

    # Generator
    contrast = partial(contrastive_loss, k=keys, queue=s.keys.queue, first=first)
    gan_g = adversarial_loss(d_fake, 1)
    fm_gan = feature_matching_loss(g_real, g_fake)
    consistency = consistency_loss(noisy1, fake)
    contra_adv, accuracy_adv = contrast(q_fake, temperature=c.temperature)
    fm_noise = feature_matching_loss(f_real, f_fake)
    loss_g = (
        c.w_gan * gan_g
        + c.w_fm_gan * fm_gan
        + c.w_consistency * consistency
        + c.w_contra_adv * contra_adv
        + c.w_fm_noise * fm_noise
    )

    # Encoder, also the discriminator
    contra, accuracy = contrast(q_real, temperature=c.temperature)
    gan_d = 0.5 * (adversarial_loss(d_real, 1) + adversarial_loss(d_fake, 0))
    loss_e = c.w_contra * contra + gan_d

    # Through d_fake, loss_e reaches E_q's weights only: the generator's are not asked for. It goes
    # first because the generator's graph, compiled, can be walked only once. The graph of the
    # normalised weights is shared with the parts to come.
    grads_e = torch.autograd.grad(loss_e, list(e_q.parameters()), retain_graph=True)
    grads_g = torch.autograd.grad(loss_g, list(g.parameters()), retain_graph=c.grad_accum > 1)
    values = {
        "loss_gan_g": gan_g,
        "loss_fm_gan": fm_gan,
        "loss_consistency": consistency,
        "loss_contra_noisy_adv": contra_adv,
        "loss_fm_noise": fm_noise,
        "contraAcc_noisy_adv": accuracy_adv,
        "loss_contra_noisy": contra,
        "contraAcc_noisy": accuracy,
        "loss_gan_d": gan_d,
        "akld": akld(fake, noisy1, clean).mean(),
        "ks": ks(fake, noisy1, clean).mean(),
    }
    return [grads_g, grads_e], {name: value.detach() for name, value in values.items()}


def noise_source(c: Config, rng: Randomness) -> NoiseSource:
    return normal_noise(rng.pixels) if c.inject_noise else no_noise


def learning_rate(c: Config, step: int) -> float:
    if c.lr_decay == "constant":
        return c.lr
    return c.lr * warm_up_cosine(step, c.epochs * c.steps_per_epoch, c.warm_up)


def open_items(c: Config, device: torch.device) -> GeneratorItems:
    pairs, photos = find_pairs_and_photos(
        c.train_images, c.pairs, c.photos, sample_cache=c.cache / "sample" if c.debug else None
    )
    largest = max((c.patch, *c.reference_sizes))
    real = open_real_items(pairs, c.patch, c.cache, device, largest=largest)
    source = open_photos(photos, c.patch, c.cache, device, largest=largest)
    synthetic = SyntheticItems(source, real) if source else None
    return GeneratorItems(synthetic, real, c.p_real, c.reference_sizes)


def export(s: State, c: Config, folder: Path) -> NoiseTransfer:
    """Write the networks' weights under their published names; returns what they amount to."""
    generator = copy.deepcopy(s.generator_ema if c.ema else s.generator)
    if c.ema:  # its weights are an average, its spectral-norm vectors the last step's
        converge_spectral_norm(generator)
    save_weights(generator, folder / "VUNet.pt")
    save_weights(s.encoder_q, folder / "encoder_q.pt")
    save_weights(s.encoder_k, folder / "encoder_k.pt")
    write_reference_patch(folder / SETTINGS, c.reference_patch or None)
    return NoiseTransfer(copy.deepcopy(s.encoder_k), generator, c.reference_patch or None)


def usual(transfer: NoiseTransfer, c: Config) -> Transfer:
    """`transfer` as it was trained: without --inject-noise, on maps of zeros."""
    if c.inject_noise:
        return transfer
    return lambda clean, reference, noise: transfer(clean, reference, no_noise)


def show(
    log: RunLog, transfer: NoiseTransfer, batch: Triplet, noise: NoiseSource, step: int
) -> None:
    """A picture of up to four samples: clean | reference | generated | real."""
    clean, real, reference = (x[:4] for x in (batch.clean, batch.noisy1, batch.noisy2))
    fake = transfer.transfer(clean, reference, noise)
    reference = reference[..., : clean.shape[-2], : clean.shape[-1]]
    log.pictures("train/clean, reference, generated, real", [clean, reference, fake, real], step)


def validate(
    transfer: NoiseTransfer,
    test_set: PairedTestSet,
    c: Config,
    log: RunLog,
    step: int,
    device: torch.device,
) -> float:
    """The mean AKLD, all figures into the log."""
    how = dict(seed=c.seed, limit=c.val_limit, device=device, progress=False)
    means = mean_over_images(evaluate_transfer(usual(transfer, c), test_set, **how))
    log.scalars(f"val/{test_set.name}", means, step)
    tqdm.write(f"  {test_set.title}: " + ", ".join(f"{k} {v:.4f}" for k, v in means.items()))
    return means["akld"]


def train(c: Config, device: torch.device) -> None:
    """The whole run; with several devices one of its processes (see utils/distributed.py)."""
    set_float32_precision(c.precision)
    batch_size = local_batch(c.batch, c.grad_accum)
    with idist.one_rank_first(local=True):  # it decodes the images, the others find them decoded
        items = open_items(c, device)
    sample = c.cache / "sample" if c.debug else None
    sets = find_validation_sets(c.test_images, paired=True, sample_cache=sample)

    s = State(c, device)
    means, total = Means(device), c.epochs * c.steps_per_epoch

    def draw(step: int) -> tuple[Triplet, Randomness]:
        rng = randomness(c.seed, idist.get_rank(), step, device=device)
        return items.triplets(batch_size, rng), rng

    with TrainingRun(c, s) as run, Prefetcher(draw, s.step, total, device) as batches:
        log, bar = RunLog(c.run_dir, c), progress_bar(total, s.step)
        for batch, rng in batches:
            if run.must_stop():
                break
            s.set_lr(learning_rate(c, s.step))
            values = train_step(s, c, batch, noise_source(c, rng))
            means.update(values, s.step)
            bar.update()

            if s.step % c.log_every == 0:
                numbers = means.read()
                numbers |= {"lr": learning_rate(c, s.step - 1), "waiting": batches.waiting_share}
                log.scalars("train", numbers, s.step)
                bar.set_postfix({k: f"{numbers[k]:.3f}" for k in ("akld", "ks", "contraAcc_noisy")})
            if s.step % c.steps_per_epoch == 0 and is_first():
                bar.write(f"Epoch {s.step // c.steps_per_epoch} of {c.epochs}")
                run.save()
                transfer = export(s, c, c.run_dir)
                show(log, transfer, batch, noise_source(c, rng), s.step)
                akld_of_sets = [validate(transfer, t, c, log, s.step, device) for t in sets]
                if sets and run.save_if_best(-sum(akld_of_sets) / len(sets)):
                    export(s, c, c.run_dir / "best")
        bar.close()
        if is_first():
            run.save()
            export(s, c, c.run_dir)
        log.close()
        state = "finished" if s.step >= total else "stopped, the same command goes on"
        print(f"{state} after step {s.step}; weights and log in {c.run_dir}")
    run.exit()


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv, PRESETS, DEBUG, saved_settings, ABLATIONS)
    if c.dry_run:
        print_config(c)
        return
    check_training(c)
    require(c.patch >= 16 and c.patch % 4 == 0, f"--patch {c.patch}: at least 16, divisible by 4")
    require(
        all(p >= c.patch and p % 4 == 0 for p in c.reference_sizes),
        f"--reference-sizes {' '.join(map(str, c.reference_sizes))}: "
        f"at least --patch {c.patch}, divisible by 4",
    )
    require(c.batch <= c.queue_size, f"--batch {c.batch}: at most --queue-size {c.queue_size}")
    require(
        c.reference_patch == 0 or c.reference_patch >= MIN_REFERENCE,
        f"--reference-patch {c.reference_patch}: 0, or at least {MIN_REFERENCE}",
    )
    require(c.embed_dim >= 1, f"--embed-dim {c.embed_dim}: expected 1 or more")
    require(c.temperature > 0, f"--temperature {c.temperature}: expected a number above 0")
    launch(train, c, c.gpu)


if __name__ == "__main__":
    exit_on_user_error(main)
