"""The oracle against the published figures, and the networks in use against the oracle."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from tests.golden import recipe
from tests.helpers import load_recipe
from tests.oracle import (
    OracleEncoder,
    OracleGenerator,
    OracleTrainer,
    akld,
    blur21,
    contrastive_loss,
    ks,
    local_variance,
    oracle_transfer,
)

SINGLE = 1e-4  # recipe.py, for one forward
STEPS = (1e-3, 5e-3, 1e-2)  # recipe.py for the first and the third step; between them, between


def tensor(a: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32))


def sin_noise(shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
    return tensor(recipe.noise_map(shape)).to(device)


def zero_noise(shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
    return torch.zeros(shape, device=device)


def check(x: Tensor, summary: dict, tolerance: float = SINGLE) -> None:
    flat = x.detach().double().flatten()
    assert list(x.shape) == summary["shape"]
    assert flat.mean().item() == pytest.approx(summary["mean"], abs=tolerance)
    assert flat.std().item() == pytest.approx(summary["std"], abs=tolerance)
    assert flat[:4].tolist() == pytest.approx(summary["first"], abs=tolerance)
    assert flat[-4:].tolist() == pytest.approx(summary["last"], abs=tolerance)


@pytest.fixture(scope="module")
def encoder(official_shapes: dict) -> OracleEncoder:
    return load_recipe(OracleEncoder(), "encoder", official_shapes).eval()


@pytest.fixture(scope="module")
def generator(official_shapes: dict) -> OracleGenerator:
    return load_recipe(OracleGenerator(), "generator", official_shapes).eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    x = recipe.image(1, (2, 3, 32, 48))
    y = x + 0.1 * (recipe.image(2, (2, 3, 32, 48)) - 0.5)
    return tensor(x), tensor(y), tensor(recipe.unit_rows(recipe.image(3, (2, 128)) - 0.5))


@torch.no_grad()
def test_embed(encoder, inputs, golden):
    _, y, _ = inputs
    features, z = encoder.embed(y)
    expected = golden["encoder_embed"]
    for f, summary in zip(features, expected["features"], strict=True):
        check(f, summary)
    check(z, expected["embedding"])
    assert z.norm(dim=1).tolist() == pytest.approx(expected["embedding_l2"], abs=1e-6)


@torch.no_grad()
def test_discriminate(encoder, inputs, golden):
    features, logits = encoder.discriminate(*inputs)
    expected = golden["encoder_discriminate"]
    for g, summary in zip(features, expected["features"], strict=True):
        check(g, summary)
    for d, summary in zip(logits, expected["logits"], strict=True):
        check(d, summary)


@torch.no_grad()
def test_generate(generator, inputs, golden):
    x, _, z = inputs
    check(generator(x, z, zero_noise), golden["generator_zero_noise"])
    check(generator(x, z, sin_noise), golden["generator_sin_noise"])


def test_contrastive(golden):
    q = recipe.unit_rows(recipe.image(4, (6, 128)) - 0.5)
    k = recipe.unit_rows(q + 0.3 * (recipe.image(5, (6, 128)) - 0.5))
    queue = recipe.unit_columns(recipe.image(6, (128, 64)) - 0.5)
    loss, accuracy = contrastive_loss(tensor(q), tensor(k), tensor(queue))
    assert loss.item() == pytest.approx(golden["contrastive"]["loss"], abs=1e-6)
    assert accuracy == golden["contrastive"]["accuracy"]


def test_blur(inputs, golden):
    check(blur21(inputs[0]), golden["blur21"], 1e-6)


def test_metrics(golden):
    clean = recipe.image(7, (1, 3, 64, 80))
    r = np.random.RandomState(8)
    real = np.clip(clean + 0.10 * r.standard_normal(clean.shape), 0, 1).astype(np.float32)
    fake = np.clip(clean + 0.07 * r.standard_normal(clean.shape), 0, 1).astype(np.float32)
    expected = golden["metrics"]
    check(tensor(local_variance((real - clean)[0])[None]), expected["sigma_real"], 1e-7)
    assert akld(fake[0], real[0], clean[0]) == pytest.approx(expected["akld"], abs=1e-6)
    assert ks(fake[0], real[0], clean[0]) == pytest.approx(expected["ks"], abs=1e-6)


def test_three_training_steps(golden, official_shapes):
    queue = recipe.unit_columns(np.random.RandomState(9).standard_normal((128, 4096)))
    trainer = OracleTrainer(
        load_recipe(OracleEncoder(), "encoder", official_shapes),
        OracleEncoder(),
        load_recipe(OracleGenerator(), "generator", official_shapes),
        tensor(queue),
        sin_noise,
    )
    shape = (2, 3, 32, 32)
    for i, expected in enumerate(golden["train_steps"]):
        clean, r = recipe.image(100 + i, shape), np.random.RandomState(200 + i)
        noisy1 = np.clip(clean + 0.10 * r.standard_normal(shape), 0, 1)
        noisy2 = np.clip(recipe.image(300 + i, shape) + 0.10 * r.standard_normal(shape), 0, 1)
        values = trainer.step(tensor(clean), tensor(noisy1), tensor(noisy2))
        assert values.keys() == expected.keys()
        for name, value in expected.items():
            assert values[name] == pytest.approx(value, abs=STEPS[i]), (i, name)

    after = golden["after_3_steps"]
    for name in ("encoder_q", "encoder_k", "generator"):
        weights = getattr(trainer, name).state_dict()
        for key, sums in after[name].items():
            w = weights[key].double()
            # Adam's first steps are near lr * sign(gradient): rounding flips the step of a weight
            # of tiny gradient: an error of 2 lr. Five standard deviations of the sum if each of the
            # three steps flips a tenth of the weights at random. The key encoder moves by 1e-3 of
            # that, but its sum itself is rounded to some 1e-6.
            lr = 1e-4 if name != "encoder_k" else 1e-7
            slack = 5 * 2 * lr * (3 * 0.1 * w.numel()) ** 0.5 + 1e-6
            assert w.sum().item() == pytest.approx(sums["sum"], abs=slack), key
            assert w.abs().sum().item() == pytest.approx(sums["abs_sum"], abs=slack), key
    assert trainer.queue_ptr == after["queue_ptr"]
    first6 = trainer.queue[:4, :6].flatten().tolist()
    assert first6 == pytest.approx(after["queue_first6"], abs=STEPS[2])


@pytest.mark.parametrize("name", ["encoder", "generator"])
def test_keys_and_shapes(name, official_shapes):
    """Names, shapes and order (an official optimiser state goes by the order)."""
    network = {"encoder": OracleEncoder, "generator": OracleGenerator}[name]()
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert list(shapes.items()) == list(official_shapes[name].items())


def test_queue_is_first_in_first_out():
    d, size, batch = 4, 6, 2
    trainer = OracleTrainer(
        OracleEncoder(2, d), OracleEncoder(2, d), OracleGenerator(2, d), torch.zeros(d, size)
    )
    for i in range(4):
        trainer.enqueue(torch.full((batch, d), float(i)))
    assert trainer.queue[0].tolist() == [3, 3, 1, 1, 2, 2]
    assert trainer.queue_ptr == 2


# -------------------------------------------------- the networks in use, against the oracle's


@pytest.fixture(scope="module")
def small_weights() -> list[dict[str, Tensor]]:
    """Of an encoder and a generator whose width and dimension have no round ratio."""
    states = []
    for name, network in (("encoder", OracleEncoder(6, 14)), ("generator", OracleGenerator(6, 14))):
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        states.append({k: tensor(v) for k, v in recipe.weights(name, shapes).items()})
    return states


@pytest.fixture
def pair(small_weights) -> tuple[OracleEncoder, OracleGenerator, NoiseEncoder, NoiseGenerator]:
    """Networks of equal weights."""
    networks = (
        OracleEncoder(6, 14),
        OracleGenerator(6, 14),
        NoiseEncoder(6, 14),
        NoiseGenerator(6, 14),
    )
    for network, state in zip(networks, small_weights * 2, strict=True):
        network.load_state_dict(state)
    return networks


def batch(seed: int, *shape: int) -> Tensor:
    return tensor(recipe.image(seed, shape))


def unit(seed: int, *shape: int) -> Tensor:
    return tensor(recipe.unit_rows(recipe.image(seed, shape) - 0.5))


def assert_same(
    oracle: nn.Module, network: nn.Module, a: list[Tensor], b: list[Tensor], seed: int
) -> None:
    """Outputs, the gradients of a random projection of them, and spectral-norm vectors."""
    torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    for outputs in (a, b):
        sum((x * batch(seed, *x.shape)).sum() for x in outputs).backward()
    gradients = {key: p.grad for key, p in oracle.named_parameters()}
    for key, p in network.named_parameters():
        expected = gradients.pop(key)
        assert (p.grad is None) == (expected is None), key
        if expected is not None:
            # Float32 sums of up to some 1e4 terms in other orders: relative to the largest entry.
            slack = 1e-3 * expected.abs().max().item() + 1e-5
            torch.testing.assert_close(p.grad, expected, rtol=0, atol=slack, msg=key)
    assert not gradients
    buffers = dict(oracle.named_buffers())
    for key, value in network.named_buffers():
        torch.testing.assert_close(value, buffers[key], rtol=0, atol=1e-5, msg=key)


@pytest.mark.parametrize("training", [False, True])
def test_embed_equals_oracle(pair, training):
    oracle, _, network, _ = pair
    y = batch(11, 3, 3, 24, 32)
    (a, za), (b, zb) = (n.train(training).embed(y) for n in (oracle, network))
    assert_same(oracle, network, [*a, za], [*b, zb], 12)


@pytest.mark.parametrize("training", [False, True])
def test_discriminate_equals_oracle(pair, training):
    oracle, _, network, _ = pair
    clean, noisy, z = batch(13, 3, 3, 24, 32), batch(14, 3, 3, 24, 32), unit(15, 3, 14)
    (a, la), (b, lb) = (n.train(training).discriminate(clean, noisy, z) for n in (oracle, network))
    assert_same(oracle, network, [*a, *la], [*b, *lb], 16)


@pytest.mark.parametrize("training", [False, True])
def test_generate_equals_oracle(pair, training):
    _, oracle, _, network = pair
    clean, z = batch(17, 3, 3, 24, 32), unit(18, 3, 14)
    a, b = (n.train(training)(clean, z, sin_noise) for n in (oracle, network))
    assert_same(oracle, network, [a], [b], 19)


@pytest.mark.parametrize("size", [(24, 32), (21, 31), (37, 18)])
def test_transfer_equals_oracle(pair, size):
    """Any size; the reference's size is its own, and odd."""
    encoder, generator, *ours = pair
    clean, reference = batch(20, 2, 3, *size), batch(21, 2, 3, 29, 35)
    expected = oracle_transfer(encoder.eval(), generator.eval(), clean, reference, sin_noise)
    result = NoiseTransfer(*ours).transfer(clean, reference, sin_noise)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
