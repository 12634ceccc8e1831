"""What lies in the image folders, without stopping at the first fault: layout, names, counts.

The layouts are those of `data.folders`, which refuses a set at its first fault; here each fault
becomes a `Finding` and the rest of the set is kept.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.checks import Finding
from data.folders import CLEAN_NAMES, NOISY_NAMES, bsds_images, pair_sides
from data.sidd import (
    IMAGE_PATTERN,
    SCENE_PATTERN,
    VALIDATION_SETS,
    MatBlocks,
    PairFile,
    find_mat_blocks,
    is_scene,
)
from utils.errors import UserError
from utils.images import IMAGE_SUFFIXES, folder_files, subfolders, walk_files

Layout = Literal["SIDD", "paired folder", "photographs", "BSDS500", "blocks"]

# Published numbers of pairs, images or blocks, by a part of the folder's path or by layout.
PUBLISHED = (
    (r"sidd_?-?medium", 320),
    (r"sidd_?-?small", 160),
    (r"div2k_train(_hr)?$", 800),
    (r"div2k_valid(_hr)?$", 100),
)
PUBLISHED_BLOCKS = {"sidd": 1280, "siddplus": 1024}
PUBLISHED_BSDS = {"train": 200, "val": 100, "test": 200}

TEXT_SUFFIXES = (".mat", ".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".csv", ".json", ".bib")
TEXT_NAME = re.compile(r"(_*read_?me|licen[cs]e|copying|copyright|notice)", re.IGNORECASE)


@dataclass
class DataSet:
    """One recognised set; pairs or photos, or, of layout "blocks", mats (clean, noisy)."""

    name: str
    layout: Layout
    root: Path
    pairs: list[PairFile] = field(default_factory=list)
    photos: list[Path] = field(default_factory=list)
    mats: tuple[MatBlocks, MatBlocks] | None = None

    def __len__(self) -> int:
        return len(self.mats[0]) if self.mats else len(self.pairs) + len(self.photos)

    @property
    def files(self) -> list[Path]:
        return [side for p in self.pairs for side in (p.clean, p.noisy)] + self.photos

    def described(self) -> str:
        unit = "blocks" if self.mats else "pairs" if self.pairs else "images"
        return f"{self.name}: {self.layout}, {len(self)} {unit}"


def survey(root: Path) -> tuple[list[DataSet], list[Finding]]:
    """The data sets that are `root` or below it, and what is wrong with files, names and counts."""
    findings: list[Finding] = []
    sets = [s for s in _sets(root, root, findings) if len(s)] + _mat_sets(root, findings)
    if not sets:
        findings.append(
            Finding("error", "layout", root, "no data set", "see the README for the layouts")
        )
    known = {path for s in sets for path in s.files}
    for path in _every_file(root):
        findings += _file_findings(path, known)
    for data_set in sets:
        findings += _count_findings(data_set)
    return sets, findings


def _name(folder: Path, root: Path) -> str:
    return "/".join(folder.relative_to(root).parts) or root.absolute().name


def _sets(folder: Path, root: Path, findings: list[Finding]) -> Iterator[DataSet]:
    name = _name(folder, root)
    if images := bsds_images(folder):
        yield DataSet(name, "BSDS500", folder, photos=list(walk_files(images)))
        return
    try:
        sides = pair_sides(folder)
    except UserError as error:
        message, _, action = str(error).removeprefix(f"{folder}: ").partition("; ")
        findings.append(Finding("error", "layout", folder, message, action))
        return
    if sides:
        yield DataSet(name, "paired folder", folder, _paired(sides, findings))
    elif is_scene(folder):
        yield DataSet(name, "SIDD", folder, _scene(folder, findings))
    else:
        if photos := folder_files(folder):
            if folder.name.lower() in (*CLEAN_NAMES, *NOISY_NAMES):
                message = (
                    "is one side of a paired folder, the other is missing: read as photographs"
                )
                findings.append(Finding("warning", "layout", folder, message, "add the other side"))
            yield DataSet(name, "photographs", folder, photos=photos)
        scenes = [path for path in subfolders(folder) if is_scene(path)]
        if scenes:
            pairs = [pair for scene in scenes for pair in _scene(scene, findings)]
            yield DataSet(name, "SIDD", folder, pairs)
            _instances(folder, scenes, findings)
            if photos:
                message = f"{len(photos)} images beside scene folders are read as photographs"
                findings.append(
                    Finding("warning", "misplaced", photos[0], message, "move them elsewhere")
                )
        for path in subfolders(folder):
            if path not in scenes:
                yield from _sets(path, root, findings)


def _paired(sides: tuple[Path, Path], findings: list[Finding]) -> list[PairFile]:
    by_stem: list[dict[Path, Path]] = []
    for side in sides:
        found: dict[Path, Path] = {}
        for path in walk_files(side):
            key = path.relative_to(side).with_suffix("")
            if key in found:
                message = f"has the same stem as {found[key].name}, by which pairs are matched"
                findings.append(Finding("error", "pairing", path, message, "rename or remove one"))
            else:
                found[key] = path
        by_stem.append(found)
    clean, noisy = by_stem
    for mine, other, side in ((clean, noisy, sides[1]), (noisy, clean, sides[0])):
        for key in mine:
            if key not in other:
                message = f"its partner {side / key}.* is missing"
                findings.append(Finding("error", "pairing", mine[key], message, "add or remove it"))
    return [PairFile(clean[key], noisy[key], str(noisy[key])) for key in clean if key in noisy]


def _scene(folder: Path, findings: list[Finding]) -> list[PairFile]:
    match = SCENE_PATTERN.fullmatch(folder.name)
    if match is None:
        message = "holds SIDD images, but is not named like 0001_001_S6_00100_00060_3200_L"
        findings.append(
            Finding("error", "scene name", folder, message, "restore the published name")
        )
    sides: dict[str, dict[tuple, Path]] = {"GT": {}, "NOISY": {}}
    for path in folder_files(folder):
        if image := IMAGE_PATTERN.fullmatch(path.stem):
            instance, side, shot = image.groups()
            sides[side][instance, shot] = path
            if match and instance and instance.isdecimal() and instance != match[1]:
                message = f"lies in the folder of instance {match[1]}"
                findings.append(
                    Finding("warning", "misplaced", path, message, "restore the published names")
                )
    gt, noisy = sides["GT"], sides["NOISY"]
    if not gt and not noisy:
        message = "a scene without *GT_SRGB_* and *NOISY_SRGB_* images"
        findings.append(
            Finding("error", "pairing", folder, message, "unpack it again or remove it")
        )
    for mine, other, ours, theirs in ((gt, noisy, "GT", "NOISY"), (noisy, gt, "NOISY", "GT")):
        for key in mine:
            if key not in other:
                partner = mine[key].name.replace(f"{ours}_SRGB_", f"{theirs}_SRGB_")
                message = f"its partner {partner} is missing"
                findings.append(
                    Finding("error", "pairing", mine[key], message, "unpack the scene again")
                )
    kind = f"iso_{match[4]}" if match else folder.name
    return [PairFile(gt[key], noisy[key], kind) for key in gt if key in noisy]


def _instances(folder: Path, scenes: list[Path], findings: list[Finding]) -> None:
    """Scene folders against the list that SIDD publishes beside them."""
    for path in (folder / "Scene_Instances.txt", folder.parent / "Scene_Instances.txt"):
        if path.is_file():
            listed = set(path.read_text(errors="replace").split())
            for scene in scenes:
                if scene.name not in listed:
                    message = f"not in {path.name}: renamed, or of another set"
                    findings.append(
                        Finding("warning", "scene name", scene, message, "restore its name")
                    )
            if missing := sorted(listed - {scene.name for scene in scenes}):
                message = (
                    f"lists {len(missing)} scenes that are not there: {', '.join(missing[:3])}"
                )
                findings.append(Finding("warning", "count", path, message, "download incomplete?"))
            return


def _mat_sets(root: Path, findings: list[Finding]) -> list[DataSet]:
    try:
        found = find_mat_blocks(root)
    except UserError as error:
        message, _, action = str(error).partition("; ")
        findings.append(Finding("error", "pairing", root, message, action))
        return []
    return [
        DataSet(which.name, "blocks", clean.path, mats=(clean, noisy))
        for which, clean, noisy in found
    ]


def _every_file(folder: Path) -> Iterator[Path]:
    """All files but hidden ones, links followed as the loaders follow them."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir() and not path.name.startswith("."):
            yield path
    for path in subfolders(folder):
        yield from _every_file(path)


def _file_findings(path: Path, known: set[Path]) -> Iterator[Finding]:
    suffix = path.suffix.lower()
    if path.is_symlink() and not path.exists():
        message = f"a link to {path.readlink()}, which does not exist"
        yield Finding(
            "error", "broken link", path, message, "restore the target or remove the link"
        )
    elif path.stat().st_size == 0:
        yield Finding("error", "empty", path, "an empty file", "fetch it again or remove it")
    elif suffix in IMAGE_SUFFIXES:
        # One without its partner has its own finding.
        if path not in known and not _is_side(path):
            message = "an image in a place where no loader looks"
            yield Finding("warning", "misplaced", path, message, "move it into a data set")
    elif suffix not in TEXT_SUFFIXES and not TEXT_NAME.match(path.name):
        partial = suffix in (".part", ".crdownload", ".tmp", ".zip", ".tar", ".gz", ".7z", ".rar")
        what = (
            "an archive or a partial download" if partial else "neither an image nor a known text"
        )
        action = "unpack it or fetch it again" if partial else "remove it"
        yield Finding("warning", "foreign", path, what, action)


def _is_side(path: Path) -> bool:
    sides = (*CLEAN_NAMES, *NOISY_NAMES)
    return bool(IMAGE_PATTERN.fullmatch(path.stem)) or any(
        parent.name.lower() in sides for parent in path.parents
    )


def _count_findings(data_set: DataSet) -> Iterator[Finding]:
    counts: list[tuple[str, int, int]] = []
    if data_set.layout == "BSDS500":
        parts = Counter(path.relative_to(data_set.root).parts[2] for path in data_set.photos)
        counts = [(f"images in {part}/", parts[part], n) for part, n in PUBLISHED_BSDS.items()]
    elif data_set.layout == "blocks":
        counts = [("blocks", len(data_set), PUBLISHED_BLOCKS[data_set.name])]
    elif expected := published_count(data_set):
        counts = [("pairs" if data_set.pairs else "images", len(data_set), expected)]
    for unit, there, expected in counts:
        message = f"{there} {unit}, published are {expected}"
        if there < expected:
            action = "download incomplete? fetch what is missing"
            yield Finding("warning", "count", data_set.root, message, action)
        elif there > expected:
            yield Finding("note", "count", data_set.root, message, "two versions of one set?")


def published_count(data_set: DataSet) -> int | None:
    """How many pairs or images the set has as published; None if it is none of them."""
    if data_set.layout == "paired folder":
        noisy = {path.name.lower() for path in subfolders(data_set.root)}
        for which in VALIDATION_SETS:
            if which.noisy.lower() in noisy:
                return PUBLISHED_BLOCKS[which.name]
        return None
    parts = [part.lower() for part in data_set.root.absolute().parts[-3:]]
    for pattern, count in PUBLISHED:
        paired = "sidd" in pattern
        if (data_set.layout == "SIDD") == paired and any(re.match(pattern, p) for p in parts):
            return count
    return None
