"""Image files in and out. Arrays are (H, W, 3) RGB, tensors (3, H, W) or (B, 3, H, W) in [0, 1].

Pixels are taken as they are stored: the orientation tag that cameras write into JPEG, PNG and WebP
is ignored, since an edited clean image loses it while its noisy partner keeps it, and the pair
would no longer be aligned. (TIFF stores the orientation as part of the format; it is applied.)

Pillow reads the headers and OpenCV, which keeps 16 bits a channel, the pixels.
"""

import functools
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, open_file, regular_file, write_atomically

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

# Phones reach 200 megapixels. Decoded, 0.8 GB, or 1.6 GB of 16 bits; twice that while it is read.
MAX_PIXELS = 2**28
MAX_BYTES = 8 * MAX_PIXELS  # of a file: four channels of 16 bits, not compressed
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # from here on Pillow warns, from twice as many it refuses

_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_DAMAGED = (
    "damaged, truncated or not an image (PNG, JPEG, BMP, TIFF, WebP) of 8 or 16 bits a channel; "
    "fetch this file again or remove it"
)

# What OpenCV and Pillow would print about a damaged file is said once, by name, in our UserError.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Header:
    size: tuple[int, int]  # H, W
    mode: str  # Pillow's
    format: str  # one of FORMATS, or MPO: JPEG of several images


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) RGB, uint8 or uint16 as stored; of several pages or frames the first.

    Grey is repeated to three channels and palettes are resolved; alpha is dropped, leaving the
    colours under it. Raises UserError for a missing, empty, truncated, damaged or floating-point
    image, one of more than MAX_PIXELS, and what is not PNG, JPEG, BMP, TIFF or WebP whatever its
    name. (A JPEG has no checksum: flipped bits inside it can pass unnoticed. An animated PNG has
    8 bits here.)
    """
    with open_file(path, MAX_BYTES) as file:
        image = _identify(file, path)
        size = image.height, image.width
        try:
            if image.format == "PNG" and _is_animated(image):
                if image.mode == "I;16":
                    raise ValueError("frames of 16 bits")
                file.seek(0)
                pixels = np.array(Image.open(file).convert("RGB"))
            else:
                file.seek(0)
                # imdecode refuses a truncated file; imread fills the rest of a truncated JPEG
                # with grey.
                pixels = cv2.imdecode(np.fromfile(file, np.uint8), _FLAGS)
                pixels = None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        except Exception as error:
            raise _unreadable(path, error) from error
    # Another size: the decoder has found another header than the one that was checked.
    if pixels is None or pixels.shape[:2] != size:
        raise UserError(f"{path}: {_DAMAGED}")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{path}: expected 8- or 16-bit pixels, found {pixels.dtype}; convert it to PNG"
        )
    return pixels


def read_uint8(path: Path) -> np.ndarray:
    """`read_image(path)`, 16 bits rounded to 8."""
    image = read_image(path)
    return uint16_to_uint8(image) if image.dtype == np.uint16 else image


def read_header(path: Path) -> Header:
    """UserError as from `read_image`. While the file stays as it is, its header is read once."""
    status = regular_file(path, MAX_BYTES)
    return _read_header(Path(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2**17)
def _read_header(path: Path, size: int, changed: int) -> Header:
    with open_identified(path) as image:
        return Header((image.height, image.width), image.mode, image.format)


def read_image_size(path: Path) -> tuple[int, int]:
    """(H, W) of `read_image(path)`, from the header alone; UserError as there."""
    return read_header(path).size


@contextmanager
def open_identified(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Pillow's image while its file is open: a header, nothing decoded; UserError."""
    with open_file(path, MAX_BYTES) as file:
        yield _identify(file, path)


def _identify(file: BinaryIO, path: Path) -> ImageFile.ImageFile:
    """Pillow's image, of which the header is read and nothing decoded."""
    try:
        _check_webp_canvas(file)
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        reason = str(error).partition(",")[0]
        raise UserError(
            f"{path}: {reason} by its header; scale it down, or remove it if it is damaged"
        ) from error
    except Exception as error:  # its plug-ins raise nearly anything for a damaged file
        raise _unreadable(path, error) from error
    if image.format == "TIFF" and image.mode in ("I", "F"):
        raise UserError(f"{path}: expected 8- or 16-bit pixels, found 32 bits; convert it to PNG")
    return image


def _check_webp_canvas(file: BinaryIO) -> None:
    """Pillow allocates it, twice, before it compares the size with its limit: where memory is short
    a huge file would be called damaged."""
    start = file.read(30)
    file.seek(0)
    if start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X":
        width, height = (1 + int.from_bytes(start[i : i + 3], "little") for i in (24, 27))
        if width * height > MAX_PIXELS:
            message = f"Image size ({width * height} pixels) exceeds limit of {MAX_PIXELS} pixels"
            raise Image.DecompressionBombError(message)


def _is_animated(png: ImageFile.ImageFile) -> bool:
    """Whether the PNG holds frames, on which OpenCV (5.0.0) crashes where they are damaged.

    Reads to the end of the file; an error for a wrong checksum, of which libpng would print lines
    without a name.
    """
    png.fp.seek(png.tile[0][2] - 8)
    return png.is_animated or not {b"fcTL", b"fdAT"}.isdisjoint(png.png.verify())


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.errno:
        return UserError(f"{path}: cannot be read ({error.strerror})")
    if os.path.getsize(path) == 0:
        return UserError(f"{path}: an empty file; fetch this file again or remove it")
    return UserError(f"{path}: {_DAMAGED}")


def write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) RGB uint8 or uint16 in the format of the suffix, whole or not at all.

    Missing folders are made. uint16 needs .png, .tif or .tiff. Raises UserError for another suffix
    or a folder that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected (H, W, 3) uint8 or uint16, got {image.shape} {image.dtype}")
    if suffix not in IMAGE_SUFFIXES:
        raise UserError(f"{path}: not an image suffix; use one of {' '.join(IMAGE_SUFFIXES)}")
    if image.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        raise UserError(f"{path}: {suffix} cannot hold 16 bits a channel; write .png or .tif")
    try:
        encoded, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:
        encoded = False
    if not encoded:
        height, width, _ = image.shape
        raise UserError(f"{path}: {suffix} cannot hold {width}x{height} pixels; write .png")
    write_atomically(data.data, path, durable=False)


def integer_to_float(image: np.ndarray | Tensor) -> Tensor:
    """(H, W, 3) uint8 or uint16 -> (3, H, W) float32 in [0, 1]."""
    peak = {"uint8": 255, "uint16": 65535}.get(str(image.dtype).removeprefix("torch."))
    if peak is None or image.ndim != 3:
        raise ValueError(
            f"expected (H, W, 3) uint8 or uint16, got {tuple(image.shape)} {image.dtype}"
        )
    if isinstance(image, np.ndarray):
        x = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32, order="C"))
    else:
        x = image.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    return x.div_(peak)


def float_to_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) or (B, 3, H, W) in [0, 1] -> uint8 (H, W, 3) or (B, H, W, 3); rounded, clipped."""
    return float_to_integer(image, np.uint8)


def float_to_integer(image: Tensor, dtype: np.dtype | type) -> np.ndarray:
    """As `float_to_uint8`, to uint8 or uint16, full range."""
    peak = np.iinfo(dtype).max
    x = image.detach().float().clamp(0, 1).mul(peak).round()
    x = x.to(torch.uint8 if peak == 255 else torch.int32)
    return np.ascontiguousarray(x.movedim(-3, -1).cpu().numpy().astype(dtype, copy=False))


def uint16_to_uint8(image: np.ndarray) -> np.ndarray:
    """Any shape, full range to full range (65535 -> 255), rounded."""
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
