"""Training items (method 4): images whose pixels tell where they come from, and counts of draws."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.stats
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from data.augment import SceneDistribution, blur_each
from data.items import GeneratorItems, PatchSource, RealItems, SyntheticItems, Triplet
from data.noise import NoiseCorrelationDistribution, NoiseModelDistribution
from data.recipe import NO_CORRELATION, NO_NOISE, Recipe
from data.store import ImageStore
from train_noiseTransfer import RECIPE, Config
from utils.images import write_image
from utils.seeding import Randomness, randomness

CPU = torch.device("cpu")
NOISELESS = replace(RECIPE, noise=NO_NOISE)
P_REAL = Config().p_real
KINDS = ("iso_100", "iso_800", "iso_100", "iso_100", "iso_3200", "iso_800")
SIZES = ((30, 42), (40, 20), (16, 16), (17, 33), (16, 50), (25, 25))
P = 16

# d(row, column of the source) / d(row, column of the patch): flips and turns are these eight.
ORIENTATIONS = [
    torch.tensor(m)
    for a, b in product((1, -1), repeat=2)
    for m in ([[a, 0], [0, b]], [[0, a], [b, 0]])
]


def make_store(folder: Path, images: list[np.ndarray]) -> ImageStore:
    files = [folder / f"{i}.png" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        write_image(file, image)
    return ImageStore.open(files, folder / "cache", progress=False)


def flat(size: tuple[int, int], *rgb: int) -> np.ndarray:
    return np.tile(np.uint8(rgb), (*size, 1))


def coded(size: tuple[int, int], blue: int, offset: int = 1) -> np.ndarray:
    """Red is the row, green the column, each plus `offset`; blue tells the image."""
    rows, columns = np.indices(size) + offset
    return np.stack([rows, columns, np.full(size, blue)], axis=-1).astype(np.uint8)


def coded_pairs(folder: Path) -> RealItems:
    """Pair k: blue 10 + k. The noisy image is 100 levels brighter, in all channels, everywhere."""
    images = [coded(s, 10 + k + d, 1 + d) for k, s in enumerate(SIZES) for d in (0, 100)]
    return RealItems(make_store(folder, images), KINDS, P, CPU, RECIPE)


def flat_pairs(folder: Path, patch: int = P) -> RealItems:
    """Pair k is (50, 60, 10 + k), and 100 levels of noise in the red: alpha can be read off."""
    images = [flat(s, 50 + d, 60, 10 + k) for k, s in enumerate(SIZES) for d in (0, 100)]
    return RealItems(make_store(folder, images), KINDS, patch, CPU, RECIPE)


def flat_photos(folder: Path, patch: int = P) -> PatchSource:
    store = make_store(folder, [flat((20, 24), 128, 128, 200 + k) for k in range(3)])
    return PatchSource(store, patch, CPU)


def photo_like(seed: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def real_and_synthetic(folder: Path, device: torch.device, patch: int = P) -> GeneratorItems:
    """Full-range random images in which no value is safe from clipping."""
    pairs = make_store(folder / "pairs", [photo_like(i, SIZES[i // 2]) for i in range(12)])
    photos = make_store(folder / "photos", [photo_like(99 + i, s) for i, s in enumerate(SIZES)])
    real = RealItems(pairs, KINDS, patch, device, RECIPE)
    synthetic = SyntheticItems(PatchSource(photos, patch, device), RECIPE, real)
    return GeneratorItems(synthetic, real, P_REAL)


def blue(images: Tensor) -> Tensor:
    """The code in the blue channel, which may be dithered by half a level: (B,) int64."""
    return (images[:, 2].mean(dim=(1, 2)) * 255).round().long()


def assert_counts(counts: Tensor, p: Tensor | float, n: int) -> None:
    """Each within 5 binomial standard errors of n p."""
    p = torch.as_tensor(p, dtype=torch.float64).expand(counts.shape)
    assert ((counts - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt()).all(), (counts, n * p)


def rng(*numbers: int, device: torch.device = CPU) -> Randomness:
    return randomness(*(numbers or (0,)), device=device)


def best_map(source: Tensor, where: Tensor) -> tuple[int, Tensor]:
    """An orientation and the pixels (P, P) that show one place in it: those most of `where`.

    source: (2, P, P), the row and column that each pixel comes from.
    """
    grid = torch.stack(torch.meshgrid(torch.arange(P), torch.arange(P), indexing="ij"))
    best = (0, torch.zeros(P, P, dtype=torch.bool))
    for o, m in enumerate(ORIENTATIONS):
        corner = source - torch.einsum("ij,jhw->ihw", m, grid)
        key = corner[0] * 1000 + corner[1]
        same = key == key[where].mode().values
        if (same & where).sum() > (best[1] & where).sum():
            best = o, same
    return best


def test_views_are_aligned_and_show_their_own_pair(tmp_path: Path) -> None:
    """Clean and noisy show the same source pixel everywhere, all of it within the pair's image.

    A black corner, a pixel of another pair or a distorted box would have no place in the source.
    Outside the box lies one crop, in all of it another, mostly of another orientation.
    """
    items, n = coded_pairs(tmp_path), 240
    pair = torch.arange(n) % len(items)
    clean, noisy = items.view(pair, torch.ones(n), rng())
    dither = ((noisy - clean) * 255 - 100).double()
    assert dither.abs().max() <= 0.5 + 1e-3
    # U(-0.5, 0.5) has variance 1/12 and fourth central moment 1/80
    assert abs(dither.var() - 1 / 12) <= 5 * math.sqrt((1 / 80 - 1 / 144) / dither.numel())
    levels = clean * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    levels = levels.round().long()
    assert torch.equal(levels[:, 2], (10 + pair)[:, None, None].expand(n, P, P))
    source = levels[:, :2] - 1
    assert source.min() == 0
    assert (source < torch.tensor(SIZES)[pair][:, :, None, None]).all()

    everywhere, mixed, turned = torch.ones(P, P, dtype=torch.bool), 0, 0
    for s in source:
        first, shown = best_map(s, everywhere)  # 135 pixels at least; a box has 121 at most
        if shown.all():
            continue
        mixed += 1
        second, inside = best_map(s, ~shown)
        assert (shown | inside).all()
        rows, columns = (~shown).any(dim=1).nonzero(), (~shown).any(dim=0).nonzero()
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        assert max(bottom - top, right - left) < 3 * P // 4
        assert inside[top:bottom, left:right].all()
        turned += second != first
    # An image of 16x16 repeats itself in a box of the same orientation: 1/8 of every sixth view
    assert_counts(torch.tensor(mixed), 0.5 * (1 - 1 / 48), n)
    assert turned > mixed / 2


def test_noiseless_pixels_stay_noiseless(tmp_path: Path) -> None:
    """Only even columns have noise: odd ones are neither dithered nor touched by alpha."""
    clean = coded((32, 32), 10)
    noisy = clean + np.uint8(100) * (np.arange(32) % 2 == 0)[None, :, None].astype(np.uint8)
    items = RealItems(make_store(tmp_path, [clean, noisy]), ["a"], P, CPU, RECIPE)
    triplet = items.triplets(40, rng())
    column = (triplet.clean[:, 1] * 255).round().long() - 1
    has_noise = (column % 2 == 0)[:, None].expand_as(triplet.clean)
    assert torch.equal(triplet.noisy1[~has_noise], triplet.clean[~has_noise])
    assert ((triplet.noisy1 - triplet.clean)[has_noise] * 255).min() >= 79.5 - 1e-3  # alpha > 0.8


def test_patches_are_whole_in_bounds_and_everywhere(tmp_path: Path) -> None:
    """Every corner of every image (down to one patch) as often, in each of eight orientations."""
    images = [coded(size, 10 + k) for k, size in enumerate(SIZES)]
    source, n = PatchSource(make_store(tmp_path, images), P, CPU), 4000
    for k in (1, 2, 3):  # 25 x 5, 1 x 1 and 2 x 18 corners
        patches = source.patches(torch.full((n,), k), rng(k))
        assert (blue(patches) == 10 + k).all()
        at = (patches[:, :2] * 255).round().long() - 1
        corner = at.amin(dim=(2, 3))
        assert torch.equal(at.amax(dim=(2, 3)), corner + P - 1)
        rooms = torch.tensor(SIZES[k]) - P + 1
        cells = (corner[:, 0] * rooms[1] + corner[:, 1]).bincount(minlength=int(rooms.prod()))
        assert_counts(cells, 1 / len(cells), n)
        slopes = torch.stack([at[:, :, 1, 0] - at[:, :, 0, 0], at[:, :, 0, 1] - at[:, :, 0, 0]], 2)
        found = torch.stack([(slopes == m).all(dim=2).all(dim=1) for m in ORIENTATIONS])
        assert_counts(found.sum(dim=1), 1 / 8, n)
        grid = torch.arange(P)
        down, right = slopes[..., None, None].unbind(2)
        exact = at[:, :, :1, :1] + down * grid[:, None] + right * grid
        assert torch.equal(at, exact)


def test_blurred_patches_are_patches_of_the_blurred_image(tmp_path: Path) -> None:
    """Against OpenCV's blur of the whole image, reflected at its borders, searched exhaustively."""
    sizes = [(P, P), (21, 30), (28, 19)]
    images = [photo_like(i, size) for i, size in enumerate(sizes)]
    source = PatchSource(make_store(tmp_path, images), P, CPU)
    for i, image in enumerate(images):
        whole = cv2.GaussianBlur(
            image.astype(np.float64) / 255, (21, 21), 3.5, borderType=cv2.BORDER_REFLECT_101
        ).astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (P, P), axis=(0, 1))
        for patch in source.patches(torch.full((12,), i), rng(i), RECIPE.blur).numpy():
            turned = [np.rot90(p, k, (1, 2)) for p in (patch, patch[..., ::-1]) for k in range(4)]
            distances = [np.abs(windows - t).max(axis=(2, 3, 4)).min() for t in turned]
            assert sum(d < 2e-6 for d in distances) == 1


def test_alpha(tmp_path: Path) -> None:
    """None with p 0.5, else U(0.8, 1); the same for both views.

    Of 100 levels of noise, alpha is read with the dither's error: sqrt(1 / 12 / 256) / 100 = 1.8e-4
    an image, 9e-4 at 5 SE. Draws above 0.999 (0.5 % of U) cannot be told from none.
    """
    items, n = flat_pairs(tmp_path), 2000
    triplet = items.triplets(n, rng())
    red = torch.stack([triplet.noisy1[:, 0], triplet.noisy2[:, 0]]).mean(dim=(2, 3))
    first, second = (red * 255 - 50) / 100
    assert (first - second).abs().max() <= 9e-4 * math.sqrt(2)
    scaled = first < 0.999
    assert_counts(scaled.sum(), 0.5 * 0.995, n)
    uniform = scipy.stats.uniform(0.8, 0.199)
    assert scipy.stats.kstest(first[scaled], uniform.cdf).pvalue > 1e-6


def test_second_view_is_of_the_same_kind(tmp_path: Path) -> None:
    """View 1 is of any pair, view 2 of any pair of its ISO: P(i, j) = 1/6 1/|kind of i|."""
    items, n = flat_pairs(tmp_path, patch=8), 4000
    assert len(items) == len(KINDS)
    triplet = items.triplets(n, rng())
    first, second = blue(triplet.clean) - 10, blue(triplet.noisy2) - 10
    assert torch.equal(blue(triplet.noisy1) - 10, first)
    counts = (6 * first + second).bincount(minlength=36)
    p = [(a == b) / 6 / KINDS.count(a) for a in KINDS for b in KINDS]
    assert_counts(counts, torch.tensor(p, dtype=torch.float64), n)  # 0 where the kinds differ


def test_second_view_is_another_place(tmp_path: Path) -> None:
    """Rows (columns) of the two views of one and the same pair correlate by 0; SE 1 / sqrt(n)."""
    clean = coded((60, 60), 10)
    items = RealItems(
        make_store(tmp_path, [clean, clean + np.uint8([0, 0, 100])]), ["a"], P, CPU, RECIPE
    )
    n = 600
    triplet = items.triplets(n, rng())
    for channel in (0, 1):
        views = triplet.clean[:, channel], triplet.noisy2[:, channel]
        places = torch.stack([view.mean(dim=(1, 2)) for view in views])
        assert torch.corrcoef(places.double())[0, 1].abs() < 5 / math.sqrt(n)


def test_pairs_and_kinds_must_match(tmp_path: Path) -> None:
    store = make_store(tmp_path, [flat((P, P), 0, 0, 0)] * 4)
    with pytest.raises(ValueError, match="4 images are not 3 pairs"):
        RealItems(store, KINDS[:3], P, CPU, RECIPE)


def test_where_synthetic_patches_come_from(tmp_path: Path) -> None:
    """Both patches, independently: 20 % from a SIDD clean image (any, blurred), else any photo."""
    real = flat_pairs(tmp_path / "pairs", patch=8)
    items, n = SyntheticItems(flat_photos(tmp_path / "photos", patch=8), NOISELESS, real), 3000
    triplet = items.triplets(n, rng())
    assert torch.equal(triplet.noisy1, triplet.clean)
    pairs, photos = len(real), len(items.photos)
    sources = []
    for patches in (triplet.clean, triplet.noisy2):
        # flat images stay flat when blurred; a noisy one would be red: 150
        assert ((patches[:, 0] * 255).round() != 150).all()
        code = blue(patches)
        sources.append(torch.where(code < 200, code - 10, pairs + code - 200))
    p = torch.tensor([0.2 / pairs] * pairs + [0.8 / photos] * photos, dtype=torch.float64)
    joint = (sources[0] * len(p) + sources[1]).bincount(minlength=len(p) ** 2)
    for source in sources:
        assert_counts(source.bincount(minlength=len(p)), p, n)
    coarse = joint.view(len(p), len(p))
    assert_counts(coarse[:pairs, :pairs].sum(), 0.04, n)
    assert_counts(coarse[pairs:, pairs:], torch.outer(p, p)[pairs:, pairs:], n)


def test_sidd_patches_are_blurred_in_synthetic_items(tmp_path: Path) -> None:
    """A black and white checkerboard turns grey: sharp patches would keep 0 and 1."""
    checkers = np.repeat(np.indices((40, 40)).sum(axis=0)[..., None] % 2 * 255, 3, axis=2)
    pair = make_store(tmp_path / "pairs", [checkers.astype(np.uint8), flat((40, 40), 0, 0, 0)])
    photos = flat_photos(tmp_path / "photos")
    items = SyntheticItems(photos, NOISELESS, RealItems(pair, ["a"], P, CPU, RECIPE))
    clean = items.clean_patches(200, rng())
    sidd = (clean[:, 2] * 255).amax(dim=(1, 2)) < 190
    assert_counts(sidd.sum(), 0.2, 200)
    assert (clean[sidd] - 0.5).abs().max() < 0.01


def test_both_patches_have_fresh_noise_of_one_model(tmp_path: Path) -> None:
    """On flat photographs, N values a patch in two channels (blue is light, and might be clipped).

    The standard deviations differ by log ratio SE 1 / sqrt(N), within a sample; by much more
    between samples. The noise of the two correlates by 0, SE 1 / sqrt(N).
    """
    noise = NoiseModelDistribution((1, 0, 0), sigma=(5, 30), chi=(5, 5))
    store = make_store(tmp_path, [flat((40, 40), 128, 128, 200)])
    n, count = 30, 2 * 32 * 32
    triplet = SyntheticItems(PatchSource(store, 32, CPU), Recipe(noise=noise)).triplets(n, rng())
    noises = [(v - triplet.clean)[:, :2].flatten(1) for v in (triplet.noisy1, triplet.noisy2)]
    first, second = (v.std(dim=1).log() for v in noises)
    assert (first - second).abs().max() < 5 / math.sqrt(count)
    assert (first - first.roll(1)).abs().max() > 1
    for a, b in zip(*noises, strict=True):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 5 / math.sqrt(count)


def test_share_of_real_items(tmp_path: Path) -> None:
    """320 of 1120, drawn item by item: the number in a batch of 32 has variance 32 p q.

    SE of a sample variance of 120 batches, near normal: sqrt(2 / 119) of it.
    """
    real = flat_pairs(tmp_path / "pairs", patch=8)
    synthetic = SyntheticItems(flat_photos(tmp_path / "photos", patch=8), RECIPE)
    items = GeneratorItems(synthetic, real, P_REAL)
    batches, batch, p = 120, 32, 320 / 1120
    found = []
    for step in range(batches):
        clean = items.triplets(batch, rng(0, 0, step)).clean
        found.append((blue(clean) < 100).sum())
    found = torch.stack(found).double()
    assert_counts(found.sum(), p, batches * batch)
    variance = batch * p * (1 - p)
    assert (found.var() - variance).abs() < 5 * variance * math.sqrt(2 / (batches - 1))


def test_only_photos_or_only_pairs(tmp_path: Path) -> None:
    real, photos = flat_pairs(tmp_path / "pairs"), flat_photos(tmp_path / "photos")
    assert (blue(GeneratorItems(None, real, P_REAL).triplets(64, rng()).clean) < 100).all()
    synthetic = GeneratorItems(SyntheticItems(photos, RECIPE), None, P_REAL)
    assert (blue(synthetic.triplets(64, rng()).clean) >= 200).all()
    for p, expected in ((0.0, False), (1.0, True)):
        clean = GeneratorItems(SyntheticItems(photos, RECIPE), real, p).triplets(64, rng()).clean
        assert ((blue(clean) < 100) == expected).all()
    with pytest.raises(ValueError, match="neither photos nor pairs"):
        GeneratorItems(None, None, P_REAL)


def test_reference_sizes(tmp_path: Path) -> None:
    """noisy2 has one of the sizes, each as often as the others, from images of the item's kind."""
    real, photos = flat_pairs(tmp_path / "pairs", patch=8), flat_photos(tmp_path / "photos", 8)
    sizes = (8, 12, 16)
    items, batches = GeneratorItems(SyntheticItems(photos, RECIPE), real, 0.5, sizes), 300
    drawn = []
    for step in range(batches):
        t = items.triplets(8, rng(0, 0, step))
        assert t.clean.shape == t.noisy1.shape == (8, 3, 8, 8)
        assert t.noisy2.shape[:2] == (8, 3)
        assert t.noisy2.shape[2] == t.noisy2.shape[3]
        drawn.append(t.noisy2.shape[2])
        pairs = blue(t.clean) < 100
        kinds = [KINDS[b - 10] for b in blue(t.clean)[pairs]]
        assert kinds == [KINDS[b - 10] for b in blue(t.noisy2)[pairs]]
    assert_counts(torch.tensor([drawn.count(s) for s in sizes]), 1 / 3, batches)


def test_reference_of_patch_size_is_the_default(tmp_path: Path) -> None:
    """Naming the patch's own size changes nothing but the one number drawn for it."""
    real = flat_pairs(tmp_path / "pairs", patch=8)
    named = GeneratorItems(None, real, P_REAL, reference_sizes=(8,)).triplets(4, rng())
    assert {tuple(x.shape) for x in tensors(named)} == {(4, 3, 8, 8)}


def tensors(triplet: Triplet) -> list[Tensor]:
    return [triplet.clean, triplet.noisy1, triplet.noisy2]


@pytest.mark.parametrize("n", [1, 33])
def test_batches(tmp_path: Path, device: torch.device, n: int) -> None:
    """float32 (B, 3, P, P) in [0, 1] on the device; equal seeds equal batches, others others."""
    items = real_and_synthetic(tmp_path, device)
    first, again, *others = (
        tensors(items.triplets(n, rng(*numbers, device=device)))
        for numbers in ((3, 0, 7), (3, 0, 7), (3, 0, 8), (3, 1, 7), (4, 0, 7))
    )
    for x, same in zip(first, again, strict=True):
        assert (x.shape, x.dtype, x.device.type) == ((n, 3, P, P), torch.float32, device.type)
        assert x.min() >= 0
        assert x.max() <= 1
        assert torch.equal(x, same)
    for other in others:
        assert all((a != b).any() for a, b in zip(first, other, strict=True))
    clean, noisy1, noisy2 = first
    assert (noisy1 != clean).any(dim=(1, 2, 3)).all()
    assert (noisy2 != noisy1).any(dim=(1, 2, 3)).all()


def test_batches_take_nothing_from_the_global_generator(tmp_path: Path) -> None:
    items = real_and_synthetic(tmp_path, CPU)
    state = torch.get_rng_state()
    first = items.triplets(16, rng())
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(items.triplets(16, rng()).noisy2, first.noisy2)


def test_the_device_changes_only_the_noise(tmp_path: Path, device: torch.device) -> None:
    """Which image, where, how turned and mixed is drawn on the CPU; blurs differ by rounding."""
    on_cpu, on_device = (real_and_synthetic(tmp_path / d.type, d) for d in (CPU, device))
    clean = on_device.triplets(32, rng(1, device=device)).clean
    torch.testing.assert_close(clean.cpu(), on_cpu.triplets(32, rng(1)).clean, atol=2e-6, rtol=0)


def test_images_may_lie_on_the_device(tmp_path: Path, device: torch.device) -> None:
    """A store in the device's memory gives the patches of the mapped file."""
    store = make_store(tmp_path, [photo_like(i, size) for i, size in enumerate(SIZES)])
    index = torch.arange(24) % len(store)
    for blur in (None, RECIPE.blur):
        mapped, resident = (
            PatchSource(s, P, device).patches(index, rng(), blur) for s in (store, store.to(device))
        )
        assert resident.device.type == device.type
        assert torch.equal(mapped, resident)


# ------------------------------------------------------------------ beyond the paper: white pairs


def white_pairs(folder: Path, white: int = 0, **how: object) -> RealItems:
    """Two pairs of kind a with independent noise of sigma 20; the second one is resized."""
    rng_ = np.random.default_rng(0)
    images = []
    for _ in range(2):
        noise = rng_.normal(0, 20, (96, 96, 3))
        images += [
            flat((96, 96), 120, 120, 120),
            (120 + noise).round().clip(0, 255).astype("uint8"),
        ]
    return RealItems(make_store(folder, images), ["a", "b"], 48, CPU, replace(RECIPE, **how), white)


def neighbour(noise: Tensor) -> Tensor:
    return (noise[..., 1:] * noise[..., :-1]).mean((1, 2, 3)) / noise.square().mean((1, 2, 3))


def test_white_pairs_get_one_correlation_for_both_views(tmp_path: Path) -> None:
    """The others stay as they are. A correlation has SE 1 / sqrt(3 * 48^2) = 0.012, independent in
    the two views; drawn ones spread over 0 to 0.8. CutMix boxes break it at their
    borders alone."""
    n = 200
    items = white_pairs(tmp_path, 1, lost_correlation=NoiseCorrelationDistribution(1.0))
    t = items.triplets(n, rng())
    first, second = (neighbour(x - 120 / 255) for x in (t.noisy1, t.noisy2))
    correlated = (first.abs() > 0.08) | (second.abs() > 0.08)
    assert 0.35 < correlated.float().mean() < 0.6  # half of the pairs; a few drew about none
    assert (first - second)[correlated].abs().max() < 0.15
    assert first[correlated].std() > 0.1
    deviation = (t.noisy1 - 120 / 255).flatten(1).std(1) * 255
    # alpha takes up to a fifth, dithering adds 0.04 %; correlated noise has fewer free values
    assert deviation.min() > 15
    assert deviation.max() < 22


def test_without_white_pairs_nothing_is_drawn_for_them(tmp_path: Path) -> None:
    plain = white_pairs(tmp_path).triplets(8, rng())
    same = white_pairs(tmp_path, scenes=SceneDistribution(1.0)).triplets(8, rng())
    for a, b in zip(vars(plain).values(), vars(same).values(), strict=True):
        assert torch.equal(a, b)


def test_scenes_of_white_pairs_are_blurred_under_the_same_noise(tmp_path: Path) -> None:
    checkers = (np.indices((64, 64)).sum(axis=0)[..., None] % 2 * 100 + np.full(3, 50)).astype(
        "uint8"
    )
    noisy = checkers + np.uint8([0, 0, 40])
    items = RealItems(
        make_store(tmp_path, [checkers, noisy]), ["a"], 32, CPU,
        replace(
            RECIPE, lost_correlation=NO_CORRELATION, scenes=SceneDistribution(1.0, blur=(2, 2))
        ),
        white=1,
    )  # fmt: skip
    t = items.triplets(40, rng())
    assert (t.clean - 100 / 255).abs().max() < 0.02  # grey
    noise = t.noisy1 - t.clean
    assert noise[:, 2].mean().item() == pytest.approx(0.95 * 40 / 255, rel=0.05)
    assert noise[:, :2].abs().max() < 1 / 255  # dithering


def test_synthetic_items_share_correlation_and_vary_scenes(tmp_path: Path) -> None:
    n, noise = 120, NoiseModelDistribution((1, 0, 0), sigma=(10, 10), chi=(5, 5))
    photos = PatchSource(make_store(tmp_path, [flat((64, 64), 128, 128, 128)]), 48, CPU)
    items = SyntheticItems(
        photos, Recipe(noise=noise, correlation=NoiseCorrelationDistribution(0.5))
    )
    t = items.triplets(n, rng())
    first, second = (neighbour(x - t.clean) for x in (t.noisy1, t.noisy2))
    assert (first - second).abs().max() < 0.15
    assert 0.3 < (first > 0.08).float().mean() < 0.6
    dimmed = SyntheticItems(photos, Recipe(scenes=SceneDistribution(0.5))).clean_patches(n, rng())
    level = dimmed.mean((1, 2, 3))
    assert_counts((level - 128 / 255).abs().gt(1e-3).sum(), 0.5, n)
    assert 0 <= dimmed.min() <= dimmed.max() <= 1


def test_some_scenes_are_their_mean_colour(tmp_path: Path) -> None:
    n, image = 200, photo_like(0, (64, 64))
    photos = PatchSource(make_store(tmp_path, [image]), 64, CPU)
    items = SyntheticItems(photos, Recipe(p_flat=0.3))
    patches = items.clean_patches(n, rng())
    mean = torch.from_numpy(image / 255).mean((0, 1)).float()
    torch.testing.assert_close(patches.mean((2, 3)), mean.expand(n, 3), rtol=0, atol=1e-5)
    assert_counts((patches.std((1, 2, 3)) < 1.01 * mean.std(correction=0)).sum(), 0.3, n)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 2.5])
def test_each_image_is_blurred_by_its_own_gaussian(sigma: float) -> None:
    images = torch.rand(2, 3, 40, 48, generator=rng().choices)
    blurred = blur_each(images, torch.tensor([sigma, 2.5]))
    expected = images[0].numpy()
    if sigma:  # mirrored as torch reflects; the same radius
        radius = 8
        expected = gaussian_filter(expected, (0, sigma, sigma), mode="mirror", radius=radius)
    np.testing.assert_allclose(blurred[0], expected, atol=2e-3)


def test_items_are_dealt_in_turn() -> None:
    """Each once, and as many of the first ones, the real, for every step."""
    x = torch.arange(12.0)[:, None, None, None].expand(12, 3, 2, 2)
    hands = Triplet(x, x + 100, x + 200).dealt(3)
    assert [hand.clean[:, 0, 0, 0].tolist() for hand in hands] == [
        [0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11],
    ]  # fmt: skip
    for hand in hands:
        assert torch.equal(hand.noisy1, hand.clean + 100)
        assert torch.equal(hand.noisy2, hand.clean + 200)
        assert all(tensor.is_contiguous() for tensor in vars(hand).values())
