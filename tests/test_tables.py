"""Tables as text, Markdown, LaTeX and CSV; intervals against theory."""

import csv
import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from evaluation.tables import (
    Column,
    Table,
    as_latex,
    as_markdown,
    as_text,
    latex_escaped,
    mean_interval,
)
from tests.test_image_sets import Photos
from utils.errors import UserError

NAN = float("nan")
COLUMNS = (
    Column("test_set", "test set"),
    Column("images", "images", "d"),
    Column("noise", "noise & co"),
    Column("akld", "AKLD", ".3f", interval=True),
    Column("std_ratio", "std ratio", ".2f"),
)
FIGURES = {
    "akld": np.array([0.1, 0.2, 0.6, 0.3]),
    "std_ratio": np.array([1.0, NAN, 0.5, 0.25]),
    "ks": np.array([0.1, 0.2, 0.3, 0.4]),  # of no column
}


def filled() -> Table:
    table = Table("noise", "Noise, 95% intervals", COLUMNS)
    photos = Photos(*[(20, 20)] * 4)
    table.add(photos, {"noise": "100% a_b"}, FIGURES)
    nothing = {**FIGURES, "std_ratio": np.full(4, NAN)}
    table.add(photos, {"noise": "white"}, nothing, names=["w", "x", "y", "z"])
    one = {name: values[:1] for name, values in FIGURES.items()}
    table.add(photos, {"noise": "one"}, one)
    return table


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("n", [400, 2000])
def test_interval_of_many_images_is_that_of_the_normal_distribution(n: int) -> None:
    """mean +- 1.960 s / sqrt(n). A quantile at 2.5 % of 9999 resamples has a standard error of
    sqrt(0.025 * 0.975 / 9999) / 0.0584 = 0.027 s / sqrt(n), the density there being 0.0584; 5 of
    them."""
    values = np.random.default_rng(n).normal(3, 2, n)
    error = values.std() / math.sqrt(n)
    for end, sign in zip(mean_interval(values), (-1, 1), strict=True):
        assert end == pytest.approx(values.mean() + sign * 1.960 * error, abs=0.134 * error)


def test_interval_of_skewed_figures_is_the_bootstraps_not_symmetric() -> None:
    """The mean of ten values that are 1 with p 0.1, else 0: resampled counts are binomial (10,
    0.1), whose 2.5 % and 97.5 % quantiles are 0 and 3."""
    values = np.zeros(10)
    values[0] = 1
    assert mean_interval(values) == (0.0, pytest.approx(0.3))


def test_interval_of_few_images_and_of_equal_ones() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(math.isnan(end) for n in (0, 1) for end in mean_interval(np.ones(n)))
        assert all(math.isnan(end) for end in mean_interval(np.array([NAN, 1, NAN])))
        assert mean_interval(np.full(5, 0.7)) == (0.7, 0.7)


def test_images_without_a_figure_are_left_out_of_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    holes = np.insert(values, [0, 20, 50], NAN)
    assert mean_interval(holes) == mean_interval(values) == mean_interval(values)


# ----------------------------------------------------------------------------------------- rows


def test_rows_are_means_with_their_interval() -> None:
    first, nothing, one = filled().rows
    assert (first["test_set"], first["images"], first["noise"]) == ("Photos", 4, "100% a_b")
    assert first["akld"] == pytest.approx(0.3)
    assert (first["akld_low"], first["akld_high"]) == mean_interval(FIGURES["akld"])
    assert 0.1 < first["akld_low"] < 0.3 < first["akld_high"] < 0.6
    assert first["std_ratio"] == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert math.isnan(nothing["std_ratio"])
    assert one["images"] == 1
    assert math.isnan(one["akld_low"])


def test_images_go_by_their_names() -> None:
    images = filled().images
    names = ["photo0", "photo1", "photo2", "photo3", "w", "x", "y", "z", "photo0"]
    assert [row["image"] for row in images] == names
    assert [row["akld"] for row in images] == [0.1, 0.2, 0.6, 0.3, 0.1, 0.2, 0.6, 0.3, 0.1]


# ----------------------------------------------------------------------------------------- text


def test_text_is_aligned_and_markdown_escaped() -> None:
    columns = (Column("name", "name"), Column("value", "value", ".2f"))
    rows = [{"name": "a|b", "value": 1.0}, {"name": "longer", "value": 12.25}]
    assert as_text(columns, rows).splitlines() == [
        "name    value",
        "------  -----",
        "a|b      1.00",
        "longer  12.25",
    ]
    assert as_markdown(columns, rows).splitlines() == [
        "| name | value |",
        "| --- | ---: |",
        "| a\\|b | 1.00 |",
        "| longer | 12.25 |",
    ]


def test_cells_show_intervals_and_a_dash_for_no_figure() -> None:
    column = Column("akld", "AKLD", ".2f", interval=True)
    assert column.cell({"akld": 0.123, "akld_low": 0.1, "akld_high": 0.25}) == "0.12 [0.10, 0.25]"
    assert column.cell({"akld": 0.123, "akld_low": NAN, "akld_high": NAN}) == "0.12 [-, -]"
    assert Column("akld", "AKLD", ".2f").cell({"akld": NAN}) == "-"
    assert Column("images", "images", "d").cell({"images": 7}) == "7"
    beside = Column("corr", "corr.", ".2f", truth="corr_real")
    assert beside.cell({"corr": 0.404, "corr_real": 0.5}) == "0.40 / 0.50"
    assert filled().text().splitlines()[5].endswith("  -")  # "white", std ratio


# ---------------------------------------------------------------------------------------- LaTeX


def test_latex_specials_are_escaped() -> None:
    assert latex_escaped("AKLD 0.07, a/b [1, 2]") == "AKLD 0.07, a/b [1, 2]"
    assert latex_escaped("100% a_b & #1 $x$ {y}") == r"100\% a\_b \& \#1 \$x\$ \{y\}"
    assert latex_escaped("\\~^") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}"


def test_latex_is_a_booktabs_table_with_a_cell_a_column() -> None:
    table = filled()
    lines = as_latex(table, ["seed 0", "command: python supp_tbl.py"]).splitlines()
    assert lines[:2] == ["% seed 0", "% command: python supp_tbl.py"]
    frame = [line for line in lines if line.startswith("\\")]
    assert frame == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Noise, 95\% intervals}",
        r"\begin{tabular}{lrlrr}",
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    assert body.pop(1) == r"\midrule"
    cells = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in body]
    assert all(line.endswith(r" \\") for line in body)
    assert [len(row) for row in cells] == [5] * 4
    assert cells[0] == ["test set", "images", r"noise \& co", "AKLD", "std ratio"]
    assert cells[1][:3] == ["Photos", "4", r"100\% a\_b"]
    assert re.fullmatch(r"0\.300 \[0\.\d{3}, 0\.\d{3}\]", cells[1][3])
    assert cells[2][4] == "-"


# ---------------------------------------------------------------------------------------- files


def test_files(tmp_path: Path) -> None:
    table = filled()
    table.write(tmp_path / "a/b", ["seed 0", "at most 4 images"])
    folder = tmp_path / "a/b"
    names = {"noise.txt", "noise.md", "noise.tex", "noise.csv", "noise_images.csv"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "noise.tex").read_text() == as_latex(table, ["seed 0", "at most 4 images"])
    for name in ("noise.txt", "noise.md"):
        text = (folder / name).read_text()
        assert table.title in text
        assert "seed 0\n" in text
        assert f"{table.rows[0]['akld_low']:.3f}" in text


def test_csv_has_the_ends_of_the_interval_in_columns_of_their_own(tmp_path: Path) -> None:
    table = filled()
    table.write(tmp_path, [])
    rows = read_csv(tmp_path / "noise.csv")
    header = ["test_set", "images", "noise", "akld", "akld_low", "akld_high", "std_ratio"]
    assert list(rows[0]) == header
    for row, expected in zip(rows, table.rows, strict=True):
        assert (row["images"], row["noise"]) == (str(expected["images"]), expected["noise"])
        for key in header[3:]:
            assert float(row[key]) == pytest.approx(expected[key], rel=1e-5, nan_ok=True)
    images = read_csv(tmp_path / "noise_images.csv")
    assert list(images[0]) == ["test_set", "image", "noise", "akld", "std_ratio"]
    assert [row["image"] for row in images][3:6] == ["photo3", "w", "x"]
    assert [row["std_ratio"] for row in images][:4] == ["1", "nan", "0.5", "0.25"]


def test_csv_has_the_truth_in_a_column_of_its_own(tmp_path: Path) -> None:
    """In both files; an interval is the rows' alone."""
    akld = Column("akld", "AKLD", ".3f", interval=True)
    table = Table("corr", "Corr.", (*COLUMNS[:2], akld, Column("a", "a", ".1f", truth="b")))
    values = {"akld": np.array([1.0, 2.0]), "a": np.array([0.5, 1.0]), "b": np.array([3.0, 4.0])}
    table.add(Photos((20, 20), (20, 20)), {}, values)
    table.write(tmp_path, [])
    (row,) = read_csv(tmp_path / "corr.csv")
    assert list(row) == ["test_set", "images", "akld", "akld_low", "akld_high", "a", "b"]
    assert (row["a"], row["b"]) == ("0.75", "3.5")
    images = read_csv(tmp_path / "corr_images.csv")
    assert list(images[0]) == ["test_set", "image", "akld", "a", "b"]
    assert [r["b"] for r in images] == ["3", "4"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/\S+: cannot be written .*another output folder"):
        filled().write(tmp_path / "file", [])
