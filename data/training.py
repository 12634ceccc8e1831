"""Which images a training run uses: found by flags or below train_images/, decoded once."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch

from data.augment import SceneDistribution
from data.doctor import quick_check
from data.folders import (
    CleanTestSet,
    PairedTestSet,
    PairFile,
    find_test_sets,
    find_training_data,
    photo_folder,
)
from data.items import PatchSource, RealItems
from data.noise import NoiseCorrelationDistribution
from data.sample import write_sample
from data.store import DeviceImageStore, ImageStore, check_pair_sizes
from utils.errors import UserError

StorePlace = Literal["auto", "host", "device"]  # `place_store`


def find_pairs_and_photos(
    train_images: Path,
    pairs: Sequence[Path] = (),
    photos: Sequence[Path] = (),
    sample_cache: Path | None = None,
) -> tuple[list[PairFile], list[Path]]:
    """Files of the named folders; whichever kind is not named is searched for in `train_images`.

    sample_cache: where the bundled sample is written and taken from should `train_images` not
    exist. (None: the named folders are all; without any that is an error.) Prints a line a data
    set, and one for each thing that the doctor's quick check finds wrong. UserError as from
    data.folders.
    """
    pair_files = named_pairs(pairs)
    photo_files = [p for folder in photos for p in photo_folder(folder)]
    for folder in (*pairs, *photos):
        print(f"Training on {folder}")
    print_problems(dict.fromkeys([*pairs, *photos]))
    if pairs and photos:
        return pair_files, photo_files
    if not train_images.is_dir():
        if sample_cache is not None:
            print(f"{train_images} does not exist: using the bundled sample")
            train_images = write_sample(sample_cache) / "train_images"
        elif pairs or photos:
            print(f"{train_images} does not exist: nothing but the named folders")
            return pair_files, photo_files
    found = find_training_data(train_images)
    for line in found.described:
        print(f"Found in {train_images}: {line}")
    print_problems([train_images])
    return pair_files if pairs else found.pairs, photo_files if photos else found.photos


def print_problems(folders: Iterable[Path]) -> None:
    """A line each; `python -m data.doctor` looks more closely."""
    for finding in quick_check(*folders):
        if finding.severity != "note":
            print(f"Check {finding}")


def named_pairs(folders: Sequence[Path]) -> list[PairFile]:
    """The pairs of these folders. UserError for one without any."""
    pairs = []
    for folder in folders:
        found = find_training_data(folder).pairs
        if not found:
            raise UserError(
                f"{folder}: no noisy/clean pairs; expected SIDD scene folders, or clean/ and noisy/"
            )
        pairs += found
    return pairs


def find_validation_sets(
    test_images: Path, paired: bool, sample_cache: Path | None = None
) -> list[CleanTestSet | PairedTestSet]:
    """The test sets in `test_images` with real pairs (paired) or of clean images alone.

    sample_cache: as above. Prints what there is; none is no error, validation is then left out.
    """
    if sample_cache is not None and not test_images.is_dir():
        test_images = write_sample(sample_cache) / "test_images"
    sets = [s for s in find_test_sets(test_images) if s.paired == paired]
    names = ", ".join(s.title for s in sets) or "nothing, found no fitting test set there"
    print(f"Validating, in {test_images}: {names}")
    return sets


def open_real_items(
    pairs: Sequence[PairFile],
    patch: int,
    cache: Path,
    device: torch.device,
    place: StorePlace = "auto",
    largest: int = 0,
    white: Sequence[PairFile] = (),
    correlation: NoiseCorrelationDistribution | None = None,
    scenes: SceneDistribution | None = None,
) -> RealItems | None:
    """None without pairs. UserError for unequal sides, and an image smaller than the patch or the
    `largest` one that will be asked for. white: pairs whose noise lost its correlation, see
    RealItems."""
    pairs = [*pairs, *white]
    if not pairs:
        return None
    files = [file for pair in pairs for file in (pair.clean, pair.noisy)]
    store = ImageStore.open(files, cache, "pairs", min_size=max(patch, largest))
    check_pair_sizes(store)
    kinds = [pair.kind for pair in pairs]
    store = place_store(store, device, place)
    return RealItems(store, kinds, patch, device, len(white), correlation, scenes)


def open_photos(
    photos: Sequence[Path],
    patch: int,
    cache: Path,
    device: torch.device,
    place: StorePlace = "auto",
    largest: int = 0,
) -> PatchSource | None:
    """None without photographs. UserError for an image smaller than the patch or `largest`."""
    if not photos:
        return None
    store = ImageStore.open(photos, cache, "photos", min_size=max(patch, largest))
    return PatchSource(place_store(store, device, place), patch, device)


def place_store(
    store: ImageStore, device: torch.device, place: StorePlace
) -> ImageStore | DeviceImageStore:
    """The store where training crops from it: the mapped file, or the memory of a CUDA device.

    host: always the file; device: always the device's memory, UserError if it is too small; auto:
    the device's memory if the images take up less than a quarter of what is free there. On the
    CPU it is the file, which the system keeps in memory by itself.
    """
    if device.type != "cuda" or place == "host":
        return store
    free, _ = torch.cuda.mem_get_info(device)
    if place == "auto" and store.nbytes > free / 4:
        return store
    if store.nbytes > free:
        raise UserError(
            f"{store.folder}: {store.nbytes / 1e9:.1f} GB of images, {free / 1e9:.1f} GB free on "
            f"{device}; leave them on the host"
        )
    return store.to(device)
