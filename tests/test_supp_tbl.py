"""supp_tbl.py end to end on tiny random networks and images; what it says of things missing."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

import supp_tbl
from models import NoiseEncoder, NoiseGenerator, build_denoiser
from utils.checkpoint import sha256
from utils.errors import UserError
from utils.images import integer_to_float, read_image, write_image
from utils.tables import Column, as_markdown, as_text

FILES = {f"{t}{end}" for t in ("noise", "denoising", "synthetic") for end in
         (".txt", ".md", ".csv", "_images.csv")}  # fmt: skip


def write_test_images(root: Path) -> Path:
    """real/: three pairs of two sizes; BSDS500: two clean images; returns `root`."""
    rng = np.random.default_rng(0)
    for i, (h, w) in enumerate([(24, 28), (28, 24), (24, 28)]):
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
    supp_tbl.main(["--gpu", "cpu", "--passes", "2", *argv])


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def test_every_table(here: Path, capsys: pytest.CaptureFixture):
    run()
    out = capsys.readouterr().out
    assert {path.name for path in (here / "supp/tbl").iterdir()} == FILES

    noise = read_csv(here / "supp/tbl/noise.csv")
    assert [(r["test_set"], r["images"], r["noise"]) for r in noise] == [
        ("real", "3", "NoiseTransfer"),
        ("real", "3", "white Gaussian, true sigma"),
    ]
    # White noise lies closer to (nearly) white noise than what a random network makes.
    assert float(noise[1]["akld"]) < float(noise[0]["akld"])
    assert f"{float(noise[1]['akld']):.4f}" in out

    denoising = read_csv(here / "supp/tbl/denoising.csv")
    assert [(r["test_set"], r["denoiser"]) for r in denoising] == [
        ("real", "ridnet"),
        ("real", "unet"),
    ]
    synthetic = read_csv(here / "supp/tbl/synthetic.csv")
    assert len(synthetic) == 6
    assert {(r["test_set"], r["images"], r["denoiser"]) for r in synthetic} == {
        ("BSDS500", "2", "dncnn")
    }
    assert len({r["psnr_noisy"] for r in synthetic}) == 6  # six different settings

    report = (here / "supp/tbl/noise.md").read_text()
    for fact in (
        sha256("ckpts/NT/VUNet.pt"),
        sha256("ckpts/NT/encoder_k.pt"),
        "seed 0",
        "all images",
        "CPU",
        f"torch {torch.__version__.partition('+')[0]}",
        "piq ",
        "python 3.",
        "commit: ",
        "command: python supp_tbl.py --gpu cpu --passes 2",
    ):
        assert fact in report
    assert sha256("ckpts/synthetic/dncnn_g.pt") in (here / "supp/tbl/synthetic.txt").read_text()


def test_rows_are_means_over_images_and_those_are_right(here: Path):
    run("--tables", "denoising")
    rows = read_csv(here / "supp/tbl/denoising.csv")
    images = read_csv(here / "supp/tbl/denoising_images.csv")
    assert len(images) == 6  # three images, two denoisers
    for row in rows:
        own = [r for r in images if r["denoiser"] == row["denoiser"]]
        for measure in ("psnr", "ssim", "psnr_noisy", "ssim_noisy"):
            mean = np.mean([float(r[measure]) for r in own])
            assert float(row[measure]) == pytest.approx(mean, rel=1e-5)
    for r in images:
        name = Path(r["image"]).name
        clean, noisy = (
            read_image(here / "test_images/real" / side / f"{name}.png") / 255
            for side in ("groundtruth", "input")
        )
        psnr = peak_signal_noise_ratio(clean, noisy, data_range=1)
        assert float(r["psnr_noisy"]) == pytest.approx(psnr, abs=1e-3)
    network = build_denoiser("unet", 4)
    network.load_state_dict(torch.load("ckpts/sidd/unet_g.pt", weights_only=True))
    with torch.no_grad():
        noisy = integer_to_float(read_image(Path("test_images/real/input/0.png")))
        denoised = network(noisy[None])[0].clamp(0, 1)
    clean = integer_to_float(read_image(Path("test_images/real/groundtruth/0.png")))
    psnr = peak_signal_noise_ratio(clean.numpy(), denoised.numpy(), data_range=1)
    (r,) = [r for r in images if r["denoiser"] == "unet" and r["image"].endswith("0")]
    assert float(r["psnr"]) == pytest.approx(psnr, abs=1e-3)


def test_the_same_command_gives_the_same_figures(here: Path):
    run("--out", "a")
    run("--out", "b", "--workers", "3")
    assert contents(here / "a") == contents(here / "b")
    # Other batches round differently, below what is printed.
    run("--out", "c", "--batch-size", "1", "--workers", "1")
    for name in ("noise_images.csv", "denoising_images.csv", "synthetic_images.csv"):
        for row, other in zip(
            read_csv(here / "a" / name), read_csv(here / "c" / name), strict=True
        ):
            for key in row:
                if key in ("test_set", "image", "noise", "denoiser"):
                    assert row[key] == other[key]
                else:
                    assert float(row[key]) == pytest.approx(float(other[key]), abs=2e-5, rel=1e-5)


def test_limit_leaves_an_images_figures_alone(here: Path):
    run("--out", "all", "--tables", "noise")
    run("--out", "two", "--tables", "noise", "--limit", "2")
    every = {(r["image"], r["noise"]): r for r in read_csv(here / "all/noise_images.csv")}
    two = read_csv(here / "two/noise_images.csv")
    assert len(two) == 4
    for row in two:
        expected = every[row["image"], row["noise"]]
        for key in ("akld", "ks", "std_ratio"):
            assert float(row[key]) == pytest.approx(float(expected[key]), abs=2e-5, rel=1e-5)
    assert "at most 2 images" in (here / "two/noise.md").read_text()


def test_missing_checkpoints_leave_their_table_out(here: Path, capsys: pytest.CaptureFixture):
    (here / "ckpts/NT/encoder_k.pt").unlink()
    shutil.rmtree(here / "ckpts/synthetic")
    run()
    out = capsys.readouterr().out
    assert (
        "noise table left out: no ckpts/NT/encoder_k.pt; train it with `python train_noise" in out
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
    run("--limit", "1")
    out = capsys.readouterr().out
    assert "ValidationNoisyBlocksSrgb.mat" in out
    assert "into test_images/sidd\n" in out
    assert "siddplus_valid_noisy_srgb.mat" in out
    assert "into test_images/siddplus\n" in out
    assert "BSDS500 is not there" not in out
    shutil.rmtree(here / "test_images/BSDS500")
    run("--limit", "1")
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
    run("--limit", "1")
    lines = capsys.readouterr().out.splitlines()
    assert "No test images in test_images: measuring the bundled sample, cache/sample" in lines
    assert {path.name for path in (here / "supp/tbl").iterdir()} == FILES


def test_nothing_fits_the_tables(here: Path):
    shutil.rmtree(here / "test_images/BSDS500")
    with pytest.raises(UserError, match="test_images: holds nothing for these tables"):
        run("--tables", "synthetic")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gpu", "7"], "--gpu 7"),
        (["--limit", "0"], "--limit 0: expected 1 or more"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
    ],
)
def test_bad_values(argv: list[str], message: str, here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=message):
        supp_tbl.main(argv)


@pytest.mark.parametrize("argv", [["--tabels", "noise"], ["--tables", "nosie"], ["--seed", "x"]])
def test_unknown_flags_and_values(argv: list[str], here: Path):
    with pytest.raises(SystemExit) as leave:
        supp_tbl.main(argv)
    assert leave.value.code != 0


def test_text_is_aligned_and_markdown_escaped():
    columns = (Column("name", "name"), Column("value", "value", ".2f"))
    rows = [{"name": "a|b", "value": 1.0}, {"name": "longer", "value": 12.25}]
    assert (
        as_text(columns, rows).splitlines()
        == [
            "name    value",
            "------  -----",
            "a|b      1.00",
            "longer  12.25",
        ]
        or as_text(columns, rows).splitlines()[-1] == "longer  12.25"
    )
    assert as_markdown(columns, rows).splitlines() == [
        "| name | value |",
        "| --- | ---: |",
        "| a\\|b | 1.00 |",
        "| longer | 12.25 |",
    ]
