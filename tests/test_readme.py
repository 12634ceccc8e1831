"""README: its Python runs on the shipped weights, its links lead somewhere, its sums are true."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import train_denoiser
import train_denoiser_synthetic
import train_noiseTransfer
from benchmarks import ablate
from evaluation import denoising_tables, noise_tables
from utils.checkpoint import sha256

ROOT = Path(__file__).parent.parent
TABLE_COLUMNS = {
    "noise": noise_tables.NOISE_COLUMNS,
    "known": noise_tables.KNOWN_COLUMNS,
    "cross_scene": noise_tables.SCENE_COLUMNS,
    "denoising": denoising_tables.DENOISING_COLUMNS,
    "synthetic": denoising_tables.SYNTHETIC_COLUMNS,
    "noise_real": noise_tables.NOISE_COLUMNS,
    "known_real": noise_tables.KNOWN_COLUMNS,
    "denoising_real": denoising_tables.DENOISING_COLUMNS,
    "synthetic_real": denoising_tables.SYNTHETIC_COLUMNS,
    "ablations": ablate.COLUMNS,
}


def test_python_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    names: dict = {}
    exec(code, names)
    noisy = names["noisy"]
    assert noisy.shape == (4, 3, 200, 300)
    assert noisy.min() >= 0
    assert noisy.max() <= 1


@pytest.mark.parametrize("page", ["README.md", "ckpts/README.md"])
def test_links(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        assert link.startswith("https://") or (path.parent / link).exists(), link


@pytest.mark.parametrize("name", TABLE_COLUMNS)
def test_tables_are_those_of_the_csv(name: str) -> None:
    """Every cell of the results, against the figures that supp_tbl.py wrote."""
    pages = (ROOT / "README.md").read_text() + (ROOT / "ckpts/README.md").read_text()
    block = re.search(rf"<!-- table: {name} -->(.*?)<!-- end -->", pages, re.DOTALL)[1]
    lines = [line.strip("| ").split(" | ") for line in re.findall(r"^\|.*\|$", block, re.M)]
    with open(ROOT / "ckpts/tables" / f"{name}.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # A CSV from before a column had its truth beside it has none to show.
    columns = [c if c.truth in rows[0] else replace(c, truth="") for c in TABLE_COLUMNS[name]]
    assert lines[0] == [column.title for column in columns]
    assert len(lines) == len(rows) + 2 > 2
    for cells, row in zip(lines[2:], rows, strict=True):
        numbers = {k: float(v) if re.fullmatch(NUMBER, v) else v for k, v in row.items()}
        for cell, column in zip(cells, columns, strict=True):
            if column.spec != "d" and column.spec:
                assert_same_figures(cell, column.cell(numbers))
            else:
                assert cell.strip() == row[column.key].strip()


NUMBER = r"-?\d+(\.\d+)?(e-?\d+)?|nan"


def assert_same_figures(shown: str, from_csv: str) -> None:
    """To half a unit of the last digit: the CSV has six digits, and may round another way."""
    ours, theirs = (re.findall(r"-?\d+\.\d+", text) for text in (shown, from_csv))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert abs(float(a) - float(b)) <= 1.01 * 10 ** -len(a.partition(".")[2])


def test_checksums_of_the_weights() -> None:
    rows = re.findall(
        r"^\| `(\S+\.pt)` .*`([0-9a-f]{64})` \|$", (ROOT / "ckpts/README.md").read_text(), re.M
    )
    assert {name for name, _ in rows} == {
        path.relative_to(ROOT / "ckpts").as_posix() for path in (ROOT / "ckpts").rglob("*.pt")
    }
    for name, expected in rows:
        assert sha256(ROOT / "ckpts" / name) == expected, name


def test_training_table_is_that_of_the_presets() -> None:
    text = (ROOT / "README.md").read_text()
    for script in (train_noiseTransfer, train_denoiser, train_denoiser_synthetic):
        rows = text.partition(f"| `{script.__name__}.py` | `paper`")[2]
        for preset, row in zip(("paper", "lite"), ("| `paper`" + rows).splitlines(), strict=False):
            c = script.Config(**script.PRESETS[preset])
            steps, lr = f"{c.epochs * c.steps_per_epoch:,}", f"{c.lr:.0e}".replace("e-0", "e-")
            settings = f"`{preset}` | {c.width} | {c.batch}, {c.patch} | {steps} | {lr}, "
            assert settings in row, script.__name__


def test_reference_patch_of_the_weights() -> None:
    patch = json.loads((ROOT / "ckpts/NT/transfer.json").read_text())["reference_patch"]
    for page in ("README.md", "ckpts/README.md"):
        assert f"in patches of {patch} pixels" in " ".join((ROOT / page).read_text().split())
