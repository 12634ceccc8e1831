"""What a training run is given: folders named or found, pairs grouped by ISO, bad images named."""

import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import data.training_data
import utils.images
from data.folders import PairFile
from data.recipe import Recipe
from data.store import DeviceImageStore, ImageStore
from data.training_data import (
    find_pairs_and_photos,
    find_validation_sets,
    open_photos,
    open_real_items,
    place_store,
)
from utils.errors import UserError
from utils.images import write_image
from utils.seeding import randomness

CPU = torch.device("cpu")
SCENES = (  # name, pairs in it
    ("0001_001_S6_00100_00060_3200_L", 2),
    ("0002_001_GP_01600_00060_3200_N", 1),
    ("0003_002_IP_00100_01000_5500_N", 2),
    ("0004_003_G4_01600_00100_4400_H", 1),
    ("0005_003_N6_03200_00100_4400_L", 1),
)
ISO = ("00100", "00100", "01600", "00100", "00100", "01600", "03200")  # of each pair


def flat(*rgb: int, size: tuple[int, int] = (20, 18)) -> np.ndarray:
    return np.tile(np.uint8(rgb), (*size, 1))


def write_sidd(root: Path) -> Path:
    """SIDD-Medium's layout; pair k is (50, 60, 10 + k), its noisy image 100 redder."""
    k = 0
    for name, pairs in SCENES:
        for shot in range(pairs):
            folder = root / "SIDD_Medium_Srgb" / "Data" / name
            for side, red in (("GT", 50), ("NOISY", 150)):
                write_image(folder / f"{name[:4]}_{side}_SRGB_01{shot}.PNG", flat(red, 60, 10 + k))
            k += 1
    return root


def write_photos(folder: Path, n: int = 3) -> Path:
    for i in range(n):
        write_image(folder / f"{i}.png", flat(0, 0, 200 + i))
    return folder


def write_pairs(root: Path, *names: str) -> Path:
    for name in names:
        write_image(root / "clean" / f"{name}.png", flat(1, 2, 3))
        write_image(root / "noisy" / f"{name}.png", flat(4, 5, 6))
    return root


@pytest.fixture
def train_images(tmp_path: Path) -> Path:
    write_sidd(tmp_path / "train_images" / "sidd")
    write_photos(tmp_path / "train_images" / "DIV2K" / "DIV2K_train_HR")
    return tmp_path / "train_images"


def stems(files: list[Path]) -> list[str]:
    return [file.stem for file in files]


def test_both_kinds_are_found(train_images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, photos = find_pairs_and_photos(train_images)
    assert [p.kind.rpartition(": ")[2] for p in pairs] == [f"iso_{iso}" for iso in ISO]
    assert all(p.noisy.name == p.clean.name.replace("GT", "NOISY") for p in pairs)
    assert stems(photos) == ["0", "1", "2"]
    said = capsys.readouterr().out.splitlines()
    lines = [line for line in said if not line.startswith("Check ")]  # of 800 and 320 published
    assert len(lines) == 2
    assert "DIV2K_train_HR" in lines[0]
    assert "3 images" in lines[0]
    assert "7 pairs at 3 ISO settings" in lines[1]


def test_named_folders_take_the_place_of_what_would_be_found(
    train_images: Path, tmp_path: Path
) -> None:
    one, two = write_pairs(tmp_path / "one", "b", "a"), write_pairs(tmp_path / "two", "c")
    own = write_photos(tmp_path / "own", n=2)

    pairs, photos = find_pairs_and_photos(train_images, pairs=[two, one])
    assert stems([p.clean for p in pairs]) == ["c", "a", "b"]
    assert {p.clean.parent.name for p in pairs} == {"clean"}
    assert len({p.kind for p in pairs}) == 3  # nothing says that they share their noise
    assert len(photos) == 3

    pairs, photos = find_pairs_and_photos(train_images, photos=[own, own])
    assert len(pairs) == len(ISO)
    assert photos == [own / "0.png", own / "1.png"] * 2

    pairs, photos = find_pairs_and_photos(tmp_path / "absent", pairs=[one], photos=[own])
    assert (len(pairs), len(photos)) == (2, 2)


def test_named_folders_alone_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only pairs, or only photographs: nobody needs a train_images/ that has nothing to add."""
    absent = tmp_path / "train_images"
    pairs, photos = find_pairs_and_photos(absent, pairs=[write_pairs(tmp_path / "own", "a")])
    assert (len(pairs), photos) == (1, [])
    pairs, photos = find_pairs_and_photos(absent, photos=[write_photos(tmp_path / "photos")])
    assert (pairs, len(photos)) == ([], 3)
    assert f"{absent} does not exist" in capsys.readouterr().out


def test_one_kind_may_be_all_that_there_is(tmp_path: Path) -> None:
    pairs, photos = find_pairs_and_photos(write_photos(tmp_path / "photos"))
    assert (pairs, len(photos)) == ([], 3)
    pairs, photos = find_pairs_and_photos(write_sidd(tmp_path / "sidd"))
    assert (len(pairs), photos) == (len(ISO), [])
    assert open_real_items([], 16, tmp_path / "cache", CPU, Recipe()) is None
    assert open_photos([], 16, tmp_path / "cache", CPU) is None


def test_folders_without_what_is_asked_for_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_images: no training images; put SIDD-Medium"):
        find_pairs_and_photos(tmp_path / "train_images")
    photos = write_photos(tmp_path / "photos")
    with pytest.raises(UserError, match=r"photos: no noisy/clean pairs; expected"):
        find_pairs_and_photos(tmp_path, pairs=[photos])
    with pytest.raises(UserError, match="nothing"):
        find_pairs_and_photos(tmp_path, photos=[tmp_path / "nothing"])


def test_sample_is_used_only_where_there_is_no_folder(
    train_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write_sample(root: Path) -> Path:  # the real one takes seconds; tests/test_sample.py
        write_sidd(root / "train_images" / "sidd_sample")
        write_photos(root / "train_images" / "photos", n=1)
        return root

    monkeypatch.setattr(data.training_data, "write_sample", write_sample)
    sample = tmp_path / "cache" / "sample"
    find_pairs_and_photos(train_images, sample_cache=sample)
    assert not sample.exists()
    capsys.readouterr()
    pairs, photos = find_pairs_and_photos(tmp_path / "absent", sample_cache=sample)
    assert (len(pairs), len(photos)) == (len(ISO), 1)
    assert sample in photos[0].parents
    assert "absent does not exist: using the bundled sample" in capsys.readouterr().out


def test_views_of_one_item_share_their_iso(
    train_images: Path, tmp_path: Path, device: torch.device
) -> None:
    """From scene folders to batches: view 2 is of any pair of the ISO, in any of its scenes.

    Given view 1, each pair of an ISO with c pairs is view 2 in 1/c of the cases, within
    5 sqrt(n / 7 (1/c) (1 - 1/c)) of about n / 7, itself within 5 sqrt(n / 7).
    """
    pairs, _ = find_pairs_and_photos(train_images)
    items, n = open_real_items(pairs, 8, tmp_path / "cache", device, Recipe()), 2800
    assert len(items) == len(ISO)
    triplet = items.triplets(n, randomness(0, device=device))
    assert triplet.clean.device.type == device.type
    clean, noisy1, noisy2 = (
        (v.mean(dim=(2, 3)) * 255).cpu() for v in (triplet.clean, triplet.noisy1, triplet.noisy2)
    )
    assert (clean[:, 0] - 50).abs().max() < 0.1  # the GT image, not the noisy one
    assert noisy1[:, 0].min() > 50 + 79.5
    first, second = (v[:, 2].round().long() - 10 for v in (clean, noisy2))
    counts = (first * 7 + second).bincount(minlength=49).view(7, 7)
    for i, iso in enumerate(ISO):
        drawn, c = counts[i].sum(), ISO.count(iso)
        assert abs(drawn - n / 7) <= 5 * (n / 7) ** 0.5
        for j, other in enumerate(ISO):
            p = (iso == other) / c
            assert abs(counts[i, j] - drawn * p) <= 5 * (drawn * p * (1 - p)) ** 0.5


def test_photos_are_opened_in_order(tmp_path: Path, device: torch.device) -> None:
    files = sorted(write_photos(tmp_path / "photos").iterdir())
    source = open_photos(files, 16, tmp_path / "cache", device)
    assert len(source) == 3
    patches = source.patches(torch.tensor([2, 0, 1]), randomness(0, device=device))
    assert (patches.shape, patches.device.type) == ((3, 3, 16, 16), device.type)
    assert (patches[:, 2].mean(dim=(1, 2)) * 255).round().tolist() == [202, 200, 201]


def test_stores_lie_on_the_device_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto: up to a quarter of what is free on a CUDA device; never on the CPU."""
    files = sorted(write_photos(tmp_path / "photos").iterdir())
    store = ImageStore.open(files, tmp_path / "cache")
    assert store.nbytes == 3 * 20 * 18 * 3
    cuda, free = torch.device("cuda", 0), [0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 10**6))
    monkeypatch.setattr(ImageStore, "to", lambda self, device: f"on {device}")
    for free[0], place, expected in (
        (4 * store.nbytes, "auto", "on cuda:0"),
        (4 * store.nbytes - 1, "auto", store),
        (4 * store.nbytes, "host", store),
        (store.nbytes, "device", "on cuda:0"),
    ):
        assert place_store(store, cuda, place) is expected or expected == "on cuda:0"
        assert (place_store(store, cuda, place) == "on cuda:0") == (expected != store)
    free[0] = store.nbytes - 1
    with pytest.raises(UserError, match=r"cache.* GB of images, .* GB free on cuda:0"):
        place_store(store, cuda, "device")
    assert all(place_store(store, CPU, place) is store for place in ("auto", "host", "device"))


@pytest.mark.parametrize("place", ["auto", "host", "device"])
def test_items_are_the_same_wherever_their_store_lies(
    tmp_path: Path, device: torch.device, place: str
) -> None:
    cache = tmp_path / "cache"
    photos = sorted(write_photos(tmp_path / "photos").iterdir())
    pairs, _ = find_pairs_and_photos(write_pairs(tmp_path / "pairs", "a", "b"))
    source = open_photos(photos, 16, cache, device, place)
    real = open_real_items(pairs, 16, cache, device, Recipe(), place)
    is_resident = device.type == "cuda" and place != "host"
    for store in (source.store, real.source.store):
        assert isinstance(store, DeviceImageStore) == is_resident
    codes = source.patches(torch.tensor([2, 0]), randomness(0, device=device))[:, 2, 0, 0] * 255
    assert codes.round().tolist() == [202, 200]
    clean = real.triplets(4, randomness(0, device=device)).clean
    assert (clean.cpu() * 255).round().unique().tolist() == [1, 2, 3]


def test_images_smaller_than_the_patch_are_named(tmp_path: Path) -> None:
    """20x18 pixels, height first: 18 is the largest patch."""
    cache = tmp_path / "cache"
    photos = sorted(write_photos(tmp_path / "photos").iterdir())
    pairs, _ = find_pairs_and_photos(write_pairs(tmp_path / "pairs", "a"))
    open_photos(photos, 18, cache, CPU)
    open_real_items(pairs, 18, cache, CPU, Recipe())
    with pytest.raises(UserError, match=r"0\.png: 18x20 pixels, smaller than the 19x19 patch"):
        open_photos(photos, 19, cache, CPU)
    with pytest.raises(UserError, match=r"a\.png: 18x20 pixels, smaller than the 19x19 patch"):
        open_real_items(pairs, 19, cache, CPU, Recipe())


def test_partners_of_unequal_size_are_named(tmp_path: Path) -> None:
    """Also such as headers do not show: a pair that no folder search has checked."""
    clean, noisy = tmp_path / "clean.png", tmp_path / "noisy.png"
    write_image(clean, flat(0, 0, 0, size=(20, 18)))
    write_image(noisy, flat(0, 0, 0, size=(18, 20)))
    with pytest.raises(UserError, match=r"noisy\.png: 20x18 .*clean\.png has 18x20"):
        open_real_items([PairFile(clean, noisy, "a")], 16, tmp_path / "cache", CPU, Recipe())


def test_validation_sets_by_kind(tmp_path: Path, monkeypatch, capsys) -> None:
    images = tmp_path / "test_images"
    write_pairs(images / "mine", "a")
    write_photos(images / "photos")
    assert [s.name for s in find_validation_sets(images, paired=True)] == ["mine"]
    assert [s.name for s in find_validation_sets(images, paired=False)] == ["photos"]
    assert "photos" in capsys.readouterr().out

    # The sample stands in for a folder that is not there, and for no other.
    write_photos(tmp_path / "sample" / "test_images" / "bundled")
    monkeypatch.setattr(data.training_data, "write_sample", lambda cache: cache)
    for folder, expected in ((images, "photos"), (tmp_path / "none", "bundled")):
        found = find_validation_sets(folder, paired=False, sample_cache=tmp_path / "sample")
        assert [s.name for s in found] == [expected]
    assert find_validation_sets(tmp_path / "none", paired=True) == []
    assert "no fitting test set" in capsys.readouterr().out


def test_a_start_lists_each_folder_and_reads_each_header_once(
    train_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding the images, the quick check and the store together."""
    own, photos = write_pairs(tmp_path / "own", "a", "b"), write_photos(tmp_path / "photos")
    folders, headers = Counter(), Counter()
    list_folder, parse = Path.iterdir, utils.images._identify

    def listed(self: Path):
        folders[self] += 1
        return list_folder(self)

    def parsed(file, path: Path):
        headers[path] += sys._getframe(1).f_code.co_name != "read_image"  # with its pixels
        return parse(file, path)

    monkeypatch.setattr(Path, "iterdir", listed)
    monkeypatch.setattr(utils.images, "_identify", parsed)
    for named in ({"pairs": [own]}, {"pairs": [own], "photos": [photos]}):
        folders.clear()
        pairs, clean = find_pairs_and_photos(train_images, **named)
        assert set(folders.values()) == {1}
    open_real_items(pairs, 16, tmp_path / "cache", CPU, Recipe())
    open_photos(clean, 16, tmp_path / "cache", CPU)
    assert set(headers.values()) == {1}
    assert len(headers) > 2 * len(ISO)


def test_equal_isos_of_two_data_sets_are_two_kinds(tmp_path: Path) -> None:
    """A phone's noise and its resized copy at ISO 100 are not noise of one kind."""
    folders = [write_sidd(tmp_path / "images" / name) for name in ("one", "two")]
    pairs, _ = find_pairs_and_photos(tmp_path / "images", pairs=folders)
    kinds = [{p.kind for p in pairs if folder in p.clean.parents} for folder in folders]
    assert [len(k) for k in kinds] == [len(set(ISO))] * 2
    assert not kinds[0] & kinds[1]


def test_what_the_doctor_finds_is_said_at_the_start(tmp_path: Path, capsys) -> None:
    photos = write_photos(tmp_path / "photos")
    find_pairs_and_photos(tmp_path / "none", photos=(photos,))
    assert "Check" not in capsys.readouterr().out
    (photos / "weights.bin").write_bytes(b"not an image")
    find_pairs_and_photos(tmp_path / "none", photos=(photos,))
    said = capsys.readouterr().out
    assert re.search(r"Check (warning|error): .*weights\.bin: ", said)
