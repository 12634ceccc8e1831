"""What one step of the training scripts updates, learning rates, and what the loops share."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train_denoiser as REAL
import train_denoiser_synthetic as SYNTHETIC
import train_noiseTransfer as NT
from data.items import Triplet
from data.noise import NoiseModelDistribution
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.layers import NoiseSource, shared_spectral_norm
from tests.golden import recipe
from tests.helpers import equal_states
from utils import training
from utils.errors import UserError
from utils.training import Means, warm_up_cosine

SCRIPTS = [NT, REAL, SYNTHETIC]


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def parameters(network: nn.Module) -> dict[str, Tensor]:
    return {k: p.detach().clone() for k, p in network.named_parameters()}


# ----------------------------------------------------------------- one step of train_noiseTransfer


class Recorder(torch.optim.Optimizer):
    """Keeps the gradients that it is given and changes nothing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network.parameters(), {})
        self.network = network
        self.grads: dict[str, Tensor | None] = {}

    def step(self) -> None:
        for name, p in self.network.named_parameters():
            self.grads[name] = None if p.grad is None else p.grad.clone()


def triplet(seed: int = 0) -> Triplet:
    shape = (3, 3, 16, 16)
    images = (torch.from_numpy(recipe.image(seed + i, shape)) for i in range(3))
    return Triplet(*images)


def sin_noise(shape: tuple, device: torch.device) -> Tensor:
    return torch.from_numpy(recipe.noise_map(shape)).to(device)


def small(**changes: object) -> NT.Config:
    return NT.Config(**dict(width=4, embed_dim=8, queue_size=8) | changes)


def recorded_step(**changes: object) -> tuple[NT.State, Recorder, Recorder]:
    """The state after a step whose two updates were recorded and left out."""
    c = small(**changes)
    s = NT.State(c)
    encoder, generator = Recorder(s.encoder_q), Recorder(s.generator)
    s.optimisers = {"encoder": encoder, "generator": generator}
    NT.train_step(s, c, triplet(), sin_noise)
    return s, encoder, generator


def test_every_parameter_gets_a_gradient_from_its_loss():
    s, encoder, generator = recorded_step()
    for recorder in (encoder, generator):
        norms = {k: g.norm().item() for k, g in recorder.grads.items()}
        assert all(math.isfinite(norm) for norm in norms.values())
        # Far above the rounding error of a gradient that is zero in truth.
        typical = np.median(list(norms.values()))
        assert {k for k, norm in norms.items() if norm < 1e-5 * typical} == set()
    assert all(p.grad is None for p in s.parameters())  # nothing left for the next step


def test_gradients_reach_no_other_network():
    s, encoder, generator = recorded_step()
    assert not any(p.requires_grad for p in s.encoder_k.parameters())
    assert not any(p.requires_grad for p in s.generator_ema.parameters())
    no_loss = dict(w_gan=0.0, w_fm_gan=0.0, w_consistency=0.0, w_contra_adv=0.0, w_fm_noise=0.0)
    _, encoder_only, none = recorded_step(**no_loss)
    assert all(not g.any() for g in none.grads.values())  # the encoder's loss gives G nothing
    assert equal_states(encoder_only.grads, encoder.grads)  # the generator's loss gives E_q nothing
    assert any(g.any() for g in generator.grads.values())


@pytest.mark.parametrize(
    "term", ["w_gan", "w_fm_gan", "w_consistency", "w_contra_adv", "w_fm_noise"]
)
def test_every_term_of_the_generators_loss_reaches_it(term):
    no_loss = dict(w_gan=0.0, w_fm_gan=0.0, w_consistency=0.0, w_contra_adv=0.0, w_fm_noise=0.0)
    _, _, one = recorded_step(**no_loss | {term: 1.0})
    _, _, two = recorded_step(**no_loss | {term: 2.0})
    assert all(g.any() for g in one.grads.values())
    for name, g in one.grads.items():
        torch.testing.assert_close(two.grads[name], 2 * g)


@pytest.mark.parametrize("updated", ["encoder", "generator"])
def test_an_update_leaves_the_other_network_untouched(updated):
    c = small(lr=1e-2)
    s = NT.State(c)
    networks = {"encoder": s.encoder_q, "generator": s.generator}
    (other,) = networks.keys() - {updated}
    s.optimisers[other] = Recorder(networks[other])
    before = {name: parameters(network) for name, network in networks.items()}
    NT.train_step(s, c, triplet(), sin_noise)
    assert equal_states(parameters(networks[other]), before[other])
    for name, value in parameters(networks[updated]).items():
        assert not torch.equal(value, before[updated][name]), name


def test_key_encoder_and_queue_after_a_step():
    c = small(lr=1e-2, momentum=0.9)
    s = NT.State(c)
    assert equal_states(snapshot(s.encoder_k), snapshot(s.encoder_q))  # starts as a copy
    key_encoder = copy.deepcopy(s.encoder_k)
    queue, batch = s.keys.queue.clone(), triplet()
    with torch.no_grad(), shared_spectral_norm(key_encoder):
        _, z = key_encoder.embed(batch.noisy2)
    NT.train_step(s, c, batch, sin_noise)
    for name, p in s.encoder_k.named_parameters():  # after E_q's update, so from its new weights
        expected = 0.9 * key_encoder.get_parameter(name) + 0.1 * s.encoder_q.get_parameter(name)
        torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(s.keys.queue[:, :3].T, z)
    assert torch.equal(s.keys.queue[:, 3:], queue[:, 3:])
    assert s.keys.pointer.item() == 3
    assert s.step == 1


def test_step_without_and_with_averaging():
    for ema, moved in ((0.0, False), (0.75, True)):
        c = small(lr=1e-2, ema=ema)
        s = NT.State(c)
        before = parameters(s.generator)
        NT.train_step(s, c, triplet(), sin_noise)
        now, average = parameters(s.generator), parameters(s.generator_ema)
        for name in before:
            expected = 0.75 * before[name] + 0.25 * now[name] if moved else before[name]
            torch.testing.assert_close(average[name], expected)


def test_initial_weights_follow_the_seed():
    a, b, c = (snapshot(NT.State(small(seed=seed))) for seed in (0, 0, 1))
    assert equal_states(a, b)
    assert not equal_states(a, c)


# -------------------------------------------------------------------- one step of the denoisers


class Spy(nn.Module):
    """A denoiser of one parameter that keeps its input."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.25))

    def forward(self, noisy: Tensor) -> Tensor:
        self.seen = noisy
        return noisy + self.shift


@pytest.mark.parametrize("border", [4, 0])
def test_denoiser_step(border):
    """L1 between the denoised and the clean patch, both without their border."""
    c = REAL.Config(border=border, width=4, ema=0.5)
    s = REAL.State(c)
    s.denoiser, s.denoiser_ema = Spy(), Spy()
    s.optimisers = {"denoiser": torch.optim.SGD(s.denoiser.parameters(), lr=0.5)}
    transfer = NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    before = snapshot(transfer)
    clean, reference = triplet(0).clean, triplet(5).clean
    values = REAL.train_step(s, c, transfer, clean, reference, sin_noise)

    inside = slice(border, 16 - border)
    noisy = transfer.transfer(clean, reference, sin_noise)[..., inside, inside]
    torch.testing.assert_close(s.denoiser.seen, noisy)
    error = noisy + 0.25 - clean[..., inside, inside]
    assert values["loss_l1"].item() == pytest.approx(error.abs().mean().item(), rel=1e-5)
    shift = 0.25 - 0.5 * error.sign().mean().item()
    assert s.denoiser.shift.item() == pytest.approx(shift, rel=1e-5)
    assert s.denoiser_ema.shift.item() == pytest.approx((0.25 + shift) / 2, rel=1e-5)
    assert s.step == 1
    assert equal_states(snapshot(transfer), before)


def test_synthetic_noise_models():
    reference, validation = SYNTHETIC.RECIPE.noise, SYNTHETIC.VALIDATION_NOISE
    thirds = (1 / 3, 1 / 3, 1 / 3)
    assert reference == NoiseModelDistribution(thirds, sigma=(0, 50), chi=(5, 50))
    assert validation == NoiseModelDistribution((0, 0, 1), sigma=(25, 25), chi=(30, 30))


# ------------------------------------------------------------------------------ learning rates


@pytest.mark.parametrize("script", [REAL, SYNTHETIC])
def test_halved_after_150_170_and_190_epochs(script):
    c = script.Config()
    rates = [script.learning_rate(c, epoch * 5000 + at) for epoch in range(200) for at in (0, 4999)]
    expected = 150 * [1] + 20 * [1 / 2] + 20 * [1 / 4] + 10 * [1 / 8]
    assert rates == pytest.approx([1e-4 * x for x in expected for _ in range(2)])


def test_constant_rate():
    c = NT.Config()
    assert {NT.learning_rate(c, step) for step in (0, 1, 199_999, 399_999)} == {1e-4}


@pytest.mark.parametrize("script", SCRIPTS)
def test_cosine_rate(script):
    c = script.Config(lr=2.0, lr_decay="cosine", epochs=4, steps_per_epoch=25, warm_up=0)
    assert script.learning_rate(c, 0) == 2
    assert script.learning_rate(c, 50) == pytest.approx(1)
    assert script.learning_rate(c, 25) == pytest.approx(1 + math.sqrt(0.5))
    assert 0 < script.learning_rate(c, 99) < 0.001


def test_warm_up():
    """Linear: 1/4, 2/4, 3/4, 1 times the cosine."""
    for step, rise in enumerate((0.25, 0.5, 0.75, 1, 1)):
        plain = warm_up_cosine(step, 100, 0)
        assert warm_up_cosine(step, 100, 4) == pytest.approx(rise * plain)


# ------------------------------------------------------------------------ means, watch, lost runs


def test_means_since_the_last_reading():
    means = Means(torch.device("cpu"))
    for step, value in enumerate((1.0, 2.0, 6.0), start=1):
        means.update({"a": torch.tensor(value), "b": torch.tensor(-value)}, step)
    assert means.read() == {"a": 3, "b": -3}
    means.update({"a": torch.tensor(5.0), "b": torch.tensor(7.0)}, 4)
    assert means.read() == {"a": 5, "b": 7}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("by_reading", [False, True])
def test_values_that_are_not_finite_name_their_step_and_term(value, by_reading):
    means = Means(torch.device("cpu"))
    fine = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    means.update(fine, 6)
    means.update(fine | {"b": torch.tensor(value)}, 7)
    with pytest.raises(UserError, match=r"step 7: b not finite \(.*'a': 1\.0"):
        means.read() if by_reading else means.update(fine, 8)


def test_steps_left_out_in_a_row():
    state = training.TrainingState()
    bad, good = [torch.tensor([1.0, torch.nan])], [torch.tensor([1.0]), torch.ones(2, 2)]
    assert state.skips(bad, limit=2)
    assert state.skips(good + bad, limit=2)
    assert not state.skips(good, limit=2)
    assert state.skips(bad, limit=2)
    assert state.skips([torch.tensor([torch.inf])], limit=2)
    with pytest.raises(UserError, match="not finite for the 3th time in a row"):
        state.skips(bad, limit=2)


def test_a_step_left_out_changes_nothing():
    c = small(skip_nonfinite=1)
    s = NT.State(c)
    before = {k: v for k, v in snapshot(s).items() if not k.endswith(("_u", "_v"))}
    batch = triplet()
    batch.clean[0, 0, 0, 0] = torch.nan
    NT.train_step(s, c, batch, sin_noise)
    assert s.step == 1
    after = s.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())


# ------------------------------------------------------------------------ gradient accumulation


def rows_of_whole_batch() -> NoiseSource:
    """A source that hands out the rows of whole-batch maps in turn, layer by layer."""
    seen = {}

    def noise(shape: tuple, device: torch.device) -> Tensor:
        whole = torch.from_numpy(recipe.noise_map((6, *shape[1:])))
        # one call a layer and part: 16 layers of one size at full resolution, 12, 4
        calls = seen[shape] = seen.get(shape, -1) + 1
        layers = {16: 16, 8: 12, 4: 4}[shape[2]]
        first = calls // layers * shape[0]
        return whole[first : first + shape[0]].to(device)

    return noise


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    batch = Triplet(*(torch.from_numpy(recipe.image(i, (6, 3, 16, 16))) for i in range(3)))
    grads, values, states = [], [], []
    for grad_accum in (1, parts):
        c = small(grad_accum=grad_accum)
        s = NT.State(c)
        recorders = {"encoder": Recorder(s.encoder_q), "generator": Recorder(s.generator)}
        s.optimisers = recorders
        values.append(NT.train_step(s, c, batch, rows_of_whole_batch()))
        grads.append({n: r.grads for n, r in recorders.items()})
        states.append(snapshot(s))
    for name in ("encoder", "generator"):
        for key, grad in grads[0][name].items():
            other = grads[1][name][key]
            # float32: another order of sums, relative to the network's gradients
            assert (grad - other).norm() <= 1e-4 * grad.norm() + 1e-6, key
    for name, value in values[0].items():
        assert values[1][name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    torch.testing.assert_close(states[1]["keys.queue"], states[0]["keys.queue"])


def test_accumulated_gradients_of_a_denoiser():
    transfer = NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    clean, reference = (torch.from_numpy(recipe.image(i, (6, 3, 16, 16))) for i in (1, 2))
    grads = []
    for grad_accum in (1, 3):
        c = REAL.Config(width=4, border=2, grad_accum=grad_accum)
        s = REAL.State(c)
        recorder = Recorder(s.denoiser)
        s.optimisers = {"denoiser": recorder}
        REAL.train_step(s, c, transfer, clean, reference, rows_of_whole_batch())
        grads.append(recorder.grads)
    for key, grad in grads[0].items():
        assert (grad - grads[1][key]).norm() <= 1e-4 * grad.norm() + 1e-6, key


def test_spectrum_terms_leave_the_border_out() -> None:
    """Other noise in the outer 4 of 24 pixels: they stay as they are, the other terms do not."""
    c = small(**NT.OUR_TERMS, **NT.NO_ADVERSARY, border=4)
    x = torch.from_numpy(recipe.image(0, (3, 3, 24, 24)))
    noisy = x + 0.1 * (torch.from_numpy(recipe.image(1, x.shape)) - 0.5)
    other = 1 - noisy
    other[..., 4:-4, 4:-4] = noisy[..., 4:-4, 4:-4]
    one, two = (
        NT.train_step(NT.State(c), c, Triplet(x, y, noisy), sin_noise) for y in (noisy, other)
    )
    for name in ("loss_band", "loss_shape", "loss_autocorrelation"):
        assert torch.equal(one[name], two[name]), name
    assert two["loss_local_variance"] > one["loss_local_variance"] + 0.2


def test_init_starts_from_weights(tmp_path: Path) -> None:
    trained = NT.State(small(seed=1, w_statistics=1.0))
    NT.export(trained, small(), tmp_path)
    s = NT.State(small(init=str(tmp_path), w_statistics=1.0))
    for name in ("encoder_q", "encoder_k", "generator", "statistics"):
        assert equal_states(getattr(s, name).state_dict(), getattr(trained, name).state_dict())
    assert equal_states(s.generator_ema.state_dict(), trained.generator.state_dict())
    with pytest.raises(UserError, match=r"VUNet.pt: .* is \(4, .*, expected|choose the width"):
        NT.State(small(init=str(tmp_path), width=8))
    (tmp_path / "statistics.pt").unlink()  # weights of the paper's terms have no head
    NT.State(small(init=str(tmp_path), w_statistics=1.0))
