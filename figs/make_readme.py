"""Every table and picture of README.md and ckpts/README.md, again.

    python -m figs.make_readme              # or: make readme; all that ckpts/ alone is enough for
    python -m figs.make_readme --no-bm3d    # without the 15 minutes of BM3D
    python -m figs.make_readme --real DIR   # tables of other test sets, measured by supp_tbl.py
    python -m figs.make_cards               # the weights' model cards alone, as all of these do

The first two run supp_tbl.py on the bundled sample, write its tables into ckpts/README.md, a short
one into README.md, and draw figs/*.png. `--real` takes <table>.md and <table>.csv of folders that
`supp_tbl.py --out` or ablate.py wrote, as the table <table>_real; rows of several folders
follow one another. All write the table of the weights. Every .csv goes to ckpts/tables/, where
tests/test_readme.py compares it with the pages.

A table that has no place between markers on the page yet gets one at the end of its section.

BM3D does not depend on our weights. Where it was not measured, its rows are those of the .csv in
ckpts/tables/, if the row of the noisy input above them has the same figures to the last digit: that
is, if images, noise, passes and seed are the same. Others are left out, and said so.
"""

import csv
import json
import re
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import supp_tbl
from figs import make_akld, make_cost, make_transfer
from models.noise_transfer import GAINS
from utils.checkpoint import sha256
from utils.config import parse
from utils.errors import UserError, exit_on_user_error

ROOT = Path(__file__).parent.parent
PAGE, LONG_PAGE = Path("README.md"), Path("ckpts/README.md")
SAMPLE = ["--gpu", "cpu", "--passes", "2", "--no-report"]
# A .csv is read as text: a figure stays as supp_tbl.py rounded it.
CsvRow = dict[str, str]


@dataclass(frozen=True)
class Config:
    """Write the tables of README.md and ckpts/README.md."""

    bm3d: bool = True
    """Measure BM3D on the sample, too, or (--no-bm3d) take its rows over."""
    real: tuple[Path, ...] = ()
    """Only insert the tables in these folders, of supp_tbl.py --out or ablate.py."""


@dataclass
class Measured:
    """A table as supp_tbl.py wrote it; of each row, what the .csv and what the Markdown has."""

    title: str
    head: list[str]
    rows: list[tuple[CsvRow, str]]

    def markdown(self) -> str:
        return "\n".join([f"{self.title}:", "", *self.head, *(line for _, line in self.rows)])

    def write_csv(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0][0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for row, _ in self.rows)


def read_csv(path: Path) -> list[CsvRow]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read(text: str, path: Path) -> Measured:
    """text: Markdown, of a file or between markers, with the rows of the .csv `path`."""
    lines, rows = re.findall(r"^\|.*\|$", text, re.M), read_csv(path)
    title = text.strip().partition("\n")[0].lstrip("# ").rstrip(":")
    if not rows or len(lines) != len(rows) + 2:
        raise UserError(f"{path}: {len(rows)} rows, but {len(lines) - 2} in its Markdown table")
    return Measured(title, lines[:2], list(zip(rows, lines[2:], strict=True)))


def find_tables(folders: list[Path]) -> dict[str, Measured]:
    """By name, all that these folders hold; of one name, the rows one after another."""
    found: dict[str, Measured] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.csv")):
            if not (page := path.with_suffix(".md")).is_file():
                continue  # <table>_images.csv
            table = read(page.read_text(encoding="utf-8"), path)
            first = found.setdefault(path.stem, table)
            if first is not table:
                if first.head != table.head:
                    raise UserError(f"{path}: other columns than in the folders before it")
                first.rows += table.rows
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: no <table>.csv with its <table>.md")
    return found


# -------------------------------------------------------------------------------------- the pages


def block(name: str) -> re.Pattern[str]:
    """What stands between `<!-- table: name -->` and `<!-- end -->`, the second group."""
    return re.compile(rf"(<!-- table: {name} -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def insert(page: Path, name: str, content: str, section: str | None = None) -> None:
    """`content` into its block; where there is none, a new one at the end of the section."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if not block(name).search(text):
        end = f"<!-- further tables: {section} -->\n"
        if end not in text:
            raise UserError(f"{page}: has no <!-- table: {name} --> ... <!-- end -->; restore it")
        text = text.replace(end, f"<!-- table: {name} -->\n<!-- end -->\n\n{end}")
    text = block(name).sub(lambda match: f"{match[1]}\n{content}\n\n{match[3]}", text)
    (ROOT / page).write_text(text, encoding="utf-8")


def insert_tables(tables: dict[str, Measured], suffix: str) -> None:
    for name, table in tables.items():
        keep_bm3d(table, name + suffix)
        insert(LONG_PAGE, name + suffix, table.markdown(), "real" if suffix else "sample")
        table.write_csv(ROOT / "ckpts/tables" / f"{name}{suffix}.csv")
        print(f"{LONG_PAGE}: {name}{suffix}, {len(table.rows)} rows")


def keep_bm3d(table: Measured, name: str) -> None:
    """Rows of BM3D that `table` lacks, from what is on the page; see the docstring above."""
    path = ROOT / "ckpts/tables" / f"{name}.csv"
    match = block(name).search((ROOT / LONG_PAGE).read_text(encoding="utf-8"))
    inputs = sum(is_denoiser(row, "noisy input") for row, _ in table.rows)
    if not inputs or any(is_denoiser(row, "BM3D") for row, _ in table.rows):
        return
    before = read(match[2], path).rows if match and path.is_file() else []
    known = {
        tuple(row.items()): following
        for (row, _), following in pairwise(before)
        if is_denoiser(following[0], "BM3D")
    }
    rows, kept = [], 0
    for row in table.rows:
        rows.append(row)
        if (below := known.get(tuple(row[0].items()))) is not None:
            rows.append(below)
            kept += 1
    table.rows = rows
    print(f"{name}: BM3D not measured; taken over for {kept} of {inputs} noisy inputs")


def is_denoiser(row: CsvRow, name: str) -> bool:
    return row.get("denoiser", "").startswith(name)


SHORT = ("akld", ".3f"), ("corr_generated", ".3f"), ("std_ratio", ".3f"), ("ks", ".3f")


def short_table(rows: list[CsvRow]) -> str:
    """README.md's five columns of the noise table; AKLD with its interval."""
    real = float(rows[-1]["corr_real"])
    titles = "noise", "AKLD", f"correlation (real: {real:.3f})", "strength", "KS"
    lines = [f"| {' | '.join(titles)} |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        reference = row["reference"]
        cells = [row["noise"] + (" " if reference.startswith("(") else ", ") + reference]
        for key, spec in SHORT:
            value, *ends = (format(float(row[k]), spec) for k in keys_of(key, row))
            cells.append(f"{value} [{', '.join(ends)}]" if ends and key == "akld" else value)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def keys_of(key: str, row: CsvRow) -> list[str]:
    return [k for k in (key, f"{key}_low", f"{key}_high") if k in row]


# ------------------------------------------------------------------------------------- the weights


def weights_table(ckpts: Path) -> str:
    """Steps and minutes of each file's training, its checksum, and what transfer.json tells."""
    lines = ["| file | steps | minutes | sha256 |", "| --- | ---: | ---: | --- |"]
    for file in sorted(ckpts.rglob("*.pt")):
        budget = "- | -"  # fitted after the training, see the page's Commands
        if file.name != GAINS:
            steps, minutes = training(file)
            budget = f"{steps:,} | {minutes:.1f}"
        name = file.relative_to(ckpts).as_posix()
        lines.append(f"| `{name}` | {budget} | `{sha256(file)}` |")
    settings = json.loads((ckpts / "NT/transfer.json").read_text())
    patch = settings["reference_patch"]
    how = f"in patches of {patch} pixels" if patch else "whole"
    lines += ["", f"The generator in `NT/` embeds references {how}."]
    if "commit" in settings:  # of before, or of others
        width, numbers, commit = (settings[k] for k in ("width", "embed_dim", "commit"))
        lines[-1] += f" Width {width}, embeddings of {numbers} numbers, commit {commit}."
    return "\n".join(lines)


def training(file: Path) -> tuple[int, float]:
    """Steps and minutes, by the log beside the weights: `stats.jsonl` or `stats_<noise>.jsonl`.

    Its seconds start again where a run was resumed. The steps after the last line are known for
    the generator alone, from transfer.json.
    """
    _, denoiser, noise = re.fullmatch(r"((\w+?)(?:_([\w-]+))?_g|\w+)\.pt", file.name).groups()
    log = f"stats_{noise or 'noisetransfer'}.jsonl" if denoiser else "stats.jsonl"
    lines = [json.loads(line) for line in (file.parent / log).read_text().splitlines()]
    seconds = sum(
        a["seconds"] for a, b in pairwise([*lines, {"seconds": -1}]) if b["seconds"] < a["seconds"]
    )
    settings = file.parent / "transfer.json"
    known = json.loads(settings.read_text()) if settings.is_file() else {}
    return known.get("steps", lines[-1]["step"]), seconds / 60


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    if c.real:
        insert_tables(find_tables(list(c.real)), "_real")
    else:
        out = ROOT / "supp/readme"
        shutil.rmtree(out, ignore_errors=True)
        nothing = out / "test_images"  # hence the sample
        nothing.mkdir(parents=True)
        flags = ["--test-images", str(nothing), *(["--bm3d"] if c.bm3d else [])]
        supp_tbl.main([*SAMPLE, *flags, "--out", str(out)])
        insert_tables(find_tables([out]), "")
        insert(PAGE, "results", short_table(read_csv(ROOT / "ckpts/tables/noise.csv")))
        make_transfer.main([])
        make_akld.main()
        make_cost.main()
    insert(LONG_PAGE, "weights", weights_table(ROOT / "ckpts"))
    from figs import make_cards  # which imports this module

    make_cards.main()


if __name__ == "__main__":
    exit_on_user_error(main)
