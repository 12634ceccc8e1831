"""RandomReferenceNoise among kornia's augmentations."""

import pickle

import pytest
import torch

from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.transform import SeededNoise
from tests.helpers import images

augmentation = pytest.importorskip("kornia.augmentation")
from models.transform_kornia import RandomReferenceNoise  # noqa: E402

pytestmark = pytest.mark.usefixtures("shallow")
CLEAN = images(3, 4, 3, 18, 21)


@pytest.fixture
def transfer() -> NoiseTransfer:
    return NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8)).requires_grad_(False)


def augment(transfer: NoiseTransfer, **settings: object) -> RandomReferenceNoise:
    references = [images(1, 1, 3, 20, 20), images(2, 1, 3, 30, 20) / 9]
    return RandomReferenceNoise(transfer, references, strength=(0.5, 1.5), **settings)


def test_parameters_replay(transfer):
    """Kornia's documented way: "you may take the advantage of the previous parameter state"."""
    add = augment(transfer)
    noisy = add(CLEAN)
    params = add._params
    assert not torch.equal(add(CLEAN), noisy)
    assert torch.equal(add(CLEAN, params=params), noisy)
    torch.manual_seed(7)
    one = add(CLEAN)
    torch.manual_seed(7)
    assert torch.equal(add(CLEAN), one)
    again = pickle.loads(pickle.dumps(add))
    assert torch.equal(again(CLEAN, params=params), noisy)


def test_it_is_the_shared_core_with_a_seed_for_each_image(transfer):
    add = augment(transfer)
    noisy, seeds = add(CLEAN), add._params["seed"].tolist()
    assert len(set(seeds)) == 4
    core = SeededNoise(transfer, [images(1, 1, 3, 20, 20), images(2, 1, 3, 30, 20) / 9], (0.5, 1.5))
    assert torch.equal(noisy, core(CLEAN, seeds))
    for one, image, seed in zip(noisy, CLEAN, seeds, strict=True):
        torch.testing.assert_close(one[None], core(image[None], [seed]))


def test_same_on_batch_and_probability(transfer):
    flat = torch.full((6, 3, 16, 16), 0.5)
    same = augment(transfer, same_on_batch=True)(flat)
    torch.testing.assert_close(same, same[:1].expand(6, -1, -1, -1))
    add = augment(transfer, p=0.5)
    noisy = add(flat)
    applied = add._params["batch_prob"] > 0.5
    assert torch.equal((noisy != flat).flatten(1).any(1), applied)
    assert torch.equal(augment(transfer, p=0.0)(flat), flat)


def test_in_a_sequence_with_masks(transfer):
    sequence = augmentation.AugmentationSequential(
        augmentation.RandomHorizontalFlip(p=1.0), augment(transfer), data_keys=["input", "mask"]
    )
    mask = (images(4, 4, 1, 18, 21) > 0.5).float()
    noisy, flipped = sequence(CLEAN, mask)
    assert torch.equal(flipped, mask.flip(-1))
    assert not torch.equal(noisy, CLEAN.flip(-1))
    assert torch.equal(sequence(CLEAN, mask, params=sequence._params)[0], noisy)


def test_shapes_dtypes_and_ranges(transfer):
    assert augment(transfer, keepdim=True)(CLEAN[0]).shape == (3, 18, 21)
    assert augment(transfer)(CLEAN[0]).shape == (1, 3, 18, 21)
    half = augment(transfer)(CLEAN.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    augment(transfer)(CLEAN / CLEAN.max() + 1e-6)  # of a resize's rounding
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\], got 255 to 255"):
        augment(transfer)(torch.full((1, 3, 16, 16), 255.0))
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\), got \(2, 1, 16, 16\)"):
        augment(transfer)(torch.zeros(2, 1, 16, 16))


def test_devices_agree(transfer, device):
    add = augment(transfer)
    noisy = add(CLEAN)
    there = add.to(device)(CLEAN.to(device), params=add._params)
    assert there.device.type == device.type
    torch.testing.assert_close(there.cpu(), noisy, rtol=0, atol=1e-3)
