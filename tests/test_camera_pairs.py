"""data.camera_pairs: both layouts, aligned pairs, noise that grows with ISO; errors."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from data import camera_pairs
from data.camera import NOISE_LEVEL
from data.sidd import parse_scene
from data.training_data import find_training_data
from utils.errors import UserError
from utils.images import read_image, write_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i, level in enumerate((90, 140)):
        write_image(tmp_path / "photos" / f"{i}.png", np.full((200, 300, 3), level, np.uint8))
    return tmp_path / "photos"


def run(photos: Path, output: Path, *flags: str) -> None:
    camera_pairs.main(["--photos", str(photos), "--output", str(output), "--scenes", "1", *flags])


def test_one_scene_for_each_phone_and_iso(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out", "--side", "80", "--layout", "sidd")
    pairs = find_training_data(tmp_path / "out").pairs
    scenes = [parse_scene(pair.noisy.parent.name) for pair in pairs]
    assert [(s.phone, int(s.iso)) for s in scenes] == list(NOISE_LEVEL)
    std = {}
    for pair, scene in zip(pairs, scenes, strict=True):
        clean, noisy = read_image(pair.clean), read_image(pair.noisy)
        assert clean.shape == noisy.shape == (80, 80, 3)
        std[scene.phone, int(scene.iso)] = (noisy.astype(float) - clean).std()
    for phone in ("GP", "S6", "N6"):
        assert std[phone, 100] < std[phone, 800] < std[phone, 3200]


def test_a_kind_of_noise_is_a_sub_folder(photos: Path, tmp_path: Path) -> None:
    """Of a phone and an ISO; in SIDD's layout of an ISO, whatever the phone. The same pictures, by
    two processes and by one."""
    flags = "--side", "64", "--scenes", "2"
    run(photos, tmp_path / "own", *flags, "--workers", "2")
    run(photos, tmp_path / "iso", *flags, "--workers", "1", "--layout", "sidd")
    own, iso = (find_training_data(tmp_path / name).pairs for name in ("own", "iso"))
    assert sorted(Counter(p.kind for p in own).values()) == [2] * len(NOISE_LEVEL)
    assert len({pair.kind for pair in iso}) == len({setting[1] for setting in NOISE_LEVEL})
    numbered = {pair.noisy.stem: pair for pair in own}
    for other in iso:
        one = numbered[other.noisy.name[:4]]
        assert np.array_equal(read_image(one.clean), read_image(other.clean))
        assert np.array_equal(read_image(one.noisy), read_image(other.noisy))


def test_random_levels_spread_wider_than_the_phones(photos: Path, tmp_path: Path) -> None:
    flags = ("--side", "64", "--levels", "random", "--kinds", "20", "--workers", "1")
    run(photos, tmp_path / "out", *flags, "--scenes", "3")
    pairs = find_training_data(tmp_path / "out").pairs
    assert sorted(Counter(p.kind for p in pairs).values()) == [3] * 20
    beta1 = [float(pair.noisy.parent.name.split("_")[2]) for pair in pairs]
    assert len(set(beta1)) == 20
    std = [(read_image(p.noisy).astype(float) - read_image(p.clean)).std() for p in pairs]
    # on flat grey the variance is beta1 times a constant, so the ranks agree but for clipping
    assert scipy.stats.spearmanr(beta1, std).statistic > 0.9


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_clean_side_shows_the_photo(tmp_path: Path, dtype: type) -> None:
    """Flat grey 90 of 255, as 8 and as 16 bits, comes back: the pipeline undoes what it does."""
    level = 90 if dtype == np.uint8 else 90 * 257
    write_image(tmp_path / "photos" / "grey.png", np.full((200, 300, 3), level, dtype))
    run(tmp_path / "photos", tmp_path / "out", "--side", "64")
    for pair in find_training_data(tmp_path / "out").pairs:
        clean, noisy = read_image(pair.clean), read_image(pair.noisy)
        assert abs(clean.astype(int) - 90).max() <= 1
        # The curve y = x^0.42 is concave: noise of 30, the strongest here, lowers the mean by
        # (1 - 0.42) / (2 * 0.42) * 30^2 / 90 = 7 levels to second order.
        assert -10 < noisy.mean() - 90 < 1


def test_the_seed_alone_decides(photos: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run(photos, tmp_path / name, "--side", "64", "--seed", seed)
    a, b, c = ([read_image(p.noisy) for p in find_training_data(tmp_path / n).pairs] for n in "abc")
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not any(np.array_equal(x, y) for x, y in zip(a, c, strict=True))


def test_bad_input(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    with pytest.raises(UserError, match="full: exists"):
        run(photos, tmp_path / "full")
    with pytest.raises(UserError, match="--scenes 0"):
        run(photos, tmp_path / "out", "--scenes", "0")
    write_image(photos / "small.png", np.zeros((100, 300, 3), np.uint8))
    with pytest.raises(UserError, match=r"small\.png: 300x100 pixels, too small"):
        run(photos, tmp_path / "out")
    with pytest.raises(UserError, match="with other --levels use --layout paired"):
        run(photos, tmp_path / "out", "--levels", "random", "--layout", "sidd")
