"""Photographs in and out for transfer_noise.py and denoise.py: upright, with what belongs to them.

`utils.images` takes pixels as they are stored, for training. Here the orientation tag is applied
and left out of what is written, and EXIF data and the colour profile are carried over. Pixels are
(H, W, 3) RGB of 8 or 16 bits. OpenCV reads the pixels and writes PNG, which Pillow cannot with 16
bits; Pillow reads the tags and writes the rest.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from utils.errors import UserError
from utils.files import write_atomically
from utils.images import open_identified, read_image, uint16_to_uint8

SUFFIX_OF = {"png": ".png", "tiff": ".tif", "jpeg": ".jpg", "webp": ".webp"}
DEEP_SUFFIXES = (".png", ".tif", ".tiff")  # that hold 16 bits a channel
ORIENTATION, EXIF_IFD, GPS_IFD, PROFILE = 0x0112, 0x8769, 0x8825, 0x8773
WIDTH_TAG, HEIGHT_TAG = 0xA002, 0xA003

# Of what is stored, to upright, by the value of the tag (EXIF 2.32, 4.6.4 A).
UPRIGHT = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True)
class Tags:
    """What is carried over: EXIF data without orientation, a profile of RGB; None: none."""

    exif: Image.Exif | None = None
    profile: bytes | None = None


def read_photo(path: Path) -> tuple[np.ndarray, Tags]:
    """(H, W, 3) RGB, uint8 or uint16, upright, and its tags; UserError as from `read_image`.

    Tags that are damaged are left out. So is the profile of an image that is not stored as RGB
    (CMYK, grey): it does not describe what becomes of it. XMP and previews are not carried over.
    """
    pixels = read_image(path)
    exif, profile, is_tiff = _read_tags(path)
    turn = UPRIGHT.get(exif.get(ORIENTATION)) if exif else None
    if turn and not is_tiff:  # libtiff has applied it
        pixels = np.ascontiguousarray(turn(pixels))
    if exif:
        exif.pop(ORIENTATION, None)
        inner = exif.get_ifd(EXIF_IFD)
        if {WIDTH_TAG, HEIGHT_TAG} & inner.keys():
            inner |= {WIDTH_TAG: pixels.shape[1], HEIGHT_TAG: pixels.shape[0]}
    return pixels, Tags(exif, profile)


def _read_tags(path: Path) -> tuple[Image.Exif | None, bytes | None, bool]:
    with open_identified(path) as image:
        is_tiff = image.format == "TIFF"
        profile = image.info.get("icc_profile")
        # Bytes 16 to 20 of a profile say which colours it is for.
        if not (isinstance(profile, bytes) and profile[16:20] == b"RGB "):
            profile = None
        try:
            found = image.getexif()
            exif = Image.Exif()
            for key, value in found.items():
                if not is_tiff or key not in _TIFF_LAYOUT:
                    exif[key] = value
            for ifd in (EXIF_IFD, GPS_IFD):
                exif.pop(ifd, None)
                if inner := dict(found.get_ifd(ifd)):
                    inner.pop(0x927C, None)  # the maker's note: offsets into a file that is left
                    exif.get_ifd(ifd).update(inner)
                    exif[ifd] = exif.get_ifd(ifd)
            exif.tobytes()
        except Exception:  # Pillow raises nearly anything for damaged tags
            return None, profile, is_tiff
    return (exif if len(exif) else None), profile, is_tiff


def write_photo(path: Path, pixels: np.ndarray, tags: Tags, quality: int = 95) -> None:
    """In the format of the suffix, whole or not at all; 16 bits become 8 where it has no more.

    quality: of JPEG (with colours at full resolution, or they would lose their noise) and WebP,
    where 100 is lossless. PNG and TIFF are always lossless; BMP holds no tags. UserError for what
    the format or the disk cannot hold.
    """
    suffix = path.suffix.lower()
    if pixels.dtype == np.uint16 and suffix not in DEEP_SUFFIXES:
        pixels = uint16_to_uint8(pixels)
    try:
        data = encode(suffix, pixels, tags, quality)
    except (cv2.error, OSError, ValueError, struct.error) as error:
        height, width, _ = pixels.shape
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{path}: {suffix} cannot hold {width}x{height} pixels or their tags ({reason}); "
            "try --format png"
        ) from error
    write_atomically(data, path, durable=False)


def encode(suffix: str, pixels: np.ndarray, tags: Tags, quality: int = 95) -> bytes | memoryview:
    """The content of a file; the decoders' own errors for what the format cannot hold."""
    if suffix == ".png":
        return _png(pixels, tags)
    if suffix in (".tif", ".tiff"):
        return _tiff(pixels, tags)
    if suffix == ".bmp":
        return cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].data
    options = {"quality": quality, "icc_profile": tags.profile or b""}
    if tags.exif:
        options["exif"] = tags.exif.tobytes()
    buffer = io.BytesIO()
    if suffix == ".webp":
        Image.fromarray(pixels).save(buffer, "WEBP", lossless=quality == 100, **options)
    else:
        Image.fromarray(pixels).save(buffer, "JPEG", subsampling=0, **options)
    return buffer.getbuffer()


def _png(pixels: np.ndarray, tags: Tags) -> bytes:
    """OpenCV's file with the chunks iCCP and eXIf behind the header, where they belong."""
    encoded, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise ValueError("not encoded")
    chunks = b""
    if tags.profile:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(tags.profile))
    if tags.exif:
        chunks += _chunk(b"eXIf", tags.exif.tobytes().removeprefix(b"Exif\0\0"))
    header = 8 + 12 + 13  # signature; frame and content of IHDR
    return b"".join((data[:header].data, chunks, data[header:].data))


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


# Tags that describe how a TIFF is stored, written anew.
_TIFF_LAYOUT = {
    *(254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325),
    *(330, 338, 339, 347, 530, 531, 532, PROFILE),
}


def _tiff(pixels: np.ndarray, tags: Tags) -> bytes:
    """Baseline TIFF, compressed by deflate. Pillow writes no 16 bits, OpenCV no tags, neither
    writes the camera's own."""
    height, width, _ = pixels.shape
    rows = max(1, 2**20 // (3 * width * pixels.itemsize))
    pixels = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    strips = [zlib.compress(pixels[y : y + rows].tobytes(), 1) for y in range(0, height, rows)]
    ifd = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for key, value in tags.exif.items() if tags.exif else ():
        if key not in _TIFF_LAYOUT:
            ifd[key] = value
    for key in (EXIF_IFD, GPS_IFD):
        if tags.exif and (inner := tags.exif.get_ifd(key)):
            ifd[key] = dict(inner)
    if tags.profile:
        ifd.tagtype[PROFILE] = 7
        ifd[PROFILE] = tags.profile
    starts = np.cumsum([0, *map(len, strips)]).tolist()  # Pillow adds where the directory ends
    ifd[256], ifd[257], ifd[258] = width, height, (8 * pixels.itemsize,) * 3
    ifd[259], ifd[262], ifd[277], ifd[278] = 8, 2, 3, rows
    ifd.tagtype[273] = ifd.tagtype[279] = 4
    ifd[273], ifd[279] = tuple(starts[:-1]), tuple(map(len, strips))
    return b"".join((b"II" + struct.pack("<HI", 42, 8), ifd.tobytes(8), *strips))
