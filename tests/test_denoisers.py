"""Denoisers: parity, size, form and behaviour at every image size."""

import pytest
import torch
from torch import nn

from models.denoisers import UNet, build_denoiser, denoiser_from_checkpoint
from models.generator import NoiseGenerator
from tests.golden import recipe
from utils.errors import UserError
from utils.padding import pad_to_multiple

NAMES = ["ridnet", "dncnn", "unet"]


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(recipe.image(seed, shape))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def last_layer(network: nn.Module) -> nn.Conv2d:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)][-1]


def settle_batch_norm(network: nn.Module) -> nn.Module:
    """Running statistics of real activations, so that evaluation differs from the initial state."""
    with torch.no_grad():
        network.train()(images(31, 2, 3, 24, 24))
    return network.eval()


@torch.no_grad()
def test_ridnet_golden(golden, official_shapes, device):
    network = build_denoiser("ridnet")
    state = recipe.weights("ridnet", official_shapes["ridnet"])
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    y = images(1, 2, 3, 32, 48)
    y = y + 0.1 * (images(2, 2, 3, 32, 48) - 0.5)
    out, expected = network.to(device)(y.to(device)).cpu(), golden["ridnet"]
    assert list(out.shape) == expected["shape"]
    # recipe.py names 1e-4 for one forward; on CUDA, TF32 convolutions keep 10 bits of mantissa.
    tolerance = 1e-4 if device.type == "cpu" else 1e-2
    assert out.mean().item() == pytest.approx(expected["mean"], abs=tolerance)
    assert out.std().item() == pytest.approx(expected["std"], abs=tolerance)
    assert out.flatten()[:4].tolist() == pytest.approx(expected["first"], abs=tolerance)
    assert out.flatten()[-4:].tolist() == pytest.approx(expected["last"], abs=tolerance)


def test_ridnet_keys_and_shapes(official_shapes):
    state = build_denoiser("ridnet").state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    assert list(shapes.items()) == list(official_shapes["ridnet"].items())


@pytest.mark.parametrize("width", [64, 16, 8])
def test_parameter_counts(width):
    c, r = width, max(4, width // 16)

    def conv(c_in: int, c_out: int, kernel: int = 3) -> int:
        return c_in * c_out * kernel**2 + c_out

    attention = conv(c, r, 1) + conv(r, c, 1)
    block = 8 * conv(c, c) + conv(2 * c, c) + conv(c, c, 1) + attention
    ridnet = conv(3, c) + 4 * block + conv(c, 3)
    # 18 middle layers: a convolution without bias, BN's scale and shift.
    dncnn = conv(3, c) + 18 * (9 * c * c + 2 * c) + conv(c, 3)
    unet = conv(3, c) + conv(c, c) + conv(c, 3)
    for k in (2 * c, 4 * c, 8 * c):
        half = k // 2
        unet += 2 * conv(k, k)  # encoder
        unet += 2 * conv(half, k, 2) - k + half  # down and up; up's bias has the narrow width
        unet += conv(2 * half, half) + conv(half, half)  # decoder
    assert parameters(build_denoiser("ridnet", width)) == ridnet
    assert parameters(build_denoiser("dncnn", width)) == dncnn
    assert parameters(build_denoiser("unet", width)) == unet


@pytest.mark.parametrize(
    ("name", "count"), [("ridnet", 1_499_347), ("dncnn", 669_379), ("unet", 9_936_323)]
)
def test_published_width(name, count):
    assert parameters(build_denoiser(name)) == count


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name, device):
    # A narrow channel attention may have every ReLU shut for a given input: fixed weights.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_denoiser(name, 64 if name == "ridnet" else 16).to(device)
    noisy, clean = (images(seed, 2, 3, 24, 32).to(device) for seed in (32, 33))
    nn.functional.l1_loss(network(noisy), clean).backward()
    for key, p in network.named_parameters():
        assert p.grad is not None, key
        assert torch.isfinite(p.grad).all(), key
        assert p.grad.abs().sum() > 0, key


@pytest.mark.parametrize("size", [(37, 53), (8, 16), (5, 7), (2, 9), (1, 30), (1, 1)])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_any_size(name, size, device):
    network = build_denoiser(name, 8).to(device).eval()
    noisy = images(34, 2, 3, *size).to(device)
    out = network(noisy)
    assert out.shape == noisy.shape
    assert out.dtype == noisy.dtype
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("size", [(24, 32), (13, 21)])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_residual_form(name, size):
    """With the last layer zero the network is the identity, at odd sizes too."""
    network = build_denoiser(name, 8).eval()
    tail = last_layer(network)
    assert tail.out_channels == 3
    tail.weight.zero_()
    tail.bias.zero_()
    noisy = images(35, 2, 3, *size)
    assert torch.equal(network(noisy), noisy)
    # A bias shifts the image by as much: added by ridnet and unet, subtracted by dncnn. Beyond
    # [0, 1], so it is not clipped either.
    tail.bias.fill_(2.0)
    shift = -2.0 if name == "dncnn" else 2.0
    torch.testing.assert_close(network(noisy), noisy + shift)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_evaluation_is_deterministic_and_batch_independent(name):
    network = settle_batch_norm(build_denoiser(name, 8))
    noisy = images(36, 3, 3, 17, 20)
    together = network(noisy)
    assert torch.equal(network(noisy), together)
    alone = torch.cat([network(image[None]) for image in noisy])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


# dncnn: 20 convolutions of radius 1. unet, in pixels: 2 + 2*2 + 2*4 + 2*8 + 2*4 + 2*2 + 2, plus the
# tail's 1 and up to 7 for the 2x2 joints; it moves by whole cells of 8 only.
@pytest.mark.parametrize(("name", "shift", "radius"), [("dncnn", 5, 20), ("unet", 8, 52)])
@torch.no_grad()
def test_shifted_image_gives_shifted_result(name, shift, radius):
    network = settle_batch_norm(build_denoiser(name, 8))
    noisy = images(37, 1, 3, 2 * radius + 32, 2 * radius + 32)
    whole, cut = network(noisy), network(noisy[..., shift:, shift:])
    inner = slice(radius, -radius)
    torch.testing.assert_close(
        whole[..., shift:, shift:][..., inner, inner], cut[..., inner, inner], rtol=0, atol=1e-5
    )
    # Not vacuous: at the cut itself the results differ.
    assert (whole[..., shift, shift:] - cut[..., 0, :]).abs().max() > 1e-3


@torch.no_grad()
def test_unet_pads_by_reflection():
    network = UNet(8).eval()
    noisy = images(38, 1, 3, 13, 21)
    padded = torch.nn.functional.pad(noisy, (0, 3, 0, 3), mode="reflect")
    torch.testing.assert_close(network(noisy), network(padded)[..., :13, :21])


def test_pad_to_multiple():
    row = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 1, 8, 5)
    assert pad_to_multiple(row, 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    # Three rows cannot be reflected into eight: edges are repeated on both axes.
    assert pad_to_multiple(row[:, :, :3], 8)[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    full = torch.zeros(1, 1, 8, 16)
    assert pad_to_multiple(full, 8) is full


def test_dncnn_he_initialisation():
    """Standard deviation sqrt(2 / fan_in) in every layer, first and last included; biases zero."""
    layers = [m for m in build_denoiser("dncnn").modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 20
    for layer in layers:
        n, sigma = layer.weight.numel(), (2 / (layer.in_channels * 9)) ** 0.5
        # The standard error of a normal sample's deviation is sigma / sqrt(2 n); six of them.
        assert layer.weight.std().item() == pytest.approx(sigma, abs=6 * sigma / (2 * n) ** 0.5)
        assert layer.bias is None or layer.bias.abs().max() == 0
    assert [layer.bias is None for layer in layers] == [False] + 18 * [True] + [False]


def test_unknown_name():
    with pytest.raises(UserError, match=r"'bm3d'.*ridnet.*dncnn.*unet"):
        build_denoiser("bm3d")


# ---- from files


@pytest.mark.parametrize("name", ["ridnet", "dncnn", "unet"])
def test_denoiser_from_checkpoint(name: str, tmp_path):
    denoiser = build_denoiser(name, width=6).eval()
    path = tmp_path / "any_g.pt"
    torch.save({f"module.{k}": v for k, v in denoiser.state_dict().items()}, path)
    loaded = denoiser_from_checkpoint(path)
    x = torch.rand(1, 3, 17, 20)
    assert not loaded.training
    assert torch.equal(loaded(x), denoiser(x))


def test_denoiser_from_checkpoint_refuses_other_networks(tmp_path):
    path = tmp_path / "ridnet_g.pt"
    torch.save(NoiseGenerator(4, 8).state_dict(), path)
    with pytest.raises(UserError, match=r"ridnet_g.pt: not the weights of ridnet, dncnn or unet"):
        denoiser_from_checkpoint(path)
    state = build_denoiser("ridnet", width=6).state_dict()
    del state["tail.bias"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"ridnet_g.pt: .*RIDNet.* lacks tail.bias"):
        denoiser_from_checkpoint(path)
