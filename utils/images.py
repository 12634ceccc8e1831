"""Image files in and out. Arrays are (H, W, 3) RGB, tensors (3, H, W) or (B, 3, H, W) in [0, 1].

Pixels are taken as they are stored: the orientation tag that cameras write into JPEG, PNG and WebP
is ignored, since an edited clean image loses it while its noisy partner keeps it, and the pair
would no longer be aligned. (TIFF stores the orientation as part of the format; it is applied.)

Files are taken to be what was downloaded from anywhere: no more memory is asked for than MAX_PIXELS
need, whatever a header says, and pipes and devices are not opened, since they may never end. Links
are followed, to files and to folders, wherever they lead: it is how large data sets are put in
place, and a file is only ever read as an image. Links in circles are left out.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.image_headers import header_size, still_png

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

# Phones reach 200 megapixels. Decoded, 0.8 GB, or 1.6 GB of 16 bits; twice that while it is read.
MAX_PIXELS = 2**28
MAX_BYTES = 8 * MAX_PIXELS  # of a file: four channels of 16 bits, not compressed

_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_DAMAGED = (
    "damaged, truncated or not an image (PNG, JPEG, BMP, TIFF, WebP); fetch this file again or "
    "remove it"
)

# What OpenCV would print about a damaged file is said once, by name, in our UserError.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) RGB, uint8 or uint16 as stored; of several pages or frames the first.

    Grey is repeated to three channels and palettes are resolved; alpha is dropped, leaving the
    colours under it. Raises UserError for a missing, empty, truncated, damaged or floating-point
    image, one of more than MAX_PIXELS, and what is not PNG, JPEG, BMP, TIFF or WebP whatever its
    name. (A JPEG has no checksum: flipped bits inside it can pass unnoticed.)
    """
    with _open(path) as file:
        size = _checked_size(file, path)
        file.seek(0)
        try:
            data = np.fromfile(file, np.uint8)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    # imdecode refuses a truncated file; imread fills the rest of a truncated JPEG with grey.
    try:
        image = cv2.imdecode(still_png(data), _FLAGS)
    except (cv2.error, ValueError):
        image = None
    # Another size: the decoder has found another header than the one that was checked.
    if image is None or image.shape[:2] != size:
        raise UserError(f"{path}: {_DAMAGED}")
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{path}: expected 8- or 16-bit pixels, found {image.dtype}; convert it to PNG"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image_size(path: Path) -> tuple[int, int]:
    """(H, W) of `read_image(path)`, from the header alone; UserError as there."""
    with _open(path) as file:
        return _checked_size(file, path)


def _open(path: Path) -> BinaryIO:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: expected a file, found a folder, pipe or device; remove it")
        if status.st_size > MAX_BYTES:
            raise UserError(
                f"{path}: {status.st_size / 1e9:.1f} GB, expected at most {MAX_BYTES / 1e9:.1f} "
                "for an image; remove it"
            )
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _checked_size(file: BinaryIO, path: Path) -> tuple[int, int]:
    """(H, W) by the header, before anything is allocated for the pixels."""
    try:
        height, width = header_size(file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ValueError as error:
        empty = os.fstat(file.fileno()).st_size == 0
        message = "an empty file; fetch this file again or remove it" if empty else _DAMAGED
        raise UserError(f"{path}: {message}") from error
    if not 0 < height * width <= MAX_PIXELS:
        raise UserError(
            f"{path}: {width}x{height} pixels by its header, expected 1 to {MAX_PIXELS}; scale it "
            "down, or remove it if it is damaged"
        )
    return height, width


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data.tobytes())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); choose another output folder"
        ) from error


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
    x = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(x.movedim(-3, -1).cpu().numpy())


def uint16_to_uint8(image: np.ndarray) -> np.ndarray:
    """Any shape, full range to full range (65535 -> 255), rounded."""
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


def natural_key(path: Path) -> tuple:
    """Sorting key for the paths of one folder: 2.png comes before 10.png."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, linked ones included, in natural order.

    Hidden ones (.name) and links that lead back to `folder`, to a folder or link on the way to it,
    or above one of them, are left out.
    """
    folder = Path(folder)

    def leads_back(link: Path) -> bool:
        way, target = folder.absolute(), link.resolve()
        return any(step.resolve().is_relative_to(target) for step in (way, *way.parents))

    found = [
        path
        for path in folder.iterdir()
        if path.is_dir()
        and not path.name.startswith(".")
        and not (path.is_symlink() and leads_back(path))
    ]
    return sorted(found, key=natural_key)


def folder_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files directly in `folder` with these lower-case suffixes, natural order, none hidden."""
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    ]
    return sorted(found, key=natural_key)


def walk_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Iterator[Path]:
    """`folder_files` of `folder` and of all its subfolders, in natural order."""
    yield from folder_files(folder, suffixes)
    for path in subfolders(folder):
        yield from walk_files(path, suffixes)


def list_images(folder: Path) -> list[Path]:
    """All images below `folder`, folder by folder in natural order; UserError if none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the images")
    images = list(walk_files(folder))
    if not images:
        raise UserError(
            f"{folder}: holds no images; put images ({' '.join(IMAGE_SUFFIXES)}) into it"
        )
    return images
