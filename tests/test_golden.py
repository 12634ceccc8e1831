"""Parity with the official implementation, on the code that training and inference really use."""

import numpy as np
import pytest
import torch

import train_noiseTransfer as script
from data.items import Triplet
from models import NoiseEncoder, NoiseGenerator
from models.losses import contrastive_loss
from tests.golden import recipe
from tests.helpers import load_recipe
from utils.filters import gaussian_blur
from utils.precision import set_float32_precision


def tensor(a: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(a)).float().to(device)


def check(x: torch.Tensor, summary: dict, tolerance: float = 1e-4) -> None:
    """Compare a tensor with its summary in golden.json (shape, mean, std, first and last four)."""
    flat = x.detach().float().cpu().flatten()
    assert list(x.shape) == summary["shape"]
    assert flat.mean().item() == pytest.approx(summary["mean"], abs=tolerance)
    assert flat.std().item() == pytest.approx(summary["std"], abs=tolerance)
    assert flat[:4].tolist() == pytest.approx(summary["first"], abs=tolerance)
    assert flat[-4:].tolist() == pytest.approx(summary["last"], abs=tolerance)


def sin_noise(shape: tuple, device: torch.device) -> torch.Tensor:
    return tensor(recipe.noise_map(shape), device)


def zero_noise(shape: tuple, device: torch.device) -> torch.Tensor:
    return torch.zeros(shape, device=device)


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    x = recipe.image(1, (2, 3, 32, 48))
    return {
        "x": tensor(x),
        "y": tensor(x + 0.1 * (recipe.image(2, (2, 3, 32, 48)) - 0.5)),
        "z": tensor(recipe.unit_rows(recipe.image(3, (2, 128)) - 0.5)),
    }


@pytest.fixture(scope="module")
def encoder(official_shapes: dict) -> NoiseEncoder:
    return load_recipe(NoiseEncoder(), "encoder", official_shapes).eval()


@pytest.fixture(scope="module")
def generator(official_shapes: dict) -> NoiseGenerator:
    return load_recipe(NoiseGenerator(), "generator", official_shapes).eval()


@pytest.fixture(autouse=True)
def float32() -> None:
    """cuDNN's convolutions would use TF32 otherwise."""
    set_float32_precision("fp32")


@torch.no_grad()
def test_embed(encoder, inputs, golden, device):
    features, z = encoder.to(device).embed(inputs["y"].to(device))
    expected = golden["encoder_embed"]
    for f, summary in zip(features, expected["features"], strict=True):
        check(f, summary)
    check(z, expected["embedding"])
    assert z.norm(dim=1).tolist() == pytest.approx(expected["embedding_l2"], abs=1e-5)


@torch.no_grad()
def test_discriminate(encoder, inputs, golden, device):
    x, y, z = (inputs[k].to(device) for k in "xyz")
    features, logits = encoder.to(device).discriminate(x, y, z)
    expected = golden["encoder_discriminate"]
    for f, summary in zip(features, expected["features"], strict=True):
        check(f, summary)
    for d, summary in zip(logits, expected["logits"], strict=True):
        check(d, summary)


@pytest.mark.parametrize("kind", ["zero", "sin"])
@torch.no_grad()
def test_generate(generator, inputs, golden, device, kind):
    noise = {"zero": zero_noise, "sin": sin_noise}[kind]
    residual = generator.to(device)(inputs["x"].to(device), inputs["z"].to(device), noise)
    check(residual, golden[f"generator_{kind}_noise"])


def test_contrastive_loss(golden, device):
    q = recipe.unit_rows(recipe.image(4, (6, 128)) - 0.5)
    k = recipe.unit_rows(q + 0.3 * (recipe.image(5, (6, 128)) - 0.5))
    queue = recipe.unit_columns(recipe.image(6, (128, 64)) - 0.5)
    loss, accuracy = contrastive_loss(*(tensor(a, device) for a in (q, k, queue)))
    assert loss.item() == pytest.approx(golden["contrastive"]["loss"], abs=1e-4)
    assert accuracy.item() == golden["contrastive"]["accuracy"]


def test_consistency_blur(inputs, golden, device):
    check(gaussian_blur(inputs["x"].to(device), 21, 3.5), golden["blur21"])


def test_three_training_steps(golden, official_shapes, device):
    """The logged values, then sums over weights and the queue (tolerances: recipe.py)."""
    c = script.Config()
    state = script.State(c, device)
    for encoder in (state.encoder_q, state.encoder_k):
        load_recipe(encoder, "encoder", official_shapes)
    load_recipe(state.generator, "generator", official_shapes)
    queue = np.random.RandomState(9).standard_normal((128, 4096))
    state.keys.queue.copy_(tensor(recipe.unit_columns(queue)))

    shape = (2, 3, 32, 32)
    for i, expected in enumerate(golden["train_steps"]):
        r = np.random.RandomState(200 + i)
        clean = recipe.image(100 + i, shape)
        noisy1 = np.clip(clean + 0.10 * r.standard_normal(shape), 0, 1)
        noisy2 = recipe.image(300 + i, shape) + 0.10 * r.standard_normal(shape)
        batch = Triplet(*(tensor(a, device) for a in (clean, noisy1, np.clip(noisy2, 0, 1))))
        values = script.train_step(state, c, batch, sin_noise)
        assert values.keys() == expected.keys()
        tolerance = (1e-3, 5e-3, 1e-2)[i]
        for name, value in expected.items():
            assert values[name].item() == pytest.approx(value, abs=tolerance), (i, name)

    networks = {
        "encoder_q": state.encoder_q,
        "encoder_k": state.encoder_k,
        "generator": state.generator,
    }
    for name, network in networks.items():
        weights = network.state_dict()
        for key, sums in golden["after_3_steps"][name].items():
            w = weights[key].double()
            # Adam moves each weight by at most lr a step: an error in one step's sign moves the
            # sums by far less than 1e-3 of the absolute sum.
            slack = 1e-4 * sums["abs_sum"]
            assert w.sum().item() == pytest.approx(sums["sum"], abs=slack), key
            assert w.abs().sum().item() == pytest.approx(sums["abs_sum"], abs=slack), key
    assert state.keys.pointer.item() == golden["after_3_steps"]["queue_ptr"]
    first = state.keys.queue[:4, :6].flatten().tolist()
    assert first == pytest.approx(golden["after_3_steps"]["queue_first6"], abs=1e-2)
