"""AddReferenceNoise in torchvision's pipelines and in a DataLoader."""

import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.generator import placed_noise
from models.transform import AddReferenceNoise
from tests.helpers import images
from utils.seeding import derived_seed

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture
def add() -> AddReferenceNoise:
    transfer = NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    return AddReferenceNoise(transfer.requires_grad_(False), [images(1, 1, 3, 20, 20)])


def call(add: AddReferenceNoise, *inputs: object, seed: int = 0) -> object:
    torch.manual_seed(seed)
    return add(*inputs)


def test_it_is_the_network_with_a_seed_of_torchs_generator(add):
    clean = images(2, 2, 3, 18, 21)
    torch.manual_seed(5)
    seed = int(torch.randint(2**62, ()))
    noise = placed_noise([derived_seed(seed, 0), derived_seed(seed, 1)])
    expected = add.noise.transfer.generate(clean, add.noise.z, noise)
    assert torch.equal(call(add, clean, seed=5), expected)
    assert not torch.equal(call(add, clean, seed=6), expected)


def test_every_kind_of_image_comes_back_as_it_is(add):
    pixels = np.random.default_rng(0).integers(90, 160, (18, 21, 3), np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    noisy = call(add, tensor)
    assert noisy.dtype == torch.uint8
    assert noisy.shape == tensor.shape
    assert not torch.equal(noisy, tensor)
    pil = call(add, PIL.Image.fromarray(pixels))
    assert torch.equal(torch.from_numpy(np.array(pil)).permute(2, 0, 1), noisy)
    image = call(add, tv_tensors.Image(tensor))
    assert isinstance(image, tv_tensors.Image)
    assert torch.equal(image.as_subclass(torch.Tensor), noisy)
    floats = call(add, tensor / 255)
    assert (floats * 255 - noisy).abs().max() <= 0.51
    deep = call(add, tensor.to(torch.uint16) * 257)
    assert deep.dtype == torch.uint16
    assert (deep.float() / 257 - noisy).abs().max() <= 0.51


def test_labels_boxes_and_masks_pass(add):
    image = tv_tensors.Image(torch.full((3, 16, 16), 128, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.ones(16, 16))
    noisy, same, label = v2.Compose([add])(image, mask, torch.tensor(3))
    assert not torch.equal(noisy, image)
    assert torch.equal(same, mask)
    assert label == 3


def test_strength_and_reference_are_drawn_from_the_seed(add):
    clean = torch.full((3, 32, 32), 0.5)
    references = [images(1, 1, 3, 20, 20), images(2, 1, 3, 30, 20) / 9]
    two = AddReferenceNoise(add.noise.transfer, references)
    assert len({call(two, clean, seed=i)[0, 0, 0].item() for i in range(9)}) == 9
    none = AddReferenceNoise(add.noise.transfer, [images(1, 1, 3, 20, 20)], strength=0.0)
    assert torch.equal(call(none, clean), clean)
    some = AddReferenceNoise(add.noise.transfer, [images(1, 1, 3, 20, 20)], strength=(0.5, 1.5))
    full, noise = call(add, clean) - 0.5, call(some, clean) - 0.5
    factor = (noise / full).median()
    assert 0.5 < factor < 1.5
    torch.testing.assert_close(noise, factor * full, rtol=1e-2, atol=1e-5)


def test_it_can_be_pickled(add):
    clean = images(2, 3, 18, 21)
    assert torch.equal(call(pickle.loads(pickle.dumps(add)), clean), call(add, clean))


class Photos(Dataset):
    def __init__(self, add: AddReferenceNoise) -> None:
        self.add = add

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.add(torch.full((3, 16, 16), 0.1 * i + 0.2))


def test_workers_differ_and_repeat_by_the_seed(add):
    def epoch(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat(list(DataLoader(Photos(add), 2, num_workers=2, generator=generator)))

    one, again, other = epoch(1), epoch(1), epoch(2)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    noise = one - one.mean((1, 2, 3), keepdim=True)
    for i in range(6):
        for j in range(i):
            assert not torch.allclose(noise[i], noise[j], atol=1e-4)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 8, 8), r"expected \(\.\.\., 3, H, W\), got \(1, 8, 8\)"),
        (torch.full((3, 8, 8), 255.0), r"expected values in \[0, 1\], got 255 to 255"),
        (torch.full((3, 8, 8), torch.nan), r"expected values in \[0, 1\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"expected uint8, uint16 or floats"),
        (PIL.Image.new("L", (8, 8)), "expected an RGB image, got mode L"),
    ],
)
def test_other_images_are_refused(add, image, message):
    with pytest.raises(ValueError, match=message):
        add(image)
