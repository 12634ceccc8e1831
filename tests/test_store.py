"""The image store: what goes in comes out; crops against numpy and OpenCV; failures."""

import json
import os
import pickle
import re
import threading
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import data.store
from data.store import ImageStore, check_pair_sizes
from tests.test_sidd import image
from utils.errors import UserError
from utils.images import write_image

SIZES = ((20, 31), (40, 24), (17, 17))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "photos" / f"{i}.png" for i in range(len(SIZES))]
    for i, (path, size) in enumerate(zip(paths, SIZES, strict=True)):
        write_image(path, image(i, *size))
    return paths


@pytest.fixture
def store(files: list[Path], tmp_path: Path) -> ImageStore:
    return ImageStore.open(files, tmp_path / "cache", progress=False)


def random_crops(store: ImageStore, n: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(store), (n,), generator=generator)
    corner = torch.rand(n, 2, generator=generator) * (store.sizes[index] - size + 1)
    return index, *corner.long().unbind(1)


def test_store_holds_the_images(store: ImageStore, files: list[Path]) -> None:
    assert store.sizes.tolist() == [list(size) for size in SIZES]
    assert store.sizes.dtype == torch.int64
    assert (len(store), store.nbytes) == (3, sum(3 * h * w for h, w in SIZES))
    assert store.files == files
    for i, size in enumerate(SIZES):
        np.testing.assert_array_equal(store.image(i), image(i, *size))
        assert not store.image(i).flags.writeable


def test_second_opening_decodes_nothing(
    store: ImageStore, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(data.store, "read_uint8")
    again = ImageStore.open(files, tmp_path / "cache")
    assert again.folder == store.folder
    np.testing.assert_array_equal(again.image(2), store.image(2))
    mapped = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(mapped.image(1), store.image(1))
    assert len(pickle.dumps(store)) < 1000


def test_changed_sources_make_a_new_store(
    store: ImageStore, files: list[Path], tmp_path: Path
) -> None:
    write_image(files[1], image(9, *SIZES[1]))
    os.utime(files[1], ns=(1, 1))
    changed = ImageStore.open(files, tmp_path / "cache")
    assert changed.folder != store.folder
    np.testing.assert_array_equal(changed.image(1), image(9, *SIZES[1]))
    assert ImageStore.open(files[::-1], tmp_path / "cache").sizes.tolist()[0] == list(SIZES[2])


def test_many_images_keep_their_order(tmp_path: Path) -> None:
    """More images than are decoded at a time, the first ones slow."""
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for i, path in enumerate(paths):
        side = 400 if i < 3 else 16
        write_image(path, np.full((side, side, 3), i, np.uint8))
    store = ImageStore.open(paths, tmp_path / "cache", progress=False)
    assert [int(store.image(i)[0, 0, 0]) for i in range(40)] == list(range(40))


def test_16_bits_are_rounded_and_grey_is_repeated(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 8, 3), dtype=np.uint16)
    write_image(tmp_path / "deep.png", deep)
    grey = image(0, 9, 8)[..., 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    store = ImageStore.open([tmp_path / "deep.png", tmp_path / "grey.png"], tmp_path / "cache")
    np.testing.assert_array_equal(store.image(0), np.round(deep / 65535 * 255))
    np.testing.assert_array_equal(store.image(1), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("margin", [0, 1, 10, 60])
def test_crops_are_those_of_the_padded_image(
    store: ImageStore, device: torch.device, margin: int
) -> None:
    """margin 60 reflects the 17 pixel image at both borders, more than once."""
    size = 16
    index, top, left = random_crops(store, 64, size)
    crops = store.crop(index, top, left, size, margin)
    side = size + 2 * margin
    assert crops.shape == (64, 3, side, side)
    assert crops.dtype == torch.uint8
    for crop, i, y, x in zip(crops, index.tolist(), top.tolist(), left.tolist(), strict=True):
        padded = np.pad(store.image(i), ((margin,) * 2, (margin,) * 2, (0, 0)), mode="reflect")
        np.testing.assert_array_equal(
            crop.permute(1, 2, 0).numpy(), padded[y : y + side, x : x + side]
        )
    resident = store.to(device)
    on_device = resident.crop(index, top, left, size, margin)
    assert on_device.device.type == device.type
    assert torch.equal(on_device.cpu(), crops)
    assert torch.equal(resident.sizes, store.sizes)


def test_crops_of_a_large_store(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose pages are asked for and dropped again: the same pixels."""
    small = ImageStore.open(files, tmp_path / "cache", progress=False)
    monkeypatch.setattr(data.store, "RESIDENT", 8000)
    large = ImageStore(small.folder)
    large._is_large = True  # of 9 kB
    for margin in (0, 20):
        index, top, left = random_crops(small, 64, 16)
        expected = small.crop(index, top, left, 16, margin)
        assert torch.equal(large.crop(index, top, left, 16, margin), expected)
    for i in range(len(SIZES)):
        np.testing.assert_array_equal(large.image(i), small.image(i))


def resident_bytes(file: Path) -> int:
    """Of a mapped file: what of it counts as this process's memory."""
    mappings = re.split(
        r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M
    )
    (mapping,) = [m for m in mappings if str(file) in m]
    return 1024 * int(re.search(r"Rss:\s+(\d+) kB", mapping)[1])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux")
def test_resident_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MB of images, 16 MB of which may be resident, read many times over.

    Read with all of it allowed, most of it stays: the measurement sees what it should.
    """
    height, width, count, megabyte = 683, 1024, 32, 2**20
    (tmp_path / "index.json").write_text(
        json.dumps({"files": list(map(str, range(count))), "sizes": [[height, width]] * count})
    )
    with open(tmp_path / "images.u8", "wb") as file:
        for i in range(count):
            file.write(bytes([i]) * (3 * height * width))

    def most_resident(allowed: int) -> int:
        """The most that is resident while 1500 random crops, and then all images, are read."""
        monkeypatch.setattr(data.store, "RESIDENT", allowed)
        store, most = ImageStore(tmp_path), 0
        for _ in range(15):
            index, top, left = random_crops(store, 100, 48)
            crops = store.crop(index, top, left, 48)
            assert torch.equal(crops[:, 0, 0, 0].long(), index)
            most = max(most, resident_bytes(tmp_path / "images.u8"))
        for i in range(count):
            assert store.image(i).max() == i
            most = max(most, resident_bytes(tmp_path / "images.u8"))
        return most

    assert most_resident(16 * megabyte) <= 16 * megabyte
    assert most_resident(128 * megabyte) > 48 * megabyte


def test_blurred_crop_is_the_crop_of_the_blurred_image(store: ImageStore) -> None:
    size, radius = 16, 3
    index, top, left = random_crops(store, 32, size)
    crops = store.crop(index, top, left, size, radius)

    def blur(x: np.ndarray) -> np.ndarray:
        kernel = (2 * radius + 1, 2 * radius + 1)
        return cv2.GaussianBlur(
            x.astype(np.float64), kernel, 1.5, borderType=cv2.BORDER_REFLECT_101
        )

    for crop, i, y, x in zip(crops, index.tolist(), top.tolist(), left.tolist(), strict=True):
        inside = blur(crop.permute(1, 2, 0).numpy())[radius:-radius, radius:-radius]
        expected = blur(store.image(i))[y : y + size, x : x + size]
        np.testing.assert_allclose(inside, expected, atol=1e-9)


def test_single_row_image_and_empty_batch(tmp_path: Path) -> None:
    write_image(tmp_path / "row.png", image(0, 1, 5))
    store = ImageStore.open([tmp_path / "row.png"], tmp_path / "cache")
    zero = torch.zeros(1, dtype=torch.long)
    expected = np.pad(image(0, 1, 5), ((2, 2), (2, 2), (0, 0)), mode="reflect")[:5, :5]
    for source in (store, store.to("cpu")):
        crop = source.crop(zero, zero, zero, 1, margin=2)
        np.testing.assert_array_equal(crop[0].permute(1, 2, 0).numpy(), expected)
        assert source.crop(zero[:0], zero[:0], zero[:0], 1).shape == (0, 3, 1, 1)


@pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, -1), (5, 0), (0, 16)])
def test_crop_outside_its_image(store: ImageStore, top: int, left: int) -> None:
    at = torch.tensor([0]), torch.tensor([top]), torch.tensor([left])  # image 0 is 20 x 31
    for source in (store, store.to("cpu")):
        with pytest.raises(ValueError, match="16x16 crop leaves its image"):
            source.crop(*at, size=16)


def test_too_small_image_is_named(files: list[Path], tmp_path: Path) -> None:
    for _ in range(2):  # before decoding, and in a store that is already there
        with pytest.raises(UserError, match=r"2\.png: 17x17.*18x18 patch"):
            ImageStore.open(files, tmp_path / "cache", min_size=18)
        ImageStore.open(files, tmp_path / "cache", min_size=17)


def test_pair_sizes(files: list[Path], tmp_path: Path) -> None:
    good = [files[0], files[0], files[1], files[1]]
    check_pair_sizes(ImageStore.open(good, tmp_path / "cache"))
    with pytest.raises(UserError, match=r"2\.png: 17x17.*1\.png has 24x40"):
        check_pair_sizes(ImageStore.open([*good, files[1], files[2]], tmp_path / "cache"))


def test_failures_leave_no_store_behind(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"1\.png.*truncated"):
        ImageStore.open(files, cache)
    assert os.listdir(cache) == []
    files[1].write_bytes(whole)

    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")
        patch.setattr(data.store.shutil, "disk_usage", lambda _: usage(9000, 8999, 1))
        with pytest.raises(UserError, match=r"cache: .* GB needed.*another cache folder"):
            ImageStore.open(files, cache)
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(data.store.json, "dumps", lambda _: (_ for _ in ()).throw(full))
        with pytest.raises(UserError, match="No space left on device"):
            ImageStore.open(files, cache)
    assert os.listdir(cache) == []

    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*cannot be written.*another cache folder"):
        ImageStore.open(files, tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"absent\.png: cannot be read"):
        ImageStore.open([tmp_path / "absent.png"], cache)
    with pytest.raises(UserError, match="no images"):
        ImageStore.open([], cache)


def test_damaged_store_is_named(store: ImageStore) -> None:
    with open(store.folder / "images.u8", "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match=r"images\.u8.*delete this folder"):
        ImageStore(store.folder)
    (store.folder / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"not a complete image store.*delete this folder"):
        ImageStore(store.folder)


def test_racing_processes_share_one_store(files: list[Path], tmp_path: Path) -> None:
    cache, stores = tmp_path / "cache", []
    threads = [
        threading.Thread(target=lambda: stores.append(ImageStore.open(files, cache)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({store.folder for store in stores}) == 1
    assert len(stores) == 4
    assert len(os.listdir(cache)) == 1
