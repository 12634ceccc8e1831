"""What transfer_noise.py and denoise.py share: image or folder in, images of one layout out.

Nothing of a user's is lost: inputs are never written to, what is in the output folder stays unless
`--overwrite` says otherwise, and what is there already is not made again. An image that fails is
named at the end, and the others are made.
"""

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from tqdm import tqdm

from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, list_images
from utils.images import read_image_size
from utils.memory import free_memory, is_out_of_memory
from utils.photos import SUFFIX_OF, Tags, read_photo, write_photo
from utils.strip import Strip

COMPARISON = "comparison.html"  # in the output folder, where nothing takes it for an image
LONGEST_NAME = 255  # bytes, of common file systems


Variants = Callable[[int], Sequence[tuple[str, str]]]
"""variants(key) -> (folder, tail) of each file that an image becomes: folder/name + tail."""


@dataclass(frozen=True)
class Task:
    """One input image and the files that it becomes."""

    source: Path
    key: int  # of the path relative to the input: what the image's seeds depend on
    files: list[tuple[Path, ...]]  # for each variant, one a side


def plan(
    source: Path,
    output: Path,
    kind: str,
    variants: Variants,
    sides: Sequence[str],
    protected: Sequence[Path],
) -> tuple[list[Task], list[str]]:
    """What to read and where to write: `source` (image or folder) below the folder `output`.

    kind: "same", or a key of SUFFIX_OF. sides: folders below `output` that get a file each.
    Of images that would become one file, such as a.jpg and a.png, those with another suffix keep
    it in the name: a.jpg.png. A name that would be too long is cut and gets its checksum.

    Returns the tasks, and what could not be listed. Raises UserError if there is nothing to do, or
    if a target is an input or one of the `protected` files.
    """
    if not os.path.lexists(source):
        raise UserError(f"{source}: no such image or folder; check --input")
    if output.is_file() or (output.suffix.lower() in IMAGE_SUFFIXES and not output.exists()):
        raise UserError(f"{output}: looks like a file; --output is the folder to write into")
    folder = source if source.is_dir() else source.parent
    root, out = folder.resolve(), output.resolve()
    if out == root:
        raise UserError(f"{output}: holds the input, which is never overwritten; choose another")

    problems: list[str] = []
    images = list_images(source, problems) if source.is_dir() else [source]
    if out.is_relative_to(root):
        images = [image for image in images if not image.resolve().is_relative_to(out)]
        problems = [line for line in problems if not line.startswith(f"{output}{os.sep}")]
    if not images and not problems:
        raise UserError(f"{source}: holds no images but those of --output; check --input")

    names = [image.relative_to(folder) for image in images]
    plain = Counter(_key(_renamed(name, kind)) for name in names)
    originals = {path.resolve() for path in [*images, *protected]}
    tasks = []
    for image, name in zip(images, names, strict=True):
        new = _renamed(name, kind)
        if plain[_key(new)] > 1 and new.suffix.lower() != name.suffix.lower():
            new = new.with_name(name.name + new.suffix)
            while _key(new) in plain:
                new = new.with_name(f"{new.stem}~{new.suffix}")
        key = crc32(os.fsencode(name.as_posix()))
        files = [
            tuple(output / side / place / new.parent / _fitting(new, tail) for side in sides)
            for place, tail in variants(key)
        ]
        for target in (file for each in files for file in each):
            if target.resolve() in originals:
                raise UserError(f"{target}: is an input, never overwritten; change --output")
        tasks.append(Task(image, key, files))
    return tasks, problems


def _renamed(name: Path, kind: str) -> Path:
    suffix = name.suffix if kind == "same" else SUFFIX_OF[kind]
    return name.with_name(name.stem + suffix)


def _key(path: Path) -> str:
    return str(path).casefold()  # two names that some file systems take for one


def _fitting(name: Path, tail: str) -> str:
    whole = os.fsencode(f"{name.stem}{tail}{name.suffix}")
    if len(whole) <= LONGEST_NAME:
        return os.fsdecode(whole)
    end = f"~{crc32(os.fsencode(name.name)):08x}{tail}{name.suffix}"
    stem = os.fsencode(name.stem)[: LONGEST_NAME - len(os.fsencode(end))]
    # Not within a character.
    return os.fsdecode(stem.decode(errors="ignore") if _is_utf8(name) else stem) + end


def _is_utf8(name: Path) -> bool:
    try:
        name.name.encode()
    except UnicodeEncodeError:  # bytes that are none are kept as lone surrogates
        return False
    return True


class Batch:
    """The work of a script on a folder: what is left to do, a bar, what failed, a summary.

    c: settings with input, output, format, quality and overwrite.
    """

    def __init__(
        self,
        c: Any,
        variants: Variants = lambda key: [("", "")],
        sides: Sequence[str] = ("",),
        protected: Sequence[Path] = (),
    ) -> None:
        self.c, self.written = c, 0
        self.tasks, self.skipped = plan(c.input, c.output, c.format, variants, sides, protected)
        show_any_name()
        self.there = sum(self.is_there(files) for task in self.tasks for files in task.files)
        self.bar = tqdm(disable=True)

    def is_there(self, files: Sequence[Path]) -> bool:
        return not self.c.overwrite and all(map(os.path.lexists, files))

    def images(self) -> Iterator[tuple[Task, np.ndarray, Tags]]:
        """Those with something left to do, read; while the bar of their pixels is shown."""
        open_tasks = [t for t in self.tasks if not all(map(self.is_there, t.files))]
        sizes = [_pixels(task.source) for task in open_tasks]
        left = [sum(not self.is_there(files) for files in task.files) for task in open_tasks]
        total = sum(size * n for size, n in zip(sizes, left, strict=True))
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} pixels, {elapsed} gone, {remaining} left"
        with tqdm(total=total, unit_scale=True, bar_format=form) as self.bar:
            for task, size, n in zip(open_tasks, sizes, left, strict=True):
                before, photo = self.bar.n, None
                with self.guard(task.source):
                    photo = read_in_memory(task.source)
                if photo is not None:
                    yield task, *photo
                    del photo
                self.bar.update(max(before + size * n - self.bar.n, 0))  # of what failed

    def progress(self, pixels: int) -> None:
        """Told by a Tiler."""
        self.bar.update(pixels)

    def guard(self, source: Path) -> AbstractContextManager[None]:
        """What fails inside is named at the end, and the others go on."""
        return guard(source, self.skipped, self.c.output)

    def write(self, files: Sequence[Path], images: Sequence[np.ndarray], tags: Tags) -> None:
        """An image a file; what is there already stays."""
        for file, pixels in zip(files, images, strict=True):
            if not self.is_there([file]):
                write_photo(file, pixels, tags, self.c.quality)
        self.written += 1

    def run(self, work: Callable[[], None]) -> int:
        """Do the work, then say what was done and what was not, whatever ends it; exit status."""
        try:
            with _terminable():
                work()
        except BaseException as error:
            self._summary()
            if not isinstance(error, Exception):
                print("stopped; the same command goes on from here", file=sys.stderr)
            raise
        self._summary()
        return 1 if self.skipped else 0

    def _summary(self) -> None:
        name_skipped(self.skipped)
        others = Counter(p.suffix or p.name for p in _others(self.c.input))
        if others:
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items()))
            print(f"not images, left alone: {kinds}")
        there = f", {self.there} there already (--overwrite: anew)" if self.there else ""
        skipped = f"{len(self.skipped)} skipped"
        print(f"{self.written} images written to {self.c.output}{there}, {skipped}")

    def show(self, strip: Strip) -> None:
        """Write it, unless one is there; what goes wrong is no failure of the batch."""
        path = self.c.output / COMPARISON
        if os.path.lexists(path) and not self.c.overwrite:
            return
        try:
            strip.write(path)
        except UserError as error:
            print(f"no picture to compare: {error}", file=sys.stderr)


def show_any_name() -> None:
    """Names that are not UTF-8 are printed with their bytes, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def guard(source: Path, skipped: list[str], output: Path) -> Iterator[None]:
    """What fails inside becomes a line of `skipped`."""
    try:
        yield
    except UserError as error:
        text = str(error)  # names the source or, where it cannot be written, the target
        named = str(source) in text or str(output) in text
        skipped.append(text if named else f"{source}: {text}")
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        skipped.append(f"{source}: out of memory; close other programs or crop it")


def name_skipped(skipped: Sequence[str]) -> None:
    if skipped:
        print("skipped:", *skipped, sep="\n  ", file=sys.stderr)


def _pixels(path: Path) -> int:
    """By the header; 0 for what cannot be read, which is named when its turn comes."""
    try:
        height, width = read_image_size(path)
    except UserError:
        return 0
    return height * width


def read_in_memory(path: Path) -> tuple[np.ndarray, Tags]:
    """`read_photo`, if there is the memory for it: without it the system may kill the process."""
    height, width = read_image_size(path)
    pixels = height * width
    needed, free = 9 * pixels / 1e9, free_memory(torch.device("cpu")) / 1e9  # three times over
    if needed > free:
        raise UserError(
            f"{path}: {pixels / 1e6:.1f} megapixels need {needed:.1f} GB of memory to be read, "
            f"{free:.1f} GB is free; close other programs or scale it down"
        )
    return read_photo(path)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C: temporary files are removed, and what was done is said."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _others(source: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(source):  # without errors, and not through links
        for path in (Path(folder, name) for name in names):
            if path.suffix.lower() not in IMAGE_SUFFIXES and not path.name.startswith("."):
                yield path
