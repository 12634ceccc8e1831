"""What names, counts and headers say of data sets, without decoding an image."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.folders import CLEAN_NAMES, NOISY_NAMES, DataSet, Finding, Survey
from data.sidd import IMAGE_PATTERN, VALIDATION_SETS
from utils.errors import UserError
from utils.files import IMAGE_SUFFIXES
from utils.images import Header, read_header

# Published numbers of pairs or images, by a part of the folder's path.
PUBLISHED = (
    (r"sidd_?-?medium", 320),
    (r"sidd_?-?small", 160),
    (r"div2k_train(_hr)?$", 800),
    (r"div2k_valid(_hr)?$", 100),
)
PUBLISHED_BSDS = {"train": 200, "val": 100, "test": 200}

TEXT_SUFFIXES = (".mat", ".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".csv", ".json", ".bib")
TEXT_NAME = re.compile(r"(_*read_?me|licen[cs]e|copying|copyright|notice)", re.IGNORECASE)


def file_findings(found: Survey) -> Iterator[Finding]:
    """Files that no loader looks at, empty files and broken links."""
    known = {path for s in found.sets for path in s.files}
    for path in (path for folder in found.root.walk() for path in folder.files):
        suffix = path.suffix.lower()
        if path.is_symlink() and not path.exists():
            message = f"a link to {path.readlink()}, which does not exist"
            action = "restore the target or remove the link"
            yield Finding("error", "broken link", path, message, action)
        elif path in known:
            continue  # header_findings
        elif path.stat().st_size == 0:
            yield Finding("error", "empty", path, "an empty file", "fetch it again or remove it")
        elif suffix in IMAGE_SUFFIXES:
            # One without its partner has its own finding.
            if not _is_side(path):
                message = "an image in a place where no loader looks"
                yield Finding("warning", "misplaced", path, message, "move it into a data set")
        elif suffix not in TEXT_SUFFIXES and not TEXT_NAME.match(path.name):
            if suffix in (".part", ".crdownload", ".tmp", ".zip", ".tar", ".gz", ".7z", ".rar"):
                message, action = "an archive or a partial download", "unpack it or fetch it again"
            else:
                message, action = "neither an image nor a known text", "remove it"
            yield Finding("warning", "foreign", path, message, action)


def _is_side(path: Path) -> bool:
    sides = (*CLEAN_NAMES, *NOISY_NAMES)
    return bool(IMAGE_PATTERN.fullmatch(path.stem)) or any(
        parent.name.lower() in sides for parent in path.parents
    )


def count_findings(data_set: DataSet) -> Iterator[Finding]:
    counts: list[tuple[str, int, int]] = []
    if data_set.layout == "BSDS500":
        parts = Counter(path.relative_to(data_set.within[0]).parts[0] for path in data_set.photos)
        counts = [(f"images in {part}/", parts[part], n) for part, n in PUBLISHED_BSDS.items()]
    elif expected := published_count(data_set):
        unit = "blocks" if data_set.mats else "pairs" if data_set.pairs else "images"
        counts = [(unit, len(data_set), expected)]
    for unit, there, expected in counts:
        message = f"{there} {unit}, published are {expected}"
        if there < expected:
            action = "download incomplete? fetch what is missing"
            yield Finding("warning", "count", data_set.root, message, action)
        elif there > expected:
            yield Finding("note", "count", data_set.root, message, "two versions of one set?")


def published_count(data_set: DataSet) -> int | None:
    """How many pairs, images or blocks the set has as published; None if it is none of them."""
    if data_set.layout in ("blocks", "paired folder"):
        name = data_set.within[1].name.lower()
        for which in VALIDATION_SETS:
            if (which.name == data_set.name and data_set.mats) or which.noisy.lower() == name:
                return which.count
        return None
    parts = [part.lower() for part in data_set.root.absolute().parts[-3:]]
    for pattern, count in PUBLISHED:
        paired = "sidd" in pattern
        if (data_set.layout == "SIDD") == paired and any(re.match(pattern, p) for p in parts):
            return count
    return None


def instance_findings(data_set: DataSet) -> Iterator[Finding]:
    """Scene folders against the list that SIDD publishes beside them."""
    root = data_set.root
    inside = [pair.noisy for pair in data_set.pairs] + [f.path for f in data_set.findings]
    scenes = {path if path.parent == root else path.parent for path in inside}
    for path in (root / "Scene_Instances.txt", root.parent / "Scene_Instances.txt"):
        if data_set.layout == "SIDD" and root not in scenes and path.is_file():
            listed = set(path.read_text(errors="replace").split())
            for scene in sorted(scenes):
                if scene.name not in listed:
                    message = f"not in {path.name}: renamed, or of another set"
                    yield Finding("warning", "scene name", scene, message, "restore its name")
            if missing := sorted(listed - {scene.name for scene in scenes}):
                names = ", ".join(missing[:3])
                message = f"lists {len(missing)} scenes that are not there: {names}"
                yield Finding("warning", "count", path, message, "download incomplete?")
            return


def header_findings(data_set: DataSet) -> Iterator[Finding]:
    """Unreadable, grey, 16-bit and transparent images; names that belie the format."""
    headers: dict[Path, Header] = {}
    known = {finding.path for finding in data_set.findings}
    for path in data_set.files:
        try:
            headers[path] = read_header(path)
        except UserError as error:
            if path not in known:
                yield Finding.unreadable(error, path)
    gray = [path for path, h in headers.items() if h.mode in ("1", "L", "LA", "I", "I;16", "F")]
    if len(gray) > len(headers) / 2 and len(gray) > 1:
        message = f"{len(gray)} of {len(headers)} images are grey"
        action = "the networks are made for colour"
        yield Finding("warning", "grey", data_set.root, message, action)
    else:
        for path in gray:
            message = "a grey image in a set of colour images"
            yield Finding("warning", "grey", path, message, "fetch the colour image or remove it")
    for what, modes in (("16-bit", ("I;16", "I")), ("with transparency", ("RGBA", "LA", "PA"))):
        if found := [path for path, h in headers.items() if h.mode in modes]:
            action = "rounded to 8 bits when read" if what == "16-bit" else "alpha is dropped"
            message = f"{len(found)} images {what}, such as {found[0].name}"
            yield Finding("note", "depth", data_set.root, message, action)
    for path, header in headers.items():
        belied = {"PNG": ".png", "JPEG": ".jpg"}.get(header.format)
        suffix = path.suffix.lower().replace("jpeg", "jpg")
        if belied and suffix != belied:
            message = f"is a {header.format} file by its contents"
            yield Finding("note", "suffix", path, message, "rename it")
