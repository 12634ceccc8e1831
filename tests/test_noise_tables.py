"""Tables of a noise generator: which rows, of which images, and that they are their means."""

from pathlib import Path

import numpy as np
import pytest

from evaluation import noise_tables
from evaluation.baselines import BASELINES
from tests.test_tables import read_csv
from tests.tiny_evaluation import run


def test_cross_scene(here: Path, capsys: pytest.CaptureFixture):
    """The floor, then every model that needs no pair; of its own images, whatever there is."""
    run("--tables", "cross_scene")
    assert "is not there" not in capsys.readouterr().out
    rows = read_csv(here / "supp/tbl/cross_scene.csv")
    blind = [model.title for model in BASELINES.values() if not model.oracle]
    assert [r["noise"] for r in rows] == ["real, another draw", "NoiseTransfer", *blind]
    assert {(r["test_set"], r["images"]) for r in rows} == {("sample_scenes", "2")}
    images = read_csv(here / "supp/tbl/cross_scene_images.csv")
    for row in rows:
        own = [r for r in images if r["noise"] == row["noise"]]
        names = ["01_GP_00100_chelsea_1_to", "02_S6_03200_immunohistochemistry_0.35_to"]
        assert [r["image"].rpartition("_to")[0] + "_to" for r in own] == names
        for key in ("std_ratio", "nlf_worst", "mean_shift", "corr_vertical", "corr_vertical_real"):
            mean = np.mean([float(r[key]) for r in own])
            assert float(row[key]) == pytest.approx(mean, rel=1e-4)
    # white noise has no direction, the camera's has
    assert abs(float(rows[2]["corr_vertical"])) < 0.1 < float(rows[2]["corr_vertical_real"])
    run("--tables", "cross_scene", "--limit", "1", "--out", "one")
    assert len(read_csv(here / "one/cross_scene_images.csv")) == len(rows)


def test_known_noise(here: Path):
    """Rows by the reference's noise; scores from its images, one flat and two of BSDS500."""
    run("--tables", "known")
    rows = read_csv(here / "supp/tbl/known.csv")
    images = read_csv(here / "supp/tbl/known_images.csv")
    correlations = {f"Gaussian, sigma 25, corr. {r}": r for r in (0.2, 0.4, 0.6)}
    assert correlations.items() <= noise_tables.KNOWN_CORRELATIONS.items()
    assert [r["noise"] for r in rows] == list(noise_tables.KNOWN_NOISE)
    assert {(r["test_set"], r["images"]) for r in rows} == {("BSDS500", "3")}
    for row in rows:
        own = [r for r in images if r["noise"] == row["noise"]]
        assert [r["image"] for r in own] == ["flat_0.5", "test/1", "train/0"]
        assert row["std_ratio_flat"] == own[0]["std_ratio"] == own[0]["std_ratio_flat"]
        assert [r["std_ratio_flat"] for r in own[1:]] == ["nan", "nan"]
        for key in ("std_ratio", "akld", "akld_unpaired", "akld_cross", "akld_floor"):
            mean = np.mean([float(r[key]) for r in own])
            assert float(row[key]) == pytest.approx(mean, rel=1e-5)
        assert float(row["corr_real"]) == pytest.approx(correlations.get(row["noise"], 0), abs=0.15)
        assert len({own[0][f"akld{end}"] for end in ("", "_unpaired", "_cross", "_floor")}) == 4


def test_references_and_draws(here: Path):
    how = ("--tables", "noise", "--limit", "2")
    run(*how, "--protocols", "cross", "paired", "--out", "one")
    one = read_csv(here / "one/noise.csv")
    labels = [(r["noise"], r["reference"]) for r in one]
    assert labels[1:3] == [("NoiseTransfer", "cross"), ("NoiseTransfer", "paired")]
    assert len(labels) == 3 + len(BASELINES)
    run(*how, "--protocols", "paired", "--draws", "3", "--out", "three")
    three = read_csv(here / "three/noise.csv")
    assert [r["reference"] for r in three][:3] == ["(floor)", "paired", "paired"]
    assert three[0] == one[0]  # the floor is not drawn
    assert all(a["akld"] != b["akld"] for a, b in zip(three[1:], one[2:], strict=True))


def test_one_kind_of_noise_has_no_cross_references(here: Path, capsys: pytest.CaptureFixture):
    for path in (here / "test_images/real").glob("*/[12].png"):
        path.unlink()
    run("--tables", "noise", "--protocols", "paired", "cross")
    assert "real: one kind of noise only, no cross references\n" in capsys.readouterr().out
    found = [r["reference"] for r in read_csv(here / "supp/tbl/noise.csv")]
    assert found[:3] == ["(floor)", "paired", "paired"]
