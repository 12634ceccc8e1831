"""Train noise encoder and generator (docs/method.md 4, 9; paper, Sec. 3, arXiv:2301.13554).

    python train_noiseTransfer.py --gpu 0                     # the paper's setting
    python train_noiseTransfer.py --gpu 0 --preset release    # at its scale, with our terms too
    python train_noiseTransfer.py --preset lite --run-dir runs/lite
    python train_noiseTransfer.py --debug                     # a minute, exercises everything

The same command resumes an interrupted run. The run folder ends up with VUNet.pt, encoder_q.pt
and encoder_k.pt (the weights that other scripts take by `--nt FOLDER`; levels.pt, with --levels),
best/ with those of the best validation, checkpoints, config.json, stats.jsonl and tensorboard/.
"""

import dataclasses
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from training.settings import RunSettings
from utils.config import parse
from utils.errors import exit_on_user_error


@dataclasses.dataclass(frozen=True)
class Config(RunSettings):
    """Train the noise encoder and generator."""

    preset: Literal["paper", "lite", "small", "release"] = "paper"
    """Set of defaults; explicit flags win."""
    ablation: str = "none"
    """A row of ABLATIONS, such as no-contrastive, on top of the preset."""
    graph: bool = True
    """On one CUDA device, without --compile and --skip-nonfinite: the step as a CUDA graph."""
    run_dir: Path = Path("runs/NT")

    # Data
    pairs: tuple[Path, ...] = ()
    """Folders of real pairs, SIDD or clean/ with noisy/; one named twice counts twice."""
    photos: tuple[Path, ...] = ()
    """Folders of clean photographs, such as DIV2K_train_HR; one named twice counts twice."""
    white_pairs: tuple[Path, ...] = ()
    """More pairs, whose noise lost its correlation (resized): a random one is given to it."""
    p_real: float = 320 / 1120
    """Share of real items (paper: 320 of 1120)."""
    noise_models: tuple[float, ...] = (0.2, 0.2, 0.6)
    """Of synthetic items: probabilities of Gaussian, Poisson, both, random noise level function."""
    p_correlated: float = 0.0
    """Of synthetic items whose noise is given a random correlation, as cameras leave one."""
    p_varied: float = 0.0
    """Of clean patches of synthetic items (and of white pairs) that are blurred and dimmed."""

    # Networks
    init: str = ""
    """Folder of weights to start from (VUNet.pt, encoder_q.pt, encoder_k.pt; statistics.pt, the
    encoder's head, if there), such as ckpts/NT: to go on with data of one's own, or with
    --freeze-encoder and other terms."""
    width: int = 64
    embed_dim: int = 128
    encoder_depths: tuple[int, ...] = ()
    """Residual blocks of its three stages; none: 2 3 4, as in the paper."""
    generator_depths: tuple[int, ...] = ()
    """Of its three, the first two also on the way up; none: 4 3 2, as in the paper."""
    inject_noise: bool = True
    """Random maps in the generator's SFT layers, its only source of randomness."""
    reference_patch: int = 0
    """How the trained weights embed a reference: in patches of this size, or whole (0, paper);
    saved beside them as transfer.json, and used in validation."""

    # Contrastive learning
    embedded: Literal["unpaired", "paired"] = "unpaired"
    """What is embedded as the noise to transfer: noisy2, of another place, or noisy1 itself."""
    queue_size: int = 4096
    momentum: float = 0.999
    temperature: float = 0.1

    # Weights of the generator's loss terms: the paper's, then ours (models/losses.py)
    w_gan: float = 1.0
    w_fm_gan: float = 100.0
    w_consistency: float = 100.0
    w_contra_adv: float = 1.0
    w_fm_noise: float = 100.0
    w_band: float = 0.0
    w_shape: float = 0.0
    w_local_variance: float = 0.0
    w_local_mean: float = 0.0
    w_quantile: float = 0.0
    w_autocorrelation: float = 0.0
    second_draw_steps: int = 0
    """In so many of the last steps ours are proper scores, by a second draw of the generator: no
    bias to white noise, but a gradient that varies more."""
    border: int = 0
    """Pixels a side that the terms on the spectrum (band, shape, autocorrelation) leave out: there
    the padding shows, and would be balanced by the inner part, which is all of a larger image."""

    # Weights of the encoder's loss terms: the paper's, then ours
    w_contra: float = 1.0
    w_gan_d: float = 1.0
    w_statistics: float = 0.0
    signal_dependence: float = 0.0
    """Among the statistics, weight of how the noise differs between an image's intensities."""

    # Optimisation
    batch: int = 32
    """Of all processes together."""
    grad_accum: int = 1
    """Parts in which a process takes its batch: less memory, the same step."""
    draw_together: int = 1
    """Steps whose items are drawn at once: on a GPU, fewer and larger launches."""
    patch: int = 96
    embedded_sizes: tuple[int, ...] = ()
    """Of the reference noisy2's patch, one drawn per batch; none: --patch, as in the paper."""
    epochs: int = 200
    steps_per_epoch: int = 2000
    lr: float = 1e-4
    lr_decay: Literal["constant", "cosine"] = "constant"
    """cosine: down to zero over the whole run, after warm_up steps of linear rise."""
    warm_up: int = 0
    """Of the rate, in each phase where there are two."""
    encoder_steps: int = 0
    """The encoder alone comes first, for so many of the steps (see encoder_gradients)."""
    freeze_encoder: bool = False
    """After encoder_steps the encoders stay as they are."""
    betas: tuple[float, float] = (0.5, 0.99)
    weight_decay: float = 1e-7
    ema: float = 0.0
    """Decay per step of the averaged generator that is saved and validated; 0: the last (paper)."""
    levels: int = 0
    """After the last step: items to which levels.pt is fitted, what puts right how strong the noise
    is at each intensity. With --init and --epochs 0 nothing else is done."""


# Groups of loss terms, for the ablations below.
PAPER_TERMS = dict(
    w_gan=1.0, w_fm_gan=100.0, w_consistency=100.0, w_contra_adv=1.0, w_fm_noise=100.0, w_gan_d=1.0,
    freeze_encoder=False,
)  # fmt: skip
NO_ADVERSARY = dict(
    w_gan=0.0, w_fm_gan=0.0, w_consistency=0.0, w_contra_adv=0.0, w_fm_noise=0.0, w_gan_d=0.0,
)  # fmt: skip
NO_MOMENTS = dict(
    w_band=0.0, w_shape=0.0, w_local_variance=0.0, w_local_mean=0.0, w_quantile=0.0,
    w_autocorrelation=0.0,
)  # fmt: skip
# What `lite` and `release` add to the paper: varied synthetic noise and scenes, and our loss terms.
OUR_DATA = dict(noise_models=(0.2, 0.2, 0.2, 0.4), p_correlated=0.7, p_varied=0.5)
OUR_TERMS = dict(
    w_band=1.0, w_shape=2.0, w_local_variance=1.0, w_local_mean=0.5, w_autocorrelation=1.0,
    w_statistics=1.0,
)  # fmt: skip
# Hours on a CPU core instead of 400,000 steps on a GPU: first the encoder alone, told by the
# statistics of the noise, then the generator by moments, without the adversary, which swings and
# would take most of the time. See docs/method.md 9 and ckpts/README.md.
LITE = dict(
    width=16, embed_dim=32, batch=16, patch=48, embedded_sizes=(64,), reference_patch=64,
    epochs=13, steps_per_epoch=400, encoder_steps=2400, freeze_encoder=True,
    lr=2e-3, lr_decay="cosine", warm_up=50, ema=0.995, queue_size=1024, momentum=0.99,
    p_real=0.5, **OUR_DATA, **OUR_TERMS, w_contra=0.1,
    **NO_ADVERSARY,
)  # fmt: skip
# One row per preset: what differs from the defaults above, which are the paper's.
PRESETS = {
    "paper": {},
    "lite": LITE,
    # Eight minutes on one H200 (ckpts/README.md has the data that the shipped weights had).
    "small": LITE | dict(
        width=24, batch=64, patch=64, border=12, queue_size=2048, ema=0.998, precision="tf32",
        epochs=10, steps_per_epoch=2150, encoder_steps=13000, w_quantile=3.0, w_statistics=1.5,
        second_draw_steps=4500, draw_together=8, levels=16000,
    ),
    # The paper's networks, steps and terms, with ours beside them. Not run yet: it wants a GPU.
    "release": dict(encoder_steps=20000, reference_patch=96, **OUR_DATA, **OUR_TERMS),
}  # fmt: skip
# What differs from the preset; ablate.py trains and tabulates them.
ABLATIONS = {
    "none": {},
    "no-contrastive": dict(w_contra=0.0, w_contra_adv=0.0),
    "no-contra-adv": dict(w_contra_adv=0.0),
    "no-consistency": dict(w_consistency=0.0),
    "no-feature-matching": dict(w_fm_gan=0.0, w_fm_noise=0.0),
    "no-adversarial": dict(w_gan=0.0),
    "no-statistics": dict(w_statistics=0.0),
    "no-encoder-phase": dict(encoder_steps=0, freeze_encoder=False),
    "adversarial-alone": dict(NO_MOMENTS, **PAPER_TERMS),
    "adversarial-too": dict(PAPER_TERMS),
    "no-correlated-noise": dict(p_correlated=0.0),
    "paired-reference": dict(embedded="paired"),
    "no-noise-injection": dict(inject_noise=False),
    "embed-32": dict(embed_dim=32),
    "embed-512": dict(embed_dim=512),
    "queue-256": dict(queue_size=256),
    "queue-16384": dict(queue_size=16384),
    "temperature-0.05": dict(temperature=0.05),
    "temperature-0.2": dict(temperature=0.2),
}
DEBUG = dict(
    width=4, batch=4, patch=32, border=0, embedded_sizes=(), reference_patch=16, epochs=2,
    steps_per_epoch=2, queue_size=16, val_limit=2, log_every=1, run_dir=Path("runs/debug_NT"),
)  # fmt: skip


if __name__ == "__main__":  # --help and mistyped flags do not wait for torch: seconds
    exit_on_user_error(partial(parse, Config, presets=PRESETS, debug=DEBUG, ablations=ABLATIONS))

import copy
from collections.abc import Callable, Iterator, Sequence

import ignite.distributed as idist
import torch
from torch import Tensor, nn
from tqdm import trange

from data.augment import SceneDistribution
from data.items import GeneratorItems, SyntheticItems, Triplet
from data.noise import NoiseCorrelationDistribution, NoiseModelDistribution
from data.recipe import Recipe
from data.training_data import (
    find_pairs_and_photos,
    find_validation_sets,
    open_photos,
    open_real_items,
)
from evaluation.measure import evaluate_transfer
from models.embedding import StatisticsHead
from models.encoder import NoiseEncoder
from models.generator import NoiseGenerator, given_noise, no_noise, normal_noise
from models.key_queue import KeyQueue, momentum_update
from models.layers import (
    NoiseSource,
    compile_blocks,
    converge_spectral_norm,
    shared_spectral_norm,
)
from models.levels import LevelGain
from models.losses import (
    adversarial_loss,
    autocorrelation_loss,
    band_losses,
    clip_straight_through,
    consistency_loss,
    contrastive_loss,
    feature_matching_loss,
    local_mean_loss,
    local_variance_loss,
    overflow_loss,
    quantile_loss,
    statistics_loss,
)
from models.noise_transfer import GAINS, HEAD, NoiseTransfer
from training.levels import fit_levels, level_loss, observe
from training.run import TrainingRun
from utils.checkpoint import load_weights
from utils.config import at_least, check_training, print_config, provenance
from utils.distributed import (
    average_gradients,
    gather_rows,
    is_first,
    launch,
    local_batch,
)
from utils.errors import require
from utils.graph import GraphedStep, captures
from utils.metrics import akld, ks
from utils.precision import autocast, forward_dtype, set_float32_precision
from utils.resume import saved_settings
from utils.seeding import Randomness, randomness
from utils.training import (
    GradientMean,
    TrainingState,
    apply_gradients,
    average_weights,
    save_weights,
    warm_up_cosine,
)
from utils.transfer_settings import MIN_REFERENCE, TransferSettings

# How items are made (method 4), for an ablation to edit; what has a flag above comes from there.
RECIPE = Recipe(
    # Real items: half have their noise scaled, in both views; half a box of another crop
    p_alpha=0.5, alpha=(0.8, 1.0),
    p_cutmix=0.5, cutmix_sides=(0.25, 0.75),
    lost_correlation=NoiseCorrelationDistribution(p=0.9),  # of --white-pairs: all but a few
    # Synthetic items: Gaussian, Poisson or both; sigma of 255, chi in photons of white
    noise=NoiseModelDistribution(Config.noise_models, sigma=(0, 70), chi=(5, 100)),
    p_real_clean=0.2, blur=(21, 3.5),  # of patches from SIDD's clean images; against their noise
)  # fmt: skip
# How those of --levels are instead: more photon noise and white noise, some scenes of one colour.
LEVEL_ITEMS = dict(p_real=0.5, noise_models=(0.2, 0.3, 0.2, 0.3), p_correlated=0.55)
LEVEL_P_FLAT, LEVEL_BATCH = 0.15, 16
# Of their references, in --patch: one a batch is drawn of those that fit into every image.
LEVEL_SIZES = 1, 1, 2, 2, 4


SHOWN = "akld", "ks", "contraAcc_noisy", "error_log_std"  # beside the progress bar


class State(TrainingState):
    """Encoders, generator (and its running average), key queue; an optimiser for each of E_q, G."""

    def __init__(self, c: Config, device: torch.device | str = "cpu") -> None:
        super().__init__()
        torch.manual_seed(c.seed)  # the networks' initial weights
        self.encoder_q = NoiseEncoder(c.width, c.embed_dim, c.encoder_depths)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.generator = NoiseGenerator(c.width, c.embed_dim, c.generator_depths)
        self.generator_ema = copy.deepcopy(self.generator).requires_grad_(False)
        self.keys = KeyQueue(c.embed_dim, c.queue_size)
        self.statistics = StatisticsHead(c.embed_dim) if c.w_statistics else None
        if c.init:
            for network, file in (
                (self.encoder_q, "encoder_q.pt"),
                (self.encoder_k, "encoder_k.pt"),
                (self.generator, "VUNet.pt"),
                (self.generator_ema, "VUNet.pt"),
            ):
                load_weights(network, Path(c.init) / file)
            told = Path(c.init) / HEAD
            if self.statistics is not None and told.is_file():
                load_weights(self.statistics, told)
        self.to(device)
        adam = dict(lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=True)
        encoder = [*self.encoder_q.parameters(), *self.head_parameters()]
        self.optimisers = {
            "encoder": torch.optim.Adam(encoder, **adam),
            "generator": torch.optim.Adam(self.generator.parameters(), **adam),
        }
        if c.compile:
            # Not E_q: a compiled block computes all its gradients whenever it is asked for any,
            # and E_q's graph is walked twice, each time for some of them.
            compile_blocks(self.encoder_k, self.generator)

    def head_parameters(self) -> list[nn.Parameter]:
        return [] if self.statistics is None else list(self.statistics.parameters())

    def encoder_parameters(self, c: Config) -> list[nn.Parameter]:
        """What the encoder's step updates; without a discriminator in the loss, none of its."""
        e_q = self.encoder_q
        alone = self.step < c.encoder_steps or not discriminates(c)
        return [
            *(e_q.embedding_parameters() if alone else e_q.parameters()),
            *self.head_parameters(),
        ]


def discriminates(c: Config) -> bool:
    return any((c.w_gan, c.w_fm_gan, c.w_gan_d))


def embeds(c: Config) -> bool:
    """Whether E_q embeds beside the generator: for its own losses, or for the generator's."""
    return not c.freeze_encoder or any((c.w_contra_adv, c.w_fm_noise))


def matches_moments(c: Config) -> bool:
    weights = c.w_band, c.w_shape, c.w_local_variance, c.w_local_mean, c.w_quantile
    return any((*weights, c.w_autocorrelation))


def draws_twice(s: State, c: Config) -> bool:
    return matches_moments(c) and s.step >= max(c.encoder_steps, c.steps - c.second_draw_steps)


def train_step(s: State, c: Config, batch: Triplet, noise: NoiseSource) -> dict[str, Tensor]:
    """One step; returns the logged values. `batch` is this process's part of the global one.

    The first `encoder_steps` are encoder_gradients', the others method 4's: generator, encoder, key
    encoder, queue. With --grad-accum the batch goes through in parts.
    """
    e_q, e_k, g = s.encoder_q, s.encoder_k, s.generator
    alone = s.step < c.encoder_steps
    n, device = len(batch.clean) // c.grad_accum, batch.clean.device
    # What is embedded as the key: the reference. In the encoder's own phase the two views change
    # places: the query is the reference, and tells the statistics of the other place's noise.
    reference = batch.noisy1 if alone or c.embedded == "paired" else batch.noisy2
    networks = [e_k] + [e_q] * (alone or embeds(c)) + [g] * (not alone)  # those that are used
    with shared_spectral_norm(*networks, dtype=forward_dtype(c.precision, device)):
        with torch.no_grad(), autocast(c.precision, device):
            z = torch.cat([e_k.embed(part)[1] for part in reference.split(n)])  # (B, d), Eq. 4.1
        keys = gather_rows(z)  # of all processes; row i of z is row first + i of keys
        first = len(z) * idist.get_rank()
        mean = GradientMean(c.grad_accum)
        for i in range(0, len(z), n):
            part = Triplet(*(x[i : i + n] for x in (batch.clean, batch.noisy1, batch.noisy2)))
            if alone:
                mean.add(*encoder_gradients(s, c, part, keys, first + i))
            else:
                mean.add(*gradients(s, c, part, z[i : i + n], keys, first + i, noise))
    (grads_g, grads_e), values = mean.result()
    parameters_e = s.encoder_parameters(c)
    s.step += 1
    if c.skip_nonfinite and s.skips([*grads_g, *grads_e], limit=c.skip_nonfinite):
        return values

    # Clipping of the gradients would go here.
    if not alone:
        apply_gradients(s.optimisers["generator"], g.parameters(), average_gradients(grads_g))
        if c.ema:
            average_weights(s.generator_ema, g, c.ema)
    if alone or not c.freeze_encoder:
        apply_gradients(s.optimisers["encoder"], parameters_e, average_gradients(grads_e))
        momentum_update(e_k, e_q, c.momentum)
    s.keys.enqueue(keys)
    return values


def encoder_gradients(
    s: State, c: Config, part: Triplet, keys: Tensor, first: int
) -> tuple[list[Sequence[Tensor]], dict[str, Tensor]]:
    """Of the encoder alone: contrastive, and what z tells of the noise. As `gradients`."""
    clean, noisy = part.clean, part.noisy1
    with autocast(c.precision, clean.device):
        _, q = s.encoder_q.embed(noisy if c.embedded == "paired" else part.noisy2)
    contra, accuracy = contrastive_loss(q, keys, s.keys.queue, c.temperature, first)
    values = {"loss_contra_noisy": contra, "contraAcc_noisy": accuracy}
    loss = c.w_contra * contra  # Eq. 9.4
    if c.w_statistics:
        told = s.statistics(q)
        statistics, level = statistics_loss(told, noisy, clean, c.signal_dependence)
        values |= {"loss_statistics": statistics, "error_log_std": level}
        loss = loss + c.w_statistics * statistics
    grads = torch.autograd.grad(loss, s.encoder_parameters(c), retain_graph=c.grad_accum > 1)
    return [(), grads], {name: value.detach() for name, value in values.items()}


def gradients(
    s: State, c: Config, part: Triplet, z: Tensor, keys: Tensor, first: int, noise: NoiseSource
) -> tuple[list[Sequence[Tensor]], dict[str, Tensor]]:
    """Losses of a part of the batch, [their gradients for G, for E_q], and the logged values.

    Nothing of E_q changes before its own update, so both gradients are taken of one forward pass.
    What no weight asks for is not computed.
    """
    e_q, g = s.encoder_q, s.generator
    clean, noisy1 = part.clean, part.noisy1
    values, loss_g, loss_e = {}, 0.0, 0.0
    with autocast(c.precision, clean.device):
        fake = clean + g(clean, z, noise)  # not clipped, Eq. 4.1
        if embeds(c):
            f_real, q_real = e_q.embed(noisy1)
            f_fake, q_fake = e_q.embed(fake)
        if discriminates(c):
            modulation = e_q.modulation(z)
            g_real, d_real = e_q.discriminate(clean, noisy1, modulation)
            g_fake, d_fake = e_q.discriminate(clean, fake, modulation)

    # The paper's terms: generator (Eq. 4.8); encoder, also the discriminator (Eq. 4.9)
    if discriminates(c):
        values["loss_gan_g"] = adversarial_loss(d_fake, 1)
        values["loss_fm_gan"] = feature_matching_loss(g_real, g_fake)
        gan_d = 0.5 * (adversarial_loss(d_real, 1) + adversarial_loss(d_fake, 0))  # Eq. 4.7
        loss_g += c.w_gan * values["loss_gan_g"] + c.w_fm_gan * values["loss_fm_gan"]
        loss_e += c.w_gan_d * gan_d
        values["loss_gan_d"] = gan_d
    if embeds(c):
        contrast = partial(contrastive_loss, k=keys, queue=s.keys.queue, first=first)
        contra_adv, accuracy_adv = contrast(q_fake, temperature=c.temperature)  # Eq. 4.3
        contra, accuracy = contrast(q_real, temperature=c.temperature)
        fm_noise = feature_matching_loss(f_real, f_fake)
        loss_g += c.w_contra_adv * contra_adv + c.w_fm_noise * fm_noise
        loss_e += c.w_contra * contra
        values |= {
            "loss_contra_noisy_adv": contra_adv,
            "loss_fm_noise": fm_noise,
            "contraAcc_noisy_adv": accuracy_adv,
            "loss_contra_noisy": contra,
            "contraAcc_noisy": accuracy,
        }
    if c.w_consistency:
        values["loss_consistency"] = consistency_loss(noisy1, fake)
        loss_g += c.w_consistency * values["loss_consistency"]

    # Ours: Eq. 9.6 to Eq. 9.10, Eq. 9.3
    if matches_moments(c):
        real, generated = noisy1 - clean, clip_straight_through(fake) - clean
        draws = [real, generated]
        if draws_twice(s, c):
            with torch.no_grad(), autocast(c.precision, clean.device):
                second = clean + g(clean, z, noise)
            draws.append(second.clamp(0, 1) - clean)
        inner = (..., slice(c.border, -c.border or None), slice(c.border, -c.border or None))
        inside = [draw[inner] for draw in draws]
        band, shape = band_losses(*inside)
        local_variance, local_mean = local_variance_loss(*draws), local_mean_loss(*draws)
        autocorrelation = autocorrelation_loss(*inside)
        loss_g += (
            c.w_band * band
            + c.w_shape * shape
            + c.w_local_variance * local_variance
            + c.w_local_mean * local_mean
            + c.w_autocorrelation * autocorrelation
            + overflow_loss(fake)
        )
        values |= {
            "loss_band": band,
            "loss_shape": shape,
            "loss_local_variance": local_variance,
            "loss_local_mean": local_mean,
            "loss_autocorrelation": autocorrelation,
        }
        if c.w_quantile:
            values["loss_quantile"] = quantile_loss(*draws)
            loss_g += c.w_quantile * values["loss_quantile"]
        strength = [x.detach().flatten(1).std(1) for x in (generated, real)]
        ratio = (strength[0].clamp_min(1e-4) / strength[1].clamp_min(1 / 255)).log()
        values |= {"error_log_strength": ratio.abs().mean(), "bias_log_strength": ratio.mean()}
    if c.w_statistics and not c.freeze_encoder:
        told = s.statistics(q_real)
        statistics, level = statistics_loss(told, noisy1, clean, c.signal_dependence)
        loss_e += c.w_statistics * statistics
        values |= {"loss_statistics": statistics, "error_log_std": level}

    # Through d_fake, loss_e reaches E_q's weights only: the generator's are not asked for. It goes
    # first because the generator's graph, compiled, can be walked only once. The graph of the
    # normalised weights is shared with the parts to come.
    grads_e = ()
    if not c.freeze_encoder:
        grads_e = torch.autograd.grad(loss_e, s.encoder_parameters(c), retain_graph=True)
    grads_g = torch.autograd.grad(loss_g, list(g.parameters()), retain_graph=c.grad_accum > 1)
    values["akld"] = akld(fake, noisy1, clean).mean()
    values["ks"] = ks(fake, noisy1, clean).mean()
    return [grads_g, grads_e], {name: value.detach() for name, value in values.items()}


def graphed_step(
    s: State, c: Config, device: torch.device
) -> Callable[[Triplet, NoiseSource], dict[str, Tensor]]:
    """train_step(s, c, ...) as CUDA graphs, one a phase, reference size and number of noise maps.
    These are drawn before, in train_step's order, so that they are the same."""

    def step(clean: Tensor, noisy1: Tensor, noisy2: Tensor, *maps: Tensor) -> dict[str, Tensor]:
        before = s.step
        values = train_step(s, c, Triplet(clean, noisy1, noisy2), given_noise(maps))
        s.step = before
        return values

    s.put_lr_on(device)
    graphs = GraphedStep(step, device)

    def run(batch: Triplet, noise: NoiseSource) -> dict[str, Tensor]:
        alone, maps = s.step < c.encoder_steps, []
        if not alone:
            parts = batch.clean.split(len(batch.clean) // c.grad_accum)
            parts = [part for part in parts for _ in range(1 + draws_twice(s, c))]
            maps = [n for part in parts for n in s.generator.noise_maps(part, noise)]
        values = graphs(alone, (batch.clean, batch.noisy1, batch.noisy2, *maps))
        s.step += 1
        return values

    return run


def noise_source(c: Config, rng: Randomness) -> NoiseSource:
    return normal_noise(rng.pixels) if c.inject_noise else no_noise


def learning_rate(c: Config, step: int) -> float:
    if c.lr_decay == "constant":
        return c.lr
    total = c.steps
    if step < c.encoder_steps:
        return c.lr * warm_up_cosine(step, min(c.encoder_steps, total), c.warm_up)
    return c.lr * warm_up_cosine(step - c.encoder_steps, total - c.encoder_steps, c.warm_up)


def recipe_of(c: Config) -> Recipe:
    return dataclasses.replace(
        RECIPE,
        noise=dataclasses.replace(RECIPE.noise, probabilities=c.noise_models),
        correlation=NoiseCorrelationDistribution(c.p_correlated) if c.p_correlated else None,
        scenes=SceneDistribution(c.p_varied) if c.p_varied else None,
    )


def open_items(c: Config, device: torch.device) -> GeneratorItems:
    pairs, photos = find_pairs_and_photos(
        c.train_images, c.pairs, c.photos, sample_cache=c.sample_cache
    )
    recipe = recipe_of(c)
    largest = max((c.patch, *c.embedded_sizes))
    real = open_real_items(
        pairs, c.patch, c.cache, device, recipe, largest=largest, white=c.white_pairs
    )
    source = open_photos(photos, c.patch, c.cache, device, largest=largest)
    synthetic = SyntheticItems(source, recipe, real) if source else None
    return GeneratorItems(synthetic, real, c.p_real, c.embedded_sizes)


def export(s: State, c: Config, folder: Path) -> NoiseTransfer:
    """Write the networks' weights under their published names; returns what they amount to."""
    generator = copy.deepcopy(s.generator_ema if c.ema else s.generator)
    if c.ema:  # its weights are an average, its spectral-norm vectors the last step's
        converge_spectral_norm(generator)
    save_weights(generator, folder / "VUNet.pt")
    save_weights(s.encoder_q, folder / "encoder_q.pt")
    save_weights(s.encoder_k, folder / "encoder_k.pt")
    if s.statistics is not None:
        save_weights(s.statistics, folder / HEAD)
    patch, record = c.reference_patch or None, provenance()
    margin = -(-c.border // 4) * 4  # up to the next multiple, for the generator's strides
    TransferSettings(patch, c.inject_noise, margin).write(
        folder, width=c.width, embed_dim=c.embed_dim, steps=s.step,
        commit=record["commit"], command=record["command"],
    )  # fmt: skip
    encoder, head = copy.deepcopy(s.encoder_k), copy.deepcopy(s.statistics)
    return NoiseTransfer(encoder, generator, patch, c.inject_noise, margin, head)


def add_levels(
    c: Config, transfer: NoiseTransfer, items: GeneratorItems, device: torch.device
) -> None:
    """Fit what corrects the exported generator's strength at each intensity (docs/method.md 9)."""
    own = dataclasses.replace(c, **LEVEL_ITEMS)
    synthetic = copy.copy(items.synthetic)
    if synthetic:
        synthetic.recipe = dataclasses.replace(recipe_of(own), p_flat=LEVEL_P_FLAT)
    smallest = min(int(store.sizes.min()) for store in items.stores)
    sizes = [n * c.patch for n in LEVEL_SIZES if n * c.patch <= smallest]
    source = GeneratorItems(synthetic, items.real, own.p_real, sizes)

    def batches() -> Iterator[tuple[Triplet, NoiseSource]]:
        count = -(-c.levels // LEVEL_BATCH)
        for i in trange(count, desc="levels", unit="batch", disable=None):
            rng = randomness(c.seed, i, 2, device=device)
            yield source.triplets(LEVEL_BATCH, rng), noise_source(c, rng)

    seen = observe(transfer, batches())
    levels = fit_levels(seen, c.seed)
    save_weights(levels, c.run_dir / GAINS)
    before, after = (level_loss(x, seen) for x in (LevelGain(c.embed_dim), levels))
    print(
        f"{c.run_dir / GAINS}: strength at an intensity is off by {before:.1%} without it, "
        f"{after:.1%} with it, over {len(seen.z)} items"
    )


def show(run: TrainingRun, transfer: NoiseTransfer, batch: Triplet, noise: NoiseSource) -> None:
    """A picture of up to four samples: clean | reference | generated | real."""
    clean, real, reference = (x[:4] for x in (batch.clean, batch.noisy1, batch.noisy2))
    fake = transfer.transfer(clean, reference, noise)
    reference = reference[..., : clean.shape[-2], : clean.shape[-1]]
    columns = [clean, reference, fake, real]
    run.log.pictures("train/clean, reference, generated, real", columns, run.state.step)


def train(c: Config, device: torch.device) -> None:
    """The whole run; with several devices one of its processes (see utils/distributed.py)."""
    set_float32_precision(c.precision)
    batch_size = local_batch(c.batch, c.grad_accum)
    with idist.one_rank_first(local=True):  # it decodes the images, the others find them decoded
        items = open_items(c, device)
    sets = find_validation_sets(c.test_images, paired=True, sample_cache=c.sample_cache)

    @lru_cache(maxsize=1)
    def drawn(i: int) -> list[Triplet]:
        rng = randomness(c.seed, idist.get_rank(), i, 0, device=device)
        return items.triplets(c.draw_together * batch_size, rng).dealt(c.draw_together)

    def draw(step: int) -> tuple[Triplet, Randomness]:
        i, own = divmod(step, c.draw_together)
        return drawn(i)[own], randomness(c.seed, idist.get_rank(), step, 1, device=device)

    s = State(c, device)
    with TrainingRun(c, s, device, items.stores, SHOWN) as run:
        step = graphed_step(s, c, device) if captures(c, device) else partial(train_step, s, c)
        for batch, rng in run.steps(draw):
            s.set_lr(learning_rate(c, s.step))
            values = step(batch, noise_source(c, rng))
            run.record(values, now=s.step == c.encoder_steps)  # then other values follow
            if not run.epoch_is_over or s.step <= c.encoder_steps:
                continue  # in the encoder's phase the generator is as it began
            transfer = export(s, c, c.run_dir)
            show(run, transfer, batch, noise_source(c, rng))
            distances = []
            for test_set in sets:
                scores = evaluate_transfer(
                    transfer,
                    test_set,
                    seed=c.seed,
                    limit=c.val_limit,
                    device=device,
                    progress=False,
                )
                distances.append(run.record_validation(test_set, scores)["akld"])
            if run.save_if_best([-d for d in distances]):
                export(s, c, c.run_dir / "best")
        if is_first():
            transfer = export(s, c, c.run_dir)
            if c.levels and s.step >= c.steps:
                add_levels(c, transfer, items, device)


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv, PRESETS, DEBUG, saved_settings, ABLATIONS)
    if c.dry_run:
        print_config(c)
        return
    check_training(c, epochs=0 if c.init and c.levels else 1)
    require(
        c.patch >= MIN_REFERENCE and c.patch % 4 == 0,
        f"--patch {c.patch}: at least {MIN_REFERENCE}, divisible by 4",
    )
    require(
        all(p >= c.patch and p % 4 == 0 for p in c.embedded_sizes),
        f"--embedded-sizes {' '.join(map(str, c.embedded_sizes))}: "
        f"at least --patch {c.patch}, divisible by 4",
    )
    require(c.batch <= c.queue_size, f"--batch {c.batch}: at most --queue-size {c.queue_size}")
    require(
        c.reference_patch == 0 or c.reference_patch >= MIN_REFERENCE,
        f"--reference-patch {c.reference_patch}: 0, or at least {MIN_REFERENCE}",
    )
    require(
        c.border >= 0 and c.patch - 2 * c.border >= 16,
        f"--border {c.border}: from 0, and leaving 16 of --patch {c.patch}",
    )
    require(
        len(c.noise_models) in (3, 4) and min(c.noise_models) >= 0 < sum(c.noise_models),
        f"--noise-models {' '.join(map(str, c.noise_models))}: expected three or four shares",
    )
    for name in ("p_real", "p_correlated", "p_varied"):
        p = getattr(c, name)
        require(0 <= p <= 1, f"--{name.replace('_', '-')} {p}: expected a share from 0 to 1")
    require(0 <= c.momentum < 1, f"--momentum {c.momentum}: expected 0 to less than 1")
    at_least(
        c, draw_together=1, embed_dim=1, encoder_steps=0, second_draw_steps=0, signal_dependence=0,
        levels=0,
    )  # fmt: skip
    require(
        any((c.w_gan, c.w_fm_gan, c.w_consistency, c.w_contra_adv, c.w_fm_noise))
        or matches_moments(c),
        "every --w-... of the generator is 0: nothing would train it; give one a weight",
    )
    require(
        not c.freeze_encoder or c.encoder_steps > 0 or bool(c.init),
        "--freeze-encoder: nothing would train it; give --encoder-steps, such as 2400, or --init",
    )
    require(
        not c.freeze_encoder or not discriminates(c),
        "--freeze-encoder: the discriminator is the encoder; --w-gan, --w-fm-gan, --w-gan-d: 0",
    )
    for name in ("encoder_depths", "generator_depths"):
        depths = getattr(c, name)
        require(
            len(depths) in (0, 3) and all(n > 0 for n in depths),
            f"--{name.replace('_', '-')} {' '.join(map(str, depths))}: expected three, above 0",
        )
    require(c.temperature > 0, f"--temperature {c.temperature}: expected a number above 0")
    launch(train, c, c.gpu)


if __name__ == "__main__":
    exit_on_user_error(main)
