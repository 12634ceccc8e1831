"""What transfer_noise.py and denoise.py share: image or folder in, PNG files of one layout out."""

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES, list_images
from utils.images import integer_to_float, read_image


@dataclass(frozen=True)
class Task:
    """One input image and the files that it becomes."""

    source: Path
    name: str  # path relative to the input folder, with forward slashes
    targets: list[Path]


def plan(source: Path, output: Path, copies: int = 1, protected: Sequence[Path] = ()) -> list[Task]:
    """What to read and where to write: `source` (image or folder) below the folder `output`.

    One target `name.png` an image, or `name_000.png`, ... for several copies. Raises UserError if
    there is nothing to do, or if a target would overwrite an input, another image's target or one
    of the `protected` files.
    """
    if not source.exists():
        raise UserError(f"{source}: no such image or folder; check --input")
    if output.is_file() or (output.suffix.lower() in IMAGE_SUFFIXES and not output.exists()):
        raise UserError(f"{output}: looks like a file; --output is the folder to write into")
    folder = source if source.is_dir() else source.parent
    root, out = folder.resolve(), output.resolve()
    if out == root:
        raise UserError(f"{output}: holds the input, which is never overwritten; choose another")

    images = list_images(source) if source.is_dir() else [source]
    if out.is_relative_to(root):
        images = [image for image in images if not image.resolve().is_relative_to(out)]
    if not images:
        raise UserError(f"{source}: holds no images but those of --output; check --input")

    originals = {path.resolve() for path in [*images, *protected]}
    owner: dict[Path, Path] = {}
    tasks = []
    for image in images:
        name = image.relative_to(folder)
        tails = [f"_{k:03d}" for k in range(copies)] if copies > 1 else [""]
        targets = [output / name.with_name(f"{image.stem}{tail}.png") for tail in tails]
        for target in targets:
            if target.resolve() in originals:
                raise UserError(f"{target}: is an input, never overwritten; change --output")
            if target in owner:
                raise UserError(
                    f"{owner[target]} and {image}: both would become {target}; rename one of them"
                )
            owner[target] = image
        tasks.append(Task(image, name.as_posix(), targets))
    return tasks


def load(path: Path, device: torch.device, floats_per_pixel: float) -> Tensor:
    """The image as (1, 3, H, W) in [0, 1] on `device`.

    floats_per_pixel: what the network will need at its peak. Raises UserError for an image that
    cannot be read or needs more memory than is free: the system would kill the process.
    """
    image = read_image(path)
    height, width, _ = image.shape
    needed, free = 4 * floats_per_pixel * height * width, free_memory(device)
    if needed > free:
        raise UserError(
            f"{path}: {width}x{height} pixels need about {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB is free; crop it or scale it down"
        )
    return integer_to_float(image)[None].to(device)


def free_memory(device: torch.device) -> float:
    """Bytes; infinite for a CPU where the system does not say (it does on Linux)."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        available = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        available = None
    return 1024 * int(available[1]) if available else math.inf


def report(source: Path, output: Path, written: int, skipped: Sequence[str]) -> int:
    """Say what was done and what was not; returns the exit status."""
    if skipped:
        print("skipped:", *skipped, sep="\n  ", file=sys.stderr)
    others = Counter(
        path.suffix or path.name
        for path in (source.rglob("*") if source.is_dir() else ())
        if path.is_file()
        and path.suffix.lower() not in IMAGE_SUFFIXES
        and not path.name.startswith(".")
    )
    if others:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items()))
        print(f"not images, left alone: {kinds}")
    print(f"{written} images written to {output}, {len(skipped)} skipped")
    return 1 if skipped else 0
