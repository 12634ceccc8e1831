"""Time per megapixel and peak memory of transfer_noise.py and denoise.py by the size of the photo.

    python -m benchmarks.big_photos --megapixels 1 4 12 48 --json benchmarks/results/big_photos.json

Each run is a process of its own, on a JPEG with noise in it, as users start them. `above_gb` is the
most that was resident, less what an interpreter holds that has imported the same modules. Seconds
are without the start, which a run on 16x16 pixels measures: `cpu_s_per_mp` of all threads, which
other programs hardly disturb, and `s_per_mp` by the clock.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.timing import Row, print_machine, print_table, write_json
from utils.config import parse
from utils.errors import exit_on_user_error
from utils.photos import Tags, write_photo

ROOT = Path(__file__).parent.parent
IMPORTS = "import cv2, torch, models.tiles, models.noise_transfer, utils.folder_jobs"


@dataclass(frozen=True)
class Config:
    """Run both scripts on photos of several sizes."""

    megapixels: tuple[float, ...] = (1, 4, 12, 48)
    scripts: tuple[str, ...] = ("transfer_noise", "denoise")
    tile: int | None = None
    gpu: str = "cpu"
    json: Path | None = None


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    print_machine()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = measured("-c", IMPORTS).peak
        small = photo(folder / "small.jpg", 16, 16)
        reference = photo(folder / "reference.jpg", 512, 512)
        for script in c.scripts:
            flags = [f"{script}.py", "--gpu", c.gpu, "--format", "same"]
            flags += ["--reference", str(reference)] if script == "transfer_noise" else []
            flags += ["--tile", str(c.tile)] if c.tile else []
            start = measured(*flags, "--input", str(small), "--output", str(folder / script))
            for size in c.megapixels:
                width = round(math.sqrt(size * 1e6 * 4 / 3))
                image = photo(folder / f"{size:g}.jpg", round(size * 1e6 / width), width)
                run = measured(*flags, "--input", str(image), "--output", str(folder / script))
                rows.append({
                    "script": script,
                    "megapixels": size,
                    "s_per_mp": (run.seconds - start.seconds) / size,
                    "cpu_s_per_mp": (run.cpu_seconds - start.cpu_seconds) / size,
                    "above_gb": (run.peak - own) / 1e9,
                })  # fmt: skip
                print(rows[-1], flush=True)
    print_table("large photos", rows)
    write_json(c.json, {"big_photos": rows})


def photo(path: Path, height: int, width: int) -> Path:
    """A gradient with noise of sigma 10, drawn a strip at a time."""
    rng = np.random.default_rng(0)
    image = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, 64):
        strip = image[y : y + 64]
        level = np.linspace(40, 215, width, dtype=np.float32)[None, :, None]
        noise = rng.standard_normal(strip.shape, np.float32)
        strip[:] = (level + 10 * noise).clip(0, 255)
    write_photo(path, image, Tags())
    return path


class Run(NamedTuple):
    seconds: float
    cpu_seconds: float
    peak: float  # resident bytes


def measured(*arguments: str) -> Run:
    """A Python process from the repository's root."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    said = child.stderr.read().decode(errors="replace")
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: status {child.returncode}: {said[-500:]}")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(time.perf_counter() - began, used.ru_utime + used.ru_stime, peak)


if __name__ == "__main__":
    exit_on_user_error(main)
