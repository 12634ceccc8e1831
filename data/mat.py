"""Blocks of images in .mat files, as SIDD and SIDD+ publish them, of both generations.

Version 5 (MAT-File Format, MathWorks) and 7.3, which is HDF5. What a file declares is
checked before it is read: a file of a few megabytes can inflate to gigabytes, and an HDF5 file can
name other files whose contents would pass as its own. Neither is followed here.
"""

import math
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
import scipy.io

from utils.errors import UserError

MAX_BYTES = 2**30  # of the array, and of the file; SIDD's is a quarter of it
HEAD = 1024  # bytes of a variable that hold its type, shape and name, with room to spare
CLASSES = (
    *("", "cell", "struct", "object", "char", "sparse", "double", "single", "int8", "uint8"),
    *("int16", "uint16", "int32", "uint32", "int64", "uint64", "function", "opaque", "object"),
)
MI_UINT8, MI_MATRIX, MI_COMPRESSED = 2, 14, 15
COMPLEX, LOGICAL = 0x800, 0x200  # flags of an array
DEFLATE, SHUFFLE = 1, 2  # filters of HDF5; MATLAB uses no others


@dataclass(frozen=True)
class Declared:
    """What a file says of a variable. shape: in MATLAB's order of axes; kind: "uint8", ..."""

    kind: str
    shape: tuple[int, ...]


class MatBlocks:
    """The (H, W, 3) uint8 blocks of one variable of a .mat file, v5 or v7.3 (HDF5).

    The variable is (..., H, W, 3); leading dimensions are flattened in row-major order, so that
    block k of SIDD validation is [k // 32, k % 32]. The shape is read at once, the array (250 MB
    in SIDD validation) when the first block is asked for. UserError: a damaged file, another
    variable, shape or type, more than MAX_BYTES, or HDF5 that refers to other files.
    """

    def __init__(self, path: Path, variable: str) -> None:
        self.path, self.variable = Path(path), variable
        self.shape = self._read(self._shape_v5, self._shape_v73)
        if len(self.shape) < 4 or self.shape[-1] != 3 or 0 in self.shape:
            raise UserError(
                f"{path}: expected blocks (..., H, W, 3) in {variable}, found an array "
                f"{self.shape}; download the sRGB blocks again"
            )

    def __len__(self) -> int:
        return math.prod(self.shape[:-3])

    def __getitem__(self, i: int) -> np.ndarray:
        return self._blocks[i]

    def size(self, i: int) -> tuple[int, int]:
        return self.shape[-3], self.shape[-2]

    def image_name(self, i: int) -> str:
        return f"{i:04d}"

    @cached_property
    def _blocks(self) -> np.ndarray:
        array = self._read(self._array_v5, self._array_v73)
        if array.shape != self.shape or array.dtype != np.uint8:
            raise UserError(
                f"{self.path}: damaged, {self.variable} is not what it was; download it again"
            )
        # MATLAB is column-major: without the copy each block would be strewn over all the file.
        return np.ascontiguousarray(array).reshape(-1, *self.shape[-3:])

    def _read(self, v5: Callable, v73: Callable):
        try:
            status = os.stat(self.path)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{self.path}: expected a file, found a folder, pipe or device")
            if status.st_size > MAX_BYTES:
                raise UserError(
                    f"{self.path}: {status.st_size / 1e9:.1f} GB, expected at most "
                    f"{MAX_BYTES / 1e9:.1f}; download the sRGB blocks again"
                )
            return (v73 if h5py.is_hdf5(self.path) else v5)()
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: no such file") from error
        except UserError:
            raise
        except Exception as error:  # the readers raise a dozen kinds for a damaged file
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self.path}: damaged or not a .mat file ({reason}); download it again"
            ) from error

    def _check(self, found: dict[str, Declared]) -> tuple[int, ...]:
        """The shape of the variable, if it is an array of uint8 of an acceptable size."""
        declared = found.get(self.variable)
        if declared is None or declared.kind != "uint8":
            names = ", ".join(f"{d.kind} {name}" for name, d in found.items())
            raise UserError(
                f"{self.path}: expected the uint8 array {self.variable}, found "
                f"{names[:200] or 'no variable'}; download the sRGB blocks again"
            )
        if math.prod(declared.shape) > MAX_BYTES:
            raise UserError(
                f"{self.path}: {self.variable} is declared as {declared.shape}, more than "
                f"{MAX_BYTES / 1e9:.1f} GB; download it again"
            )
        return declared.shape

    def _shape_v5(self) -> tuple[int, ...]:
        with open(self.path, "rb") as file:
            return self._check(dict(variables_v5(file)))

    def _array_v5(self) -> np.ndarray:
        self._shape_v5()  # once more: it bounds what scipy is about to read
        return scipy.io.loadmat(self.path, variable_names=[self.variable])[self.variable]

    def _shape_v73(self) -> tuple[int, ...]:
        with h5py.File(self.path) as file:
            return self._check({name: _declared_v73(file, name) for name in file})

    def _array_v73(self) -> np.ndarray:
        with h5py.File(self.path) as file:
            self._check({self.variable: _declared_v73(file, self.variable)})
            return _read_v73(file[self.variable]).T  # HDF5 lists MATLAB's axes in reverse


# ---------------------------------------------------------------------------------------- version 5


def variables_v5(file: BinaryIO) -> Iterator[tuple[str, Declared]]:
    """The variables of a version 5 file; ValueError or struct.error where it is damaged.

    Of each only HEAD bytes are inflated. A uint8 array passes only if its data are stored as uint8,
    as many as the shape says: what scipy allocates is what was declared here.
    """
    order = {b"IM": "<", b"MI": ">"}.get(file.read(128)[126:128])
    if order is None:
        raise ValueError("no header of a .mat file")
    end, names = os.fstat(file.fileno()).st_size, set()
    while (start := file.tell()) < end:
        kind, length = struct.unpack(order + "II", file.read(8))
        if start + 8 + length > end:
            raise ValueError("truncated")
        head = file.read(min(length, 8 * HEAD))
        if kind == MI_COMPRESSED:
            head = zlib.decompressobj().decompress(head, HEAD)
            kind, inner = struct.unpack_from(order + "II", head)
            head = head[8:]
        else:
            inner = length
        if kind != MI_MATRIX:
            raise ValueError(f"element of type {kind}")
        name, declared = _declared_v5(head[:HEAD], inner, order)
        if name and name in names:
            raise ValueError(f"two variables {name}")
        names.add(name)
        yield name, declared
        file.seek(start + 8 + length)


def _declared_v5(head: bytes, length: int, order: str) -> tuple[str, Declared]:
    """From the sub-elements of an array: flags, dimensions, name, and the tag of its data."""
    _, flags, position = _element(head, 0, order)
    (flags,) = struct.unpack_from(order + "I", flags)
    kind = "logical" if flags & LOGICAL else CLASSES[flags & 0xFF]
    if kind in ("function", "opaque"):  # without dimensions
        return "", Declared(kind, ())
    _, dimensions, position = _element(head, position, order)
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    _, name, position = _element(head, position, order)
    if min(shape, default=0) < 0:
        raise ValueError(f"dimensions {shape}")
    if flags & COMPLEX:
        kind = f"complex {kind}"
    if kind == "uint8":
        tag, size, _ = _tag(head, position, order)
        if tag != MI_UINT8 or size != math.prod(shape) or position + size > length:
            raise ValueError(f"{size} bytes of type {tag} for an array {shape}")
    return name.decode("ascii"), Declared(kind, shape)


def _tag(head: bytes, position: int, order: str) -> tuple[int, int, bool]:
    """(type, bytes of data, whether they are within the tag itself)."""
    kind, size = struct.unpack_from(order + "II", head, position)
    return (kind & 0xFFFF, kind >> 16, True) if kind >> 16 else (kind, size, False)


def _element(head: bytes, position: int, order: str) -> tuple[int, bytes, int]:
    """(type, data, position of the next element)."""
    kind, size, small = _tag(head, position, order)
    start = position + (4 if small else 8)
    if start + size > len(head) or (small and size > 4):
        raise ValueError("an element leaves its array")
    return kind, head[start : start + size], position + 8 if small else start + -(-size // 8) * 8


# -------------------------------------------------------------------------------------- version 7.3


def _declared_v73(file: h5py.File, name: str) -> Declared:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return Declared("link", ())  # into another file, or to nowhere
    if file.get(name, getclass=True) is not h5py.Dataset:
        return Declared("group", ())
    dataset = file[name]
    if dataset.is_virtual or dataset.external:
        return Declared("link", ())
    return Declared(str(dataset.dtype), (dataset.shape or ())[::-1])


def _read_v73(dataset: h5py.Dataset) -> np.ndarray:
    """A uint8 array in HDF5's order of axes, its chunks inflated here.

    HDF5 itself would inflate a chunk to whatever size it has, and load plug-ins for filters.
    """
    if dataset.chunks is None:
        if dataset.nbytes > os.path.getsize(dataset.file.filename):
            raise ValueError(f"less data than an array {dataset.shape} has")
        return dataset[()]
    if math.prod(dataset.chunks) > MAX_BYTES:
        raise ValueError(f"chunks {dataset.chunks}")
    create = dataset.id.get_create_plist()
    filters = [create.get_filter(i)[0] for i in range(create.get_nfilters())]
    if filters not in ([], [DEFLATE], [SHUFFLE, DEFLATE]):
        raise ValueError(f"filters {filters}")
    array, full = np.zeros(dataset.shape, np.uint8), math.prod(dataset.chunks)
    chunks = []
    dataset.id.chunk_iter(chunks.append)
    for chunk in chunks:
        if not filters and chunk.size != full:  # HDF5 2.0 would write beyond h5py's buffer
            raise ValueError(f"a chunk of {chunk.size} bytes, expected {full}")
        skipped, data = dataset.id.read_direct_chunk(chunk.chunk_offset)
        if filters and not skipped >> (len(filters) - 1) & 1:  # single bytes are not shuffled
            data = zlib.decompressobj().decompress(data, full + 1)
        if len(data) != full:
            raise ValueError(f"a chunk of {len(data)} bytes, expected {full}")
        values = np.frombuffer(data, np.uint8).reshape(dataset.chunks)
        place = tuple(
            slice(start, start + n)
            for start, n in zip(chunk.chunk_offset, dataset.chunks, strict=True)
        )
        inside = array[place]
        inside[...] = values[tuple(slice(n) for n in inside.shape)]
    return array
