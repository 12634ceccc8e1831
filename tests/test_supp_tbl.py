"""supp_tbl.py end to end on tiny random networks and images; what it says of things missing.

Tables as such, and what is in their files: test_tables.py; what they hold: test_noise_tables.py and
test_denoising_tables.py.
"""

import shutil
from pathlib import Path

import pytest
import torch

import evaluation.sources
import supp_tbl
from evaluation.baselines import BASELINES
from tests.test_tables import read_csv
from tests.tiny_evaluation import run, write_test_images
from utils.checkpoint import sha256
from utils.errors import UserError

TABLES = ("noise", "cross_scene", "known", "denoising", "synthetic")
FILES = {f"{t}{end}" for t in TABLES for end in (".txt", ".md", ".tex", ".csv", "_images.csv")}
LABELS = {"test_set", "image", "noise", "reference", "denoiser", "trained_on"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def same_scores(rows: list[dict[str, str]], others: list[dict[str, str]]) -> None:
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
    assert labels[4:] == [
        (b.title, "(the pair)" if b.title in oracles else "paired") for b in BASELINES.values()
    ]
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


def test_the_same_command_gives_the_same_scores(here: Path):
    tables = ("--tables", "noise", "denoising", "synthetic")
    run(*tables, "--out", "a")
    run(*tables, "--out", "b", "--workers", "3")
    assert contents(here / "a") == contents(here / "b")
    run(*tables, "--out", "c", "--batch-size", "1", "--workers", "1")
    for name in ("noise_images.csv", "denoising_images.csv", "synthetic_images.csv"):
        same_scores(read_csv(here / "a" / name), read_csv(here / "c" / name))


def test_limit_leaves_an_images_scores_alone(here: Path):
    run("--out", "all", "--tables", "noise")
    run("--out", "two", "--tables", "noise", "--limit", "2")
    every, two = (read_csv(here / out / "noise_images.csv") for out in ("all", "two"))
    assert len(two) == 2 * (4 + len(BASELINES))
    same_scores(two, [r for r in every if r["image"] != "2"])
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

    monkeypatch.setattr(evaluation.sources, "write_sample", write_sample)
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


@pytest.mark.parametrize("argv", ["--tabels noise", "--tables nosie", "--protocols x"])
def test_unknown_flags_and_values(argv: str, here: Path):
    with pytest.raises(SystemExit) as leave:
        supp_tbl.main(argv.split())
    assert leave.value.code != 0
