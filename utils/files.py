"""Files and folders in and out: listed once, opened with care, written whole or not at all.

Links are followed, to files and to folders, wherever they lead: it is how large data sets are put
in place. Links in circles are left out, and so is what is hidden (.name).

What is defended here and in utils/images.py, utils/checkpoint.py and data/mat.py: a damaged file,
or one that declares more than it holds, gives a UserError with its name; weights never run code;
pipes and devices are not opened. What is not: files made to attack. Decoders (OpenCV, Pillow,
libtiff, HDF5, scipy) are trusted not to crash, and a compressed .mat file may take as much memory
as it inflates to. That is for their makers to mend, and such files for a sandbox to open.
"""

import contextlib
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def natural_key(path: Path) -> tuple:
    """Sorting key for the paths of one folder: 2.png comes before 10.png."""
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def regular_file(path: Path, most: int) -> os.stat_result:
    """UserError for what is no file of `most` bytes at most. A pipe or device may never end."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: expected a file, found a folder, pipe or device; remove it")
    if status.st_size > most:
        size = f"{status.st_size / 1e9:.1f} GB, expected at most {most / 1e9:.1f} GB"
        raise UserError(f"{path}: {size}; remove it")
    return status


def open_file(path: Path, most: int) -> BinaryIO:
    """To read; UserError as from `regular_file`."""
    regular_file(path, most)
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def write_atomically(data: bytes | memoryview, path: str | Path, durable: bool = True) -> None:
    """Write a temporary file beside it, then rename that: never a half-written file.

    Missing folders are made. durable: the file, then its folder's entry, are on the disk before
    this returns. UserError, with what was there before left as it is, if it cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}), what was there is kept; "
            "choose another output folder, or free some space and run again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(folder: Path, is_complete: Callable[[], bool]) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of `folder` when the block is left.

    Unless another process has been first, and `folder` is complete by then. OSError.
    """
    temporary = _temporary(folder)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        try:
            if folder.exists() and not is_complete():
                shutil.rmtree(folder)
            temporary.rename(folder)
        except OSError:
            if not is_complete():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    # The name that it is for would not fit where it has 255 bytes, all that a file system allows.
    return path.with_name(f".{uuid.uuid4().hex[:16]}.part")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # other systems cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Folder:
    """A folder, listed when it is first asked what it holds, and not again."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = Path(path), Path(path).name

    @classmethod
    def at(cls, place: "Path | Folder") -> "Folder":
        return place if isinstance(place, Folder) else cls(place)

    @cached_property
    def _listed(self) -> tuple[list["Folder"], list[Path]]:
        folders, files = [], []
        try:
            paths = sorted(self.path.iterdir(), key=natural_key)
        except OSError as error:
            reason = f"{error.strerror or error}; check its permissions and name, or remove it"
            raise UserError(f"{self.path}: cannot be listed ({reason})") from error
        for path in paths:
            if path.name.startswith("."):
                continue
            if not os.path.isdir(path):  # unlike Path's, nor of a path that is too long
                files.append(path)
            elif not (path.is_symlink() and self._lies_below(path.resolve())):
                folders.append(Folder(path))
        return folders, files

    def _lies_below(self, target: Path) -> bool:
        """Whether the way here, its links followed or not, leads through `target`."""
        way = self.path.absolute()
        return any(step.resolve().is_relative_to(target) for step in (way, *way.parents))

    @property
    def folders(self) -> list["Folder"]:
        """Those in it, linked ones included; not links that lead back to where they are."""
        return self._listed[0]

    @property
    def files(self) -> list[Path]:
        """All that is directly in it and no folder: pipes and broken links, too."""
        return self._listed[1]

    @cached_property
    def images(self) -> list[Path]:
        """The files directly in it that are images by their suffix."""
        return [p for p in self.files if p.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(p)]

    def walk(self, problems: list[str] | None = None) -> Iterator["Folder"]:
        """The folder itself, then those in it, each followed by those below it.

        UserError for one that cannot be listed; or it is left out, and problems says so.
        """
        try:
            folders = self.folders
        except UserError as error:
            if problems is None:
                raise
            problems.append(str(error))
            return
        yield self
        for folder in folders:
            yield from folder.walk(problems)


def list_images(folder: Path | Folder, problems: list[str] | None = None) -> list[Path]:
    """All images below `folder`, folder by folder in natural order; UserError if none.

    problems: what cannot be read is named here, and the rest is listed: folders, links to nothing,
    pipes with the suffix of an image, paths that are too long.
    """
    folder = Folder.at(folder)
    if not folder.path.is_dir():
        raise UserError(f"{folder.path}: no such folder; give the folder that holds the images")
    images = []
    for each in folder.walk(problems):
        images += each.images
        if problems is not None:
            problems += filter(None, map(_why_no_image, each.files))
    if not images and not problems:
        raise UserError(
            f"{folder.path}: holds no images; put images ({' '.join(IMAGE_SUFFIXES)}) into it"
        )
    return images


def _why_no_image(path: Path) -> str | None:
    """Of what is no file: that it should be one by its suffix, or that nothing can be said."""
    if os.path.isfile(path):
        return None
    try:
        os.lstat(path)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            regular_file(path, sys.maxsize)
    except UserError as error:
        return str(error)
    except OSError as error:  # a path that is too long
        return f"{path}: cannot be read ({error.strerror or error})"
    return None
