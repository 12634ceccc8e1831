"""Training by captured steps (utils/graph.py) against the plain ones, update by update.

A CUDA graph needs CUDA. Everything around it, what is handed in and what stays outside, is the same
with one that only remembers the step and runs it again.
"""

from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

import train_denoiser
import train_denoiser_synthetic
import train_noiseTransfer as NT
from evaluation.baselines import BASELINES
from models import NoiseTransfer
from models.encoder import NoiseEncoder
from models.generator import NoiseGenerator, given_noise, normal_noise
from tests.helpers import equal_states, images
from tests.test_training_step import small
from training import denoisers
from utils.graph import WARM_UP, GraphedStep
from utils.precision import set_float32_precision
from utils.seeding import randomness

pytestmark = pytest.mark.usefixtures("shallow")

MOMENTS = dict(
    NT.OUR_TERMS, **NT.NO_ADVERSARY, freeze_encoder=True, encoder_steps=WARM_UP + 2, ema=0.5
)


class Remembered(GraphedStep):
    """Captures as CUDA does: nothing is computed then, and a replay reads the first inputs."""

    def __init__(self, step: object, device: torch.device) -> None:
        self._step, self._captured, self._pool = step, {}, None

    def _run(self, function: object) -> dict[str, Tensor]:
        return function()

    def _capture(self, one: object) -> dict[str, Tensor]:
        values = {}
        one.graph = SimpleNamespace(
            replay=lambda: values.update(self._step(*one.inputs)), pool=lambda: None
        )
        return values


def train(changes: dict, device: torch.device, graphed: bool) -> tuple[NT.State, list[dict]]:
    """Ten steps, references of two sizes; the state and the values of each."""
    c = small(precision="fp32", **changes)
    set_float32_precision("fp32")
    s, values = NT.State(c, device), []
    s.put_lr_on(device)  # a rate in double precision would round otherwise
    step = NT.graphed_step(s, c, device) if graphed else None
    for i in range(10):
        rng, size = randomness(0, 0, i, device=device), (16, 24)[i % 2]
        x = images(i, 4, 3, size, size).to(device)
        batch = NT.Triplet(x[..., :16, :16], (0.9 * x + 0.05)[..., :16, :16], 1 - x)
        s.set_lr(1e-3 / (i + 1))
        noise = normal_noise(rng.pixels)
        one = step(batch, noise) if graphed else NT.train_step(s, c, batch, noise)
        values.append({name: value.item() for name, value in one.items()})
    return s, values


@pytest.mark.parametrize(
    "changes",
    [
        {},
        MOMENTS,
        MOMENTS | dict(encoder_steps=0, grad_accum=2, second_draw_steps=10**9),
        dict(inject_noise=False, ema=0.9),
    ],
)
def test_captured_steps_are_the_plain_ones(changes: dict, device, monkeypatch) -> None:
    """Bit for bit on the CPU; on CUDA sums may go in another order."""
    if device.type == "cpu":
        monkeypatch.setattr(NT, "GraphedStep", Remembered)
    (plain, expected), (captured, found) = (train(changes, device, g) for g in (False, True))
    assert captured.step == plain.step == 10
    if device.type == "cpu":
        assert equal_states(captured.state_dict(), plain.state_dict())
        assert found == expected
        return
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(captured.state_dict()[name], value, rtol=0, atol=2e-4, msg=name)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("script", [train_denoiser, train_denoiser_synthetic])
@pytest.mark.parametrize(
    ("noise", "changes"),
    [
        ("noisetransfer", {}),
        ("noisetransfer", dict(grad_accum=2, ema=0.5, patch=18)),
        ("poisson-gaussian", dict(grad_accum=2)),
        ("real", dict(denoiser="dncnn")),
    ],
)
def test_denoisers_captured_steps_are_the_plain_ones(
    script: ModuleType, noise: str, changes: dict, device: torch.device, monkeypatch
) -> None:
    """As above, ten steps; noise that NumPy makes is put on before the graph."""
    if device.type == "cpu":
        monkeypatch.setattr(denoisers, "GraphedStep", Remembered)
    set_float32_precision("fp32")
    settings = dict(width=4, batch=4, patch=16, border=2, precision="fp32", noise=noise) | changes
    c = script.Config(**settings)
    torch.manual_seed(0)
    transfer = BASELINES.get(noise, lambda clean, reference, noise: reference)
    if noise == "noisetransfer":
        transfer = NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8)).requires_grad_(False)
        transfer.to(device)

    def trained(graphed: bool) -> denoisers.State:
        s = denoisers.State(c, device)
        s.put_lr_on(device)
        step = partial(script.train_step, s, c, transfer)
        if graphed:
            step = denoisers.graphed_step(script.train_step, s, c, transfer, device)
        for i in range(10):
            clean = images(i, 4, 3, c.patch, c.patch).to(device)
            rng = randomness(0, 0, i, device=device)
            step(clean, 0.9 * clean + 0.05, normal_noise(rng.pixels))
        return s

    plain, captured = trained(graphed=False), trained(graphed=True)
    assert captured.step == plain.step == 10
    for name, value in plain.state_dict().items():
        atol = 0 if device.type == "cpu" else 2e-4
        torch.testing.assert_close(captured.state_dict()[name], value, rtol=0, atol=atol, msg=name)


@pytest.mark.cuda
def test_a_replay_reads_the_tensors_of_the_day() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device, total = torch.device("cuda"), torch.zeros(3, device="cuda")

    def step(x: Tensor) -> dict[str, Tensor]:
        total.add_(x)
        return {"sum": x.sum()}

    graphed = GraphedStep(step, device)
    for i in range(8):
        values = graphed("add", [torch.full((3,), float(i), device=device)])
        assert values["sum"].item() == 3 * i
    assert total.tolist() == [28] * 3


def test_given_maps_are_those_that_the_generator_would_draw() -> None:
    torch.manual_seed(0)
    net, clean = NoiseGenerator(4, 8).eval(), images(0, 2, 3, 16, 16)
    z = torch.nn.functional.normalize(torch.randn(2, 8))
    maps = net.noise_maps(clean, normal_noise(torch.Generator().manual_seed(1)))
    drawn = net(clean, z, normal_noise(torch.Generator().manual_seed(1)))
    assert torch.equal(net(clean, z, given_noise(maps)), drawn)


def test_a_checkpoint_does_not_tell_how_the_rate_was_kept() -> None:
    """A run on a GPU goes on on the CPU, and the other way round."""
    s = NT.State(small(lr=2**-10))
    plain = s.content()["optimisers"]
    s.put_lr_on(torch.device("cpu"))
    assert s.content()["optimisers"] == plain
    s.set_lr(0.5)
    assert s.content()["optimisers"]["encoder"]["param_groups"][0]["lr"] == 0.5
