"""Noisy/clean pairs from any clean photographs, by the raw pipeline of data.camera.

    python -m data.camera_pairs --photos train_images/photos --output train_images/camera

For training where no camera's pairs are at hand: the noise is signal-dependent and correlated as a
phone's, but it is simulated. `--levels measured` gives every phone and ISO of NOISE_LEVEL
`--scenes` scenes, `--levels random` does it for `--kinds` cameras of random_noise_level and white
balance, and `--levels random-cameras` for those of RandomCamera, which also develop differently. A
kind of noise is a sub-folder of clean/ and noisy/. In SIDD's layout, for measured levels, the pairs
of one ISO are one kind, whatever the phone, as the paper has it for SIDD.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from data.camera import NOISE_LEVEL, camera_pair, exposed, noise_level, random_noise_level
from data.folders import photo_folder
from data.random_camera import RandomCamera
from data.sample import draw_gains
from utils.config import parse
from utils.errors import UserError, exit_on_user_error, require
from utils.images import read_uint8, write_image


@dataclass(frozen=True)
class Config:
    """Write pairs with a phone's simulated noise."""

    photos: tuple[Path, ...]
    """Folders of clean photographs."""
    output: Path
    """Folder to write into; must be new."""
    layout: Literal["paired", "sidd"] = "paired"
    """clean/ and noisy/, or SIDD's Data/<scene>/."""
    levels: Literal["measured", "random", "random-cameras"] = "measured"
    """Noise levels: five phones' measured ones, or drawn over a wider range; or all drawn that a
    camera does."""
    kinds: int = 48
    """Of random levels or cameras; there are 22 measured ones."""
    scenes: int = 3
    """Of each kind. With one, an encoder can tell kinds apart by what the pictures show."""
    exposure: tuple[float, float] = (1.0, 1.0)
    """Range of a factor on a scene's pixel values; 0.25 1 for the dark rooms of SIDD."""
    blur: tuple[float, float] = (0.0, 0.0)
    """Range of a lens's Gaussian blur, sigma in pixels: phones' pixels are finer than lenses."""
    side: int = 384
    """Pixels a side, at most."""
    seed: int = 0
    workers: int = os.cpu_count() or 1
    """Processes; the pairs are the same with any number."""


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    require(c.scenes >= 1 and c.side >= 64, f"--scenes {c.scenes} --side {c.side}: from 1 and 64")
    require(
        0 < c.exposure[0] <= c.exposure[1] <= 1,
        f"--exposure {c.exposure[0]} {c.exposure[1]}: expected a range within 0 and 1",
    )
    require(
        0 <= c.blur[0] <= c.blur[1] < math.inf,
        f"--blur {c.blur[0]} {c.blur[1]}: expected a range from 0 up",
    )
    require(c.kinds >= 1, f"--kinds {c.kinds}: expected 1 or more")
    require(c.workers >= 1, f"--workers {c.workers}: expected 1 or more")
    require(
        c.levels == "measured" or c.layout == "paired",
        "--layout sidd names a phone and an ISO: with other --levels use --layout paired",
    )
    require(not c.output.exists(), f"{c.output}: exists; choose a new folder")
    photos = [path for folder in c.photos for path in photo_folder(folder)]
    kinds = list(NOISE_LEVEL) if c.levels == "measured" else range(c.kinds)
    settings = list(kinds) * c.scenes
    order = np.random.default_rng([c.seed, 2]).permutation(len(photos))
    of_each = [photos[order[i % len(photos)]] for i in range(len(settings))]
    jobs = range(len(settings)), settings, of_each
    workers = min(c.workers, len(settings) // 20)  # seconds to start one, ten pairs a second
    pool = nullcontext()
    if workers > 1:  # spawned: a fork inherits the locks of threads that it does not have
        pool = ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,))
    with pool as processes:
        written = (processes.map if processes else map)(partial(write_pair, c), *jobs)
        for _ in tqdm(written, total=len(settings), unit="pair"):
            pass
    print(f"{len(settings)} pairs of {len(kinds)} kinds of noise written to {c.output}")


def write_pair(c: Config, i: int, kind: tuple[str, int] | int, photo: Path) -> None:
    """Pair i of a kind of noise; whatever is random in it is a function of the seed and i."""
    rng = np.random.default_rng([c.seed, 3, i])
    window = clean_window(photo, c.side, rng)
    if c.blur[1]:
        window = gaussian_filter(window, (*[rng.uniform(*c.blur)] * 2, 0))
    make, name = camera(c, kind, rng)
    window = exposed(window, rng.uniform(*c.exposure))
    clean, noisy = make(window, rng=rng)
    if c.layout == "paired":
        sides = (f"{side}/{name}/{i + 1:04d}.png" for side in ("clean", "noisy"))
    else:
        scene = f"{i + 1:04d}_{i + 1:03d}_{name}_00100_5500_N"
        sides = (f"Data/{scene}/{i + 1:04d}_{side}_SRGB_010.PNG" for side in ("GT", "NOISY"))
    for path, image in zip(sides, (clean, noisy), strict=True):
        write_image(c.output / path, image)


def camera(
    c: Config, kind: tuple[str, int] | int, rng: np.random.Generator
) -> tuple[Callable[..., tuple[np.ndarray, np.ndarray]], str]:
    """What makes a pair of a photo and an `rng`, and the name of its kind of noise."""
    if c.levels == "measured":
        phone, iso = kind
        make = partial(camera_pair, level=noise_level(phone, iso), gains=draw_gains(rng))
        return make, f"{phone}_{iso:05d}"
    of_kind = np.random.default_rng([c.seed, 4, kind])
    if c.levels == "random-cameras":
        drawn = RandomCamera.draw(of_kind)
        make, level = drawn.pair, drawn.level
    else:
        level = random_noise_level(of_kind)
        make = partial(camera_pair, level=level, gains=draw_gains(of_kind))
    return make, f"{kind + 1:03d}_beta_{level[0]:.6f}_{level[1]:.6f}"


def clean_window(path: Path, side: int, rng: np.random.Generator) -> np.ndarray:
    """A random window of the photo at half size, where its own noise and JPEG's are averaged."""
    photo = read_uint8(path)
    height, width = photo.shape[0] // 2, photo.shape[1] // 2
    if min(height, width) < 64:
        raise UserError(f"{path}: {2 * width}x{2 * height} pixels, too small to halve; remove it")
    half = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
    top, left = (rng.integers(max(n - side, 0) + 1) for n in (height, width))
    return half[top : top + side, left : left + side]


if __name__ == "__main__":
    exit_on_user_error(main)
