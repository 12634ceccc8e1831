"""Blocks of images in .mat files, as SIDD and SIDD+ publish them, of version 5 and 7.3 (HDF5)."""

import math
import os
import struct
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from utils.errors import UserError
from utils.files import regular_file

MAX_BYTES = 2**30  # of the array, and of the file; SIDD's is a quarter of it


class MatBlocks:
    """The (H, W, 3) uint8 blocks of one variable of a .mat file, v5 or v7.3 (HDF5).

    The variable is (..., H, W, 3); leading dimensions are flattened in row-major order, so that
    block k of SIDD validation is [k // 32, k % 32]. The shape is read at once, the array (250 MB
    in SIDD validation) when the first block is asked for. UserError: a damaged file, another
    variable, shape or type, more than MAX_BYTES, or HDF5 that refers to other files.
    """

    def __init__(self, path: Path, variable: str) -> None:
        self.path, self.variable = Path(path), variable
        regular_file(path, MAX_BYTES)
        try:
            declared = self._declared()
        except Exception as error:  # the readers raise a dozen kinds for a damaged file
            raise self._damaged(error) from error
        self.shape, kind = declared.get(variable, ((), ""))
        if kind != "uint8":
            names = ", ".join(f"{kind} {name}" for name, (_, kind) in declared.items())
            raise UserError(
                f"{path}: expected the uint8 array {variable}, found "
                f"{_one_line(names) or 'no variable'}; download the sRGB blocks again"
            )
        if math.prod(self.shape) > MAX_BYTES:
            raise UserError(
                f"{path}: {variable} is declared as {self.shape}, more than "
                f"{MAX_BYTES / 1e9:.1f} GB; download it again"
            )
        if len(self.shape) < 4 or self.shape[-1] != 3 or min(self.shape) < 1:
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
        try:
            array = self._array()
        except Exception as error:
            raise self._damaged(error) from error
        if array.shape != self.shape or array.dtype != np.uint8:
            raise self._damaged(f"{self.variable} is not what it was declared as")
        # MATLAB is column-major: without the copy each block would be strewn over all the file.
        return np.ascontiguousarray(array).reshape(-1, *self.shape[-3:])

    def _damaged(self, reason: Exception | str) -> UserError:
        return UserError(
            f"{self.path}: damaged or not a .mat file ({_one_line(str(reason))}); download it again"
        )

    def _declared(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """{variable: (shape in MATLAB's order of axes, type)}, by the headers alone."""
        if h5py.is_hdf5(self.path):
            with h5py.File(self.path) as file:
                return {name: _declared_v73(file, name) for name in file}
        self._require_whole()
        declared = scipy.io.whosmat(self.path, appendmat=False)
        return {name: (tuple(map(int, shape)), kind) for name, shape, kind in declared}

    def _require_whole(self) -> None:
        """ValueError unless a version 5 file ends where its last variable does; scipy sees that a
        download is truncated only when the array is read."""
        with open(self.path, "rb") as file:
            order = {b"IM": "<", b"MI": ">"}.get(file.read(128)[126:])
            end, at = os.path.getsize(self.path), 128
            while order and at < end:
                file.seek(at + 4)
                at += 8 + struct.unpack(f"{order}I", file.read(4))[0]
        if order and at != end:
            raise ValueError("truncated")

    def _array(self) -> np.ndarray:
        if not h5py.is_hdf5(self.path):
            names = [self.variable]
            return scipy.io.loadmat(self.path, appendmat=False, variable_names=names)[names[0]]
        with h5py.File(self.path) as file:
            dataset = file[self.variable]
            if dataset.chunks and not dataset.id.get_create_plist().get_nfilters():
                sizes, full = [], math.prod(dataset.chunks)
                dataset.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
                if set(sizes) - {full}:  # HDF5 2.0 would write beyond h5py's buffer
                    raise ValueError(f"a chunk of {max(sizes)} bytes, expected {full}")
            return dataset[()].T  # HDF5 lists MATLAB's axes in reverse


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _declared_v73(file: h5py.File, name: str) -> tuple[tuple[int, ...], str]:
    """Type "link" for what lies in another file: its contents would pass as this one's."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return (), "link"
    if file.get(name, getclass=True) is not h5py.Dataset:
        return (), "group"
    dataset = file[name]
    if dataset.is_virtual or dataset.external:
        return (), "link"
    return (dataset.shape or ())[::-1], str(dataset.dtype)
