"""Key queue, momentum update and noise transfer."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.embedding import spread_patches
from models.generator import no_noise, per_image_noise
from models.key_queue import KeyQueue, momentum_update
from tests.golden import recipe
from tests.helpers import images
from utils.errors import UserError
from utils.transfer_settings import FILE, TransferSettings


def make_transfer(width: int = 4, embed_dim: int = 8) -> NoiseTransfer:
    return NoiseTransfer(NoiseEncoder(width, embed_dim), NoiseGenerator(width, embed_dim))


@pytest.fixture
def transfer() -> NoiseTransfer:
    return make_transfer()


def sin_noise(shape: tuple, device: torch.device) -> Tensor:
    return torch.from_numpy(recipe.noise_map(shape)).to(device)


# ------------------------------------------------------------------------------------------ queue


def test_queue_starts_with_unit_columns():
    keys = KeyQueue(32, 100)
    assert keys.queue.shape == (32, 100)
    assert keys.queue.norm(dim=0).tolist() == pytest.approx([1] * 100, abs=1e-6)
    # Isotropic: the mean of 100 unit columns has an expected squared length of 1 / 100.
    assert keys.queue.mean(dim=1).norm() < 0.3


@pytest.mark.parametrize(("size", "batch"), [(8, 4), (10, 4), (7, 3), (5, 5), (3, 1)])
def test_queue_is_first_in_first_out(size, batch, device):
    """Against a plain list, over three rounds; a batch that crosses the end goes on at 0."""
    keys = KeyQueue(2, size).to(device)
    columns = list(keys.queue.T.clone())  # oldest first, as nothing was replaced yet
    number = 0
    for step in range(1, 3 * size // batch + 2):
        new = torch.arange(number, number + batch, device=device)[:, None].expand(-1, 2).float()
        number += batch
        keys.enqueue(new)
        columns = columns[batch:] + list(new)
        pointer = keys.pointer.item()
        assert pointer == step * batch % size
        oldest_first = keys.queue.T.roll(-pointer, 0)
        assert torch.equal(oldest_first, torch.stack(columns))


def test_queue_refuses_more_keys_than_it_holds():
    with pytest.raises(ValueError, match="9 keys do not fit a queue of 8"):
        KeyQueue(4, 8).enqueue(torch.zeros(9, 4))


def test_queue_and_pointer_are_saved():
    keys, other = KeyQueue(4, 8), KeyQueue(4, 8)
    keys.enqueue(images(1, 3, 4))
    other.load_state_dict(keys.state_dict())
    assert torch.equal(other.queue, keys.queue)
    assert other.pointer.item() == 3


def test_queue_takes_keys_of_half_precision():
    keys = KeyQueue(4, 8)
    keys.enqueue(torch.ones(2, 4, dtype=torch.bfloat16))
    assert keys.queue.dtype == torch.float32
    assert torch.equal(keys.queue[:, :2], torch.ones(4, 2))


# ------------------------------------------------------------------------------- momentum update


def test_momentum_update_of_parameters_alone():
    key, query = NoiseEncoder(4, 8), NoiseEncoder(4, 8)
    before_k = {k: v.clone() for k, v in key.state_dict().items()}
    before_q = {k: v.clone() for k, v in query.state_dict().items()}
    momentum_update(key.requires_grad_(False), query, 0.999)
    parameters = dict(key.named_parameters())
    for name, value in key.state_dict().items():
        if name in parameters:
            expected = 0.999 * before_k[name].double() + 0.001 * before_q[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)
        else:  # u and v
            assert torch.equal(value, before_k[name]), name
    assert all(torch.equal(v, before_q[k]) for k, v in query.state_dict().items())
    assert not any(p.requires_grad for p in key.parameters())


@pytest.mark.parametrize(("m", "expected"), [(1.0, 3.0), (0.0, 5.0), (0.75, 3.5)])
def test_momentum_update_weighs_by_m(m, expected):
    key, query = nn.Linear(2, 2), nn.Linear(2, 2)
    for network, value in ((key, 3.0), (query, 5.0)):
        for p in network.parameters():
            nn.init.constant_(p, value)
    momentum_update(key, query, m)
    for p in key.parameters():
        assert torch.equal(p, torch.full_like(p, expected))


# --------------------------------------------------------------------------------------- transfer


@pytest.mark.parametrize(
    "size", [(17, 23), (16, 16), (1, 1), (1, 9), (2, 7), (3, 5), (4, 4), (5, 4), (6, 30), (31, 1)]
)
def test_any_size_is_kept_and_the_range_too(transfer, size, device):
    transfer.to(device)
    noisy = transfer.transfer(images(1, 2, 3, *size).to(device), images(2, 2, 3, 16, 19).to(device))
    assert noisy.shape == (2, 3, *size)
    assert noisy.isfinite().all()
    assert noisy.min() >= 0
    assert noisy.max() <= 1


def test_padding_does_not_change_sizes_that_divide_by_four(transfer):
    clean, z = images(1, 1, 3, 16, 20), transfer.embed(images(2, 1, 3, 16, 16))
    with torch.no_grad():
        expected = (clean + transfer.generator(clean, z, sin_noise)).clamp(0, 1)
    torch.testing.assert_close(transfer.generate(clean, z, sin_noise), expected)


def test_padding_reflects_at_the_bottom_and_right(transfer):
    clean, z = images(1, 1, 3, 15, 18), transfer.embed(images(2, 1, 3, 16, 16))
    padded = torch.cat([clean, clean[:, :, [-2]]], dim=2)
    padded = torch.cat([padded, padded[..., [-2, -3]]], dim=3)
    expected = transfer.generate(padded, z, sin_noise)[..., :15, :18]
    torch.testing.assert_close(transfer.generate(clean, z, sin_noise), expected)


def test_noise_is_clipped(transfer):
    """White and black images under noise: half of the pixels would leave the range."""
    for value in (0.0, 1.0):
        clean = torch.full((1, 3, 16, 16), value)
        noisy = transfer.transfer(clean, images(2, 1, 3, 16, 16))
        assert noisy.min() >= 0
        assert noisy.max() <= 1
        assert (noisy == value).any()
        assert (noisy != value).any()


def test_transfer_is_generate_of_embed(transfer):
    clean, reference = images(1, 2, 3, 12, 16), images(2, 2, 3, 24, 17)
    expected = transfer.generate(clean, transfer.embed(reference), sin_noise)
    assert torch.equal(transfer.transfer(clean, reference, sin_noise), expected)
    assert torch.equal(transfer(clean, reference, sin_noise), expected)
    key_z = transfer.key_encoder.embed(reference)[1]
    torch.testing.assert_close(transfer.embed(reference), key_z)


def test_one_reference_serves_a_batch(transfer):
    clean, reference = images(1, 3, 3, 16, 16), images(2, 1, 3, 20, 16)
    one = transfer.transfer(clean, reference, sin_noise)
    many = transfer.transfer(clean, reference.expand(3, -1, -1, -1), sin_noise)
    torch.testing.assert_close(one, many)
    other = transfer.transfer(clean, images(3, 1, 3, 20, 16), sin_noise)
    assert (one - other).abs().max() > 1e-5  # the reference matters


def test_same_noise_source_same_image(transfer, device):
    transfer.to(device)
    clean, reference = images(1, 2, 3, 17, 23).to(device), images(2, 1, 3, 16, 16).to(device)
    a, b, c = (
        transfer.transfer(clean, reference, per_image_noise(seeds))
        for seeds in ([1, 2], [1, 2], [1, 3])
    )
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a[0], c[0])
    assert (a[1] - c[1]).abs().max() > 1e-4


def test_transfer_moves_no_state_and_stays_in_evaluation_mode(transfer):
    transfer.train()  # as a training loop might
    assert not any(m.training for m in transfer.modules())
    before = {k: v.clone() for k, v in transfer.state_dict().items()}
    clean, reference = images(1, 1, 3, 16, 16), images(2, 1, 3, 16, 16)
    first = transfer.transfer(clean, reference, sin_noise)
    assert torch.equal(transfer.transfer(clean, reference, sin_noise), first)
    assert all(torch.equal(v, before[k]) for k, v in transfer.state_dict().items())
    assert not first.requires_grad


@pytest.mark.parametrize("size", [(15, 40), (40, 15), (1, 1)])
def test_too_small_a_reference(transfer, size):
    with pytest.raises(ValueError, match="16 pixels"):
        transfer.embed(images(1, 1, 3, *size))


@pytest.mark.parametrize(
    ("clean", "reference", "message"),
    [
        (torch.ones(3, 16, 16), None, r"expected images \(B, 3, H, W\), got \(3, 16, 16\)"),
        (torch.ones(1, 1, 16, 16), None, r"expected images \(B, 3, H, W\), got \(1, 1, 16, 16\)"),
        (torch.full((1, 3, 16, 16), 255.0), None, r"expected values in \[0, 1\], got 255 to 255"),
        (torch.full((1, 3, 16, 16), torch.nan), None, r"expected values in \[0, 1\], got nan"),
        (torch.ones(1, 3, 16, 16).byte(), None, r"expected floats in \[0, 1\], got torch.uint8"),
        (None, torch.ones(3, 16, 16), r"expected images \(B, 3, H, W\), got \(3, 16, 16\)"),
        (None, torch.full((1, 3, 16, 16), -0.1), r"expected values in \[0, 1\], got -0.1 to -0.1"),
    ],
)
def test_other_images_are_refused(transfer, clean, reference, message):
    pair = [images(1, 1, 3, 16, 16) if x is None else x for x in (clean, reference)]
    with pytest.raises(ValueError, match=message):
        transfer.transfer(*pair)


# -------------------------------------------------------------------------------- from_checkpoint


def write(folder: Path, encoder: nn.Module, generator: nn.Module) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(encoder.state_dict(), folder / "encoder_k.pt")
    torch.save(generator.state_dict(), folder / "VUNet.pt")
    return folder


@pytest.mark.parametrize(
    ("width", "embed_dim", "blocks"), [(4, 8, None), (8, 12, None), (4, 8, (2, 1, 3))]
)
def test_from_checkpoint_reads_what_the_networks_are_off_the_files(
    tmp_path, width, embed_dim, blocks
):
    source = NoiseTransfer(
        NoiseEncoder(width, embed_dim, blocks), NoiseGenerator(width, embed_dim, blocks)
    )
    write(tmp_path, source.key_encoder, source.generator)
    transfer = NoiseTransfer.from_checkpoint(tmp_path)
    assert (transfer.key_encoder.width, transfer.key_encoder.embed_dim) == (width, embed_dim)
    assert (transfer.generator.width, transfer.generator.embed_dim) == (width, embed_dim)
    clean, reference = images(1, 1, 3, 9, 8), images(2, 1, 3, 16, 16)
    expected = source.transfer(clean, reference, sin_noise)
    assert torch.equal(transfer.transfer(clean, reference, sin_noise), expected)
    assert not any(p.requires_grad for p in transfer.parameters())
    assert not any(m.training for m in transfer.modules())


def test_from_checkpoint_on_a_device(tmp_path, device):
    write(tmp_path, NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    transfer = NoiseTransfer.from_checkpoint(str(tmp_path), device)
    assert {p.device.type for p in transfer.parameters()} == {device.type}


def test_from_checkpoint_of_two_runs(tmp_path):
    write(tmp_path, NoiseEncoder(4, 8), NoiseGenerator(4, 12))
    with pytest.raises(UserError, match=r"8 dimensions.*12") as error:
        NoiseTransfer.from_checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("encoder", "generator", "file"),
    [
        (NoiseGenerator(4, 8), NoiseEncoder(4, 8), "encoder_k.pt"),  # exchanged
        (NoiseEncoder(4, 8), NoiseEncoder(4, 8), "VUNet.pt"),
        (nn.Linear(2, 2), NoiseGenerator(4, 8), "encoder_k.pt"),
        (NoiseEncoder(4, 8), nn.ReLU(), "VUNet.pt"),  # empty
    ],
)
def test_from_checkpoint_of_other_networks(tmp_path, encoder, generator, file):
    write(tmp_path, encoder, generator)
    with pytest.raises(UserError, match="not the weights of") as error:
        NoiseTransfer.from_checkpoint(tmp_path)
    assert str(tmp_path / file) in str(error.value)


@pytest.mark.parametrize("file", ["encoder_k.pt", "VUNet.pt"])
def test_from_checkpoint_without_a_file(tmp_path, file):
    (write(tmp_path, NoiseEncoder(4, 8), NoiseGenerator(4, 8)) / file).unlink()
    with pytest.raises(UserError, match="no such checkpoint") as error:
        NoiseTransfer.from_checkpoint(tmp_path)
    assert str(tmp_path / file) in str(error.value)


# --------------------------------------------------------------------- references in patches


def corners(height: int, width: int, patch: int) -> list[tuple[int, int]]:
    """Top left corners, read off an image of its own coordinates."""
    image = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    patches = spread_patches(image[None], patch)
    assert {tuple(p.shape) for p in patches} == {(1, 2, min(patch, height), min(patch, width))}
    return [tuple(p[0, :, 0, 0].tolist()) for p in patches]


def test_spread_patches():
    assert corners(40, 100, 40) == [(0, 0), (0, 30), (0, 60)]
    assert corners(41, 40, 40) == [(0, 0), (1, 0)]
    assert corners(30, 100, 50) == [(0, 0), (0, 50)]  # the shorter side whole
    assert corners(16, 16, 96) == [(0, 0)]
    large = corners(1000, 3000, 96)  # 8 a side, from border to border
    assert len(large) == 64
    assert (large[0], large[-1]) == ((0, 0), (904, 2904))
    steps = {b[1] - a[1] for a, b in pairwise(large) if a[0] == b[0]}
    assert steps == {414, 415}  # 2904 / 7, rounded


def test_embedding_in_patches_is_the_mean_direction(transfer):
    reference = images(3, 2, 3, 40, 70)
    whole = transfer.embed(reference)
    transfer.reference_patch = 32
    z = transfer.embed(reference)
    tops, lefts = (0, 8), (0, 19, 38)
    parts = [
        transfer.key_encoder.embed(reference[..., y : y + 32, x : x + 32])[1]
        for y in tops
        for x in lefts
    ]
    mean = torch.stack(parts).mean(0)
    torch.testing.assert_close(z, mean / mean.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(z, whole, atol=1e-4)
    for size in (70, 96):  # nothing to divide
        transfer.reference_patch = size
        torch.testing.assert_close(transfer.embed(reference), whole, rtol=1e-5, atol=1e-6)
    transfer.reference_patch = 32
    for i in range(2):
        torch.testing.assert_close(transfer.embed(reference[i : i + 1]), z[i : i + 1])


def test_how_references_are_embedded_is_read_beside_the_weights(tmp_path):
    write(tmp_path, NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    (tmp_path / FILE).write_text('{"reference_patch": 48}')
    assert NoiseTransfer.from_checkpoint(tmp_path).reference_patch == 48
    assert NoiseTransfer.from_checkpoint(tmp_path, reference_patch=64).reference_patch == 64
    assert NoiseTransfer.from_checkpoint(tmp_path, reference_patch=0).reference_patch is None
    with pytest.raises(UserError, match="reference patch 8: expected 0, whole, or at least 16"):
        NoiseTransfer.from_checkpoint(tmp_path, reference_patch=8)
    (tmp_path / FILE).write_text('{"reference_patch": null}')
    assert NoiseTransfer.from_checkpoint(tmp_path).reference_patch is None


def test_weights_trained_without_noise_maps_get_none(tmp_path):
    write(tmp_path, NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    clean = images(1, 1, 3, 16, 16)
    for inject_noise in (True, False):
        TransferSettings(None, inject_noise).write(tmp_path, command="python train.py")
        assert TransferSettings.read(tmp_path) == TransferSettings(None, inject_noise)
        transfer = NoiseTransfer.from_checkpoint(tmp_path)
        a, b = (transfer(clean, clean) for _ in range(2))
        assert torch.equal(a, b) != inject_noise


def test_margin_is_mirrored_and_cut_off(tmp_path):
    """NumPy mirrors; of an image of 8 pixels no more than 4 can be, in steps of 4."""
    write(tmp_path, NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    TransferSettings(None, True, margin=12).write(tmp_path)
    transfer = NoiseTransfer.from_checkpoint(tmp_path)
    z = transfer.embed(images(1, 1, 3, 16, 16))
    for size, margin in (((21, 30), 12), ((8, 40), 4)):
        clean = images(2, 1, 3, *size)
        padded = np.pad(clean, ((0, 0), (0, 0), (0, -size[0] % 4), (0, -size[1] % 4)), "reflect")
        padded = np.pad(padded, ((0, 0), (0, 0), (margin,) * 2, (margin,) * 2), "reflect")
        plain = NoiseTransfer(transfer.key_encoder, transfer.generator)
        expected = plain.generate(torch.from_numpy(padded), z, no_noise)
        expected = expected[..., margin : margin + size[0], margin : margin + size[1]]
        torch.testing.assert_close(transfer.generate(clean, z, no_noise), expected)


@pytest.mark.parametrize(
    "text", ["", "{", "48", "[48]", "{}", '{"reference_patch": 8}', '{"reference_patch": "48"}',
             '{"reference_patch": true}', '{"reference_patch": 48, "inject_noise": 1}',
             '{"reference_patch": 48, "margin": 3}', "\xff"],
)  # fmt: skip
def test_damaged_settings(tmp_path, text):
    write(tmp_path, NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"transfer\.json: expected .*; write that, or remove") as e:
        NoiseTransfer.from_checkpoint(tmp_path)
    assert str(tmp_path) in str(e.value)


def test_every_sample_of_the_batch_draws_its_own_noise(transfer):
    clean = images(1, 1, 3, 16, 16).expand(3, -1, -1, -1)
    noisy = transfer.transfer(clean, images(2, 1, 3, 16, 16))
    for a, b in pairwise(noisy):
        assert (a - b).abs().max() > 1e-3


def test_out_of_memory_while_embedding_says_what_was_embedded(monkeypatch):
    def fail(noisy: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    transfer = NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    monkeypatch.setattr(transfer.key_encoder, "embed", fail)
    with pytest.raises(UserError, match="embedding 2 references of 40x32 pixels; give smaller"):
        transfer.embed(torch.rand(2, 3, 32, 40))
