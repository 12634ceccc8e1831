"""supp_tbl.py end to end on tiny random networks and images; what it says of things missing.

Tables as such, and what is in their files: test_tables.py.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

import data.cross_scene
import supp_tbl
from data.cross_scene import PAIRS
from data.sample import Area
from models import NoiseEncoder, NoiseGenerator, build_denoiser
from models.baselines import BASELINES
from tests.test_tables import read_csv
from utils.checkpoint import sha256
from utils.errors import UserError
from utils.images import integer_to_float, read_image, write_image
from utils.protocols import KnownNoise

TABLES = ("noise", "cross_scene", "known", "denoising", "synthetic")
FILES = {f"{t}{end}" for t in TABLES for end in (".txt", ".md", ".tex", ".csv", "_images.csv")}
LABELS = {"test_set", "image", "noise", "reference", "denoiser", "trained_on"}


@pytest.fixture(autouse=True, scope="module")
def quick(shallow: None) -> Iterator[None]:
    """One flat image and two pairs of scenes, of 32x32: nothing here depends on how many."""

    def small(area: Area) -> Area:
        return area._replace(height=32, width=32)

    pairs = [p._replace(reference=small(p.reference), target=small(p.target)) for p in PAIRS[:2]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.cross_scene, "PAIRS", pairs)
        patch.setattr(KnownNoise, "FLAT", (0.5,))
        yield


def write_test_images(root: Path) -> Path:
    """real/: three pairs of two sizes; BSDS500: two clean images; returns `root`."""
    rng = np.random.default_rng(0)
    for i, (h, w) in enumerate([(24, 36), (36, 24), (24, 36)]):
        clean = rng.integers(60, 190, (1, 1, 3)) + np.arange(w)[:, None] * np.ones((h, 1, 1))
        noisy = clean + 12 * rng.standard_normal(clean.shape)
        for side, image in (("groundtruth", clean), ("input", noisy)):
            image = image.round().clip(0, 255).astype(np.uint8)
            write_image(root / "real" / side / f"{i}.png", image)
        if i < 2:
            folder = root / "BSDS500/data/images" / ("train", "test")[i]
            write_image(folder / f"{i}.png", clean.round().astype(np.uint8))
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with random networks in ckpts/ and images in test_images/."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    networks = {
        "NT/VUNet.pt": NoiseGenerator(4, 8),
        "NT/encoder_q.pt": NoiseEncoder(4, 8),
        "NT/encoder_k.pt": NoiseEncoder(4, 8),
        "sidd/ridnet_g.pt": build_denoiser("ridnet", 4),
        "sidd/unet_g.pt": build_denoiser("unet", 4),
        "synthetic/dncnn_g.pt": build_denoiser("dncnn", 4),
    }
    for name, network in networks.items():
        path = tmp_path / "ckpts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), path)
    write_test_images(tmp_path / "test_images")
    return tmp_path


def run(*argv: str) -> None:
    supp_tbl.main(["--gpu", "cpu", "--passes", "2", "--no-report", *argv])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def same_figures(rows: list[dict[str, str]], others: list[dict[str, str]]) -> None:
    """Other batches round differently, below what is printed; of histograms, a pixel that rounding
    takes to the next bin counts 1 / (3 * 24 * 36) = 4e-4."""
    for row, other in zip(rows, others, strict=True):
        assert [row.get(key) for key in LABELS] == [other.get(key) for key in LABELS]
        for key in row.keys() - LABELS:
            atol = 1e-3 if key in ("ks", "kld", "kld_tails") else 2e-5
            close = pytest.approx(float(other[key]), abs=atol, rel=1e-5, nan_ok=True)
            assert float(row[key]) == close, key


def test_every_table(here: Path, capsys: pytest.CaptureFixture):
    run("--report")
    out = capsys.readouterr().out
    assert {path.name for path in (here / "supp/tbl").iterdir()} == FILES | {"report.html"}

    noise = read_csv(here / "supp/tbl/noise.csv")
    assert {(r["test_set"], r["images"]) for r in noise} == {("real", "3")}
    labels = [(r["noise"], r["reference"]) for r in noise]
    protocols = [("NoiseTransfer", p) for p in ("paired", "unpaired", "cross")]
    assert labels[:4] == [("real, another draw", "(floor)"), *protocols]
    oracles = {"white Gaussian, true sigma", "Poisson-Gaussian, fitted to the pair"}
    assert labels[4:] == [(b, "(the pair)" if b in oracles else "paired") for b in BASELINES]
    paired, white = noise[1], noise[-2]
    # White noise lies closer to (nearly) white noise than what a random network makes.
    assert float(white["akld"]) < float(paired["akld"])
    assert float(white["std_ratio"]) == pytest.approx(1, abs=0.1)
    cells = [f"{float(white[key]):.3f}" for key in ("akld", "akld_low", "akld_high")]
    assert f"{cells[0]} [{cells[1]}, {cells[2]}]" in out

    synthetic = read_csv(here / "supp/tbl/synthetic.csv")
    titles = [("noisy input", ""), ("dncnn", "NoiseTransfer")]
    assert [(r["denoiser"], r["trained_on"]) for r in synthetic] == 6 * titles
    assert {(r["test_set"], r["images"]) for r in synthetic} == {("BSDS500", "2")}
    assert len({r["psnr"] for r in synthetic[::2]}) == 6  # six different settings

    page = (here / "supp/tbl/report.html").read_text()
    texts = "Generated against real noise", "Noise of another scene", "reference&#x27;s is known"
    for text in (*texts, "Denoising of real"):
        assert text in page
    assert sha256("ckpts/synthetic/dncnn_g.pt") in (here / "supp/tbl/synthetic.txt").read_text()

    report = (here / "supp/tbl/noise.md").read_text()
    facts = [sha256(f"ckpts/NT/{name}.pt") for name in ("VUNet", "encoder_k")]
    facts += ["seed 0", "all images", "CPU", "piq ", "python 3.", "commit: "]
    facts += [f"torch {torch.__version__.partition('+')[0]}"]
    for fact in (*facts, "command: python supp_tbl.py --gpu cpu --passes 2 --no-report --report"):
        assert fact in report


def test_cross_scene(here: Path, capsys: pytest.CaptureFixture):
    """The floor, then every model that needs no pair; of its own images, whatever there is."""
    run("--tables", "cross_scene")
    assert "is not there" not in capsys.readouterr().out
    rows = read_csv(here / "supp/tbl/cross_scene.csv")
    blind = [name for name, model in BASELINES.items() if not model.oracle]
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
    """Rows by the reference's noise; figures from its images, one flat and two of BSDS500."""
    run("--tables", "known")
    rows = read_csv(here / "supp/tbl/known.csv")
    images = read_csv(here / "supp/tbl/known_images.csv")
    correlations = {f"Gaussian, sigma 25, corr. {r}": r for r in (0.2, 0.4, 0.6)}
    assert correlations.items() <= supp_tbl.KNOWN_CORRELATIONS.items()
    assert [r["noise"] for r in rows] == list(supp_tbl.KNOWN_NOISE)
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


def test_rows_are_means_over_images_and_those_are_right(here: Path):
    run("--tables", "denoising")
    rows = read_csv(here / "supp/tbl/denoising.csv")
    images = read_csv(here / "supp/tbl/denoising_images.csv")
    assert [r["denoiser"] for r in rows] == ["noisy input", "ridnet", "unet"]
    assert len(images) == 9  # three images, the input and two denoisers
    for row in rows:
        own = [r for r in images if r["denoiser"] == row["denoiser"]]
        for measure in ("psnr", "ssim"):
            mean = np.mean([float(r[measure]) for r in own])
            assert float(row[measure]) == pytest.approx(mean, rel=1e-5)
    network = build_denoiser("unet", 4)
    network.load_state_dict(torch.load("ckpts/sidd/unet_g.pt", weights_only=True))
    for i in range(3):
        clean, noisy = (
            integer_to_float(read_image(here / "test_images/real" / side / f"{i}.png"))
            for side in ("groundtruth", "input")
        )
        with torch.no_grad():
            denoised = network(noisy[None])[0].clamp(0, 1)
        for title, image in (("noisy input", noisy), ("unet", denoised)):
            psnr = peak_signal_noise_ratio(clean.numpy(), image.numpy(), data_range=1)
            (r,) = [r for r in images if r["denoiser"] == title and r["image"] == str(i)]
            assert float(r["psnr"]) == pytest.approx(psnr, abs=1e-3)


def test_denoisers_by_what_they_were_trained_on(here: Path):
    """PGap: below the PSNR of the one trained on real pairs, of the same architecture."""
    for noise in ("real", "gaussian", "poisson-gaussian"):
        torch.save(build_denoiser("ridnet", 4).state_dict(), f"ckpts/sidd/ridnet_{noise}_g.pt")
    run("--tables", "denoising")
    rows = read_csv(here / "supp/tbl/denoising.csv")
    by_title = {(r["denoiser"], r["trained_on"]): r for r in rows}
    noises = ("NoiseTransfer", "real pairs", "white Gaussian, blind", "Poisson-Gaussian, blind")
    ridnets = {("ridnet", noise) for noise in noises}
    assert by_title.keys() == {("noisy input", ""), ("unet", "NoiseTransfer")} | ridnets
    real = float(by_title["ridnet", "real pairs"]["psnr"])
    for (architecture, _), row in by_title.items():
        gap = real - float(row["psnr"]) if architecture == "ridnet" else np.nan
        assert float(row["pgap"]) == pytest.approx(gap, abs=1e-4, nan_ok=True)
    assert by_title["ridnet", "real pairs"]["pgap"] == "0"
    assert by_title["ridnet", "NoiseTransfer"]["pgap"] != "0"


def test_bm3d_is_a_row_where_it_is_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch):
    # The package is free for research alone, hence no requirement: a stand-in, the identity.
    package = SimpleNamespace(bm3d_rgb=lambda image, sigma: image)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bm3d", package)
        run("--tables", "denoising", "synthetic", "--bm3d")
    for table in ("denoising", "synthetic"):
        rows = read_csv(here / f"supp/tbl/{table}.csv")
        psnr = {
            name: [r["psnr"] for r in rows if r["denoiser"] == name]
            for name in ("BM3D, blind", "noisy input")
        }
        assert psnr["BM3D, blind"] == psnr["noisy input"]
        assert len(psnr["BM3D, blind"]) == {"denoising": 1, "synthetic": 6}[table]
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(UserError, match="the package bm3d is missing; pip install bm3d"):
        run("--tables", "denoising", "--bm3d")


def test_references_and_draws(here: Path):
    how = ("--tables", "noise", "--limit", "2")
    run(*how, "--references", "cross", "paired", "--out", "one")
    one = read_csv(here / "one/noise.csv")
    labels = [(r["noise"], r["reference"]) for r in one]
    assert labels[1:3] == [("NoiseTransfer", "cross"), ("NoiseTransfer", "paired")]
    assert len(labels) == 3 + len(BASELINES)
    run(*how, "--references", "paired", "--draws", "3", "--out", "three")
    three = read_csv(here / "three/noise.csv")
    assert [r["reference"] for r in three][:3] == ["(floor)", "paired", "paired"]
    assert three[0] == one[0]  # the floor is not drawn
    assert all(a["akld"] != b["akld"] for a, b in zip(three[1:], one[2:], strict=True))


def test_one_kind_of_noise_has_no_cross_references(here: Path, capsys: pytest.CaptureFixture):
    for path in (here / "test_images/real").glob("*/[12].png"):
        path.unlink()
    run("--tables", "noise", "--references", "paired", "cross")
    assert "real: one kind of noise only, no cross references\n" in capsys.readouterr().out
    found = [r["reference"] for r in read_csv(here / "supp/tbl/noise.csv")]
    assert found[:3] == ["(floor)", "paired", "paired"]


def test_the_same_command_gives_the_same_figures(here: Path):
    tables = ("--tables", "noise", "denoising", "synthetic")
    run(*tables, "--out", "a")
    run(*tables, "--out", "b", "--workers", "3")
    assert contents(here / "a") == contents(here / "b")
    run(*tables, "--out", "c", "--batch-size", "1", "--workers", "1")
    for name in ("noise_images.csv", "denoising_images.csv", "synthetic_images.csv"):
        same_figures(read_csv(here / "a" / name), read_csv(here / "c" / name))


def test_limit_leaves_an_images_figures_alone(here: Path):
    run("--out", "all", "--tables", "noise")
    run("--out", "two", "--tables", "noise", "--limit", "2")
    every, two = (read_csv(here / out / "noise_images.csv") for out in ("all", "two"))
    assert len(two) == 2 * (4 + len(BASELINES))
    same_figures(two, [r for r in every if r["image"] != "2"])
    assert "at most 2 images" in (here / "two/noise.md").read_text()


def test_missing_checkpoints_leave_their_table_out(here: Path, capsys: pytest.CaptureFixture):
    (here / "ckpts/NT/encoder_k.pt").unlink()
    shutil.rmtree(here / "ckpts/synthetic")
    run()
    out = capsys.readouterr().out
    assert (
        "cross_scene and known tables left out: no ckpts/NT/encoder_k.pt; train it with `py" in out
    )
    assert "synthetic table left out: no ckpts/synthetic/ridnet_g.pt; train it with" in out
    assert {path.stem for path in (here / "supp/tbl").glob("*.md")} == {"denoising"}


def test_no_checkpoints_at_all(here: Path, capsys: pytest.CaptureFixture):
    shutil.rmtree(here / "ckpts")
    with pytest.raises(UserError, match="no checkpoints"):
        run()
    out = capsys.readouterr().out
    for script in ("noiseTransfer", "denoiser", "denoiser_synthetic"):
        assert f"python train_{script}.py" in out


def test_damaged_checkpoint_is_named_before_anything_is_measured(here: Path):
    (here / "ckpts/synthetic/dncnn_g.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match=r"ckpts/synthetic/dncnn_g\.pt"):
        run()
    assert not (here / "supp").exists()


def test_absent_published_sets_are_named(here: Path, capsys: pytest.CaptureFixture):
    how = ("--limit", "1", "--tables", "denoising", "synthetic")
    run(*how)
    out = capsys.readouterr().out
    assert "ValidationNoisyBlocksSrgb.mat" in out
    assert "into test_images/sidd\n" in out
    assert "siddplus_valid_noisy_srgb.mat" in out
    assert "into test_images/siddplus\n" in out
    assert "BSDS500 is not there" not in out
    shutil.rmtree(here / "test_images/BSDS500")
    run(*how)
    out = capsys.readouterr().out
    assert "BSDS500 is not there" in out
    assert "test_images/BSDS500/data/images" in out


def test_without_test_images_the_sample_is_measured(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def write_sample(root: Path, seed: int) -> Path:
        write_test_images(root / "test_images")
        return root

    monkeypatch.setattr(supp_tbl, "write_sample", write_sample)
    shutil.rmtree(here / "test_images")
    run("--limit", "1", "--tables", "noise", "denoising", "synthetic")
    lines = capsys.readouterr().out.splitlines()
    assert "No test images in test_images: measuring the bundled sample, cache/sample" in lines
    assert {path.stem for path in (here / "supp/tbl").glob("*.md")} == {
        "noise",
        "denoising",
        "synthetic",
    }


def test_nothing_fits_the_tables(here: Path):
    shutil.rmtree(here / "test_images/BSDS500")
    for table in ("synthetic", "known"):
        with pytest.raises(UserError, match="test_images: holds nothing for these tables"):
            run("--tables", table)
    write_test_images(here / "test_images")
    shutil.rmtree(here / "test_images/real")
    for table in ("noise", "denoising"):
        with pytest.raises(UserError, match="test_images: holds nothing for these tables"):
            run("--tables", table)
    assert not (here / "supp").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gpu", "7"], "--gpu 7"),
        (["--limit", "0"], "--limit 0: expected 1 or more"),
        (["--draws", "0"], "--draws 0: expected 1 or more"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
    ],
)
def test_bad_values(argv: list[str], message: str, here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=message):
        supp_tbl.main(argv)


@pytest.mark.parametrize("argv", ["--tabels noise", "--tables nosie", "--references x"])
def test_unknown_flags_and_values(argv: str, here: Path):
    with pytest.raises(SystemExit) as leave:
        supp_tbl.main(argv.split())
    assert leave.value.code != 0
