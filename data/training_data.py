"""Which images a training run uses: found by flags or below train_images/, decoded once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from data.doctor.examine import quick_check
from data.folders import PairFile, Survey, photo_folder, require_sound, survey
from data.items import PatchSource, RealItems
from data.recipe import Recipe
from data.sample import write_sample
from data.store import DeviceImageStore, ImageStore, check_pair_sizes
from data.test_sets import CleanTestSet, PairedTestSet, find_test_sets
from utils.errors import UserError, require
from utils.files import Folder

StorePlace = Literal["auto", "host", "device"]  # `place_store`


class TrainingFiles(NamedTuple):
    """What was found to train on. described: one line a data set, for the log."""

    pairs: list[PairFile]
    photos: list[Path]
    described: list[str]
    found: Survey


def find_training_data(root: Path) -> TrainingFiles:
    """Every data set in `root` or below it; UserError: none, or the first error in one of them."""
    root = Path(root)
    found = survey(root) if root.is_dir() else Survey(Folder(root), [])
    sets = [s for s in found.sets if s.layout != "blocks"]
    require_sound(sets)
    files = TrainingFiles([], [], [], found)
    for s in sets:
        if s.photos:
            files.photos.extend(s.photos)
            files.described.append(f"{s.name}: photographs, {len(s)} images")
        elif s.pairs:
            # Equal ISO means equal noise within a data set, not between two.
            pairs = [PairFile(p.clean, p.noisy, f"{s.root}: {p.kind}") for p in s.pairs]
            files.pairs.extend(pairs)
            isos = f" at {len({p.kind for p in pairs})} ISO settings" if s.layout == "SIDD" else ""
            files.described.append(f"{s.name}: {s.layout}, {len(s)} pairs{isos}")
    if not files.described:
        raise UserError(
            f"{root}: no training images; put SIDD-Medium there as published "
            "(sidd/SIDD_Medium_Srgb/Data/0001_001_S6_00100_00060_3200_L/...) or pairs (clean/ and "
            "noisy/), and photographs (DIV2K/DIV2K_train_HR/0001.png ...)"
        )
    return files


def find_pairs_and_photos(
    train_images: Path,
    pairs: Sequence[Path] = (),
    photos: Sequence[Path] = (),
    sample_cache: Path | None = None,
) -> tuple[list[PairFile], list[Path]]:
    """Files of the named folders; whichever kind is not named is searched for in `train_images`.

    sample_cache: where the bundled sample is written and taken from should `train_images` not
    exist. (None: the named folders are all; without any that is an error.) Prints a line per data
    set, and one for each thing that the doctor's quick check finds wrong. UserError as from
    data.folders.
    """
    named = {folder: _with_pairs(folder) for folder in pairs}
    roots = {folder: Folder(folder) for folder in photos}
    pair_files = [pair for folder in pairs for pair in named[folder].pairs]
    photo_files = [photo for folder in photos for photo in photo_folder(roots[folder])]
    for folder in (*pairs, *photos):
        print(f"Training on {folder}")
    if not (pairs and photos) and sample_cache is not None and not train_images.is_dir():
        print(f"{train_images} does not exist: using the bundled sample")
        train_images = write_sample(sample_cache) / "train_images"
    surveys = [files.found for files in named.values()]
    surveys += [survey(root) for folder, root in roots.items() if folder not in named]
    if (pairs or photos) and not train_images.is_dir():
        if not (pairs and photos):
            print(f"{train_images} does not exist: nothing but the named folders")
    elif not (pairs and photos):
        files = find_training_data(train_images)
        for line in files.described:
            print(f"Found in {train_images}: {line}")
        pair_files = pair_files if pairs else files.pairs
        photo_files = photo_files if photos else files.photos
        surveys.append(files.found)
    for finding in quick_check(*surveys):  # `python -m data.doctor` looks more closely
        if finding.severity != "note":
            print(f"Check {finding}")
    return pair_files, photo_files


def named_pairs(folders: Sequence[Path]) -> list[PairFile]:
    """The pairs of these folders, each told in a line. UserError for one without any."""
    for folder in folders:
        print(f"Training on {folder}, its noise given a random correlation")
    return [pair for folder in folders for pair in _with_pairs(folder).pairs]


def _with_pairs(folder: Path) -> TrainingFiles:
    files = find_training_data(folder)
    require(
        bool(files.pairs),
        f"{folder}: no noisy/clean pairs; expected SIDD scene folders, or clean/ and noisy/",
    )
    return files


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
    recipe: Recipe,
    place: StorePlace = "auto",
    largest: int = 0,
    white: Sequence[Path] = (),
) -> RealItems | None:
    """None without pairs. UserError for unequal sides, and an image smaller than the patch or the
    `largest` one that will be asked for. white: folders of more pairs, whose noise lost its
    correlation, see RealItems."""
    white_pairs = named_pairs(white)
    pairs = [*pairs, *white_pairs]
    if not pairs:
        return None
    files = [file for pair in pairs for file in (pair.clean, pair.noisy)]
    store = ImageStore.open(files, cache, "pairs", min_size=max(patch, largest))
    check_pair_sizes(store)
    kinds = [pair.kind for pair in pairs]
    store = place_store(store, device, place)
    return RealItems(store, kinds, patch, device, recipe, len(white_pairs))


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
