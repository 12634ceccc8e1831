"""Tables of scores, as aligned text, Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import bootstrap

from evaluation.batches import Scores
from evaluation.image_sets import CleanImages, ImagePairs
from evaluation.measure import mean_over_images
from utils.files import write_atomically

Row = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Column:
    """key: of the row's value, and in CSV files; spec: the format of its numbers, "" for text.

    interval: show the 95% interval of the mean beside it. truth: key of what it should be, to be
    shown behind a slash. meaning: for the reader of the page. best: what marks the best of a group
    there, the least, the greatest, or the nearest to 1.
    """

    key: str
    title: str
    spec: str = ""
    interval: bool = False
    truth: str = ""
    meaning: str = ""
    best: Literal["", "least", "greatest", "one"] = ""

    def cell(self, row: Row) -> str:
        if self.truth:
            return f"{self._text(row[self.key])} / {self._text(row[self.truth])}"
        if not self.interval:
            return self._text(row[self.key])
        low, high = (self._text(row[f"{self.key}_{end}"]) for end in ("low", "high"))
        return f"{self._text(row[self.key])} [{low}, {high}]"

    def loss(self, row: Row) -> float:
        """How far from the best; NaN where there is none, and in rows that are told the truth, or
        are to be wrong (cross references)."""
        labels = [value for value in row.values() if isinstance(value, str)]
        if not self.best or any(label[:1] == "(" or label == "cross" for label in labels):
            return float("nan")
        value = row[self.key]
        if self.best == "one":
            return abs(math.log(value)) if value > 0 else float("nan")
        return value if self.best == "least" else -value

    def _text(self, value: str | int | float) -> str:
        return "-" if value != value else format(value, self.spec)  # NaN: there is no such score


TEST_SET = (Column("test_set", "test set"), Column("images", "images", "d"))
"""The first columns of every table."""


@dataclass
class Table:
    """A table while it is filled: a row per test set and method, and beside it one per image.

    columns: of the rows; "test_set" and "images" are filled in by `add`. group: keys of what rows
    have in common that may be compared.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[Row] = field(default_factory=list)
    images: list[Row] = field(default_factory=list)
    group: tuple[str, ...] = ("test_set",)

    def best(self, column: Column) -> list[bool]:
        """Whether each row is the best of its group in this column."""
        losses = [column.loss(row) for row in self.rows]
        groups = [tuple(row.get(key) for key in self.group) for row in self.rows]
        least = {}
        for group, loss in zip(groups, losses, strict=True):
            if loss == loss:
                least[group] = min(loss, least.get(group, loss))
        return [loss == least.get(group) for group, loss in zip(groups, losses, strict=True)]

    def add(
        self,
        test_set: CleanImages | ImagePairs,
        labels: Mapping[str, str],
        scores: Scores,
        names: Sequence[str] | None = None,
    ) -> None:
        """A row, of images' scores; names: of those images, by default the set's first ones."""
        count = len(next(iter(scores.values())))
        names = names or [test_set.image_name(i) for i in range(count)]
        labels = {"test_set": test_set.title, **labels}
        intervals = {}
        for column in self.columns:
            if column.interval:
                low, high = mean_interval(scores[column.key])
                intervals |= {f"{column.key}_low": low, f"{column.key}_high": high}
        self.rows.append({**labels, "images": count, **mean_over_images(scores), **intervals})
        for i, name in enumerate(names):
            values = {key: float(column[i]) for key, column in scores.items()}
            self.images.append({**labels, "image": name, **values})

    def text(self) -> str:
        return f"{self.title}\n\n{as_text(self.columns, self.rows)}\n"

    def write(self, folder: Path, notes: Sequence[str]) -> None:
        """<name>.txt, .md and .tex with `notes` below, <name>.csv, and <name>_images.csv."""
        markdown = f"# {self.title}\n\n{as_markdown(self.columns, self.rows)}\n\n"
        columns = [one for column in self.columns for one in csv_columns(column)]
        per_image = [
            Column("image", "image") if c.key == "images" else replace(c, interval=False)
            for c in self.columns
        ]
        per_image = [one for column in per_image for one in csv_columns(column)]
        for suffix, text in (
            ("txt", "\n".join([self.text(), *notes, ""])),
            ("md", markdown + "".join(f"- {note}\n" for note in notes)),
            ("tex", as_latex(self, notes)),
        ):
            write_atomically(text.encode(), folder / f"{self.name}.{suffix}")
        write_csv(folder / f"{self.name}.csv", columns, self.rows)
        write_csv(folder / f"{self.name}_images.csv", per_image, self.images)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean over images, (N,): percentile bootstrap, 9999 resamples, seed 0.

    Images that have no such score (NaN) are left out; (NaN, NaN) for less than two that do.
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def csv_columns(column: Column) -> list[Column]:
    others = [f"{column.key}_{end}" for end in ("low", "high")] if column.interval else []
    others += [column.truth] if column.truth else []
    return [column, *(Column(key, "", column.spec) for key in others)]


def as_text(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Columns aligned, text to the left and numbers to the right, under a ruled header."""
    lines = [[c.title for c in columns], *([c.cell(row) for c in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return aligned(lines, [bool(c.spec) for c in columns])


def aligned(lines: Sequence[Sequence[str]], to_right: Sequence[bool]) -> str:
    """Cells in columns two blanks apart, each column to the left or `to_right`."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, to_right, strict=True)
        ).rstrip()
        for line in lines
    )


def as_markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    lines = [[c.title for c in columns], ["---:" if c.spec else "---" for c in columns]]
    lines += [[c.cell(row).replace("|", "\\|") for c in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_latex(table: Table, notes: Sequence[str]) -> str:
    """A booktabs table, ready to be \\input; `notes` as comments above it."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    columns = table.columns
    return "\n".join(
        [
            *(f"% {note}" for note in notes),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_escaped(table.title)}}}",
            rf"\begin{{tabular}}{{{''.join('r' if c.spec else 'l' for c in columns)}}}",
            r"\toprule",
            line([latex_escaped(c.title) for c in columns]),
            r"\midrule",
            *(line([latex_escaped(c.cell(row)) for c in columns]) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex_escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


def write_csv(path: Path, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Headed by the columns' keys; floats to six digits, whatever the table shows."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([c.key for c in columns])
    for row in rows:
        values = [row[c.key] for c in columns]
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
    write_atomically(file.getvalue().encode(), path)
