"""Image folders, recognised by their layout, with what is wrong with them.

| layout | recognised as |
|---|---|
| scene folders `0001_001_S6_00100_00060_3200_L` at any depth | SIDD-Medium, SIDD-Small: pairs |
| `groundtruth/` + `input/`, or `clean/`, `gt/` + `noisy/` (any case) | pairs |
| `data/images/{train,val,test}` | BSDS500: photographs |
| a folder with images directly in it | photographs, such as `DIV2K/DIV2K_train_HR` |
| the .mat files of the SIDD and SIDD+ validation sets | test pairs |
| `ValidationGtBlocksSrgb/` + `ValidationNoisyBlocksSrgb/` or their like in SIDD+ | pairs |

Hidden files are left out, linked folders are followed. `survey` lists each folder once and reads
the header of each image of a pair; what uses its sets refuses them at their first error
(`require_sound`), `data.doctor` names all that was found.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Self

from data.mat import MatBlocks
from data.sidd import IMAGE_PATTERN, SCENE_PATTERN, VALIDATION_SETS
from utils.errors import UserError
from utils.files import Folder, list_images
from utils.images import read_image_size

Layout = Literal["SIDD", "paired folder", "photographs", "BSDS500", "blocks"]

CLEAN_NAMES = ("groundtruth", "clean", "gt", *(s.clean.lower() for s in VALIDATION_SETS))
NOISY_NAMES = ("input", "noisy", *(s.noisy.lower() for s in VALIDATION_SETS))
BSDS_PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Finding:
    """error: a run stops or learns from wrong data; warning: likely so; note: good to know."""

    severity: Literal["error", "warning", "note"]
    check: str
    path: Path
    message: str  # what is wrong
    action: str = ""  # what to do

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"

    @property
    def text(self) -> str:
        line = f"{self.path}: {self.message}"
        return f"{line}; {self.action}" if self.action else line

    @classmethod
    def unreadable(cls, error: UserError, *paths: Path) -> Self:
        """What `error` says of that of `paths` with which it begins."""
        text = str(error)
        path = next((p for p in paths if text.startswith(f"{p}: ")), paths[0])
        message, _, action = text.removeprefix(f"{path}: ").partition("; ")
        empty = path.is_file() and path.stat().st_size == 0
        return cls("error", "empty" if empty else "unreadable", path, message, action)


@dataclass(frozen=True)
class PairFile:
    """One clean image and its noisy partner, of equal size.

    kind: pairs of the same kind share their noise (SIDD: the same ISO, "iso_00100"); a pair of
    which that is not known has a kind of its own.
    """

    clean: Path
    noisy: Path
    kind: str


@dataclass
class DataSet:
    """One recognised set; pairs or photos, or, of layout "blocks", mats (clean, noisy).

    name: of its folder below the root of the search; within: the folders that the names of its
    clean and its noisy images are relative to.
    """

    name: str
    layout: Layout
    root: Path
    within: tuple[Path, Path]
    pairs: list[PairFile] = field(default_factory=list)
    photos: list[Path] = field(default_factory=list)
    mats: tuple[MatBlocks, MatBlocks] | None = None
    findings: list[Finding] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.mats[0]) if self.mats else len(self.pairs) + len(self.photos)

    @property
    def files(self) -> list[Path]:
        return [side for p in self.pairs for side in (p.clean, p.noisy)] + self.photos

    def _find(self, severity: str, check: str, path: Path, message: str, action: str) -> None:
        self.findings.append(Finding(severity, check, path, message, action))

    def _pair_up(self, clean: dict, noisy: dict, lacking: dict, kinds: dict, action: str) -> None:
        """Pairs of equal keys; lacking: how the partner that a path does not have is called."""
        for key, path in (clean | noisy).items():
            if key not in clean or key not in noisy:
                message = f"its partner {lacking[path]} is missing"
                self._find("error", "pairing", path, message, action)
                continue
            self.pairs.append(PairFile(clean[key], noisy[key], str(kinds[key])))
            self._compare_sizes(clean[key], noisy[key])

    def _compare_sizes(self, clean: Path, noisy: Path) -> None:
        try:
            (h1, w1), (h2, w2) = read_image_size(clean), read_image_size(noisy)
        except UserError as error:
            self.findings.append(Finding.unreadable(error, clean, noisy))
            return
        if (h1, w1) != (h2, w2):
            message = f"{w2}x{h2} pixels, but its clean partner {clean} has {w1}x{h1}"
            action = "fetch both again or remove the pair"
            self._find("error", "size", noisy, message, action)


class Survey(NamedTuple):
    root: Folder
    sets: list[DataSet]


def survey(root: Path | Folder) -> Survey:
    """The data sets that are `root` or below it; those without a faultless item are empty."""
    folder = Folder.at(root)
    return Survey(folder, [*_sets(folder, folder.path), *_mat_sets(folder)])


def require_sound(sets: Iterable[DataSet]) -> None:
    """UserError for the first error that was found in the sets."""
    for finding in (f for data_set in sets for f in data_set.findings):
        if finding.severity == "error":
            raise UserError(finding.text)


def _sets(folder: Folder, root: Path) -> Iterator[DataSet]:
    path = folder.path
    name = "/".join(path.relative_to(root).parts) or root.absolute().name
    clean = [f for f in folder.folders if f.name.lower() in CLEAN_NAMES]
    noisy = [f for f in folder.folders if f.name.lower() in NOISY_NAMES]
    if images := _bsds_images(folder):
        photos = [photo for each in images.walk() for photo in each.images]
        yield DataSet(name, "BSDS500", path, (images.path, images.path), photos=photos)
    elif noisy:
        yield _paired_set(name, path, clean, noisy)
    elif _is_scene(folder):
        yield _scene_set(name, path, [folder])
    else:
        scenes = [each for each in folder.folders if _is_scene(each)]
        # Of this folder alone: below it there may be noisy images, which are no photographs.
        if folder.images:
            photos = DataSet(name, "photographs", path, (path, path), photos=folder.images)
            if folder.name.lower() in (*CLEAN_NAMES, *NOISY_NAMES):
                message = (
                    "is one side of a paired folder, the other is missing: read as photographs"
                )
                photos._find("warning", "layout", path, message, "add the other side")
            if scenes:
                message = f"{len(photos)} images beside scene folders are read as photographs"
                action = "move them elsewhere"
                photos._find("warning", "misplaced", photos.photos[0], message, action)
            yield photos
        if scenes:
            yield _scene_set(name, path, scenes)
        for each in folder.folders:
            if each not in scenes:
                yield from _sets(each, root)


def _bsds_images(folder: Folder) -> Folder | None:
    """Where the images of BSDS500 are, as published; None if `folder` is not in that layout."""
    inner = (i for data in folder.folders if data.name == "data" for i in data.folders)
    return next(
        (i for i in inner if i.name == "images" and any(f.name in BSDS_PARTS for f in i.folders)),
        None,
    )


def _is_scene(folder: Folder) -> bool:
    """Whether `folder` is a scene by its name, or by the names of the images in it."""
    return SCENE_PATTERN.fullmatch(folder.name) is not None or any(
        IMAGE_PATTERN.fullmatch(path.stem) for path in folder.images
    )


def _paired_set(name: str, root: Path, clean: list[Folder], noisy: list[Folder]) -> DataSet:
    """Files are matched by stem, sub-folders kept; suffixes may differ. The pairs of one sub-folder
    are of one kind, such as noisy/iso_800/."""
    if len(clean) != 1 or len(noisy) != 1:
        found = DataSet(name, "paired folder", root, (root, root))
        message = (
            f"expected one clean folder ({', '.join(CLEAN_NAMES[:3])}) and one noisy folder "
            f"({', '.join(NOISY_NAMES[:2])}), found {', '.join(f.name for f in clean + noisy)}"
        )
        action = "rename or remove folders until one of each is left"
        found._find("error", "layout", root, message, action)
        return found
    sides = clean[0], noisy[0]
    found = DataSet(name, "paired folder", root, (sides[0].path, sides[1].path))
    by_key: list[dict[Path, Path]] = [{}, {}]
    lacking = {}
    for side, other, keys in zip(sides, sides[::-1], by_key, strict=True):
        for path in (image for each in side.walk() for image in each.images):
            key = path.relative_to(side.path).with_suffix("")
            if key in keys:
                message = f"has the same stem as {keys[key].name}, by which pairs are matched"
                found._find("error", "pairing", path, message, "rename or remove one of them")
            else:
                keys[key], lacking[path] = path, f"{other.path / key}.*"
    flat = Path(".")
    kinds = {key: path if key.parent == flat else path.parent for key, path in by_key[1].items()}
    found._pair_up(*by_key, lacking, kinds, "add it or remove this")
    return found


def _scene_set(name: str, root: Path, scenes: list[Folder]) -> DataSet:
    """Images are matched by their names; kind is the scene's ISO."""
    found = DataSet(name, "SIDD", root, (root, root))
    for scene in scenes:
        match = SCENE_PATTERN.fullmatch(scene.name)
        if match is None:
            message = "holds SIDD images, but is not named like 0001_001_S6_00100_00060_3200_L"
            found._find("error", "scene name", scene.path, message, "restore the published name")
        sides: dict[str, dict[tuple, Path]] = {"GT": {}, "NOISY": {}}
        lacking = {}
        for path in scene.images:
            if image := IMAGE_PATTERN.fullmatch(path.stem):
                instance, side, shot = image.groups()
                sides[side][instance, shot] = path
                other = "NOISY" if side == "GT" else "GT"
                lacking[path] = path.name.replace(f"{side}_SRGB_", f"{other}_SRGB_")
                if match and instance and instance.isdecimal() and instance != match[1]:
                    message = f"lies in the folder of instance {match[1]}"
                    action = "restore the published names"
                    found._find("warning", "misplaced", path, message, action)
        if not lacking:
            message = "a SIDD scene without *GT_SRGB_* and *NOISY_SRGB_* images"
            found._find("error", "pairing", scene.path, message, "unpack it again or remove it")
        kinds = dict.fromkeys(sides["NOISY"], f"iso_{match[4]}" if match else scene.name)
        found._pair_up(sides["GT"], sides["NOISY"], lacking, kinds, "unpack the scene again")
    return found


def _mat_sets(root: Folder) -> Iterator[DataSet]:
    """The validation sets below `root` as .mat files."""
    files = {path.name: path for folder in root.walk() for path in folder.files if path.is_file()}
    for which in VALIDATION_SETS:
        stems = [which.clean, which.noisy]
        there = [files[f"{stem}.mat"] for stem in stems if f"{stem}.mat" in files]
        if not there:
            continue
        found = DataSet(which.name, "blocks", there[0], (root.path, root.path))
        if len(there) == 1:
            (lacking,) = (f"{stem}.mat" for stem in stems if f"{stem}.mat" not in files)
            message, action = f"its partner {lacking} is missing", "put it beside it"
            found._find("error", "pairing", there[0], message, f"{action} ({which.source})")
        else:
            try:
                clean, noisy = (MatBlocks(*side) for side in zip(there, stems, strict=True))
            except UserError as error:
                found.findings.append(Finding.unreadable(error, *there))
            else:
                if clean.shape == noisy.shape:
                    found.mats = clean, noisy
                else:
                    message = f"an array {noisy.shape}, but {clean.path} holds {clean.shape}"
                    action = f"download both again ({which.source})"
                    found._find("error", "size", noisy.path, message, action)
        yield found


def photo_folder(root: Path | Folder) -> list[Path]:
    """All photographs below `root`; in BSDS500's layout those below `data/images` alone."""
    folder = Folder.at(root)
    return list_images((folder.path.is_dir() and _bsds_images(folder)) or folder)
