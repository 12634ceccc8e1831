"""Image files in and out. Arrays are (H, W, 3) RGB, tensors (3, H, W) or (B, 3, H, W) in [0, 1].

Pixels are taken as they are stored: the orientation tag that cameras write into JPEG, PNG and WebP
is ignored, since an edited clean image loses it while its noisy partner keeps it, and the pair
would no longer be aligned. (TIFF stores the orientation as part of the format; it is applied.)
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION

# What OpenCV would print about a damaged file is said once, by name, in our UserError.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) RGB, uint8 or uint16 as stored.

    Grey is repeated to three channels and palettes are resolved; alpha is dropped, leaving the
    colours under it. Raises UserError for a missing, empty, truncated, damaged or floating-point
    image. (A JPEG has no checksum: flipped bits inside it can pass unnoticed.)
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    # imdecode refuses a truncated file; imread fills the rest of a truncated JPEG with grey.
    try:
        image = cv2.imdecode(data, _FLAGS) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        what = "an empty file" if data.size == 0 else "damaged, truncated or not an image"
        raise UserError(f"{path}: {what}; fetch this file again or remove it")
    if image.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{path}: expected 8- or 16-bit pixels, found {image.dtype}; convert it to PNG"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image_size(path: Path) -> tuple[int, int]:
    """(H, W) of `read_image(path)`, from the header where Pillow knows it."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception:  # Pillow raises many kinds; read_image says what is wrong, if anything is
        height, width, _ = read_image(path).shape
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

    Hidden ones (.name) and links that lead back to `folder` or above it are left out.
    """
    here = folder.resolve()
    found = [
        path
        for path in folder.iterdir()
        if path.is_dir()
        and not path.name.startswith(".")
        and not (path.is_symlink() and here.is_relative_to(path.resolve()))
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
