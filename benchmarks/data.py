"""The data path: items a second against a plain pipeline, time to the first batch, memory.

    python -m benchmarks.data                                 # the bundled sample, on the CPU
    python -m benchmarks.data --gpu 0 --photos DIV2K_train_HR --pairs sidd --json data.json
    python -m benchmarks.data --full-size                     # files as large as DIV2K's and SIDD's
    python -m benchmarks.data --store-gb 20                   # makes, uses and removes such a store

Both pipelines make the items of `train_noiseTransfer.py` (method 4) in one process with one thread.
"""

import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.plain_items import P_REAL, PlainItems, decode
from benchmarks.timing import (
    Row,
    Timing,
    compare,
    print_machine,
    print_table,
    resident,
    write_json,
)
from data.folders import PairFile
from data.items import GeneratorItems, PatchSource, SyntheticItems
from data.sample import write_sample
from data.store import ImageStore
from data.training_data import StorePlace, find_pairs_and_photos, open_photos, open_real_items
from train_noiseTransfer import RECIPE
from utils.config import choose_device, parse
from utils.errors import exit_on_user_error, require
from utils.images import read_image_size, write_image
from utils.seeding import randomness


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure the data path."""

    gpu: str = "cpu"
    """CUDA device number of the fast pipeline, or cpu."""
    photos: tuple[Path, ...] = ()
    """Folders of photographs; with --pairs as in the training scripts; without both: the sample."""
    pairs: tuple[Path, ...] = ()
    cache: Path = Path("cache")
    """Where decoded images and the sample are kept."""
    batch: int = 32
    patch: int = 96
    repeats: int = 15
    place: StorePlace = "auto"
    """Where the fast pipeline's images lie."""
    full_size: bool = False
    """Items from photographs of 2040x1356 (as DIV2K's) and pairs of 5328x3000 (as SIDD's), which
    are these ones enlarged, with noise on the noisy sides."""
    store_gb: float = 0
    """Also measure a store of so many GB, of the photographs over and over."""
    scratch: Path = Path(tempfile.gettempdir())
    """Where such files and stores are made and removed again."""
    batches: int = 300
    """From each store, before its memory is measured."""
    json: Path | None = None


def write_full_size(
    pairs: Sequence[PairFile], photos: Sequence[Path], folder: Path
) -> tuple[list[PairFile], list[Path]]:
    """Four photographs and two pairs of one kind, PNG, at the sizes of the paper's data sets."""

    def enlarge(file: Path, size: tuple[int, int], sigma: float, name: str) -> Path:
        image = cv2.resize(decode(file), size, interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + np.random.default_rng(0).normal(0, sigma, image.shape), 0, 255)
        write_image(folder / name, image.astype(np.uint8))
        return folder / name

    full_photos = [
        enlarge(file, (2040, 1356), 3, f"photo_{i}.png") for i, file in enumerate(photos[:4])
    ]
    full_pairs = [
        PairFile(
            enlarge(pair.clean, (5328, 3000), 1, f"clean_{i}.png"),
            enlarge(pair.clean, (5328, 3000), 15, f"noisy_{i}.png"),
            "same",
        )
        for i, pair in enumerate(pairs[:2])
    ]
    return full_pairs, full_photos


class TimedCrops:
    """A store that counts the processor's seconds in its `crop`."""

    def __init__(self, store: Any) -> None:
        self.store, self.sizes, self.seconds = store, store.sizes, 0.0

    def __len__(self) -> int:
        return len(self.store)

    def crop(self, *args: Any, **kwargs: Any) -> Tensor:
        began = time.thread_time()
        crops = self.store.crop(*args, **kwargs)
        self.seconds += time.thread_time() - began
        return crops


def measure_items(
    c: Config, pairs: Sequence[PairFile], photos: Sequence[Path], cache: Path, device: torch.device
) -> list[Row]:
    real = open_real_items(pairs, c.patch, cache, device, RECIPE, c.place)
    source = open_photos(photos, c.patch, cache, device, c.place)
    stores = [TimedCrops(source.store), TimedCrops(real.source.store)]
    source.store, real.source.store = stores
    items = GeneratorItems(SyntheticItems(source, RECIPE, real), real, P_REAL)
    plain = {memory: PlainItems(pairs, photos, c.patch, memory) for memory in (False, True)}
    steps, in_crops = iter(range(10**6)), []

    def fast() -> None:
        before = sum(store.seconds for store in stores)
        items.triplets(c.batch, randomness(0, 0, next(steps), device=device))
        in_crops.append(sum(store.seconds for store in stores) - before)

    runs = {
        "plain, per item, from files": lambda: plain[False].batch(c.batch, next(steps)),
        "plain, per item, from decoded images": lambda: plain[True].batch(c.batch, next(steps)),
        f"batched, pixels on {device.type}": fast,
    }
    timings = compare(runs, c.repeats, device)
    in_crops = in_crops[-c.repeats :]
    timings.append(Timing("  of it, crops from the store", in_crops, in_crops))
    rows = []
    for timing in timings:
        row = timing.row()
        row["items_per_s_per_core"] = c.batch / timing.cpu_median
        row["ratio"] = timings[0].cpu_median / timing.cpu_median
        row["ratio_decoded"] = timings[1].cpu_median / timing.cpu_median
        rows.append(row)
    return rows


def measure_store(
    name: str, files: Sequence[Path], cache: Path, c: Config, device: torch.device
) -> Row:
    """Make the store, then open it in a fresh process: seconds and memory up to `batches`."""
    began = time.perf_counter()
    store = ImageStore.open(files, cache, "photos")
    built = time.perf_counter() - began
    if hasattr(os, "sync"):
        os.sync()  # what was just written must not slow down the reading
    row: Row = {"store": name, "images": len(store), "gb": store.nbytes / 1e9, "build_s": built}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        job = pool.submit(_use_store, list(files), cache, c, str(device), time.time())
        return row | job.result()


def _use_store(files: list[Path], cache: Path, c: Config, device_name: str, started: float) -> Row:
    """In a process of its own, which was started at `started` and had to import everything."""
    torch.set_num_threads(1)
    device = torch.device(device_name)
    imported, began = time.time() - started, time.perf_counter()
    source = open_photos(files, c.patch, cache, device, c.place)
    row: Row = {"start_s": imported, "open_s": time.perf_counter() - began}

    items, crop_ms = SyntheticItems(source, RECIPE), []
    items.triplets(c.batch, randomness(0, 0, 0, device=device))
    row["first_batch_s"] = time.time() - started
    row["first_rss_mb"] = resident("VmRSS")
    for step in range(1, c.batches):
        rng = randomness(0, 0, step, device=device)
        began = time.perf_counter()
        use_patches(source, 2 * c.batch, rng)
        crop_ms.append(1e3 * (time.perf_counter() - began))
    row["crops_ms"] = float(np.median(crop_ms))
    row["rss_mb"], row["peak_rss_mb"] = resident("VmRSS"), resident("VmHWM")
    row["of_file_mb"] = resident("RssFile")
    return row


def use_patches(source: PatchSource, n: int, rng: Any) -> None:
    index = torch.randint(len(source), (n,), generator=rng.choices)
    source.read(index, *source.place(index, rng))


def repeat_to(files: Sequence[Path], gigabytes: float) -> list[Path]:
    sizes = [3 * height * width for height, width in map(read_image_size, files)]
    return list(files) * max(1, round(gigabytes * 1e9 / sum(sizes)))


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    device = choose_device(c.gpu)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    train_images = Path("train_images")
    if not c.pairs and not c.photos:
        train_images = write_sample(c.cache / "sample") / "train_images"
    pairs, photos = find_pairs_and_photos(train_images, c.pairs, c.photos)

    require(bool(pairs and photos), "photographs and pairs are needed; name both, or neither")

    print_machine()
    tables = {}
    title = f"Items of the generator's training, batches of {c.batch}, patches {c.patch}x{c.patch}"
    if c.full_size:
        with tempfile.TemporaryDirectory(dir=c.scratch) as scratch:
            folder = Path(scratch)
            files = write_full_size(pairs, photos, folder)
            title += ", full-size files"
            tables[title] = measure_items(c, *files, folder / "cache", device)
    else:
        tables[title] = measure_items(c, pairs, photos, c.cache, device)
    print_table(title, tables[title])

    stores = [measure_store("these photographs", photos, c.cache, c, device)]
    if c.store_gb:
        with tempfile.TemporaryDirectory(dir=c.scratch) as scratch:
            files = repeat_to(photos, c.store_gb)
            stores.append(measure_store("repeated", files, Path(scratch), c, device))
    title = f"From the start of a process to {c.batches} batches of {2 * c.batch} crops"
    tables[title] = stores
    print_table(title, stores)
    write_json(c.json, tables)


if __name__ == "__main__":
    exit_on_user_error(main)
