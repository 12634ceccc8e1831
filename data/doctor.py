"""Are the data sets what they should be? A check before a day of training is spent on them.

    python -m data.doctor                                # train_images/ and test_images/
    python -m data.doctor --quick                        # names, counts, headers: a second
    python -m data.doctor --sidd PATH --div2k PATH --test PATH --json findings.json

Exit status: 0 nothing but notes, 1 warnings or errors, 2 unusable arguments. Every file is decoded
on all cores, pairs are measured (`data.checks`) and judged (`data.verdicts`).
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.checks import Finding, duplicates, is_gray, measure_pair, thumbnail
from data.headers import header_findings, read_header
from data.report import SEVERITIES, Report, format_report
from data.sidd import SCENE_PATTERN, parse_scene
from data.survey import DataSet, survey
from data.verdicts import MeasuredPair, iso_findings, pair_findings, summary
from utils.config import parse
from utils.errors import UserError, exit_on_user_error, require
from utils.images import read_image, uint16_to_uint8

TRAIN, TEST = Path("train_images"), Path("test_images")
SAMPLED = 8  # files a set that the quick check decodes,
SAMPLED_PIXELS = 40e6  # up to about a second of them


@dataclass(frozen=True)
class Config:
    """Check data sets: layout, counts, pairs, noise, duplicates; by default all that are there."""

    sidd: Path | None = None
    """SIDD-Medium or SIDD-Small."""
    div2k: Path | None = None
    """DIV2K's training images."""
    pairs: tuple[Path, ...] = ()
    """Other folders of noisy/clean training pairs."""
    photos: tuple[Path, ...] = ()
    """Other folders of clean training photographs."""
    test: Path | None = None
    """Test sets."""
    quick: bool = False
    """Names, counts, headers and a few files of each set; a second or two."""
    json: Path | None = None
    """Write data sets, statistics and findings there as well."""


@dataclass(frozen=True)
class _Item:
    """One photograph, pair or block to decode; a path alone is a photograph."""

    paths: tuple[Path, ...]
    load: Callable[[], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class _Result:
    findings: list[Finding]
    pair: MeasuredPair | None = None
    thumbs: tuple[np.ndarray, ...] = ()
    paths: tuple[Path, ...] = ()


def main(argv: list[str] | None = None) -> int:
    c = parse(Config, argv)
    training = [(path, "pairs") for path in (c.sidd, *c.pairs) if path]
    training += [(path, "photographs") for path in (c.div2k, *c.photos) if path]
    test = [c.test] if c.test else []
    if not training and not test:
        training = [(TRAIN, "")] if TRAIN.is_dir() else []
        test = [TEST] if TEST.is_dir() else []
        require(bool(training or test), f"{TRAIN}, {TEST}: neither is there; name data, see --help")
    for path in [path for path, _ in training] + test:
        require(path.is_dir(), f"{path}: no such folder; check the command line")
    published = {path: n for path, n in ((c.sidd, None), (c.div2k, 800)) if path}
    report = examine(training, test, quick=c.quick, published=published)
    print("\n".join(format_report(report)))
    if c.json:
        try:
            c.json.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{c.json}: cannot be written ({error.strerror or error})") from error
    return report.status


def quick_check(*roots: Path) -> list[Finding]:
    """Layout, names, counts, headers and a few files of each data set below the folders `roots`.

    For the start of a training run: a second or two for SIDD-Medium. str(finding) is one line.
    """
    return examine([(Path(root), "") for root in roots], [], quick=True).findings


def examine(
    training: Sequence[tuple[Path, str]],
    test: Sequence[Path],
    quick: bool = False,
    published: dict[Path, int | None] | None = None,
) -> Report:
    """Check training folders, each with what it must hold ("pairs", "photographs", "" for any), and
    test folders.

    published: of these folders the published number is expected, whatever they are called; None
    for SIDD's, 320 with two pairs a scene and 160 with one.
    """
    report = Report()
    seen: dict[str, list[_Result]] = {"training": [], "test": []}
    roots = [(path, must, "training") for path, must in training]
    for root, must, role in roots + [(path, "", "test") for path in test]:
        sets, findings = survey(root)
        report.findings += findings
        if must and sets and not any(bool(s.photos) != (must == "pairs") for s in sets):
            action = "check the command line"
            report.findings.append(Finding("error", "layout", root, f"holds no {must}", action))
        if root in (published or {}):
            report.findings += _short_of(root, sets, published[root])
        for data_set in sets:
            report.findings += header_findings(data_set)
            bad = {f.path for f in report.findings if f.check in ("size", "empty", "broken link")}
            items = [item for item in _items(data_set) if not bad & set(item.paths)]
            entry = {
                "name": data_set.name,
                "layout": data_set.layout,
                "role": role,
                "folder": str(data_set.root),
                "length": len(data_set),
            }
            if quick:
                report.findings += _decode_some(data_set, items)
            else:
                results = list(_measured(data_set.name, items))
                report.findings += [f for result in results for f in result.findings]
                pairs = [result.pair for result in results if result.pair]
                report.findings += (judged := pair_findings(data_set.root, pairs))
                # A fault that has been named explains a strength that is off.
                named = {f.path for f in judged}
                report.findings += iso_findings(_scenes([p for p in pairs if p.noisy not in named]))
                entry["noise"] = summary(pairs)
                seen[role] += [result for result in results if result.thumbs]
            report.sets.append(entry)
    report.findings += _duplicate_findings(seen["training"], seen["test"])
    report.findings.sort(key=lambda f: SEVERITIES.index(f.severity))
    return report


def _short_of(root: Path, sets: list[DataSet], expected: int | None) -> Iterator[Finding]:
    there = sum(len(s) for s in sets)
    if expected is None:
        scenes = {pair.noisy.parent for s in sets for pair in s.pairs}
        expected = 320 if there > len(scenes) else 160
    known = {f"{s.root}" for s in sets}
    if there < expected:
        message = f"{there} of {expected} published, in {len(known)} data sets"
        yield Finding("warning", "count", root, message, "download incomplete?")


def _items(data_set: DataSet) -> list[_Item]:
    if data_set.mats:
        clean, noisy = data_set.mats
        return [
            _Item(
                tuple(side.path.with_name(f"{side.path.name}[{i}]") for side in (clean, noisy)),
                lambda i=i: (clean[i], noisy[i]),
            )
            for i in range(len(clean))
        ]
    groups = [(pair.clean, pair.noisy) for pair in data_set.pairs]
    groups += [(photo,) for photo in data_set.photos]
    return [_Item(paths, lambda paths=paths: tuple(_read(p) for p in paths)) for paths in groups]


def _read(path: Path) -> np.ndarray:
    image = read_image(path)
    return uint16_to_uint8(image) if image.dtype == np.uint16 else image


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measured(name: str, items: list[_Item]) -> Iterator[_Result]:
    with ThreadPoolExecutor(_cores()) as pool:
        results = pool.map(_measure, items)
        yield from tqdm(results, desc=name, total=len(items), unit="img", delay=2, leave=False)


def _measure(item: _Item) -> _Result:
    try:
        images = item.load()
    except UserError as error:
        return _Result([_unreadable(error, item.paths)])
    thumbs = tuple(thumbnail(image) for image in images)
    gray = [path for path, image in zip(item.paths, images, strict=True) if is_gray(image)]
    findings, pair = [], None
    if len(images) == 2:
        findings = [
            Finding("warning", "grey", path, "its three channels are equal", "restore its colours")
            for path in gray
            if (header := read_header(path)) and header.mode not in ("L", "LA", "1", "I;16", "I")
        ]
        clean, noisy = images
        if np.array_equal(clean, noisy):
            message = f"the same pixels as its clean partner {item.paths[0].name}: no noise"
            action = "fetch the noisy image again"
            findings.append(Finding("error", "identical", item.paths[1], message, action))
        elif clean.shape == noisy.shape and min(clean.shape[:2]) >= 32:
            pair = MeasuredPair(*item.paths, measure_pair(clean, noisy))
    return _Result(findings, pair, thumbs, item.paths)


def _unreadable(error: UserError, paths: tuple[Path, ...]) -> Finding:
    text = str(error)
    for path in paths:
        if text.startswith(f"{path}: "):
            message, _, action = text.removeprefix(f"{path}: ").partition("; ")
            return Finding("error", "unreadable", path, message, action)
    return Finding("error", "unreadable", paths[0], text)


def _decode_some(data_set: DataSet, items: list[_Item]) -> Iterator[Finding]:
    if data_set.mats:  # their shapes have been read; the arrays take seconds
        return
    pixels = 0.0
    step = max(len(items) // SAMPLED, 1)
    for item in items[::step][:SAMPLED]:
        header = read_header(item.paths[0])
        pixels += float(np.prod(header.size)) * len(item.paths) if header else 0.0
        if pixels > SAMPLED_PIXELS:
            return
        try:
            item.load()
        except UserError as error:
            yield _unreadable(error, item.paths)


def _scenes(pairs: list[MeasuredPair]) -> list[tuple]:
    return [
        (pair.noisy.parent, parse_scene(pair.noisy.parent.name), pair.stats)
        for pair in pairs
        if SCENE_PATTERN.fullmatch(pair.noisy.parent.name)
    ]


def _duplicate_findings(training: list[_Result], test: list[_Result]) -> Iterator[Finding]:
    """Pictures of the test sets that are in the training data, or twice in one test set."""
    flat = [
        [(i, thumb) for i, result in enumerate(results) for thumb in result.thumbs]
        for results in (training, test)
    ]
    thumbs = [[thumb for _, thumb in side] for side in flat]
    leaks = {(flat[1][j][0], flat[0][i][0]) for i, j in duplicates(thumbs[0], thumbs[1])}
    for j, i in sorted(leaks):
        message = f"a test image, also in the training data as {training[i].paths[0]}"
        action = "remove it from the training data"
        yield Finding("error", "duplicate", test[j].paths[-1], message, action)
    twins = {
        (flat[1][i][0], flat[1][j][0])
        for i, j in duplicates(thumbs[1], thumbs[1])
        if flat[1][i][0] < flat[1][j][0]
    }
    for i, j in sorted(twins):
        message = f"shows the same picture as {test[i].paths[0]}"
        action = "remove one, or the picture counts twice"
        yield Finding("warning", "duplicate", test[j].paths[-1], message, action)


def _run() -> None:
    torch.set_num_threads(1)  # the pool's threads are as many as there are cores
    sys.exit(main())


if __name__ == "__main__":
    exit_on_user_error(_run)
