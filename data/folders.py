"""Image folders, recognised by their layout: what to train on, what to test on.

| layout | recognised as |
|---|---|
| scene folders `0001_001_S6_00100_00060_3200_L` at any depth | SIDD-Medium, SIDD-Small: pairs |
| `groundtruth/` + `input/`, or `clean/`, `gt/` + `noisy/` (any case) | pairs |
| `data/images/{train,val,test}` | BSDS500: photographs |
| a folder with images directly in it | photographs, such as `DIV2K/DIV2K_train_HR` |
| the .mat files of the SIDD and SIDD+ validation sets | test pairs |
| `ValidationGtBlocksSrgb/` + `ValidationNoisyBlocksSrgb/` or their like in SIDD+ | pairs |

Hidden files are left out, linked folders are followed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from data.sidd import (
    SCENE_PATTERN,
    VALIDATION_SETS,
    MatBlocks,
    PairFile,
    find_mat_blocks,
    is_scene,
    parse_scene,
    require_same_size,
    scene_pairs,
    sidd_pairs,
)
from utils.errors import UserError
from utils.images import (
    folder_files,
    integer_to_float,
    list_images,
    read_image,
    read_image_size,
    subfolders,
)

__all__ = [
    "CleanTestSet",
    "PairFile",
    "PairedTestSet",
    "TrainingFiles",
    "find_test_sets",
    "find_training_data",
    "paired_folder",
    "photo_folder",
    "sidd_pairs",
]

CLEAN_NAMES = ("groundtruth", "clean", "gt", *(s.clean.lower() for s in VALIDATION_SETS))
NOISY_NAMES = ("input", "noisy", *(s.noisy.lower() for s in VALIDATION_SETS))
TITLES = {s.name: s.title for s in VALIDATION_SETS}


def pair_sides(root: Path) -> tuple[Path, Path] | None:
    """The clean and the noisy folder directly in `root`; None if there is no noisy one."""
    clean = [p for p in subfolders(root) if p.name.lower() in CLEAN_NAMES]
    noisy = [p for p in subfolders(root) if p.name.lower() in NOISY_NAMES]
    if not noisy:
        return None
    if len(clean) != 1 or len(noisy) != 1:
        raise UserError(
            f"{root}: expected one clean folder ({', '.join(CLEAN_NAMES[:3])}) and one noisy "
            f"folder ({', '.join(NOISY_NAMES[:2])}), found "
            f"{', '.join(p.name for p in clean + noisy)}; rename or remove folders until one of "
            "each is left"
        )
    return clean[0], noisy[0]


def _by_stem(side: Path) -> dict[Path, Path]:
    """{path below `side` without its suffix: path}."""
    found: dict[Path, Path] = {}
    for path in list_images(side):
        key = path.relative_to(side).with_suffix("")
        if key in found:
            raise UserError(
                f"{path}: {found[key].name} beside it has the same stem, by which clean and noisy "
                "are matched; rename or remove one of them"
            )
        found[key] = path
    return found


def paired_folder(root: Path) -> list[PairFile]:
    """The pairs of a clean and a noisy folder in `root`, in natural order of their names.

    The folders are `groundtruth`, `clean` or `gt`, and `input` or `noisy`, in any case. Files are
    matched by stem, sub-folders kept; suffixes may differ. The pairs of one sub-folder are of one
    `kind`, such as noisy/iso_800/; any other pair has a kind of its own. UserError: a missing
    folder, a missing partner, or partners of differing size.
    """
    root = Path(root)
    if not root.is_dir() or (sides := pair_sides(root)) is None:
        raise UserError(
            f"{root}: not a paired folder; put clean images into {root / 'groundtruth'} and their "
            f"noisy partners, under the same names, into {root / 'input'}"
        )
    clean, noisy = (_by_stem(side) for side in sides)
    for key in sorted(clean.keys() ^ noisy.keys()):
        path, other = (clean[key], sides[1]) if key in clean else (noisy[key], sides[0])
        raise UserError(f"{path}: its partner {other / key}.* is missing; add it or remove this")
    for key in clean:
        require_same_size(clean[key], noisy[key])
    flat = Path(".")
    kinds = {key: noisy[key] if key.parent == flat else noisy[key].parent for key in noisy}
    return [PairFile(clean[key], noisy[key], kind=str(kinds[key])) for key in clean]


def bsds_images(root: Path) -> Path | None:
    """Where the images of BSDS500 at `root` are, as published; None if it is not in that layout."""
    images = root / "data" / "images"
    return images if any((images / part).is_dir() for part in ("train", "val", "test")) else None


def photo_folder(root: Path) -> list[Path]:
    """All photographs below `root`; in BSDS500's layout those below `data/images` alone."""
    return list_images(bsds_images(Path(root)) or Path(root))


@dataclass
class TrainingFiles:
    """What was found to train on. described: one line a data set, for the log."""

    pairs: list[PairFile] = field(default_factory=list)
    photos: list[Path] = field(default_factory=list)
    described: list[str] = field(default_factory=list)


def _data_sets(folder: Path) -> Iterator[tuple[str, Path, list]]:
    """(layout, folder, its pairs or photographs) of each data set that is `folder` or below it."""
    if bsds_images(folder):
        yield "photographs", folder, photo_folder(folder)
    elif pair_sides(folder):
        yield "paired folder", folder, paired_folder(folder)
    elif is_scene(folder):
        yield "SIDD", folder, scene_pairs(folder)
    else:
        # Of this folder alone: below it there may be noisy images, which are no photographs.
        if photos := folder_files(folder):
            yield "photographs", folder, photos
        scenes = [path for path in subfolders(folder) if is_scene(path)]
        if scenes:
            yield "SIDD", folder, [pair for scene in scenes for pair in scene_pairs(scene)]
        for path in subfolders(folder):
            if path not in scenes:
                yield from _data_sets(path)


def find_training_data(root: Path) -> TrainingFiles:
    """Every data set in `root` or below it, by the layouts above; UserError if there is none."""
    root = Path(root)
    files = TrainingFiles()
    for layout, folder, found in _data_sets(root) if root.is_dir() else ():
        name = "/".join(folder.relative_to(root).parts) or root.absolute().name
        if layout == "photographs":
            files.photos += found
            files.described.append(f"{name}: {layout}, {len(found)} images")
        else:
            # Equal ISO means equal noise within a data set, not between two.
            files.pairs += [replace(pair, kind=f"{folder}: {pair.kind}") for pair in found]
            kinds = len({pair.kind for pair in found})
            isos = f" at {kinds} ISO settings" if layout == "SIDD" else ""
            files.described.append(f"{name}: {layout}, {len(found)} pairs{isos}")
    if not files.described:
        raise UserError(
            f"{root}: no training images; put SIDD-Medium there as published "
            "(sidd/SIDD_Medium_Srgb/Data/0001_001_S6_00100_00060_3200_L/...) or pairs (clean/ and "
            "noisy/), and photographs (DIV2K/DIV2K_train_HR/0001.png ...)"
        )
    return files


class ImageFiles:
    """Image files below `root` as a sequence of (H, W, 3) uint8 or uint16, read when asked for."""

    def __init__(self, paths: list[Path], root: Path) -> None:
        self.paths, self.root = paths, root

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        return read_image(self.paths[i])

    def size(self, i: int) -> tuple[int, int]:
        return read_image_size(self.paths[i])

    def image_name(self, i: int) -> str:
        return self.paths[i].relative_to(self.root).with_suffix("").as_posix()


@dataclass(frozen=True)
class _ImageSet:
    name: str  # unique; of its folder
    title: str  # for tables
    clean: ImageFiles | MatBlocks

    def __len__(self) -> int:
        return len(self.clean)

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of item i, without decoding it."""
        return self.clean.size(i)

    def image_name(self, i: int) -> str:
        """Of item i, without suffix; a file's path inside its data set."""
        return self.clean.image_name(i)


@dataclass(frozen=True)
class CleanTestSet(_ImageSet):
    """Clean test images; item i is (3, H, W) float32 in [0, 1], decoded when asked for."""

    paired: ClassVar[bool] = False

    def __getitem__(self, i: int) -> Tensor:
        return integer_to_float(self.clean[i])


@dataclass(frozen=True)
class PairedTestSet(_ImageSet):
    """Test pairs; item i is (clean, noisy), both (3, H, W) float32 in [0, 1]."""

    noisy: ImageFiles | MatBlocks
    paired: ClassVar[bool] = True

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return integer_to_float(self.clean[i]), integer_to_float(self.noisy[i])

    def kind(self, i: int) -> str | None:
        """Images of one kind share their noise; None where that is not known.

        Phone and ISO, "S6 ISO 100", by the name of a SIDD scene; the sub-folder of a paired
        folder; "shot 7" of SIDD validation's .mat, whose blocks were cut from 40 photographs.
        """
        if isinstance(self.noisy, MatBlocks):
            shape = self.noisy.shape
            return f"shot {i // shape[1]}" if len(shape) == 5 else None
        folder = self.noisy.paths[i].parent
        if SCENE_PATTERN.fullmatch(folder.name):
            settings = parse_scene(folder.name)
            return f"{settings.phone} ISO {settings.iso}"
        return None if folder == self.noisy.root else folder.relative_to(self.noisy.root).as_posix()

    def second_shot(self, i: int) -> int | None:
        """The other pair of the same SIDD scene, which shows it once more; None: there is none."""
        if isinstance(self.noisy, MatBlocks):
            return None
        scene = self.noisy.paths[i].parent
        if SCENE_PATTERN.fullmatch(scene.name) is None:
            return None
        others = [j for j, path in enumerate(self.noisy.paths) if path.parent == scene and j != i]
        return next((j for j in others if self.size(j) == self.size(i)), None)


def find_test_sets(root: Path) -> list[CleanTestSet | PairedTestSet]:
    """Every test set that is `root` or below it, by the layouts above, in the order of their names.

    SIDD and SIDD+ validation are called `sidd` and `siddplus` when they come as .mat; any other set
    is called after its folder. A missing or empty `root` gives []. UserError as from
    `paired_folder`, `scene_pairs` and `MatBlocks`, and for two sets of one name.
    """
    root = Path(root)
    if not root.is_dir():
        return []
    sets: list[CleanTestSet | PairedTestSet] = [
        PairedTestSet(which.name, which.title, clean, noisy)
        for which, clean, noisy in find_mat_blocks(root)
    ]
    for layout, folder, found in _data_sets(root):
        name = "_".join(folder.relative_to(root).parts) or root.absolute().name
        sets.append(_file_test_set(name, layout, folder, found))
    sets.sort(key=lambda test_set: test_set.name)
    for one, other in pairwise(sets):
        if one.name == other.name:
            raise UserError(
                f"{root}: holds two test sets called {one.name} (.mat files and images of the same "
                "blocks, say); keep one, or rename its folder"
            )
    return sets


def _file_test_set(
    name: str, layout: str, folder: Path, found: list
) -> CleanTestSet | PairedTestSet:
    title = TITLES.get(name.lower(), name) if layout == "paired folder" else name
    if layout == "photographs":
        return CleanTestSet(name, title, ImageFiles(found, bsds_images(folder) or folder))
    roots = pair_sides(folder) or (folder, folder)
    clean = ImageFiles([pair.clean for pair in found], roots[0])
    noisy = ImageFiles([pair.noisy for pair in found], roots[1])
    return PairedTestSet(name, title, clean, noisy)
