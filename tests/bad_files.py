"""Files that no reader should take, each with what it must say: the first part of the table of
test_bad_input.py."""

import os
import re
import socket
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

import cv2
import h5py
import numpy as np
import scipy.io
import torch
from torch import nn

from data.mat import MatBlocks
from tests.test_sidd import save_mat
from utils.checkpoint import load_state, load_weights
from utils.files import list_images
from utils.images import read_image, read_image_size, write_image


class Case(NamedTuple):
    name: str
    call: Callable[[Path], Any]  # with an empty folder
    message: str


# ---------------------------------------------------------------------------------------- images


def pixels(height: int = 40, width: int = 48, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def encoded(suffix: str, image: np.ndarray | None = None) -> bytearray:
    data = cv2.imencode(suffix, pixels() if image is None else image)[1]
    return bytearray(data.tobytes())


def overwritten(data: bytearray, at: int, field: str, *values: int) -> bytes:
    struct.pack_into(field, data, at, *values)
    return bytes(data)


def png_of_size(width: int, height: int) -> bytes:
    data = bytearray(overwritten(encoded(".png"), 16, ">II", width, height))
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def jpeg_of_size(width: int, height: int) -> bytes:
    data = encoded(".jpg")
    return overwritten(data, data.index(b"\xff\xc0") + 5, ">HH", height, width)


def tiff_of_size(width: int, height: int) -> bytes:
    data = encoded(".tif")
    (offset,) = struct.unpack_from("<I", data, 4)
    (n,) = struct.unpack_from("<H", data, offset)
    for at in range(offset + 2, offset + 2 + 12 * n, 12):
        (tag,) = struct.unpack_from("<H", data, at)
        if tag in (256, 257):
            struct.pack_into("<HII", data, at + 2, 4, 1, width if tag == 256 else height)
    return bytes(data)


def webp_of_size(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas + bytes(encoded(".webp")[12:])
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif() -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 40, 48, 0, 0, 0) + b";"


FETCH = r"(damaged|truncated).*; fetch this file again or remove it"
BOMB = (
    r": .*3600000000 pixels\) exceeds limit of \d+ pixels by its header; scale it down, or remove"
)

CONTENTS = [
    ("empty file", "a.png", lambda: b"", "an empty file; fetch this file again or remove it"),
    ("text", "a.png", lambda: b"<html>404 Not Found</html>", FETCH),
    ("another format", "a.png", gif, r"not an image \(PNG, JPEG, BMP, TIFF, WebP\)"),
    ("truncated PNG", "a.png", lambda: encoded(".png")[:-40], FETCH),
    ("truncated JPEG", "a.jpg", lambda: encoded(".jpg")[:-40], FETCH),
    ("PNG cut in its header", "a.png", lambda: encoded(".png")[:20], FETCH),
    ("PNG with a flipped bit", "a.png", lambda: overwritten(encoded(".png"), 90, "B", 7), FETCH),
    ("PNG, 60000 pixels a side", "a.png", lambda: png_of_size(60000, 60000), BOMB),
    ("JPEG, 60000 pixels a side", "a.jpg", lambda: jpeg_of_size(60000, 60000), BOMB),
    ("BMP, 60000 pixels a side", "a.bmp",
     lambda: overwritten(encoded(".bmp"), 18, "<ii", 60000, 60000), BOMB),
    ("TIFF, 60000 pixels a side", "a.tif", lambda: tiff_of_size(60000, 60000), BOMB),
    ("WebP, 60000 pixels a side", "a.webp", lambda: webp_of_size(60000, 60000), BOMB),
    ("PNG without width", "a.png", lambda: png_of_size(0, 40), FETCH),
    ("JPEG without height", "a.jpg", lambda: jpeg_of_size(48, 0), FETCH),
    ("BMP of negative width", "a.bmp",
     lambda: overwritten(encoded(".bmp"), 18, "<i", -48),
     r"pixels\) exceeds limit of \d+ pixels by its header; .*remove it if it is damaged"),
    ("TIFF without width", "a.tif", lambda: tiff_of_size(0, 40), FETCH),
    ("PNG with half of its rows", "a.png", lambda: png_of_size(48, 80), FETCH),
    ("JPEG with a tenth of its bytes", "a.jpg", lambda: encoded(".jpg")[:70], FETCH),
    ("BMP with half of its rows", "a.bmp",
     lambda: overwritten(encoded(".bmp"), 22, "<i", 80), FETCH),
    ("TIFF with half of its rows", "a.tif", lambda: tiff_of_size(48, 80), FETCH),
    ("WebP of another size inside", "a.webp", lambda: webp_of_size(50, 50), FETCH),
    ("TIFF of floating point", "a.tif",
     lambda: encoded(".tif", pixels().astype(np.float32)),
     r"not an image \(PNG, JPEG, BMP, TIFF, WebP\) of 8 or 16 bits a channel; fetch"),
    ("grey TIFF of floating point", "a.tif",
     lambda: encoded(".tif", pixels()[..., 0].astype(np.float32)),
     "expected 8- or 16-bit pixels, found 32 bits; convert it to PNG"),
]  # fmt: skip


def named_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def bound_socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
    return path


def linked(path: Path, target: str | Path) -> Path:
    path.symlink_to(target)
    return path


def folder_at(path: Path) -> Path:
    path.mkdir()
    return path


def sparse_file(path: Path) -> Path:
    """3 GB, which take no room on the disk."""
    with open(path, "wb") as file:
        file.write(encoded(".png"))
        file.truncate(3 * 10**9)
    return path


NO_FILE = r"expected a file, found a folder, pipe or device; remove it"
PLACES = [
    ("no such file", lambda f: f / "a.png", r"a\.png: cannot be read \(No such file"),
    ("folder named as an image", lambda f: folder_at(f / "a.png"), NO_FILE),
    ("pipe named as an image", lambda f: named_pipe(f / "a.png"), NO_FILE),
    ("socket named as an image", lambda f: bound_socket(f / "a.png"), NO_FILE),
    ("link to a device", lambda f: linked(f / "a.png", "/dev/zero"), NO_FILE),
    ("link to nowhere", lambda f: linked(f / "a.png", f / "none"), "cannot be read"),
    ("link to itself", lambda f: linked(f / "a.png", f / "a.png"), "cannot be read"),
    ("file larger than any image", lambda f: sparse_file(f / "a.png"),
     r"a\.png: 3\.0 GB, expected at most 2\.1 GB; remove it"),
]  # fmt: skip


def image_cases() -> Iterator[Case]:
    for name, file, content, message in CONTENTS:

        def call(folder: Path, file: str = file, content: Callable = content) -> np.ndarray:
            (folder / file).write_bytes(content())
            return read_image(folder / file)

        yield Case(name, call, rf"{re.escape(file)}: .*{message.removeprefix(': ')}")
    for name, place, message in PLACES:
        yield Case(name, lambda folder, place=place: read_image(place(folder)), message)
    yield Case("size of a pipe", lambda f: read_image_size(named_pipe(f / "a.png")), NO_FILE)
    yield Case("folder without images", list_images, "holds no images; put images")
    yield Case("nothing but pipes",
               lambda f: (named_pipe(f / "a.png"), list_images(f)), "holds no images")  # fmt: skip
    yield Case("no such folder", lambda f: list_images(f / "none"), "no such folder; give the fold")
    yield Case(
        "suffix that is no image's",
        lambda f: write_image(f / "a.gif", pixels()),
        r"a\.gif: not an image suffix; use",
    )
    yield Case("folder to write into is a file",
               lambda f: ((f / "out").touch(), write_image(f / "out/a.png", pixels())),
               r"out/a\.png: cannot be written .*; choose another output folder")  # fmt: skip


# ------------------------------------------------------------------------------------- .mat files

BLOCKS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
AGAIN = "download (it|the sRGB blocks) again"


def v5(path: Path, content: dict, compressed: bool = False) -> MatBlocks:
    scipy.io.savemat(path, content, do_compression=compressed)
    return MatBlocks(path, "Blocks")


def v5_edited(path: Path, field: bytes, new: bytes, compressed: bool = False) -> np.ndarray:
    """With bytes of the array's head replaced, in MATLAB's compressed form if so wanted."""
    scipy.io.savemat(path, {"Blocks": BLOCKS})
    data = path.read_bytes()
    assert field in data
    data = data.replace(field, new, 1)
    if compressed:
        body = zlib.compress(data[128:])
        data = data[:128] + struct.pack("<II", 15, len(body)) + body
    path.write_bytes(data)
    return MatBlocks(path, "Blocks")[0]


def v73(path: Path, write: Callable[[h5py.File], Any]) -> np.ndarray:
    with h5py.File(path, "w", userblock_size=512) as file:
        write(file)
    return MatBlocks(path, "Blocks")[0]


def secret(folder: Path) -> Path:
    """A file that another one must not be able to show: HDF5 with a good array of blocks."""
    with h5py.File(folder / "secret.h5", "w") as file:
        file["Blocks"] = BLOCKS.T
    return folder / "secret.h5"


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout(BLOCKS.T.shape, np.uint8)
    layout[:] = h5py.VirtualSource(other, "Blocks", BLOCKS.T.shape)
    file.create_virtual_dataset("Blocks", layout)


DIMENSIONS = struct.pack("<II4i", 5, 16, 2, 8, 8, 3)
DATA_TAG = struct.pack("<II", 2, BLOCKS.size)
NOT_BLOCKS = r"a\.mat: expected the uint8 array Blocks, found "

MAT = [
    Case("mat: no such file", lambda f: MatBlocks(f / "a.mat", "Blocks"),
         r"a\.mat: cannot be read \(No such"),
    Case("mat: empty", lambda f: ((f / "a.mat").touch(), MatBlocks(f / "a.mat", "Blocks")),
         rf"a\.mat: damaged or not a \.mat file.*{AGAIN}"),
    Case("mat: text", lambda f: ((f / "a.mat").write_text("x" * 500), MatBlocks(f / "a.mat", "B")),
         rf"a\.mat: damaged or not a \.mat file.*{AGAIN}"),
    Case("mat: a pipe", lambda f: MatBlocks(named_pipe(f / "a.mat"), "Blocks"),
         r"a\.mat: expected a file, found a folder, pipe or device"),
    Case("mat: another variable", lambda f: v5(f / "a.mat", {"Other": BLOCKS}),
         NOT_BLOCKS + f"uint8 Other; {AGAIN}"),
    Case("mat: no variable", lambda f: v5(f / "a.mat", {}), NOT_BLOCKS + "no variable"),
    Case("mat: doubles", lambda f: v5(f / "a.mat", {"Blocks": BLOCKS / 2}), NOT_BLOCKS + "double"),
    Case("mat: a cell array",
         lambda f: v5(f / "a.mat", {"Blocks": np.array([BLOCKS, BLOCKS[0]], dtype=object)}),
         NOT_BLOCKS + "cell Blocks"),
    Case("mat: a structure", lambda f: v5(f / "a.mat", {"Blocks": {"blocks": BLOCKS}}),
         NOT_BLOCKS + "struct Blocks"),
    Case("mat: logical values", lambda f: v5(f / "a.mat", {"Blocks": BLOCKS > 9}),
         NOT_BLOCKS + "logical Blocks"),
    Case("mat: grey blocks", lambda f: v5(f / "a.mat", {"Blocks": BLOCKS[..., :1]}),
         rf"expected blocks \(\.\.\., H, W, 3\) in Blocks, found .*; {AGAIN}"),
    Case("mat: shape that asks for a terabyte",
         lambda f: v5_edited(
             f / "a.mat", DIMENSIONS, struct.pack("<II4i", 5, 16, 10**8, 64, 64, 3)),
         rf"Blocks is declared as \(100000000, 64, 64, 3\), more than 1\.1 GB; {AGAIN}"),
    Case("mat: shape and data ask for 6 GB",
         lambda f: v5_edited(
             f / "a.mat", DIMENSIONS + struct.pack("<II", 1, 6) + b"Blocks\0\0" + DATA_TAG,
             struct.pack("<II4iII", 5, 16, 1000, 1000, 2000, 3, 1, 6) + b"Blocks\0\0"
             + struct.pack("<II", 2, 6 * 10**9 % 2**32), compressed=True),
         rf"a\.mat: .*{AGAIN}"),
    Case("mat: data longer than the shape",
         lambda f: v5_edited(f / "a.mat", DATA_TAG, struct.pack("<II", 2, 2**31), compressed=True),
         rf"a\.mat: damaged.*{AGAIN}"),
    Case("mat: truncated",
         lambda f: (v5(f / "a.mat", {"Blocks": BLOCKS}, compressed=True),
                    os.truncate(f / "a.mat", 300), MatBlocks(f / "a.mat", "Blocks")),
         rf"a\.mat: damaged.*{AGAIN}"),
    Case("mat: HDF5 truncated",
         lambda f: (save_mat(f / "a.mat", "Blocks", BLOCKS, "v7.3"),
                    os.truncate(f / "a.mat", 2000), MatBlocks(f / "a.mat", "Blocks")),
         rf"a\.mat: damaged.*{AGAIN}"),
    Case("mat: HDF5 link into another file",
         lambda f: v73(f / "a.mat", lambda file: file.__setitem__(
             "Blocks", h5py.ExternalLink(secret(f), "Blocks"))), NOT_BLOCKS + "link Blocks"),
    Case("mat: HDF5 array stored in another file",
         lambda f: v73(f / "a.mat", lambda file: file.create_dataset(
             "Blocks", BLOCKS.T.shape, np.uint8, external=[(secret(f), 0, BLOCKS.size)])),
         NOT_BLOCKS + "link Blocks"),
    Case("mat: HDF5 view of another file",
         lambda f: v73(f / "a.mat", lambda file: virtual(file, secret(f))),
         NOT_BLOCKS + "link Blocks"),
    Case("mat: HDF5 group", lambda f: v73(f / "a.mat", lambda file: file.create_group("Blocks")),
         NOT_BLOCKS + "group Blocks"),
    Case("mat: HDF5 array of a terabyte",
         lambda f: v73(f / "a.mat", lambda file: file.create_dataset(
             "Blocks", (3, 64, 64, 10**8), np.uint8, chunks=(3, 64, 64, 1), compression="gzip")),
         rf"Blocks is declared as \(100000000, 64, 64, 3\), more than 1\.1 GB; {AGAIN}"),
]  # fmt: skip


# ------------------------------------------------------------------------------------ checkpoints


class Payload:
    """Code that unpickling would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def saved(content: object, path: Path, **how: Any) -> Path:
    torch.save(content, path, **how)
    return path


def with_code(folder: Path) -> None:
    try:
        load_state(saved({"a": torch.zeros(2), "b": Payload(folder / "ran")}, folder / "a.pt"))
    finally:
        assert not (folder / "ran").exists()


def inflating(path: Path) -> Path:
    """A checkpoint compressed 1000 to 1, as zip files may be."""
    saved({"a": torch.zeros(10**6)}, path.with_name("plain.pt"))
    with ZipFile(path.with_name("plain.pt")) as plain, ZipFile(path, "w", ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    return path


def linear(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return OrderedDict(nn.Linear(3, 2).state_dict() | changes)


def into_linear(folder: Path, **changes: torch.Tensor) -> None:
    load_weights(nn.Linear(3, 2), saved(linear(**changes), folder / "a.pt"))


HOLLOW = "a.pt: expected dense tensors, weight holds less data than its shape has; download"
CHECKPOINTS = [
    Case("pt: no such file", lambda f: load_state(f / "a.pt"), "no such checkpoint; train one"),
    Case("pt: a folder", lambda f: load_state(f), "no such checkpoint; train one first or name"),
    Case("pt: a pipe", lambda f: load_state(named_pipe(f / "a.pt")), "no such checkpoint"),
    Case("pt: empty", lambda f: ((f / "a.pt").touch(), load_state(f / "a.pt")),
         r"a\.pt: .*damaged.*download or train it again"),
    Case("pt: text", lambda f: ((f / "a.pt").write_text("version https"), load_state(f / "a.pt")),
         r"a\.pt: .*damaged.*download or train it again"),
    Case("pt: truncated",
         lambda f: (os.truncate(saved(linear(), f / "a.pt"), 900), load_state(f / "a.pt")),
         r"a\.pt: damaged checkpoint .*; download or train it again"),
    Case("pt: with code", with_code, r"a\.pt: .*not loaded for safety\); download or train"),
    Case("pt: a compressed archive", lambda f: load_state(inflating(f / "a.pt")),
         r"a\.pt: a compressed archive \(4\.0 MB of contents\), expected what torch\.save writes"),
    Case("pt: a list", lambda f: load_state(saved([torch.zeros(2)], f / "a.pt")),
         r"a\.pt: expected a plain state dict"),
    Case("pt: a training checkpoint",
         lambda f: load_state(saved({"networks": linear(), "step": 3}, f / "a.pt")),
         r"a\.pt: expected a plain state dict \(names -> tensors\); is it weights\?"),
    Case("pt: one number declared as a terabyte",
         lambda f: into_linear(f, weight=torch.zeros(1).half().expand(2**39)), HOLLOW),
    Case("pt: sparse",
         lambda f: into_linear(f, weight=torch.zeros(2, 3).to_sparse()), HOLLOW),
    Case("pt: without data", lambda f: into_linear(f, weight=torch.empty(2, 3, device="meta")),
         HOLLOW),
    Case("pt: another width", lambda f: into_linear(f, weight=torch.zeros(2, 4)),
         r"a\.pt: weight is \(2, 4\), Linear of this width has \(2, 3\); choose the width"),
    Case("pt: another network",
         lambda f: load_weights(nn.BatchNorm2d(3), saved(linear(), f / "a.pt")),
         r"a\.pt: not the weights of BatchNorm2d: 2 of 5 keys match.*another network's file\?"),
    Case("pt: a key too many", lambda f: into_linear(f, more=torch.zeros(1)),
         r"a\.pt: .*has a foreign more"),
    Case("pt: not finite", lambda f: into_linear(f, bias=torch.tensor([0, torch.nan])),
         r"a\.pt: bias is not finite, the training diverged; use an earlier checkpoint"),
    Case("pt: whole numbers", lambda f: into_linear(f, bias=torch.tensor([0, 1])),
         r"a\.pt: bias is torch\.int64, expected torch\.float32"),
]  # fmt: skip


FILE_CASES = [*image_cases(), *MAT, *CHECKPOINTS]
