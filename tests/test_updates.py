"""What happens to the weights: each network's update against plain Adam, written from its formula.

Losses and gradients alone do not show it: fused Adam pairs weights with the gradients of others
where a gradient is laid out otherwise than its parameter, as those of transposed convolutions are
when they come from autograd.grad.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import train_denoiser as REAL
import train_denoiser_synthetic as SYNTHETIC
import train_noiseTransfer as NT
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.layers import SNConvTranspose2d
from tests.golden import recipe
from tests.test_distributed import Job, images, part, shared_noise
from tests.test_training_step import sin_noise, small
from utils.distributed import is_first, launch
from utils.training import apply_gradients

pytestmark = pytest.mark.usefixtures("shallow")

STEPS, LR = 3, 1e-2


class PlainAdam(torch.optim.Optimizer):
    """Kingma and Ba 2015 (arXiv:1412.6980), Algorithm 1, element by element, in float64."""

    def __init__(self, other: torch.optim.Adam) -> None:
        (group,) = other.param_groups
        super().__init__(group["params"], {k: group[k] for k in ("lr", "betas", "weight_decay")})

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        b1, b2 = group["betas"]
        for p in group["params"]:
            if p.grad is None:
                continue
            assert p.grad.stride() == p.stride()
            g = p.grad.double() + group["weight_decay"] * p.double()
            s = self.state[p]
            s["t"] = s.get("t", 0) + 1
            s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
            s["v"] = b2 * s.get("v", 0) + (1 - b2) * g * g
            m, v = s["m"] / (1 - b1 ** s["t"]), s["v"] / (1 - b2 ** s["t"])
            p.sub_((group["lr"] * m / (v.sqrt() + 1e-8)).to(p.dtype))


def plain(s: nn.Module) -> None:
    s.optimisers = {name: PlainAdam(o) for name, o in s.optimisers.items()}


def triplets() -> Iterator[NT.Triplet]:
    for step in range(STEPS):
        shape = (4, 3, 16, 16)
        yield NT.Triplet(*(torch.from_numpy(recipe.image(3 * step + i, shape)) for i in range(3)))


def train_generator(changes: dict, use: Callable[[nn.Module], None] | None = None) -> NT.State:
    c = small(**dict(lr=LR, ema=0.5) | changes)
    s = NT.State(c)
    if use:
        use(s)
    for batch in triplets():
        NT.train_step(s, c, batch, sin_noise)
    return s


def train_denoiser(script: object, changes: dict, use: Callable | None = None) -> REAL.State:
    c = script.Config(**dict(width=4, border=2, lr=LR, ema=0.5) | changes)
    s = REAL.State(c)
    torch.manual_seed(1)
    transfer = NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    if use:
        use(s)
    for batch in triplets():
        script.train_step(s, c, transfer, batch.clean, batch.noisy2, sin_noise)
    return s


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    """A step of Adam is about LR an element. An element whose gradient is nothing but rounding may
    go either way, and moves others a little: 1 % of a network's are let off."""
    theirs = dict(b.named_parameters())
    networks = {name.partition(".")[0] for name in theirs}
    for network in networks:
        apart = torch.cat(
            [
                (p - theirs[name]).abs().flatten()
                for name, p in a.named_parameters()
                if name.startswith(network)
            ]
        )
        assert (apart > 0.05 * LR).float().mean() < 0.01, network
    for module in ("generator.conv_up1", "generator.conv_up2"):  # the ones that were scrambled
        if "generator" in networks:
            weight = f"{module}.tconv2d.weight_orig"
            apart = (a.get_parameter(weight) - theirs[weight]).abs()
            assert (apart > 0.05 * LR).float().mean() < 0.01, weight


MOMENTS = dict(
    NT.OUR_TERMS, **NT.NO_ADVERSARY, freeze_encoder=True, encoder_steps=1, reference_patch=0
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(grad_accum=2),
        MOMENTS,
        MOMENTS | dict(encoder_steps=STEPS),
        MOMENTS | dict(grad_accum=2),
        NT.OUR_TERMS,
    ],
    ids=["paper", "accumulated", "moments", "encoder alone", "moments accumulated", "both"],
)
def test_generator_training_updates_as_plain_adam(changes: dict) -> None:
    fast = train_generator(changes)
    assert_same_weights(fast, train_generator(changes, plain))
    # and something moved that was to move
    start = NT.State(small(**changes))
    moved = {
        name
        for name in ("encoder_q", "encoder_k", "generator")
        for p, q in [(getattr(fast, name).parameters(), getattr(start, name).parameters())]
        if any(not torch.equal(x, y) for x, y in zip(p, q, strict=True))
    }
    alone = changes.get("encoder_steps") == STEPS
    assert moved == {"encoder_q", "encoder_k"} | (set() if alone else {"generator"})


@pytest.mark.parametrize("script", [REAL, SYNTHETIC])
@pytest.mark.parametrize("changes", [{}, dict(grad_accum=2), dict(denoiser="unet")], ids=str)
def test_denoiser_training_updates_as_plain_adam(script: object, changes: dict) -> None:
    fast = train_denoiser(script, changes)
    assert_same_weights(fast, train_denoiser(script, changes, plain))


def in_processes(job: Job, device: torch.device) -> None:
    """Steps on this process's rows, with fused and with plain Adam."""
    states = []
    for use in (None, plain):
        c = small(lr=LR, batch=4, queue_size=12)
        s = NT.State(c, device)
        if use:
            use(s)
        for step in range(STEPS):
            batch = NT.Triplet(*(part(images(3 * step + i)) for i in range(3)))
            NT.train_step(s, c, batch, shared_noise(step))
        states.append(s)
    assert_same_weights(*states)
    if is_first():
        job.out.touch()


def test_two_processes_update_as_plain_adam(tmp_path: Path) -> None:
    launch(in_processes, Job(tmp_path / "compared"), "cpu,cpu")
    assert (tmp_path / "compared").exists()


@pytest.mark.parametrize("fused", [True, False])
def test_first_step_moves_every_weight_against_its_own_gradient(fused: bool) -> None:
    """Adam's first step is -lr sign(gradient), whatever the gradient's layout."""
    up = SNConvTranspose2d(8, 4)
    optimiser = torch.optim.Adam(up.parameters(), lr=LR, fused=fused)
    before = up.tconv2d.weight_orig.detach().clone()
    (grad,) = torch.autograd.grad(up(torch.rand(1, 8, 4, 4)).square().sum(), [*up.parameters()])
    assert grad.stride() != before.stride()  # the case at hand
    apply_gradients(optimiser, up.parameters(), [grad])
    moved: Tensor = up.tconv2d.weight_orig - before
    clear = grad.abs() > 1e-3 * grad.abs().max()
    torch.testing.assert_close(moved[clear], -LR * grad.sign()[clear], rtol=1e-3, atol=1e-5)


def test_without_a_discriminator_its_weights_stay() -> None:
    """Adam with weight decay would shrink weights that no loss reaches, by lr a step."""
    s = train_generator(MOMENTS)
    start = NT.State(small(**MOMENTS))
    for name, p in s.encoder_q.named_parameters():
        if "gan" in name:
            assert torch.equal(p, start.encoder_q.get_parameter(name)), name
