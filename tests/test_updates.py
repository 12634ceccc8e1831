"""What happens to the weights: each network's update against plain Adam, written from its formula.

Losses and gradients alone do not show it: fused Adam pairs weights with the gradients of others
where a gradient is laid out otherwise than its parameter, as those of transposed convolutions are
when they come from autograd.grad.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import train_denoiser as REAL
import train_denoiser_synthetic as SYNTHETIC
import train_noiseTransfer as NT
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.layers import SNConvTranspose2d
from tests.golden import recipe
from tests.plain_adam import LR, assert_same_weights, plain
from tests.test_training_step import sin_noise, small
from utils.training import apply_gradients

pytestmark = pytest.mark.usefixtures("shallow")

STEPS = 3


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
