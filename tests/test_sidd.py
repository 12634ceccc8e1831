"""SIDD scene folders and the validation blocks in .mat files of both generations."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from data.mat import MatBlocks
from data.sidd import Scene, parse_scene
from data.test_sets import PairedTestSet, find_test_sets
from data.training_data import find_training_data
from utils.errors import UserError
from utils.images import write_image

SCENES = ("0001_001_S6_00100_00060_3200_L", "0002_001_GP_00100_00020_3200_N")


def image(seed: int, h: int = 8, w: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def write_scene(folder: Path, shots: tuple[str, ...] = ("010", "011")) -> None:
    """As SIDD-Medium names them."""
    for i, shot in enumerate(shots):
        for j, side in enumerate(("GT", "NOISY")):
            write_image(folder / f"{folder.name[:4]}_{side}_SRGB_{shot}.PNG", image(2 * i + j))


def save_mat(path: Path, variable: str, array: np.ndarray, generation: str) -> None:
    """v5 by scipy; v7.3 as MATLAB writes it: HDF5 behind a 512 byte header, axes reversed."""
    if generation == "v5":
        scipy.io.savemat(path, {variable: array}, do_compression=True)
    else:
        with h5py.File(path, "w", userblock_size=512) as file:
            file[variable] = array.T
            file[variable].attrs["MATLAB_class"] = np.bytes_("uint8")


def test_scene_name() -> None:
    assert parse_scene("0052_002_S6_01600_01000_5500_N") == Scene(
        instance=52,
        scene=2,
        phone="S6",
        iso=1600,
        shutter=1000,
        temperature=5500,
        brightness="N",
    )


@pytest.mark.parametrize("name", ["", "Data", "0001_001_S6_100_00060_3200_L", f"{SCENES[0]}_old"])
def test_malformed_scene_name(name: str) -> None:
    with pytest.raises(UserError, match="0001_001_S6_00100_00060_3200_L"):
        parse_scene(name)


def test_pairs_are_matched_by_file_name_not_by_path(tmp_path: Path) -> None:
    root = tmp_path / "GT_and_NOISY_SRGB_"  # what a search in the whole path would stumble over
    for name in SCENES:
        write_scene(root / "SIDD_Medium_Srgb" / "Data" / name)
    late = root / "0003_001_IP_03200_00060_3200_H"
    for side in ("GT", "NOISY"):  # SIDD-Small leaves the instance out
        write_image(late / f"{side}_SRGB_010.PNG", image(0))
    pairs = find_training_data(root).pairs
    found = {(p.clean.name, p.noisy.name, p.kind.rpartition(": ")[2]) for p in pairs}
    assert len(pairs) == len(found) == 5
    assert found == {
        ("0001_GT_SRGB_010.PNG", "0001_NOISY_SRGB_010.PNG", "iso_00100"),
        ("0001_GT_SRGB_011.PNG", "0001_NOISY_SRGB_011.PNG", "iso_00100"),
        ("0002_GT_SRGB_010.PNG", "0002_NOISY_SRGB_010.PNG", "iso_00100"),
        ("0002_GT_SRGB_011.PNG", "0002_NOISY_SRGB_011.PNG", "iso_00100"),
        ("GT_SRGB_010.PNG", "NOISY_SRGB_010.PNG", "iso_03200"),
    }
    assert all(pair.clean.parent == pair.noisy.parent for pair in pairs)


@pytest.mark.parametrize("lost", ["0001_GT_SRGB_011.PNG", "0001_NOISY_SRGB_010.PNG"])
def test_missing_partner_is_named(tmp_path: Path, lost: str) -> None:
    write_scene(tmp_path / SCENES[0])
    (tmp_path / SCENES[0] / lost).unlink()
    with pytest.raises(UserError, match=rf"partner {lost} is missing"):
        find_training_data(tmp_path)


def test_other_faults_of_scene_folders(tmp_path: Path) -> None:
    write_scene(tmp_path / "a" / "scene_one")
    with pytest.raises(UserError, match=r"scene_one: holds SIDD images, but"):
        find_training_data(tmp_path / "a")
    (tmp_path / "b" / SCENES[0]).mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{SCENES[0]}.*without"):
        find_training_data(tmp_path / "b")
    write_scene(tmp_path / "c" / SCENES[0])
    write_image(tmp_path / "c" / SCENES[0] / "0001_GT_SRGB_010.PNG", image(0, 5, 6))
    with pytest.raises(UserError, match=r"0001_NOISY_SRGB_010.PNG: 6x8.*GT_SRGB_010.PNG has 6x5"):
        find_training_data(tmp_path / "c")


@pytest.mark.parametrize("generation", ["v5", "v7.3"])
def test_mat_blocks_come_in_published_order(tmp_path: Path, generation: str) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 6, 3), dtype=np.uint8)
    save_mat(tmp_path / "a.mat", "Blocks", array, generation)
    blocks = MatBlocks(tmp_path / "a.mat", "Blocks")
    assert (len(blocks), blocks.size(0), blocks.image_name(7)) == (12, (8, 6), "0007")
    for k in range(12):
        np.testing.assert_array_equal(blocks[k], array[k // 4, k % 4])
    assert blocks[0].dtype == np.uint8
    with pytest.raises(IndexError):
        blocks[12]


@pytest.mark.parametrize(
    "how",
    [
        {"chunks": (3, 4, 5, 2), "compression": "gzip", "shuffle": True},  # none of them divides
        {"chunks": (4, 8, 8, 16), "maxshape": (None,) * 4, "compression": "gzip"},  # one, larger
        {"chunks": (1, 1, 1, 1)},
        {"chunks": True},
        {},
    ],
)
def test_hdf5_however_it_is_stored(tmp_path: Path, how: dict) -> None:
    array = np.random.default_rng(0).integers(0, 256, (9, 7, 6, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("Blocks", data=array.T, **how)
    blocks = MatBlocks(tmp_path / "a.mat", "Blocks")
    for k in range(9):
        np.testing.assert_array_equal(blocks[k], array[k])


def test_chunks_that_were_never_written_are_black(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        blocks = file.create_dataset("Blocks", (3, 8, 8, 4), np.uint8, chunks=(3, 8, 8, 1))
        blocks[..., 2] = 7
    blocks = MatBlocks(tmp_path / "a.mat", "Blocks")
    assert [blocks[k].max() for k in range(4)] == [0, 0, 7, 0]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", ["B", "Blocks", "ValidationNoisyBlocksSrgb"])
def test_version_5_among_other_variables(tmp_path: Path, name: str, compressed: bool) -> None:
    """Names up to 4 letters are stored in another form than longer ones."""
    array = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    others = {"cells": np.array([1, "x"], object), "s": {"a": array}, "e": []}
    content = others | {name: array, "z": np.zeros((300, 300)), "c": 1j, "b": np.array(True)}
    scipy.io.savemat(tmp_path / "a.mat", content, do_compression=compressed)
    blocks = MatBlocks(tmp_path / "a.mat", name)
    np.testing.assert_array_equal(np.stack([blocks[k] for k in range(3)]), array)


@pytest.mark.parametrize("generation", ["v5", "v7.3"])
def test_mat_with_another_content(tmp_path: Path, generation: str) -> None:
    path = tmp_path / "a.mat"
    save_mat(path, "Other", np.zeros((2, 8, 8, 3), np.uint8), generation)
    with pytest.raises(UserError, match=r"a\.mat.*uint8 array Blocks.*found uint8 Other"):
        MatBlocks(path, "Blocks")
    save_mat(path, "Blocks", np.zeros((2, 8, 8, 3)), generation)
    with pytest.raises(UserError, match=r"a\.mat.*uint8 array Blocks.*found (double|float64)"):
        MatBlocks(path, "Blocks")
    for shape in ((2, 3, 8, 8), (8, 8, 3), (2, 2, 8, 8, 1)):
        save_mat(path, "Blocks", np.ones(shape, np.uint8), generation)
        with pytest.raises(UserError, match=r"a\.mat.*\(\.\.\., H, W, 3\)"):
            MatBlocks(path, "Blocks")


@pytest.mark.parametrize("generation", ["v5", "v7.3"])
@pytest.mark.parametrize("kept", [0, 0.2, 0.9])
def test_damaged_mat(tmp_path: Path, generation: str, kept: float) -> None:
    path = tmp_path / "a.mat"
    array = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    save_mat(path, "Blocks", array, generation)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UserError, match=r"a\.mat: damaged.*download"):
        MatBlocks(path, "Blocks")[0]


def test_mat_pairs_are_found_and_checked(tmp_path: Path) -> None:
    array = np.zeros((4, 8, 8, 3), np.uint8)
    assert find_test_sets(tmp_path) == []
    (tmp_path / "deep").mkdir()
    gt, noisy = "siddplus_valid_gt_srgb", "siddplus_valid_noisy_srgb"
    save_mat(tmp_path / "deep" / f"{gt}.mat", gt, array, "v5")
    with pytest.raises(UserError, match=rf"{gt}\.mat.*{noisy}\.mat is missing"):
        find_test_sets(tmp_path)
    save_mat(tmp_path / "deep" / f"{noisy}.mat", noisy, array[:3], "v5")
    with pytest.raises(UserError, match=rf"{noisy}\.mat.*\(3, 8, 8, 3\).*\(4, 8, 8, 3\)"):
        find_test_sets(tmp_path)
    save_mat(tmp_path / "deep" / f"{noisy}.mat", noisy, array + 1, "v5")
    (found,) = find_test_sets(tmp_path)
    assert isinstance(found, PairedTestSet)
    assert (found.name, found.clean[0].max(), found.noisy[0].min()) == ("siddplus", 0, 1)
