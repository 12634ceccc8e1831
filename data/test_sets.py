"""Test sets: the data sets of a folder as sequences of images in [0, 1], decoded when asked for."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from data.folders import DataSet, require_sound, survey
from data.mat import MatBlocks
from data.sidd import SCENE_PATTERN, VALIDATION_SETS, parse_scene
from utils.errors import UserError
from utils.images import integer_to_float, read_image, read_image_size

TITLES = {s.name: s.title for s in VALIDATION_SETS}


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
    """Every test set that is `root` or below it, in the order of their names.

    SIDD and SIDD+ validation are called `sidd` and `siddplus` when they come as .mat; any other set
    is called after its folder. A missing or empty `root` gives []. UserError for the first error
    that `survey` finds, and for two sets of one name.
    """
    root = Path(root)
    found = survey(root).sets if root.is_dir() else []
    require_sound(found)
    sets = sorted(map(_test_set, filter(len, found)), key=lambda test_set: test_set.name)
    for one, other in pairwise(sets):
        if one.name == other.name:
            raise UserError(
                f"{root}: holds two test sets called {one.name} (.mat files and images of the same "
                "blocks, say); keep one, or rename its folder"
            )
    return sets


def _test_set(found: DataSet) -> CleanTestSet | PairedTestSet:
    name = found.name.replace("/", "_")
    title = TITLES.get(name.lower(), name) if found.layout in ("paired folder", "blocks") else name
    if found.photos:
        return CleanTestSet(name, title, ImageFiles(found.photos, found.within[0]))
    sides = found.mats or (
        ImageFiles([pair.clean for pair in found.pairs], found.within[0]),
        ImageFiles([pair.noisy for pair in found.pairs], found.within[1]),
    )
    return PairedTestSet(name, title, *sides)
