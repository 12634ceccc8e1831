"""Photographs in and out: orientation, tags and depth, checked by Pillow and OpenCV."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from utils.errors import UserError
from utils.photos import Tags, read_photo, write_photo

RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SUFFIXES = ".png", ".tif", ".tiff", ".jpg", ".webp"


def smooth(h: int = 60, w: int = 50, dtype: type = np.uint8) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (h, w, 3), dtype)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def camera_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", orientation
    exif.get_ifd(0x8769).update({0x8827: 800, 0x829A: 0.01, 0xA002: 50, 0xA003: 60})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return exif


def tagged(path: Path, orientation: int = 1, profile: bytes = RGB_PROFILE) -> Path:
    exif = camera_exif(orientation).tobytes()
    Image.fromarray(smooth()).save(path, "JPEG", exif=exif, icc_profile=profile, quality=100)
    return path


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_orientation_is_applied_as_pillow_does(tmp_path, orientation, suffix):
    image = Image.fromarray(smooth())
    image.save(tmp_path / f"a{suffix}", exif=camera_exif(orientation).tobytes(), lossless=True)
    pixels, tags = read_photo(tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB")).astype(int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= 3  # decoders of JPEG round their own way
    assert 0x0112 not in tags.exif
    height, width, _ = pixels.shape
    inner = tags.exif.get_ifd(0x8769)
    assert (inner[0xA002], inner[0xA003]) == (width, height)


def test_orientation_of_a_tiff_is_applied_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth()).save(tmp_path / "a.tif", exif=exif)
    pixels, tags = read_photo(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, np.rot90(smooth(), -1))
    assert not tags.exif or 0x0112 not in tags.exif


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tags_are_carried_over(tmp_path, suffix):
    pixels, tags = read_photo(tagged(tmp_path / "a.jpg", orientation=6))
    write_photo(tmp_path / f"b{suffix}", pixels, tags)
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.size == (60, 50)
        assert image.info["icc_profile"] == RGB_PROFILE
        exif = image.getexif()
        assert exif[0x010F] == "Maker"
        assert exif.get(0x0112, 1) == 1
        assert exif.get_ifd(0x8769)[0x8827] == 800
        assert float(exif.get_ifd(0x8769)[0x829A]) == pytest.approx(0.01)
        assert exif.get_ifd(0x8825)[1] == "N"
        found = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(found - pixels).mean() < (1e-9 if suffix in (".png", ".tif", ".tiff") else 3)
    again, more = read_photo(tmp_path / f"b{suffix}")  # nothing is turned twice
    assert again.shape == pixels.shape
    assert more.exif.get_ifd(0x8769)[0x8827] == 800
    write_photo(tmp_path / f"c{suffix}", again, more)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("size", [(60, 50), (1, 1), (3, 4000), (700, 3)])
def test_16_bits_stay(tmp_path, suffix, size):
    image = smooth(*size, np.uint16)
    write_photo(tmp_path / f"a{suffix}", image, Tags(camera_exif(), RGB_PROFILE))
    outside = cv2.imread(str(tmp_path / f"a{suffix}"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    np.testing.assert_array_equal(outside, image)
    pixels, tags = read_photo(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(pixels, image)
    assert tags.profile == RGB_PROFILE


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp"])
def test_16_bits_become_8_where_there_are_no_more(tmp_path, suffix):
    image = smooth(dtype=np.uint16)
    write_photo(tmp_path / f"a{suffix}", image, Tags(), quality=100)
    with Image.open(tmp_path / f"a{suffix}") as written:
        assert np.abs(np.asarray(written.convert("RGB")) - image / 257).max() < 6


def test_quality_and_colours_at_full_resolution(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    sizes = []
    for quality in (60, 95):
        write_photo(tmp_path / "a.jpg", image, Tags(), quality)
        sizes.append((tmp_path / "a.jpg").stat().st_size)
    assert sizes[0] < 0.7 * sizes[1]
    with Image.open(tmp_path / "a.jpg") as written:
        assert {layer[1:3] for layer in written.layer} == {(1, 1)}
    write_photo(tmp_path / "a.webp", image, Tags(), 100)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.webp")), image)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_rgb_without_its_profile(tmp_path, suffix):
    cmyk = Image.fromarray(smooth()).convert("CMYK")
    profile = bytearray(RGB_PROFILE)
    profile[16:20] = b"CMYK"
    cmyk.save(tmp_path / f"a{suffix}", icc_profile=bytes(profile))
    pixels, tags = read_photo(tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as stored:
        assert np.abs(pixels - np.asarray(stored.convert("RGB")).astype(int)).max() < 5
    assert tags.profile is None


def test_damaged_tags_do_not_matter(tmp_path):
    data = bytearray(tagged(tmp_path / "a.jpg").read_bytes())
    start = data.index(b"Exif\0\0") + 6
    data[start + 8 : start + 60] = b"\xff" * 52
    (tmp_path / "a.jpg").write_bytes(data)
    pixels, tags = read_photo(tmp_path / "a.jpg")
    assert pixels.shape == (60, 50, 3)
    write_photo(tmp_path / "b.png", pixels, tags)
    assert Image.open(tmp_path / "b.png").size == (50, 60)


def test_chunks_of_png_have_their_checksums(tmp_path):
    write_photo(tmp_path / "a.png", smooth(), Tags(camera_exif(), RGB_PROFILE))
    with Image.open(tmp_path / "a.png") as image:
        image.verify()
    data, kinds, place = (tmp_path / "a.png").read_bytes(), [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kinds.append(data[place + 4 : place + 8])
        place += 12 + length
    assert kinds[:3] == [b"IHDR", b"iCCP", b"eXIf"]
    assert kinds[-1] == b"IEND"


def test_what_a_format_cannot_hold_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.webp: \.webp cannot hold 20000x1 .*--format png"):
        write_photo(tmp_path / "a.webp", np.zeros((1, 20000, 3), np.uint8), Tags())
    with pytest.raises(UserError, match=r"a\.jpg: \.jpg cannot hold 70000x1 "):
        write_photo(tmp_path / "a.jpg", np.zeros((1, 70000, 3), np.uint8), Tags())
    large = camera_exif()
    large[0x010E] = "x" * 70000  # a segment of JPEG ends at 65533 bytes
    with pytest.raises(UserError, match=r"b\.jpg: \.jpg cannot hold .* tags"):
        write_photo(tmp_path / "b.jpg", smooth(), Tags(large))
    assert not list(tmp_path.iterdir())
