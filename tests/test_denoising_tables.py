"""Tables of denoisers: which rows, of which images, PGap, BM3D."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

import train_denoiser
from evaluation.denoising_tables import TRAINED_ON
from models import build_denoiser
from tests.test_tables import read_csv
from tests.tiny_evaluation import run
from utils.errors import UserError
from utils.images import integer_to_float, read_image


def test_rows_are_means_over_images_and_those_are_right(here: Path):
    run("--tables", "denoising")
    rows = read_csv(here / "supp/tbl/denoising.csv")
    images = read_csv(here / "supp/tbl/denoising_images.csv")
    assert [r["denoiser"] for r in rows] == [
        "noisy input",
        "non-local means, blind",
        "ridnet",
        "unet",
    ]
    assert len(images) == 12  # three images; the input, non-local means and two denoisers
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
    others = {("noisy input", ""), ("non-local means, blind", ""), ("unet", "NoiseTransfer")}
    assert by_title.keys() == others | ridnets
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


def test_titles_of_what_denoisers_are_trained_on():
    """As README's and earlier tables call them; every --noise has one."""
    assert TRAINED_ON == {
        "noisetransfer": "NoiseTransfer",
        "gaussian": "white Gaussian, blind",
        "poisson-gaussian": "Poisson-Gaussian, blind",
        "real": "real pairs",
    }
    assert set(get_args(get_type_hints(train_denoiser.Config)["noise"])) == set(TRAINED_ON)
