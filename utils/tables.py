"""Tables of measured figures, as aligned text, Markdown and CSV."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.folders import CleanTestSet
from utils.errors import UserError
from utils.evaluation import Figures, mean_over_images

Row = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Column:
    """key: of the row's value, and in CSV files; spec: the format of its numbers, "" for text."""

    key: str
    title: str
    spec: str = ""

    def cell(self, row: Row) -> str:
        return format(row[self.key], self.spec)


@dataclass
class Table:
    """A table while it is filled: a row a test set and method, and beside it one an image.

    columns: of the rows; "test_set" and "images" are filled in by `add`.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[Row] = field(default_factory=list)
    images: list[Row] = field(default_factory=list)

    def add(self, test_set: CleanTestSet, labels: Mapping[str, str], figures: Figures) -> None:
        count = len(next(iter(figures.values())))
        labels = {"test_set": test_set.title, **labels}
        self.rows.append({**labels, "images": count, **mean_over_images(figures)})
        for i in range(count):
            values = {name: float(column[i]) for name, column in figures.items()}
            self.images.append({**labels, "image": test_set.image_name(i), **values})

    def text(self) -> str:
        return f"{self.title}\n\n{as_text(self.columns, self.rows)}\n"

    def write(self, folder: Path, notes: Sequence[str]) -> None:
        """<name>.txt and .md with `notes` below, <name>.csv, and <name>_images.csv."""
        markdown = f"# {self.title}\n\n{as_markdown(self.columns, self.rows)}\n\n"
        per_image = [Column("image", "image") if c.key == "images" else c for c in self.columns]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{self.name}.txt").write_text(
                "\n".join([self.text(), *notes, ""]), encoding="utf-8"
            )
            (folder / f"{self.name}.md").write_text(
                markdown + "".join(f"- {note}\n" for note in notes), encoding="utf-8"
            )
            write_csv(folder / f"{self.name}.csv", self.columns, self.rows)
            write_csv(folder / f"{self.name}_images.csv", per_image, self.images)
        except OSError as error:
            raise UserError(
                f"{folder}: tables cannot be written there ({error.strerror}); name another folder"
            ) from error


def as_text(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Columns aligned, text to the left and numbers to the right, under a ruled header."""
    lines = [[c.title for c in columns], *([c.cell(row) for c in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column.spec else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def as_markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    lines = [[c.title for c in columns], ["---:" if c.spec else "---" for c in columns]]
    lines += [[c.cell(row).replace("|", "\\|") for c in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(path: Path, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Headed by the columns' keys; floats to six digits, whatever the table shows."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([c.key for c in columns])
        for row in rows:
            values = [row[c.key] for c in columns]
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in values])
