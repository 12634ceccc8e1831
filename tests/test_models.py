"""Encoder, generator and their spectral normalisation: form, size, what crosses samples."""

import pytest
import torch
from torch import Tensor, nn

from models.encoder import NoiseEncoder
from models.generator import NoiseGenerator, normal_noise
from models.layers import (
    SNConv2d,
    SNConvTranspose2d,
    SNLinear,
    SpectralWeight,
    converge_spectral_norm,
    shared_spectral_norm,
)
from models.tiles import bytes_per_pixel
from tests.helpers import images

NETWORKS = {"encoder": NoiseEncoder, "generator": NoiseGenerator}


@pytest.fixture
def encoder() -> NoiseEncoder:
    return NoiseEncoder(4, 8).eval()


@pytest.fixture
def generator() -> NoiseGenerator:
    return NoiseGenerator(4, 8).eval()


def spectral_weights(network: nn.Module) -> list[SpectralWeight]:
    return [m for m in network.modules() if isinstance(m, SpectralWeight)]


def spectral_vectors(network: nn.Module) -> list[Tensor]:
    return [b.clone() for name, b in network.named_buffers() if name.endswith(("_u", "_v"))]


def spectral_norm(w: SpectralWeight) -> Tensor:
    """Of the normalised weight, by a singular value decomposition."""
    return torch.linalg.svdvals(w().detach().transpose(0, w.dim).flatten(1))[0]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------- form, size


@pytest.mark.parametrize("name", NETWORKS)
def test_official_keys_and_shapes(name, official_shapes):
    state = NETWORKS[name]().state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == official_shapes[name]


@pytest.mark.parametrize(("name", "millions"), [("encoder", 9.38), ("generator", 7.38)])
def test_parameter_count(name, millions):
    count = sum(p.numel() for p in NETWORKS[name]().parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("name", NETWORKS)
def test_width_scales_every_layer(name, official_shapes):
    """At width 64 / 4 and d = 128 / 4, every axis but image and logit channels is a quarter."""
    small = NETWORKS[name](16, 32).state_dict()
    assert small.keys() == official_shapes[name].keys()
    key = {"encoder": "mlp_noise.linear2.linear", "generator": "conv_last.conv2d"}[name]
    expected = {"encoder": (32, 7 * 16), "generator": (3, 16, 1, 1)}[name]
    assert small[f"{key}.weight_orig"].shape == expected
    for key, value in small.items():
        if key.endswith("weight_u"):
            full = official_shapes[name][key][0]
            assert len(value) == (full if full in (1, 3) else full // 4), key


def test_sft_layers_and_their_noise_maps(generator):
    """32 SFT layers, a map of one channel each at the layer's own resolution, asked for in turn."""
    asked = []

    def noise(shape: tuple, device: torch.device) -> Tensor:
        asked.append(shape)
        return torch.zeros(shape, device=device)

    out = generator(images(1, 2, 3, 16, 24), images(2, 2, 8), noise)
    assert out.shape == (2, 3, 16, 24)
    full, half, quarter = (2, 1, 16, 24), (2, 1, 8, 12), (2, 1, 4, 6)
    assert asked == 8 * [full] + 6 * [half] + 4 * [quarter] + 6 * [half] + 8 * [full]


def test_encoder_output_shapes(encoder, device):
    clean, noisy = images(1, 2, 3, 16, 24).to(device), images(2, 2, 3, 16, 24).to(device)
    features, z = encoder.to(device).embed(noisy)
    shapes = [(2, 4, 16, 24), (2, 8, 8, 12), (2, 16, 4, 6)]
    assert [tuple(f.shape) for f in features] == shapes
    assert z.shape == (2, 8)
    features, logits = encoder.discriminate(clean, noisy, z)
    assert [tuple(f.shape) for f in features] == shapes
    assert [tuple(d.shape) for d in logits] == [(2, 1, *shape[2:]) for shape in shapes]


@pytest.mark.parametrize("size", [(17, 23), (16, 41), (33, 16)])
def test_embedding_has_unit_length_at_any_size(encoder, size):
    _, z = encoder.embed(images(1, 3, 3, *size))
    assert z.norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize("size", [(18, 16), (16, 21)])
def test_generator_refuses_sizes_not_divisible_by_four(generator, size):
    with pytest.raises(ValueError, match="divide by 4"):
        generator(images(1, 1, 3, *size), images(2, 1, 8))


# ---------------------------------------------------------------- batches: nothing crosses samples


def test_embedding_of_a_batch_is_that_of_its_images(encoder):
    noisy = images(1, 3, 3, 20, 28)
    features, z = encoder.embed(noisy)
    single = [encoder.embed(x[None]) for x in noisy]
    torch.testing.assert_close(z, torch.cat([s[1] for s in single]))
    for stage, f in enumerate(features):
        torch.testing.assert_close(f, torch.cat([s[0][stage] for s in single]))
    assert (z[0] - z[1]).abs().max() > 1e-4  # or the comparison would say nothing


def test_batch_order_does_not_matter(encoder, generator):
    clean, noisy, z = images(1, 3, 3, 16, 20), images(2, 3, 3, 16, 20), images(3, 3, 8)
    order = torch.tensor([2, 0, 1])
    maps = images(4, 3, 1, 16, 20)

    def noise(shape: tuple, device: torch.device) -> Tensor:
        return maps[..., : shape[2], : shape[3]]

    expected = [d[order] for d in encoder.discriminate(clean, noisy, z)[1]]
    permuted = encoder.discriminate(clean[order], noisy[order], z[order])[1]
    for got, want in zip(permuted, expected, strict=True):
        torch.testing.assert_close(got, want)
    expected = generator(clean, z, noise)[order]
    maps = maps[order]
    torch.testing.assert_close(generator(clean[order], z[order], noise), expected)


def test_noise_maps_are_the_only_randomness(generator, device):
    clean, z = images(1, 1, 3, 16, 16).to(device), images(2, 1, 8).to(device)
    generator.to(device)

    def draw(seed: int) -> Tensor:
        return generator(clean, z, normal_noise(torch.Generator(device).manual_seed(seed)))

    torch.testing.assert_close(draw(1), draw(1))
    assert (draw(1) - draw(2)).abs().max() > 1e-3
    fresh = generator(clean, z) - generator(clean, z)  # None draws standard normals
    assert fresh.abs().max() > 1e-3


def test_normal_noise_is_standard_normal():
    n = normal_noise(torch.Generator().manual_seed(0))((4, 1, 100, 100), torch.device("cpu"))
    # 40 000 draws: standard errors 1 / sqrt(N) of the mean, sqrt(2 / N) of the variance; 5 of each.
    assert n.mean().item() == pytest.approx(0, abs=0.025)
    assert n.var().item() == pytest.approx(1, abs=0.036)


# -------------------------------------------------------------------------- spectral normalisation


def layer_pair(kind: str) -> tuple[nn.Module, SpectralWeight, nn.Module, Tensor]:
    """A layer, its weight, PyTorch's layer with torch.nn.utils.spectral_norm, and an input."""
    if kind == "linear":
        ours, theirs, x = SNLinear(5, 7), nn.Linear(5, 7, bias=False), images(1, 3, 5)
        weight = ours.linear
    elif kind == "transposed":
        ours, x = SNConvTranspose2d(6, 4), images(1, 2, 6, 5, 7)
        theirs = nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1, bias=False)
        weight = ours.tconv2d
    else:
        kernel = int(kind[-1])
        stride, padding = {1: (1, 0), 3: (1, 1), 4: (2, 1)}[kernel]
        ours, x = SNConv2d(6, 4, kernel), images(1, 2, 6, 8, 10)
        theirs = nn.Conv2d(6, 4, kernel, stride=stride, padding=padding, bias=False)
        weight = ours.conv2d
    theirs = nn.utils.spectral_norm(theirs)
    with torch.no_grad():
        for name in ("weight_orig", "weight_u", "weight_v"):
            getattr(theirs, name).copy_(getattr(weight, name))
    return ours, weight, theirs, x


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["conv1", "conv3", "conv4", "transposed", "linear"])
def test_spectral_norm_equals_torch(kind, training, shared):
    """Output, gradients, u and v over two steps: one power iteration each in training mode."""
    ours, weight, theirs, x = layer_pair(kind)
    ours.train(training)
    theirs.train(training)
    with torch.no_grad():  # far from the singular vectors, where an iteration makes a difference
        for v in (weight.weight_u, weight.weight_v):
            v.copy_(nn.functional.normalize(torch.randn_like(v), dim=0))
        theirs.weight_u.copy_(weight.weight_u)
        theirs.weight_v.copy_(weight.weight_v)
    before = weight.weight_u.clone()
    for step in range(2):
        if shared:
            with shared_spectral_norm(ours):
                y = ours(x)
        else:
            y = ours(x)
        target = theirs(x)
        torch.testing.assert_close(y, target)
        direction = images(2 + step, *y.shape)  # of the derivative
        (grad,) = torch.autograd.grad((y * direction).sum(), [weight.weight_orig])
        (expected,) = torch.autograd.grad((target * direction).sum(), [theirs.weight_orig])
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())
        torch.testing.assert_close(weight.weight_u, theirs.weight_u)
        torch.testing.assert_close(weight.weight_v, theirs.weight_v)
    assert torch.equal(weight.weight_u, before) is not training


def test_shared_weights_equal_those_outside_in_evaluation_mode(encoder, generator, device):
    encoder.to(device), generator.to(device)
    clean, noisy, z = (x.to(device) for x in (images(1, 2, 3, 16, 16), images(2, 2, 3, 16, 16),
                                              images(3, 2, 8)))  # fmt: skip

    def forwards() -> list[Tensor]:
        noise = normal_noise(torch.Generator(device).manual_seed(0))
        features, logits = encoder.discriminate(clean, noisy, z)
        return [encoder.embed(noisy)[1], *features, *logits, generator(clean, z, noise)]

    vectors = spectral_vectors(encoder) + spectral_vectors(generator)
    outside = forwards()
    with shared_spectral_norm(encoder, generator):
        inside = forwards()
    for a, b in zip(inside, outside, strict=True):
        tolerance = 1e-5 if device.type == "cpu" else 1e-2  # TF32 keeps 10 bits of mantissa
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=tolerance)
    assert equal(vectors, spectral_vectors(encoder) + spectral_vectors(generator))


def test_one_power_iteration_a_step_however_many_forwards(encoder):
    encoder.train()
    noisy = images(1, 1, 3, 16, 16)
    expected = []
    for w in spectral_weights(encoder):
        matrix = w.as_matrix().detach()
        v = nn.functional.normalize(matrix.T @ w.weight_u, dim=0)
        expected += [nn.functional.normalize(matrix @ v, dim=0), v]
    with shared_spectral_norm(encoder):
        first = encoder.embed(noisy)[1]
        assert torch.equal(encoder.embed(noisy)[1], first)
        encoder.discriminate(noisy, noisy, first)
    moved = [x for w in spectral_weights(encoder) for x in (w.weight_u, w.weight_v)]
    for got, want in zip(moved, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    encoder.embed(noisy)  # outside, each forward moves them on
    assert not torch.equal(encoder.pre_noise.conv2d.weight_u, expected[0])


def test_shared_weights_are_dropped_after_an_exception(encoder):
    noisy = images(1, 1, 3, 16, 16)
    before = encoder.embed(noisy)[1]

    def fail() -> None:
        with shared_spectral_norm(encoder):
            assert all(w.shared is not None for w in spectral_weights(encoder))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(w.shared is None for w in spectral_weights(encoder))
    with torch.no_grad():
        encoder.mlp_noise.linear2.linear.weight_orig.copy_(torch.randn(8, 28))
    assert (encoder.embed(noisy)[1] - before).abs().max() > 1e-3  # no stale weight in use


def test_networks_of_one_block_keep_their_own_weights(encoder):
    """E_q and E_k have matrices of equal shape, normalised in one batch."""
    other = NoiseEncoder(4, 8).eval().requires_grad_(False)
    noisy = images(1, 1, 3, 16, 16)
    with shared_spectral_norm(encoder, other):
        a, b = encoder.embed(noisy)[1], other.embed(noisy)[1]
    torch.testing.assert_close(a, encoder.embed(noisy)[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b, other.embed(noisy)[1], rtol=1e-4, atol=1e-5)
    assert a.requires_grad
    assert not b.requires_grad


@pytest.mark.parametrize("how", ["in place", "load_state_dict", "trained"])
def test_changed_weights_are_normalised_again(how: str) -> None:
    """Frozen ones in evaluation mode are, until then, normalised once; others at every block."""
    network, noisy = NoiseEncoder(4, 8).eval(), images(1, 1, 3, 16, 16)
    network.requires_grad_(how == "trained")

    def shared() -> Tensor:
        with torch.no_grad(), shared_spectral_norm(network):
            return network.embed(noisy)[1]

    before = shared()
    assert torch.equal(shared(), before)
    weight = network.mlp_noise.linear2.linear.weight_orig
    if how == "load_state_dict":
        network.load_state_dict(NoiseEncoder(4, 8).state_dict())
    elif how == "in place":
        with torch.no_grad():
            weight.copy_(torch.randn(8, 28))
    else:
        weight.data.copy_(torch.randn(8, 28))  # which no counter of changes notices
    torch.testing.assert_close(shared(), network.embed(noisy)[1].detach(), rtol=1e-4, atol=1e-5)
    assert (shared() - before).abs().max() > 1e-3


def test_modulation_a_layer_at_a_time_is_that_of_all_at_once(generator, monkeypatch) -> None:
    """As large images have it: the same, in the memory of one layer's maps."""
    z = nn.functional.normalize(torch.randn(2, 8))
    assert bytes_per_pixel(NoiseGenerator()) < 2200  # 8 or 9 maps of 64 channels

    def made() -> Tensor:
        noise = normal_noise(torch.Generator().manual_seed(1))
        return generator(images(0, 2, 3, 32, 32), z, noise)

    at_once = made()
    monkeypatch.setattr("models.layers.AT_ONCE", 1)
    torch.testing.assert_close(made(), at_once)


@pytest.mark.parametrize("name", NETWORKS)
def test_converged_spectral_norm_is_one(name):
    network = NETWORKS[name](4, 8).eval()
    with torch.no_grad():
        for w in spectral_weights(network):
            w.weight_orig.normal_(std=3)
            for v in (w.weight_u, w.weight_v):
                v.copy_(nn.functional.normalize(torch.randn_like(v), dim=0))
    converge_spectral_norm(network)
    largest = torch.stack([spectral_norm(w) for w in spectral_weights(network)])
    # u W v never exceeds the norm; 50 iterations leave it short by (s2 / s1)^100 at most, which
    # matters only for matrices whose two largest singular values nearly coincide.
    assert largest.min() > 1 - 1e-5
    assert largest.max() < 1.02
    assert largest.median() < 1 + 1e-4


@pytest.mark.parametrize("layer", [SNConv2d(6, 4, 3), SNConvTranspose2d(6, 4), SNLinear(5, 7)])
def test_fully_converged_spectral_norm_is_one(layer):
    (w,) = spectral_weights(layer.eval())
    with torch.no_grad():
        w.weight_orig.normal_(std=3)
    converge_spectral_norm(layer, 500)
    values = torch.linalg.svdvals(w().transpose(0, w.dim).flatten(1))
    assert values[0].item() == pytest.approx(1, abs=1e-5)
    assert values[1].item() < 1


def test_fresh_weights_start_near_unit_norm(encoder, generator):
    """What the generator puts out before its first step is of no arbitrary scale."""
    for w in spectral_weights(encoder) + spectral_weights(generator):
        largest = spectral_norm(w)
        assert 1 - 1e-5 < largest.item() < 1.15
