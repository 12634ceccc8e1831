"""References by protocol, the floor of real noise, kinds of test sets.

What a perfect generator scores comes from the moments integrated in test_akld_floor.py.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.test_sets import PairedTestSet, find_test_sets
from evaluation.protocols import (
    FLOOR_SHIFT,
    OTHER_HALF,
    floor_pair,
    has_cross_references,
    noise_sigma,
    reference_indices,
    transfer_between_halves,
)
from tests.test_akld_floor import SHAPE, SOFT, WHITE, akld_expected, soft_noise, variance_moments
from tests.test_noise_metrics import noise_of
from tests.test_sidd import image, save_mat, write_scene
from utils.errors import UserError
from utils.images import write_image
from utils.metrics import akld

# -------------------------------------------------------------------------- references by protocol


class Kinds:
    """Of a test set only the kinds of its images."""

    title = "kinds"

    def __init__(self, *kinds: str | None) -> None:
        self.kinds = kinds

    def __len__(self) -> int:
        return len(self.kinds)

    def kind(self, i: int) -> str | None:
        return self.kinds[i]


MIXED = Kinds("a", "b", None, "a", "c", "b", "a", None)
ALLOWED = {
    "paired": [{i} for i in range(8)],
    "unpaired": [{3, 6}, {5}, {OTHER_HALF}, {0, 6}, {OTHER_HALF}, {1}, {0, 3}, {OTHER_HALF}],
    # Of two images of unknown kind each is of another kind than the other.
    "cross": [
        {1, 2, 4, 5, 7}, {0, 2, 3, 4, 6, 7}, {0, 1, 3, 4, 5, 6, 7}, {1, 2, 4, 5, 7},
        {0, 1, 2, 3, 5, 6, 7}, {0, 2, 3, 4, 6, 7}, {1, 2, 4, 5, 7}, {0, 1, 2, 3, 4, 5, 6},
    ],
}  # fmt: skip


@pytest.mark.parametrize("protocol", ALLOWED)
def test_references(protocol: str) -> None:
    """Each that is allowed, and equally often: of 300 seeds n candidates get 300 / n each, 5
    standard errors of at most sqrt(300 / n)."""
    drawn = np.array([reference_indices(MIXED, 8, protocol, seed) for seed in range(300)])
    for column, allowed in zip(drawn.T, ALLOWED[protocol], strict=True):
        found, counts = np.unique(column, return_counts=True)
        assert set(found.tolist()) == allowed
        expected = 300 / len(allowed)
        assert np.abs(counts - expected).max() <= 5 * math.sqrt(expected)


@pytest.mark.parametrize("protocol", ALLOWED)
def test_references_depend_on_seed_and_image_alone(protocol: str) -> None:
    drawn = reference_indices(MIXED, 8, protocol, 3)
    assert reference_indices(MIXED, 8, protocol, 3) == drawn
    assert reference_indices(MIXED, 3, protocol, 3) == drawn[:3]
    assert reference_indices(MIXED, 0, protocol, 3) == []


def test_a_reference_may_lie_beyond_the_images_that_are_measured() -> None:
    assert reference_indices(Kinds("a", "b", "a"), 1, "unpaired", 0) == [2]


@pytest.mark.parametrize("kinds", [("a", "a", "a"), ("a",), (None,)])
def test_one_kind_of_noise_has_no_cross_references(kinds: tuple) -> None:
    assert not has_cross_references(Kinds(*kinds))
    name = kinds[0] or "image 0"
    with pytest.raises(UserError, match=f"kinds: all images are of one kind of noise, {name};"):
        reference_indices(Kinds(*kinds), 1, "cross", 0)


@pytest.mark.parametrize("kinds", [("a", "b"), ("a", None), (None, None)])
def test_two_kinds_of_noise_have_cross_references(kinds: tuple) -> None:
    assert has_cross_references(Kinds(*kinds))
    assert reference_indices(Kinds(*kinds), 2, "cross", 0) == [1, 0]


# ------------------------------------------------------------------------------ halves of an image


@pytest.mark.parametrize(
    ("height", "width", "axis"),
    [(20, 40, 3), (40, 20, 2), (16, 33, 3), (33, 16, 2), (32, 32, 3), (41, 40, 2)],
)
def test_each_half_gets_the_noise_of_the_other(height: int, width: int, axis: int) -> None:
    """The stand-in adds the reference's first pixel, by which halves and images are told apart."""
    sizes = []

    def transfer(clean: Tensor, reference: Tensor, noise: object) -> Tensor:
        assert noise is source
        sizes.append((clean.shape[axis], reference.shape[axis]))
        return clean + reference[..., :1, :1]

    source = object()
    clean = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    half = max(height, width) // 2
    place = torch.arange(clean.shape[axis]).reshape([-1 if d == axis else 1 for d in range(4)])
    noisy = torch.where(place < half, 10.0, 20.0) + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    fake = transfer_between_halves(transfer, clean, noisy.expand_as(clean), source)
    added = torch.where(place < half, 20.0, 10.0) + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    assert torch.equal(fake, clean + added)
    rest = max(height, width) - half
    assert sizes == [(half, rest), (rest, half)]


def test_an_image_too_small_to_halve() -> None:
    small = torch.zeros(1, 3, 20, 31)
    with pytest.raises(UserError, match=r"31x20 .*expected a side of 32 pixels"):
        transfer_between_halves(lambda *_: pytest.fail("called"), small, small, None)


# -------------------------------------------------------------------------------- the floor's pair


def ramp(height: int, width: int) -> Tensor:
    """(3, H, W): a plane from 0 to 1 along both axes, of another slope in each channel."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    return torch.stack([share * y + (1 - share) * x for share in (0.2, 0.5, 0.8)])


def signal_dependent(clean: Tensor) -> Tensor:
    return (0.02 * clean + 0.0005).sqrt()


def test_floor_with_a_second_shot() -> None:
    clean, noise, second = ramp(20, 24), noise_of(0, (3, 20, 24)), noise_of(1, (3, 20, 24))
    fake, real, same = floor_pair(clean, clean + noise, second)
    assert torch.equal(fake, clean + second)
    assert torch.equal(real, clean + noise)
    assert torch.equal(same, clean)


def test_floor_without_one_moves_the_noise() -> None:
    """On flat images the strength is the same everywhere: the noise is moved, no more."""
    clean, noise = torch.full((3, 40, 50), 0.4), noise_of(0, (3, 40, 50))
    fake, real, same = floor_pair(clean, clean + noise, None)
    assert FLOOR_SHIFT == 8
    assert torch.equal(real, (clean + noise)[:, :32, :42])
    assert torch.equal(same, clean[:, :32, :42])
    torch.testing.assert_close(fake - same, noise[:, 8:, 8:], rtol=0, atol=1e-6)


def test_floor_rescales_the_noise_that_it_moves_into_another_intensity() -> None:
    """Sigma 0.02 on the left, 0.06 on the right: 8 columns come from the right, and have 0.02."""
    clean = torch.full((3, 208, 64), 0.25)
    clean[..., 32:] = 0.75
    noise = noise_of(0, clean.shape, 1.0) * torch.where(clean < 0.5, 0.02, 0.06)
    fake, _, same = floor_pair(clean, clean + noise, None)
    moved = (fake - same)[..., 24:32]
    n = 3 * 200 * 8  # 5 standard errors, 1 / sqrt(2 n) each
    assert moved.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * n))
    torch.testing.assert_close(moved * 3, noise[:, 8:, 32:40], rtol=0.15, atol=1e-3)


@pytest.mark.parametrize("kind", ["white", "signal-dependent", "correlated"])
def test_floor_is_what_two_draws_score(kind: str) -> None:
    clean = ramp(*SHAPE[2:]).expand(SHAPE)
    draw = {"white": lambda seed: noise_of(seed, SHAPE), "correlated": soft_noise}.get(
        kind, lambda seed: noise_of(seed, SHAPE, 1.0) * signal_dependent(clean)
    )
    first, second = draw(0), draw(1)
    moments = variance_moments(SOFT if kind == "correlated" else WHITE)
    expected = akld_expected(moments, moments)
    pairs = [floor_pair(x, x + n, None) for x, n in zip(clean, first, strict=True)]
    floor = akld(*(torch.stack(side) for side in zip(*pairs, strict=True)))
    draws = akld(clean + first, clean + second, clean)
    # 5 standard errors; reflection leaves fewer pixels to 6 % of the windows: under 3 %. The level
    # function is known to 2 % a bin (sqrt(2 / 2300) / sqrt(2)), at random: under 1 % of AKLD.
    for measured in (floor, draws):
        tolerance = 5 * measured.std().item() / math.sqrt(len(clean)) + 0.04 * expected
        assert measured.mean().item() == pytest.approx(expected, abs=tolerance)
    if kind == "correlated":  # every second pixel against the others
        zeros = torch.zeros_like(first[..., ::2])
        assert akld(first[..., ::2], first[..., 1::2], zeros).mean() < 0.8 * expected


def test_noise_sigma_of_known_levels() -> None:
    """sqrt(a x + b), an a and b a channel; a bin of n = 4096 pixels has a standard error of
    1 / sqrt(2 n) = 0.011, 5 of them; beyond the middles of the outermost bins it stands still."""
    rng = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 256, 256, generator=rng)
    a = torch.tensor([0.01, 0.0, 0.04]).view(3, 1, 1)
    b = torch.tensor([0.001, 0.004, 0.0005]).view(3, 1, 1)
    noisy = clean + torch.randn(3, 256, 256, generator=rng) * (a * clean + b).sqrt()
    expected = (a * clean.clamp(1 / 32, 31 / 32) + b).sqrt()
    torch.testing.assert_close(noise_sigma(clean, noisy), expected, rtol=0.055, atol=0)


def test_noise_sigma_of_images_too_small_for_a_level_function() -> None:
    """16x16 pixels of 256 intensities leave 16 a bin: all count as one."""
    clean = torch.linspace(0, 1, 256).view(1, 16, 16).expand(3, 16, 16)
    noise = noise_of(0, (3, 16, 16)) * torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    sigma = noise_sigma(clean, clean + noise)
    expected = noise.flatten(1).std(dim=1).view(3, 1, 1).expand(3, 16, 16)
    torch.testing.assert_close(sigma, expected, rtol=1e-4, atol=0)
    assert floor_pair(clean, clean + noise, None)[0].isfinite().all()


def test_floor_of_an_image_without_noise() -> None:
    clean = ramp(40, 48)
    fake, real, same = floor_pair(clean, clean, None)
    assert torch.equal(fake, same)
    assert torch.equal(real, same)


# ------------------------------------------------------------------------------ kinds of test sets


def of_each(test_set: PairedTestSet) -> tuple[list, list]:
    every = range(len(test_set))
    return [test_set.kind(i) for i in every], [test_set.second_shot(i) for i in every]


def test_kinds_and_second_shots_of_scene_folders(tmp_path: Path) -> None:
    two, one = ("010", "011"), ("010",)
    for name, shots in (
        ("0001_001_S6_00100_00060_3200_L", two),
        ("0002_001_S6_00100_00020_3200_N", one),
        ("0003_002_GP_00100_00020_3200_N", two),
        ("0004_002_S6_00800_00020_3200_N", two),
    ):
        write_scene(tmp_path / "own" / name, shots)
    for side in ("GT", "NOISY"):  # the second shot of the last scene: another size
        path = tmp_path / "own/0004_002_S6_00800_00020_3200_N" / f"0004_{side}_SRGB_011.PNG"
        write_image(path, image(0, 9, 6))
    (test_set,) = find_test_sets(tmp_path)
    kinds, second = of_each(test_set)
    assert kinds == ["S6 ISO 100"] * 3 + ["GP ISO 100"] * 2 + ["S6 ISO 800"] * 2
    assert second == [1, 0, None, 4, 3, None, None]


@pytest.mark.parametrize(
    ("stems", "leading", "kinds"),
    [
        (
            ("ValidationGtBlocksSrgb", "ValidationNoisyBlocksSrgb"),
            (2, 3),
            ["shot 0"] * 3 + ["shot 1"] * 3,
        ),
        (("siddplus_valid_gt_srgb", "siddplus_valid_noisy_srgb"), (6,), [None] * 6),
    ],
)
@pytest.mark.parametrize("generation", ["v5", "v7.3"])
def test_kinds_of_blocks(
    tmp_path: Path, stems: tuple, leading: tuple, kinds: list, generation: str
) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (*leading, 16, 16, 3), dtype=np.uint8)
    for stem in stems:
        save_mat(tmp_path / f"{stem}.mat", stem, blocks, generation)
    (test_set,) = find_test_sets(tmp_path)
    assert of_each(test_set) == (kinds, [None] * 6)


def test_plain_pairs_have_no_known_kind(tmp_path: Path) -> None:
    for side in ("groundtruth", "input"):
        for i in range(2):
            write_image(tmp_path / "pairs" / side / f"{i}.png", image(i))
    (test_set,) = find_test_sets(tmp_path)
    assert of_each(test_set) == ([None, None], [None, None])
