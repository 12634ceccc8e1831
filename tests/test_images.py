"""Reading and writing images, against Pillow and hand-made pixels."""

import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import utils.images
from utils.errors import UserError
from utils.images import (
    float_to_uint8,
    integer_to_float,
    read_header,
    read_image,
    read_image_size,
    read_uint8,
    uint16_to_uint8,
    write_image,
)


def smooth(h: int = 120, w: int = 100) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".PNG"])
def test_lossless_files_of_pillow_are_read_in_rgb(tmp_path: Path, suffix: str) -> None:
    image = smooth()
    Image.fromarray(image).save(tmp_path / f"a{suffix}")
    read = read_image(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, image)
    assert read_image_size(tmp_path / f"a{suffix}") == (120, 100)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_files_agree_with_pillow(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth()).save(path)
    with Image.open(path) as pillow:
        theirs = np.asarray(pillow.convert("RGB")).astype(int)
    # The decoders may round the conversion from YCbCr differently, by a step or two.
    assert np.abs(read_image(path).astype(int) - theirs).max() <= 2
    assert read_image_size(path) == (120, 100)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_is_repeated(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(smooth()).convert(mode)
    grey.save(tmp_path / "a.png")
    expected = np.asarray(grey.convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([expected] * 3, -1))


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    image = smooth()
    alpha = np.full((120, 100, 1), 10, np.uint8)
    Image.fromarray(np.concatenate([image, alpha], -1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)


def test_palette_is_resolved(tmp_path: Path) -> None:
    palette = Image.fromarray(smooth()).convert("P")
    palette.save(tmp_path / "a.png")
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_survive_writing_and_reading(tmp_path: Path, suffix: str) -> None:
    image = np.random.default_rng(0).integers(0, 65536, (20, 31, 3), dtype=np.uint16)
    write_image(tmp_path / f"a{suffix}", image)
    read = read_image(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, image)
    assert read_image_size(tmp_path / f"a{suffix}") == (20, 31)
    np.testing.assert_array_equal(read_uint8(tmp_path / f"a{suffix}"), uint16_to_uint8(image))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_size_and_pixels_agree_on_orientation(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = tmp_path / f"a{suffix}"
    tagged = Image.fromarray(smooth())
    exif = tagged.getexif()
    exif[274] = orientation
    tagged.save(path, exif=exif)
    assert read_image_size(path) == read_image(path).shape[:2]
    if suffix == ".png":  # lossless and not TIFF: the pixels as they are stored
        np.testing.assert_array_equal(read_image(path), smooth())


SAVED = {
    "progressive.jpg": {"progressive": True, "comment": b"\xff\xc0 no frame header" * 99},
    "two.mpo.jpg": {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (9, 9))]},
    "lossless.webp": {"lossless": True},
    "profile.webp": {"icc_profile": b"no profile"},
    "big.tif": {"big_tiff": True, "compression": "tiff_adobe_deflate"},
    "pages.tif": {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]},
    "frames.png": {"save_all": True, "append_images": [Image.new("RGB", (100, 120))]},
    "frames.webp": {"save_all": True, "append_images": [Image.new("RGB", (100, 120))]},
}


@pytest.mark.parametrize("name", SAVED)
def test_first_frame_of_every_variant(tmp_path: Path, name: str) -> None:
    path, image = tmp_path / name, Image.fromarray(smooth())
    image.save(path, **SAVED[name])
    assert read_image_size(path) == (120, 100)
    difference = np.abs(read_image(path).astype(int) - smooth())
    lossy = name.endswith(".jpg") or name in ("profile.webp", "frames.webp")
    assert difference.mean() < (8 if lossy else 1e-9)  # another frame differs by about 60


def test_jpeg_segment_of_no_length_is_refused(tmp_path: Path) -> None:
    """It leads back to itself; found by fuzzing."""
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\0" + bytes(99))
    with pytest.raises(UserError, match=r"a\.jpg: damaged"):
        read_image_size(tmp_path / "a.jpg")


@pytest.mark.parametrize("side", ["<", ">"])
def test_tiff_of_both_byte_orders(tmp_path: Path, side: str) -> None:
    """By hand: one strip of 2 x 3 grey pixels."""
    tags = [(256, 3), (257, 2), (258, 8), (259, 1), (262, 1), (273, 8), (278, 2), (279, 6)]
    entries = b"".join(struct.pack(side + "HHIHxx", tag, 3, 1, value) for tag, value in tags)
    header = (b"II" if side == "<" else b"MM") + struct.pack(side + "HI", 42, 14)
    count = struct.pack(side + "H", len(tags))
    (tmp_path / "a.tif").write_bytes(header + bytes(range(6)) + count + entries + bytes(4))
    assert read_image_size(tmp_path / "a.tif") == (2, 3)
    assert read_image(tmp_path / "a.tif")[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_largest_size_is_a_bound_on_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Image.MAX_IMAGE_PIXELS == utils.images.MAX_PIXELS // 2
    for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp"):
        path = tmp_path / f"a{suffix}"
        write_image(path, smooth(120, 100))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)  # Pillow refuses from twice as many
        assert read_image(path).shape == (120, 100, 3)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5999)
        (tmp_path / f"b{suffix}").write_bytes(path.read_bytes())
        for read in (read_image, read_image_size):
            with pytest.raises(
                UserError, match=r"\(12000 pixels\) exceeds limit of 11998 pixels by"
            ):
                read(tmp_path / f"b{suffix}")


def test_header_is_read_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_image(path, smooth(20, 30))
    header = read_header(path)
    assert (header.size, header.mode, header.format) == ((20, 30), "RGB", "PNG")
    assert read_header(path) is header
    write_image(path, smooth(40, 30))
    assert read_header(path).size == (40, 30)


@pytest.mark.parametrize("kept", [0, 0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"holiday{suffix}"
    Image.fromarray(smooth()).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UserError, match=r"holiday.*(damaged|empty).*remove"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_file_without_its_last_two_bytes_is_refused(tmp_path: Path, suffix: str) -> None:
    """A JPEG's end marker; half the checksum of a PNG's last chunk. All pixels are there."""
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth()).save(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="truncated"):
        read_image(path)


def test_truncated_jpeg_with_a_thumbnail_is_refused(tmp_path: Path) -> None:
    """The thumbnail in the header has an end-of-image marker of its own."""
    path, small = tmp_path / "a.jpg", tmp_path / "small.jpg"
    Image.fromarray(smooth(16, 16)).save(small)
    Image.fromarray(smooth()).save(path, comment=small.read_bytes())
    assert read_image(path).shape == (120, 100, 3)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="truncated"):
        read_image(path)


def test_flipped_bit_in_a_png_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(smooth()).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        read_image(path)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not an image")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    for name in ("note.png", "float.tif", "absent.png"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
        with pytest.raises(UserError, match=name):
            read_image_size(tmp_path / name)


def test_integer_to_float_by_hand() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[1, 2] = [255, 51, 1]
    x = integer_to_float(image)
    assert x.shape == (3, 2, 3)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    torch.testing.assert_close(x[:, 1, 2], torch.tensor([1.0, 0.2, 1 / 255]), rtol=0, atol=1e-7)
    assert x.count_nonzero() == 3
    torch.testing.assert_close(integer_to_float(torch.from_numpy(image)), x, rtol=0, atol=0)
    deep = image.astype(np.uint16) * 257
    torch.testing.assert_close(integer_to_float(deep), x, rtol=0, atol=1e-7)
    torch.testing.assert_close(integer_to_float(torch.from_numpy(deep)), x, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="uint8"):
        integer_to_float(image.astype(np.float32))


def test_float_to_uint8_rounds_clips_and_inverts(device: torch.device) -> None:
    x = torch.tensor([-0.5, 0.49 / 255, 0.51 / 255, 254.51 / 255, 1.7], device=device)
    image = x.expand(3, 4, 5)
    assert float_to_uint8(image)[0, :, 2].tolist() == [0, 0, 1, 255, 255]
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    floats = integer_to_float(levels).to(device)
    np.testing.assert_array_equal(float_to_uint8(floats), levels)
    batch = float_to_uint8(torch.stack([floats, 1 - floats]))
    assert batch.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(batch[1], 255 - levels)


def test_uint16_to_uint8_is_the_nearest_level() -> None:
    every = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(uint16_to_uint8(every), np.round(every / 65535 * 255))


def test_write_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.png"
    write_image(path, smooth())
    write_image(path, 255 - smooth())
    with Image.open(path) as pillow:
        np.testing.assert_array_equal(np.asarray(pillow), 255 - smooth())
    assert os.listdir(path.parent) == ["a.png"]


def test_write_failures_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.png.*output folder"):
        write_image(tmp_path / "file" / "a.png", smooth())
    with pytest.raises(UserError, match=r"a\.gif.*suffix"):
        write_image(tmp_path / "a.gif", smooth())
    with pytest.raises(UserError, match=r"a\.jpg.*16 bits"):
        write_image(tmp_path / "a.jpg", smooth().astype(np.uint16))
    with pytest.raises(UserError, match=r"a\.webp"):  # WebP ends at 16383 pixels a side
        write_image(tmp_path / "a.webp", np.zeros((1, 20000, 3), np.uint8))

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match="No space left"):
        write_image(tmp_path / "a.png", smooth())
    assert os.listdir(tmp_path) == ["file"]
