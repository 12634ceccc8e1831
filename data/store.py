"""Images decoded once into one memory-mapped file, from which batches of crops are copied."""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.prefetch import look_ahead
from utils.errors import UserError
from utils.files import whole_folder
from utils.images import MAX_PIXELS, read_image_size, read_uint8

FORMAT = 1  # of the files below; part of the fingerprint
IMAGES_FILE, INDEX_FILE = "images.u8", "index.json"

# Of a larger file no more than this stays mapped into the process, see ImageStore._will_touch.
RESIDENT = 2**29
FOLIO = 2**21  # bytes, aligned, that Linux may map at once when one of them is touched


class ImageStore:
    """uint8 RGB images of any sizes in one memory-mapped file; made and found by `open`.

    A store is a folder with `images.u8`, the (H, W, 3) images back to back, and `index.json`, their
    files and sizes. It is read-only, shared by all processes that map it, and may be deleted
    whenever no run uses it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX_FILE).read_text())
            self.files = [Path(file) for file in index["files"]]
            sizes = np.array(index["sizes"], np.int64).reshape(len(self.files), 2)
            if (sizes <= 0).any() or (sizes > MAX_PIXELS).any():
                raise ValueError("sizes that no image has")
            with open(self.folder / IMAGES_FILE, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"{self.folder}: not a complete image store ({error}); delete this folder and run "
                "again"
            ) from error
        self._offsets = [0, *(sizes.prod(axis=1) * 3).cumsum().tolist()]
        if len(self._map) != self._offsets[-1]:
            raise UserError(
                f"{self.folder / IMAGES_FILE}: {len(self._map)} bytes, expected "
                f"{self._offsets[-1]}; delete this folder and run again"
            )
        self.sizes = torch.from_numpy(sizes)  # (n, 2) int64: H, W
        flat = np.frombuffer(self._map, np.uint8)
        self._images = [
            flat[start:end].reshape(h, w, 3)
            for start, end, (h, w) in zip(
                self._offsets[:-1], self._offsets[1:], sizes.tolist(), strict=True
            )
        ]
        self._is_large = self.nbytes > RESIDENT and hasattr(self._map, "madvise")  # not on Windows
        self._touched = 0
        if self._is_large:
            self._map.madvise(mmap.MADV_RANDOM)

    @classmethod
    def open(
        cls,
        files: Sequence[Path],
        cache: Path,
        name: str = "images",
        min_size: int = 1,
        progress: bool = True,
    ) -> "ImageStore":
        """The store of `files`, in their order, below `cache`; decoded there if it is not yet.

        It is made anew when a file's path, size or time of change differs. 16-bit images are
        rounded to 8 bits. min_size: the shortest side that an image may have, the patch size.
        UserError: no files, an unreadable or too small image, a cache folder that cannot be
        written or is too small. What is half made is removed. Processes may race for one store.
        """
        files, cache = [Path(os.path.abspath(file)) for file in files], Path(cache)
        if not files:
            raise UserError(f"{name}: no images to put into {cache}; give a folder with images")
        folder = cache / f"{name}-{_fingerprint(files)}"
        if not (folder / INDEX_FILE).is_file():
            sizes = [read_image_size(file) for file in files]
            _require_min_size(files, sizes, min_size)
            try:
                _build(folder, files, 3 * sum(h * w for h, w in sizes), progress)
            except OSError as error:
                raise UserError(
                    f"{folder}: cannot be written ({error.strerror or error}); choose another "
                    "cache folder"
                ) from error
        store = cls(folder)
        _require_min_size(files, store.sizes.tolist(), min_size)
        return store

    def __reduce__(self) -> tuple:
        return type(self), (self.folder,)  # a worker maps the file again

    def __len__(self) -> int:
        return len(self._images)

    @property
    def nbytes(self) -> int:
        """Of all images."""
        return self._offsets[-1]

    def image(self, i: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, a read-only view of the file."""
        if self._is_large:
            self._will_need(i, 0, len(self._images[i]))
            self._will_touch(i, 0, len(self._images[i]))
        return self._images[i]

    # A large file is read by random crops, often from the disk. Nothing is gained then by the
    # system's reading ahead (MADV_RANDOM), up to megabytes for each crop, and much by asking for
    # the crops of a batch before the first is copied: they are read side by side, and some seven
    # times as many a second. Pages once touched would count as this process's memory until it
    # ends. All of them are dropped now and then (MADV_DONTNEED; they stay in the system's page
    # cache), which costs less than to `pread` rows or bands of rows.

    def _will_need(self, i: int, top: int, bottom: int) -> None:
        """Start reading rows top to bottom of image i from the disk."""
        start, end = self._span(i, top, bottom, mmap.PAGESIZE)
        self._map.madvise(mmap.MADV_WILLNEED, start, end - start)

    def _will_touch(self, i: int, top: int, bottom: int) -> None:
        """Keep the memory mapped below RESIDENT (or one crop) when these rows are read next."""
        start, end = self._span(i, top, bottom, FOLIO)
        self._touched += end - start
        if self._touched > RESIDENT:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = end - start

    def _span(self, i: int, top: int, bottom: int, unit: int) -> tuple[int, int]:
        """Bytes start to end of the file, in whole units, with rows top to bottom of image i."""
        row, image = 3 * self._images[i].shape[1], self._offsets[i]
        start, end = image + top * row, image + bottom * row
        return start // unit * unit, min(-(-end // unit) * unit, self.nbytes)

    def crop(self, index: Tensor, top: Tensor, left: Tensor, size: int, margin: int = 0) -> Tensor:
        """Crops of images `index` (B,), with corners `top`, `left` (B,): (B, 3, S, S) uint8.

        S = size + 2 margin: the margin lies around the size x size crop and is reflected at the
        image's borders (numpy's "reflect"), so that a filter of that radius gives on the crop what
        it gives on the whole image. The result is channels_last in memory. ValueError if a crop
        leaves its image.
        """
        corner = torch.stack([top, left], dim=1)
        _require_inside(corner, size, self.sizes[index])
        side = size + 2 * margin
        out = np.empty((len(index), side, side, 3), np.uint8)
        corners = (corner - margin).tolist()
        if self._is_large:
            for i, (y, _) in zip(index.tolist(), corners, strict=True):
                self._will_need(i, max(y, 0), min(y + side, len(self._images[i])))
        for crop, i, (y, x) in zip(out, index.tolist(), corners, strict=True):
            image = self._images[i]
            height, width, _ = image.shape
            if self._is_large:
                self._will_touch(i, max(y, 0), min(y + side, height))
            if y >= 0 and x >= 0 and y + side <= height and x + side <= width:
                crop[:] = image[y : y + side, x : x + side]
            else:
                n, offset = torch.tensor(image.shape[:2]), torch.arange(side)
                rows, columns = _reflected(torch.tensor([[y], [x]]) + offset, n[:, None]).numpy()
                crop[:] = image[rows[:, None], columns]
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def to(self, device: torch.device | str) -> "DeviceImageStore":
        """All images (`nbytes`) in the memory of `device`, where crops are then gathered."""
        return DeviceImageStore(self, device)


class DeviceImageStore:
    """The images of an `ImageStore` in a device's memory; files, sizes and `crop` are the same."""

    def __init__(self, store: ImageStore, device: torch.device | str) -> None:
        self.device, self.files, self.sizes = torch.device(device), store.files, store.sizes
        ends = (3 * store.sizes.prod(dim=1)).cumsum(0)
        self._starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        self._flat = torch.empty(store.nbytes, dtype=torch.uint8, device=self.device)
        for i, (start, end) in enumerate(zip(self._starts.tolist(), ends.tolist(), strict=True)):
            self._flat[start:end] = torch.from_numpy(store.image(i).copy()).flatten()

    def __len__(self) -> int:
        return len(self.sizes)

    def crop(self, index: Tensor, top: Tensor, left: Tensor, size: int, margin: int = 0) -> Tensor:
        """As `ImageStore.crop`, from indices on the CPU; the result is on the device."""
        corner, sizes = torch.stack([top, left], dim=1), self.sizes[index]
        _require_inside(corner, size, sizes)
        numbers = torch.cat([corner - margin, sizes, self._starts[index, None]], dim=1)
        y, x, height, width, start = numbers.to(self.device).T[..., None]  # (B, 1) each
        offset = torch.arange(size + 2 * margin, device=self.device)
        rows, columns = _reflected(y + offset, height), _reflected(x + offset, width)
        pixel = rows[:, :, None] * width[:, None] + columns[:, None]
        channel = torch.arange(3, device=self.device)
        at = start[:, None, None] + 3 * pixel[..., None] + channel
        return self._flat[at].permute(0, 3, 1, 2)


def summary(stores: Sequence[ImageStore | DeviceImageStore]) -> dict[str, int | str]:
    """What a run trains on, to be told apart from other data: images, and a digest of their names
    and sizes, wherever they lie."""
    images = sorted(
        (file.name, *size)
        for store in stores
        for file, size in zip(store.files, store.sizes.tolist(), strict=True)
    )
    digest = hashlib.sha256(repr(images).encode()).hexdigest()[:16]
    return {"images": len(images), "digest": digest}


def check_pair_sizes(store: ImageStore) -> None:
    """UserError unless images 2k and 2k + 1 of the store, a pair, are of equal size for all k."""
    if len(store) % 2:
        raise ValueError(f"{len(store)} images are not pairs")
    clean, noisy = store.sizes[0::2], store.sizes[1::2]
    for k in (clean != noisy).any(dim=1).nonzero().flatten().tolist()[:1]:
        (h1, w1), (h2, w2) = clean[k].tolist(), noisy[k].tolist()
        raise UserError(
            f"{store.files[2 * k + 1]}: {w2}x{h2} pixels, but its clean partner "
            f"{store.files[2 * k]} has {w1}x{h1}; fetch both again or remove the pair"
        )


def _require_inside(corner: Tensor, size: int, sizes: Tensor) -> None:
    if bool(((corner < 0) | (corner + size > sizes)).any()):
        raise ValueError(f"a {size}x{size} crop leaves its image")


def _reflected(i: Tensor, n: Tensor) -> Tensor:
    """Indices reflected into [0, n) about the first and the last pixel, as often as it takes."""
    i = i % (2 * n - 2).clamp(min=1)
    return torch.minimum(i, 2 * n - 2 - i)


def _fingerprint(files: Sequence[Path]) -> str:
    digest = hashlib.sha256(f"format {FORMAT}\n".encode())
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _require_min_size(files: Sequence[Path], sizes: Sequence, min_size: int) -> None:
    for file, (height, width) in zip(files, sizes, strict=True):
        if min(height, width) < min_size:
            raise UserError(
                f"{file}: {width}x{height} pixels, smaller than the {min_size}x{min_size} patch; "
                "remove it or train on smaller patches"
            )


def _build(folder: Path, files: Sequence[Path], nbytes: int, progress: bool) -> None:
    """Decode `files` into a new store; complete under its name or not there at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < nbytes:
        raise UserError(
            f"{folder.parent}: {nbytes / 1e9:.1f} GB needed to decode {len(files)} images, "
            f"{free / 1e9:.1f} GB free; choose another cache folder"
        )
    with whole_folder(folder, (folder / INDEX_FILE).is_file) as temporary:
        sizes, threads = [], min(8, os.cpu_count() or 1)  # OpenCV lets go of the interpreter lock
        with (
            open(temporary / IMAGES_FILE, "wb") as out,
            tqdm(total=len(files), desc="decode", unit="img", delay=2, disable=not progress) as bar,
            contextlib.closing(look_ahead(read_uint8, files, threads)) as images,
        ):
            for image in images:
                out.write(image.data)
                sizes.append(image.shape[:2])
                bar.update()
        index = {"files": [str(file) for file in files], "sizes": sizes}
        (temporary / INDEX_FILE).write_text(json.dumps(index))
