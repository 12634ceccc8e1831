"""ReferenceNoise among deepinv's noise models: its own checks of them, on ours."""

import pytest
import torch

from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.transform import SeededNoise
from tests.helpers import images

physics = pytest.importorskip("deepinv.physics")
from models.transform_deepinv import ReferenceNoise  # noqa: E402

pytestmark = pytest.mark.usefixtures("shallow")
DTYPES = torch.float32, torch.float64
SIZE = 1, 3, 7, 16  # as in deepinv's tests


@pytest.fixture
def transfer() -> NoiseTransfer:
    return NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8)).requires_grad_(False)


def model(transfer: NoiseTransfer, **settings: object) -> ReferenceNoise:
    rng = torch.Generator().manual_seed(0)
    return ReferenceNoise(transfer, [images(1, 1, 3, 20, 20)], rng=rng, **settings)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rng(transfer, dtype):
    """deepinv.tests.test_noise_model.test_rng."""
    x, noise = images(2, *SIZE).to(dtype), model(transfer)
    y1, y2, y3 = (noise(x, seed=seed) for seed in (0, 1, 0))
    assert y1.dtype == dtype
    assert torch.equal(y1, y3)
    assert not torch.allclose(y1, y2)
    noise.reset_rng()
    first = noise(x)
    noise(x)
    noise.reset_rng()
    assert torch.equal(noise(x), first)


@pytest.mark.parametrize("dtype", DTYPES)
def test_concatenation(transfer, dtype):
    """deepinv.tests.test_noise_model.test_concatenation; and that noise is there."""
    x, noise = images(2, *SIZE).to(dtype), model(transfer)
    for other in physics.GaussianNoise(0.1), physics.UniformNoise(0.1), physics.ZeroNoise():
        for both in noise * other, other * noise:
            y = both(x)
            assert y.shape == SIZE
            assert (y - x).abs().max() > 0
    once, twice = noise(x, seed=3), (noise * noise)(x, seed=3)
    assert not torch.allclose(once, twice)


def test_a_composition_keeps_its_generator(transfer):
    """deepinv's models get another one with each call, which those made before do not know."""
    x, noise = images(2, *SIZE), model(transfer)
    both = noise * physics.ZeroNoise()
    expected = both(x, seed=0)
    noise(x)
    assert torch.equal(both(x, seed=0), expected)
    assert torch.equal(noise(x, seed=0), expected)


def test_it_is_the_shared_core_with_a_seed_of_the_generator(transfer):
    x = images(2, 2, 3, 18, 21)
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5)))
    expected = SeededNoise(transfer, [images(1, 1, 3, 20, 20)])(x, [seed])
    assert torch.equal(model(transfer)(x, seed=5), expected)
    torch.manual_seed(5)
    assert torch.equal(ReferenceNoise(transfer, [images(1, 1, 3, 20, 20)])(x), expected)


def test_strength_is_a_buffer_that_a_call_changes(transfer):
    x, noise = torch.full((2, 3, 16, 16), 0.5), model(transfer)
    assert {"strength", "noise.z"} <= set(noise.state_dict())
    full = noise(x, seed=0) - x
    denoising = physics.Denoising(noise)
    torch.testing.assert_close(denoising(x, strength=0.5, seed=0) - x, full / 2)
    assert noise.strength == 0.5
    each = noise(x, strength=torch.tensor([0.0, 0.25]), seed=0) - x
    assert torch.equal(each[0], torch.zeros_like(each[0]))
    torch.testing.assert_close(each[1], full[1] / 4)


def test_it_follows_the_image(transfer, device):
    noise = model(transfer)
    for x in images(2, *SIZE), images(2, *SIZE).to(device):
        y = noise(x, seed=0)
        assert y.device == noise.noise.z.device == noise.rng.device == x.device


def test_other_images_are_refused(transfer):
    noise = model(transfer)
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got -1 to -1"):
        noise(-torch.ones(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\), got \(3, 16, 16\)"):
        noise(torch.ones(3, 16, 16))
