"""Tiles against the whole image, at random sizes; what is found out about the networks, by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models.tiles
from data.sample import sample_photos
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer, build_denoiser
from models.denoisers import denoiser_from_checkpoint
from models.generator import placed_noise
from models.tiles import Tiler, bytes_per_pixel, cut, receptive_radius
from tests.helpers import images
from utils.errors import UserError
from utils.images import float_to_uint8, integer_to_float

CPU = torch.device("cpu")
NAMES = "dncnn", "ridnet", "unet"


@pytest.fixture(scope="module")
def transfer() -> NoiseTransfer:
    """Of full depth: how far it sees is what is tested."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8)).requires_grad_(False)


def stitched(network: nn.Module, x: Tensor, side: int, function) -> Tensor:
    """function(part, top, left) by tiles, in float."""
    margin, result = receptive_radius(network), torch.full_like(x, torch.nan)
    for tile in cut(x.shape[-2:], side, margin):
        part = function(x[(..., *tile.outer)], tile.outer[0].start, tile.outer[1].start)
        result[(..., *tile.inner)] = part[(..., *tile.crop)]
    return result


def random_sizes(count: int) -> list[tuple[int, int, int]]:
    rng = np.random.default_rng(14)
    drawn = [tuple(rng.integers(1, (300, 300, 150)).tolist()) for _ in range(count)]
    return [*drawn, (1, 400, 100), (400, 3, 64), (2, 2, 1), (97, 211, 65)]


@pytest.mark.parametrize(("height", "width", "side"), random_sizes(2))
@pytest.mark.parametrize("margin", [0, 12])
def test_generator_by_tiles_is_the_whole(transfer, margin, height, width, side, monkeypatch):
    monkeypatch.setattr(transfer, "margin", margin)
    clean, z = images(1, 1, 3, height, width), transfer.embed(images(2, 1, 3, 32, 32))
    whole = transfer.generate(clean, z, placed_noise([7]), strength=0.5)
    side = max(side, 32)
    tiled = stitched(
        transfer.generator,
        clean,
        side,
        lambda part, top, left: transfer.generate(part, z, placed_noise([7], top, left), 0.5),
    )
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["dncnn", "unet"])
@pytest.mark.parametrize(("height", "width", "side"), random_sizes(3))
def test_local_denoisers_by_tiles_are_the_whole(name, height, width, side):
    network, noisy = build_denoiser(name, 4).eval(), images(1, 1, 3, height, width)
    with torch.no_grad():
        tiled = stitched(network, noisy, max(side, 32), lambda part, *_: network(part))
        torch.testing.assert_close(tiled, network(noisy), rtol=0, atol=1e-5)


def test_a_smaller_margin_would_show(transfer):
    """So that the tests above measure something: half of what the network sees is not enough."""
    clean, z = images(1, 1, 3, 200, 200), transfer.embed(images(2, 1, 3, 32, 32))
    whole = transfer.generate(clean, z, placed_noise([7]))
    tile = next(t for t in cut((200, 200), 100, 16) if t.inner[0].start == 0)
    part = transfer.generate(clean[(..., *tile.outer)], z, placed_noise([7]))
    error = part[(..., *tile.crop)] - whole[(..., *tile.inner)]
    assert error.abs().max() > 1e-6


def test_radius_by_hand():
    """Sums of what each layer adds; RIDNet: 1 + 4 x (max(1 + 2, 3 + 4) + 1 + 2 + 2) + 1."""
    assert receptive_radius(build_denoiser("dncnn", 4)) == 20
    assert receptive_radius(build_denoiser("ridnet", 4)) == 50
    chain = nn.Sequential(nn.Conv2d(3, 2, 7, padding=3), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1))
    assert receptive_radius(chain) == 4
    wide = nn.Sequential(*(nn.Conv2d(3, 3, 31, padding=15) for _ in range(10)))
    assert receptive_radius(wide) == 150  # more than the strip that is tried first


@pytest.mark.parametrize("network", [NoiseGenerator(4, 8), *(build_denoiser(n, 4) for n in NAMES)])
def test_radius_does_not_depend_on_the_weights(network):
    zero = copy.deepcopy(network)
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    assert receptive_radius(zero) == receptive_radius(network)


def test_memory_is_counted_without_computing():
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 1, 1))
    assert bytes_per_pixel(chain, 64) == 4 * (3 + 8 + 16)  # while the second runs
    small, large = (bytes_per_pixel(NoiseGenerator(width, 8)) for width in (4, 8))
    assert small < large < 2 * small


@pytest.mark.parametrize("size", [(1, 1), (100, 1), (333, 517)])
@pytest.mark.parametrize("side", [32, 100, 1000])
def test_tiles_cover_once_and_start_where_strides_do(size, side):
    seen = np.zeros(size, int)
    for tile in cut(size, side, 13):
        seen[tile.inner] += 1
        assert all(s.start % 8 == 0 for s in (*tile.inner, *tile.outer))
        for inner, outer, crop, length in zip(*tile, size, strict=True):
            assert (outer.start + crop.start, outer.start + crop.stop) == (inner.start, inner.stop)
            assert outer.start == 0 or inner.start - outer.start >= 13
            assert outer.stop == length or outer.stop - inner.stop >= 13
            assert inner.stop - inner.start <= side + 7
    assert (seen == 1).all()


def test_placed_noise_is_normal_and_depends_on_seed_layer_and_place():
    draw = placed_noise([3, 4])
    first, second = (draw((2, 1, 200, 300), CPU) for _ in range(2))
    quarter = draw((2, 1, 50, 75), CPU)
    for maps in (first, second, quarter):
        assert abs(maps.mean()) < 0.03
        assert abs(maps.std() - 1) < 0.03
    every = [*first, *second]
    for i, a in enumerate(every):
        for b in every[:i]:
            assert abs((a * b).mean()) < 0.02
        for step in (1, 63, 64, 65):  # nor does it repeat itself, within blocks or across them
            assert abs((a[..., step:] * a[..., :-step]).mean()) < 0.02
            assert abs((a[:, step:] * a[:, :-step]).mean()) < 0.02
    part = placed_noise([4], 40, 132)
    assert torch.equal(part((1, 1, 100, 80), CPU)[0], first[1, :, 40:140, 132:212])
    assert torch.equal(part((1, 1, 100, 80), CPU)[0], second[1, :, 40:140, 132:212])
    assert torch.equal(part((1, 1, 25, 20), CPU)[0], quarter[1, :, 10:35, 33:53])


# ------------------------------------------------------------------------------------- the tiler


def photo(height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiler_keeps_pixels_depth_and_place(dtype):
    network, image, told = build_denoiser("dncnn", 2), photo(130, 90, dtype), []
    places = []

    def function(part: Tensor, top: int, left: int) -> Tensor:
        places.append((top, left))
        return part

    result = Tiler(network, CPU, side=64)(image, function, progress=told.append)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, image)
    assert sum(told) == 130 * 90
    assert len(set(places)) == len(told) == 6


def test_ridnet_by_tiles_uses_the_whole_images_statistics():
    """Exactly, as long as patches cover it."""
    network, image = build_denoiser("ridnet", 4).eval(), photo(200, 250)
    image[:, 125:] //= 4  # halves with statistics of their own
    with torch.no_grad():
        whole = float_to_uint8(network(integer_to_float(image)[None])[0])
    tiler = Tiler(network, CPU, side=64)
    found = tiler(image, lambda part, *_: network(part))
    assert np.abs(found.astype(int) - whole).max() <= 1  # rounding
    assert (found != whole).mean() < 0.01
    assert all(block.ca.mean is None for block in (network.b1, network.b2, network.b3, network.b4))
    network.b4.ca.mean = torch.zeros(1, 4, 1, 1)  # of no use: it is a statistic that matters
    assert np.abs(float_to_uint8(network(integer_to_float(image)[None])[0]) - whole).max() > 0


def test_ridnet_of_a_large_image_is_within_a_50th_of_a_decibel(monkeypatch):
    """The patches see a seventh of this photograph."""
    monkeypatch.setattr(models.tiles, "PATCH", 16)
    network = denoiser_from_checkpoint("ckpts/sidd/ridnet_g.pt")
    clean = sample_photos()["astronaut"][:256, :256]
    noise = np.random.default_rng(0).normal(0, 15, clean.shape)
    noisy = (clean + noise).clip(0, 255).round().astype(np.uint8)

    def psnr(x: np.ndarray) -> float:
        return 10 * math.log10(255**2 / np.mean((x.astype(float) - clean) ** 2))

    with torch.no_grad():
        whole = float_to_uint8(network(integer_to_float(noisy)[None])[0])
    tiled = Tiler(network, CPU, side=100)(noisy, lambda part, *_: network(part))
    assert abs(psnr(tiled) - psnr(whole)) < 0.02


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 1 GB")])
def test_out_of_memory_is_tried_again_with_smaller_tiles(error):
    image, told, sizes = photo(256, 256), [], []

    def function(part: Tensor, top: int, left: int) -> Tensor:
        sizes.append(max(part.shape))
        if top > 0 and max(part.shape) > 150:
            raise error
        return part

    tiler = Tiler(build_denoiser("dncnn", 2), CPU)
    assert tiler._side_for((256, 256)) == 256
    tiler.side = 200
    np.testing.assert_array_equal(tiler(image, function, progress=told.append), image)
    assert sum(told) == 256 * 256
    assert tiler.side == 100  # for the next image, too
    with pytest.raises(UserError, match="out of memory with tiles of"):
        tiler(image, lambda *_: (_ for _ in ()).throw(error))


def test_other_errors_are_not_hidden():
    def function(part: Tensor, top: int, left: int) -> Tensor:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        Tiler(build_denoiser("dncnn", 2), CPU)(photo(9, 9), function)


def test_tiles_are_as_large_as_the_free_memory_allows(monkeypatch):
    tiler = Tiler(build_denoiser("dncnn", 16), CPU)
    for free, expected in ((1e9, 1730), (1e12, 2300), (1e6, 32)):
        monkeypatch.setattr(models.tiles, "free_memory", lambda device, free=free: free)
        side = tiler._side_for((9000, 9000))
        assert side == pytest.approx(expected, rel=0.05)
        taken = bytes_per_pixel(tiler.network) * (side + 2 * tiler.margin) ** 2
        assert taken <= max(0.4 * free, 1e6)
