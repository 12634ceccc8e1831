"""Recognition of data sets by their folders, and the test sets made of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.folders import photo_folder
from data.test_sets import CleanTestSet, PairedTestSet, find_test_sets
from data.training_data import find_training_data
from tests.test_sidd import SCENES, image, save_mat, write_scene
from utils.errors import UserError
from utils.images import write_image


def write_pairs(root: Path, clean: str, noisy: str, names: tuple[str, ...] = ("1", "2")) -> None:
    for i, name in enumerate(names):
        write_image(root / clean / f"{name}.png", image(2 * i))
        write_image(root / noisy / f"{name}.png", image(2 * i + 1))


def write_bsds(root: Path) -> None:
    for part in ("train", "val", "test"):
        write_image(root / "data" / "images" / part / f"{len(part)}_{part}.png", image(len(part)))
        (root / "data" / "groundTruth" / part).mkdir(parents=True)
        (root / "data" / "groundTruth" / part / "1.mat").write_text("segmentations")


@pytest.mark.parametrize(
    ("clean", "noisy"),
    [
        ("groundtruth", "input"),
        ("clean", "noisy"),
        ("GT", "noisy"),
        ("ValidationGtBlocksSrgb", "ValidationNoisyBlocksSrgb"),
    ],
)
def test_paired_folder_matches_stems_in_sub_folders(tmp_path: Path, clean: str, noisy: str) -> None:
    write_pairs(tmp_path, clean, noisy, ("10", "2", "night/1"))
    (tmp_path / noisy / "2.png").unlink()
    write_image(tmp_path / noisy / "2.BMP", image(3))
    pairs = find_training_data(tmp_path).pairs
    assert [pair.clean.relative_to(tmp_path / clean).as_posix() for pair in pairs] == [
        "2.png",
        "10.png",
        "night/1.png",
    ]
    assert [pair.noisy.relative_to(tmp_path / noisy).as_posix() for pair in pairs] == [
        "2.BMP",
        "10.png",
        "night/1.png",
    ]
    assert len({pair.kind for pair in pairs}) == 3


def test_pairs_of_one_sub_folder_are_of_one_kind(tmp_path: Path) -> None:
    for side in ("clean", "noisy"):
        for name in ("a.png", "b.png", "iso_800/a.png", "iso_800/b.png", "iso_100/a.png"):
            write_image(tmp_path / side / name, np.zeros((20, 20, 3), np.uint8))
    pairs = find_training_data(tmp_path).pairs
    kinds = {p.noisy.relative_to(tmp_path / "noisy").as_posix(): p.kind for p in pairs}
    assert len(set(kinds.values())) == 4
    assert kinds["iso_800/a.png"] == kinds["iso_800/b.png"] != kinds["iso_100/a.png"]
    (test_set,) = find_test_sets(tmp_path)
    found = [test_set.kind(i) for i in range(len(test_set))]
    assert sorted(map(str, found)) == ["None", "None", "iso_100", "iso_800", "iso_800"]


def test_paired_folder_faults_are_named(tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        write_pairs(tmp_path / name, "clean", "noisy")
        return tmp_path / name

    root = fresh("partner")
    (root / "noisy" / "2.png").unlink()
    with pytest.raises(UserError, match=r"clean/2\.png.*noisy/2\.\* is missing"):
        find_training_data(root)
    root = fresh("surplus")
    (root / "clean" / "1.png").unlink()
    with pytest.raises(UserError, match=r"noisy/1\.png.*clean/1\.\* is missing"):
        find_training_data(root)
    root = fresh("size")
    write_image(root / "noisy" / "2.png", image(0, 9, 6))
    with pytest.raises(UserError, match=r"noisy/2\.png: 6x9.*clean/2\.png has 6x8"):
        find_training_data(root)
    root = fresh("twice")
    write_image(root / "clean" / "1.bmp", image(0))
    with pytest.raises(UserError, match=r"same stem"):
        find_training_data(root)
    root = fresh("two_clean")
    (root / "groundtruth").mkdir()
    with pytest.raises(UserError, match=r"one clean folder.*found clean, groundtruth, noisy"):
        find_training_data(root)
    root = fresh("no_clean")
    shutil.rmtree(root / "clean")
    with pytest.raises(UserError, match=r"one clean folder.*found noisy"):
        find_training_data(root)


def test_photo_folder(tmp_path: Path) -> None:
    write_bsds(tmp_path / "BSDS500")
    write_image(tmp_path / "BSDS500" / "cover.png", image(0))
    write_image(tmp_path / "DIV2K" / "DIV2K_train_HR" / "0001.png", image(0))
    names = [path.name for path in photo_folder(tmp_path / "BSDS500")]
    assert names == ["4_test.png", "5_train.png", "3_val.png"]
    assert [path.name for path in photo_folder(tmp_path / "DIV2K")] == ["0001.png"]
    with pytest.raises(UserError, match="absent"):
        photo_folder(tmp_path / "absent")


def test_training_data_of_every_layout(tmp_path: Path) -> None:
    for name in SCENES:
        write_scene(tmp_path / "sidd" / "SIDD_Medium_Srgb" / "Data" / name)
    write_pairs(tmp_path / "renoir", "clean", "noisy")
    for i in range(3):
        write_image(tmp_path / "DIV2K" / "DIV2K_train_HR" / f"{i:04d}.png", image(i))
    write_bsds(tmp_path / "BSDS500")
    write_image(tmp_path / "screenshot.png", image(0))  # stray: must not sweep up all below it
    files = find_training_data(tmp_path)
    assert files.described == [
        f"{tmp_path.name}: photographs, 1 images",
        "BSDS500: photographs, 3 images",
        "DIV2K/DIV2K_train_HR: photographs, 3 images",
        "renoir: paired folder, 2 pairs",
        "sidd/SIDD_Medium_Srgb/Data: SIDD, 4 pairs at 1 ISO settings",
    ]
    assert (len(files.pairs), len(files.photos)) == (6, 7)
    noisy = {pair.noisy for pair in files.pairs}
    assert not noisy & set(files.photos)
    assert sum(pair.kind.endswith("Data: iso_00100") for pair in files.pairs) == 4


def test_training_data_given_one_data_set_itself(tmp_path: Path) -> None:
    write_scene(tmp_path / "Data" / SCENES[0])
    write_pairs(tmp_path / "pairs", "clean", "noisy")
    write_image(tmp_path / "photos" / "a.png", image(0))
    assert len(find_training_data(tmp_path / "Data").pairs) == 2
    assert len(find_training_data(tmp_path / "Data" / SCENES[0]).pairs) == 2
    assert len(find_training_data(tmp_path / "pairs").pairs) == 2
    assert len(find_training_data(tmp_path / "photos").photos) == 1


def test_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(tmp_path, "clean", "noisy")
    monkeypatch.chdir(tmp_path)
    assert find_test_sets(Path())[0].name == tmp_path.name
    assert find_training_data(Path()).described == [f"{tmp_path.name}: paired folder, 2 pairs"]


def test_no_training_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=rf"{root.name}: no training images.*SIDD.*DIV2K"):
            find_training_data(root)


def test_linked_data_sets_are_found(tmp_path: Path) -> None:
    write_pairs(tmp_path / "disk" / "renoir", "clean", "noisy")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "renoir").symlink_to(tmp_path / "disk" / "renoir")
    (tmp_path / "root" / "self").symlink_to(tmp_path / "root")
    assert len(find_training_data(tmp_path / "root").pairs) == 2
    assert [test_set.name for test_set in find_test_sets(tmp_path / "root")] == ["renoir"]


def test_test_sets_of_every_layout(tmp_path: Path) -> None:
    write_bsds(tmp_path / "BSDS500")
    write_pairs(tmp_path / "polyu", "groundtruth", "input", ("chair", "plug"))
    write_scene(tmp_path / "own" / SCENES[0])
    write_image(tmp_path / "kodak" / "1.png", np.full((4, 5, 3), 65535, np.uint16))
    (tmp_path / "readme_only").mkdir()
    (tmp_path / "readme_only" / "README.md").touch()
    sets = {test_set.name: test_set for test_set in find_test_sets(tmp_path)}
    assert list(sets) == ["BSDS500", "kodak", "own", "polyu"]
    assert [test_set.paired for test_set in sets.values()] == [False, False, True, True]
    polyu, bsds = sets["polyu"], sets["BSDS500"]
    assert isinstance(polyu, PairedTestSet)
    assert (polyu.title, len(polyu), polyu.size(1), polyu.image_name(1)) == (
        "polyu",
        2,
        (8, 6),
        "plug",
    )
    clean, noisy = polyu[1]
    for x, seed in ((clean, 2), (noisy, 3)):
        expected = torch.from_numpy(image(seed).transpose(2, 0, 1) / np.float32(255))
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-7)
    assert isinstance(bsds, CleanTestSet)
    assert (len(bsds), bsds.image_name(0), tuple(bsds[0].shape)) == (3, "test/4_test", (3, 8, 6))
    assert torch.equal(sets["kodak"][0], torch.ones(3, 4, 5))
    assert len(sets["own"]) == 2
    with pytest.raises(IndexError):
        bsds[3]


def test_no_test_sets(tmp_path: Path) -> None:
    assert find_test_sets(tmp_path) == []
    assert find_test_sets(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("name", "clean", "noisy", "leading"),
    [
        ("sidd", "ValidationGtBlocksSrgb", "ValidationNoisyBlocksSrgb", (3, 4)),
        ("siddplus", "siddplus_valid_gt_srgb", "siddplus_valid_noisy_srgb", (12,)),
    ],
)
def test_mat_and_png_of_the_same_blocks_are_the_same_set(
    tmp_path: Path, name: str, clean: str, noisy: str, leading: tuple[int, ...]
) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 16, 3), dtype=np.uint8)
    for generation in ("v5", "v7.3"):
        folder = tmp_path / generation / name
        folder.mkdir(parents=True)
        for variable, side in zip((clean, noisy), blocks, strict=True):
            array = side.reshape(*leading, 16, 16, 3)
            save_mat(folder / f"{variable}.mat", variable, array, generation)
    for layout, sides in (("png", ("groundtruth", "input")), ("png_as_zip", (clean, noisy))):
        for folder, side in zip(sides, blocks, strict=True):
            for k, block in enumerate(side):  # "10" after "9": the order of the blocks
                write_image(tmp_path / layout / name / folder / f"{k}.png", block)
    batches = []
    for layout in ("v5", "v7.3", "png", "png_as_zip"):
        (test_set,) = find_test_sets(tmp_path / layout)
        assert (test_set.name, len(test_set), test_set.size(0)) == (name, 12, (16, 16))
        assert test_set.title == {"sidd": "SIDD validation", "siddplus": "SIDD+ validation"}[name]
        batches.append([torch.stack(side) for side in zip(*test_set, strict=True)])
    expected = torch.from_numpy(blocks).movedim(-1, -3).float() / 255
    for batch in batches:
        torch.testing.assert_close(torch.stack(batch), expected, rtol=0, atol=1e-7)
        assert all(torch.equal(a, b) for a, b in zip(batch, batches[0], strict=True))


def test_one_set_twice_is_refused(tmp_path: Path) -> None:
    blocks = np.zeros((2, 16, 16, 3), np.uint8)
    for variable in ("siddplus_valid_gt_srgb", "siddplus_valid_noisy_srgb"):
        (tmp_path / "siddplus").mkdir(exist_ok=True)
        save_mat(tmp_path / "siddplus" / f"{variable}.mat", variable, blocks, "v5")
    write_pairs(tmp_path / "siddplus", "clean", "noisy")
    with pytest.raises(UserError, match="two test sets called siddplus"):
        find_test_sets(tmp_path)
