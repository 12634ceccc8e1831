"""Every file of the data sets is decoded on all cores, each pair measured and judged."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.doctor.findings import SEVERITIES, Report
from data.doctor.listing import (
    count_findings,
    file_findings,
    header_findings,
    instance_findings,
)
from data.doctor.measures import duplicates, is_gray, measure_pair, thumbnail
from data.doctor.verdicts import MeasuredPair, iso_findings, pair_findings, summary
from data.folders import DataSet, Finding, Survey, survey
from data.prefetch import look_ahead
from data.sidd import SCENE_PATTERN, parse_scene
from utils.errors import UserError
from utils.images import read_header, read_uint8

SAMPLED = 8  # files per set that the quick check decodes,
SAMPLED_PIXELS = 40e6  # up to about a second of them
UNDECODED = ("size", "empty", "unreadable")  # nothing is to be gained from such a file's pixels


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


def quick_check(*found: Survey) -> list[Finding]:
    """Names, counts, headers and a few files of each data set that was found.

    For the start of a training run: a second or two for SIDD-Medium. str(finding) is one line.
    """
    return _examine([(each, "", "training") for each in found], quick=True, published={}).findings


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
    roots = [(path, must, "training") for path, must in training]
    roots += [(path, "", "test") for path in test]
    found = ((survey(path), must, role) for path, must, role in roots)
    return _examine(found, quick, published or {})


def _examine(
    surveys: Iterable[tuple[Survey, str, str]], quick: bool, published: dict[Path, int | None]
) -> Report:
    report = Report()
    seen: dict[str, list[_Result]] = {"training": [], "test": []}
    for found, must, role in surveys:
        root, sets = found.root.path, [s for s in found.sets if len(s)]
        report.findings += [f for s in found.sets for f in s.findings]
        if not sets:
            action = "see the README for the layouts"
            report.findings.append(Finding("error", "layout", root, "no data set", action))
        elif must and not any(bool(s.photos) != (must == "pairs") for s in sets):
            action = "check the command line"
            report.findings.append(Finding("error", "layout", root, f"holds no {must}", action))
        report.findings += file_findings(found)
        for data_set in sets:
            report.findings += [*count_findings(data_set), *instance_findings(data_set)]
        if root in published:
            report.findings += _short_of(root, sets, published[root])
        for data_set in sets:
            report.findings += header_findings(data_set)
            bad = {f.path for f in report.findings if f.check in UNDECODED}
            items = [item for item in _items(data_set) if not bad & set(item.paths)]
            entry = {"name": data_set.name, "layout": data_set.layout, "role": role}
            entry |= {"folder": str(data_set.root), "length": len(data_set)}
            if quick:
                report.findings += _decode_some(data_set, items)
            else:
                results = list(_measured(data_set.name, items))
                report.findings += [f for result in results for f in result.findings]
                pairs = [result.pair for result in results if result.pair]
                report.findings += (judged := list(pair_findings(data_set.root, pairs)))
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
    return [_Item(paths, lambda paths=paths: tuple(map(read_uint8, paths))) for paths in groups]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measured(name: str, items: list[_Item]) -> Iterator[_Result]:
    results = look_ahead(_measure, items, _cores())
    yield from tqdm(results, desc=name, total=len(items), unit="img", delay=2, leave=False)


def _measure(item: _Item) -> _Result:
    try:
        images = item.load()
    except UserError as error:
        return _Result([Finding.unreadable(error, *item.paths)])
    thumbs = tuple(thumbnail(image) for image in images)
    gray = [path for path, image in zip(item.paths, images, strict=True) if is_gray(image)]
    findings, pair = [], None
    if len(images) == 2:
        findings = [
            Finding("warning", "grey", path, "its three channels are equal", "restore its colours")
            for path in gray
            if path.is_file()  # not a block
            and read_header(path).mode not in ("L", "LA", "1", "I;16", "I")
        ]
        clean, noisy = images
        if np.array_equal(clean, noisy):
            message = f"the same pixels as its clean partner {item.paths[0].name}: no noise"
            action = "fetch the noisy image again"
            findings.append(Finding("error", "identical", item.paths[1], message, action))
        elif clean.shape == noisy.shape and min(clean.shape[:2]) >= 32:
            pair = MeasuredPair(*item.paths, measure_pair(clean, noisy))
    return _Result(findings, pair, thumbs, item.paths)


def _decode_some(data_set: DataSet, items: list[_Item]) -> Iterator[Finding]:
    if data_set.mats:  # their shapes have been read; the arrays take seconds
        return
    pixels = 0.0
    step = max(len(items) // SAMPLED, 1)
    for item in items[::step][:SAMPLED]:
        pixels += float(np.prod(read_header(item.paths[0]).size)) * len(item.paths)
        if pixels > SAMPLED_PIXELS:
            return
        try:
            item.load()
        except UserError as error:
            yield Finding.unreadable(error, *item.paths)


def _scenes(pairs: list[MeasuredPair]) -> list[tuple]:
    return [
        (pair.noisy.parent, parse_scene(pair.noisy.parent.name), pair.stats)
        for pair in pairs
        if SCENE_PATTERN.fullmatch(pair.noisy.parent.name)
    ]


def _duplicate_findings(training: list[_Result], test: list[_Result]) -> Iterator[Finding]:
    """Pictures of the test sets that are in the training data, or twice in one test set."""
    for j, i in _twins(test, training):
        message = f"a test image, also in the training data as {training[i].paths[0]}"
        action = "remove it from the training data"
        yield Finding("error", "duplicate", test[j].paths[-1], message, action)
    for i, j in _twins(test, test):
        if i < j:
            message = f"shows the same picture as {test[i].paths[0]}"
            action = "remove one, or the picture counts twice"
            yield Finding("warning", "duplicate", test[j].paths[-1], message, action)


def _twins(one: list[_Result], other: list[_Result]) -> list[tuple[int, int]]:
    """(i, j) of those that show one picture, on either of their sides."""
    sides = [[(i, t) for i, result in enumerate(r) for t in result.thumbs] for r in (one, other)]
    found = duplicates(*([thumb for _, thumb in side] for side in sides))
    return sorted({(sides[0][a][0], sides[1][b][0]) for a, b in found})
