"""Every table of the evaluation, from checkpoints (paper, Sec. 4; the measures: utils/metrics.py).

    python supp_tbl.py --gpu 0
    python supp_tbl.py --tables noise --limit 4         # a quick look

Every test set below `test_images/` is a row: real pairs in the tables `noise` and `denoising`,
clean images in `synthetic`. Without any, the bundled sample is measured. Tables are printed and
written to `supp/tbl/`: <table>.txt, .md and .csv, and <table>_images.csv with every image. The same
command gives the same figures, whatever the batch size or number of workers, in float32 throughout.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from data.folders import CleanTestSet, PairedTestSet, find_test_sets
from data.noise import NoiseModelDistribution
from data.sample import write_sample
from data.sidd import VALIDATION_SETS
from models.noise_transfer import NoiseTransfer
from utils.checkpoint import sha256
from utils.config import choose_device, parse, provenance
from utils.errors import UserError, exit_on_user_error
from utils.evaluation import (
    WORKERS,
    denoiser_from_checkpoint,
    evaluate_denoiser,
    evaluate_transfer,
    white_gaussian,
)
from utils.tables import Column, Table


@dataclass(frozen=True)
class Config:
    """Print and write every table of the evaluation, from checkpoints."""

    gpu: str = "0"
    """CUDA device number (of a list such as 0,1 the first is used), or cpu."""
    tables: tuple[Literal["noise", "denoising", "synthetic"], ...] = (
        "noise",
        "denoising",
        "synthetic",
    )
    """Which tables to make."""
    nt: Path = Path("ckpts/NT")
    """Noise generator: folder of VUNet.pt and encoder_k.pt."""
    sidd: Path = Path("ckpts/sidd")
    """Denoisers of real noise: folder of ridnet_g.pt; every *_g.pt in it is a row."""
    synthetic: Path = Path("ckpts/synthetic")
    """Denoisers of synthetic noise, likewise."""
    test_images: Path = Path("test_images")
    out: Path = Path("supp/tbl")
    cache: Path = Path("cache")
    """Where the bundled sample is written when there are no test images."""
    seed: int = 0
    limit: int | None = None
    """Measure only the first so many images of each test set."""
    passes: int = 10
    """Passes over the images where the strength of synthetic noise is random (paper: 10)."""
    batch_size: int | None = None
    """Images of 256x256 at a time, of larger ones fewer. A matter of speed and memory alone: by
    default 8 on a GPU, 1 on the CPU, where more are slower."""
    workers: int = WORKERS
    """Threads that read images ahead."""


# Synthetic noise: p(Gaussian, Poisson, both), sigma of 255, chi in photons.
FIXED_NOISE = {
    "Gaussian, sigma 25": NoiseModelDistribution((1, 0, 0), sigma=(25, 25), chi=(30, 30)),
    "Poisson, chi 30": NoiseModelDistribution((0, 1, 0), sigma=(25, 25), chi=(30, 30)),
    "both, chi 30, sigma 25": NoiseModelDistribution((0, 0, 1), sigma=(25, 25), chi=(30, 30)),
}
RANDOM_NOISE = {
    "Gaussian, sigma 0-50": NoiseModelDistribution((1, 0, 0), sigma=(0, 50), chi=(5, 50)),
    "Poisson, chi 5-50": NoiseModelDistribution((0, 1, 0), sigma=(0, 50), chi=(5, 50)),
    "both, chi 5-50, sigma 0-50": NoiseModelDistribution((0, 0, 1), sigma=(0, 50), chi=(5, 50)),
}

TEST_SET = (Column("test_set", "test set"), Column("images", "images", "d"))
NOISE_COLUMNS = (
    *TEST_SET,
    Column("noise", "noise"),
    Column("akld", "AKLD", ".4f"),
    Column("ks", "KS", ".4f"),
    Column("std_ratio", "std ratio", ".3f"),  # generated over real
    Column("corr_generated", "corr. generated", ".3f"),  # of neighbouring pixels
    Column("corr_real", "corr. real", ".3f"),
)
RESTORED = (
    Column("psnr", "PSNR", ".2f"),
    Column("ssim", "SSIM", ".4f"),
    Column("psnr_noisy", "noisy PSNR", ".2f"),
    Column("ssim_noisy", "noisy SSIM", ".4f"),
)
DENOISING_COLUMNS = (*TEST_SET, Column("denoiser", "denoiser"), *RESTORED)
SYNTHETIC_COLUMNS = (*TEST_SET, Column("noise", "noise"), Column("denoiser", "denoiser"), *RESTORED)


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    check(c)
    device = choose_device(c.gpu)
    how = dict(
        seed=c.seed, limit=c.limit, batch_size=c.batch_size, workers=c.workers, device=device
    )

    # All files are opened before anything is measured: a bad one is told now, not hours later.
    transfer = open_generator(c, device)
    real = open_denoisers(c, "denoising", c.sidd, "train_denoiser.py", device)
    synthetic = open_denoisers(c, "synthetic", c.synthetic, "train_denoiser_synthetic.py", device)
    if not (transfer or real or synthetic):
        raise UserError("no checkpoints for any of these tables; the lines above say what to train")
    sets = open_test_sets(c)
    pairs = [s for s in sets if isinstance(s, PairedTestSet)]
    clean = [s for s in sets if not isinstance(s, PairedTestSet)]
    if not ((pairs and (transfer or real)) or (clean and synthetic)):
        raise UserError(
            f"{c.test_images}: holds nothing for these tables; noise and denoising need real "
            "pairs, synthetic needs clean images"
        )

    notes = origin(c, device, argv)
    if transfer and pairs:
        files = [c.nt / "VUNet.pt", c.nt / "encoder_k.pt"]
        report(noise_table(transfer, pairs, how), c, files, notes)
    if real and pairs:
        report(denoising_table(real, pairs, how), c, list(real), notes)
    if synthetic and clean:
        report(synthetic_table(synthetic, clean, c.passes, how), c, list(synthetic), notes)


# ----------------------------------------------------------------------------------- the tables


def noise_table(transfer: NoiseTransfer, sets: list[PairedTestSet], how: dict) -> Table:
    title = "Generated against real noise; the reference is the image's own noisy image"
    table = Table("noise", title, NOISE_COLUMNS)
    for test_set in sets:
        for name, method in (
            ("NoiseTransfer", transfer),
            ("white Gaussian, true sigma", white_gaussian),
        ):
            table.add(test_set, {"noise": name}, evaluate_transfer(method, test_set, **how))
    return table


def denoising_table(
    denoisers: dict[Path, nn.Module], sets: list[PairedTestSet], how: dict
) -> Table:
    table = Table("denoising", "Denoising of real noise", DENOISING_COLUMNS)
    for test_set in sets:
        for file, denoiser in denoisers.items():
            figures = evaluate_denoiser(denoiser, test_set, **how)
            table.add(test_set, {"denoiser": label(file)}, figures)
    return table


def synthetic_table(
    denoisers: dict[Path, nn.Module], sets: list[CleanTestSet], passes: int, how: dict
) -> Table:
    title = f"Denoising of synthetic noise; mean of {passes} passes where its strength is random"
    table = Table("synthetic", title, SYNTHETIC_COLUMNS)
    rows = [(name, noise, 1) for name, noise in FIXED_NOISE.items()]
    rows += [(name, noise, passes) for name, noise in RANDOM_NOISE.items()]
    for test_set in sets:
        for name, noise, n in rows:
            for file, denoiser in denoisers.items():
                figures = evaluate_denoiser(denoiser, test_set, noise=noise, passes=n, **how)
                table.add(test_set, {"noise": name, "denoiser": label(file)}, figures)
    return table


def label(checkpoint: Path) -> str:
    return checkpoint.name.removesuffix("_g.pt")


def report(table: Table, c: Config, checkpoints: list[Path], notes: list[str]) -> None:
    print(f"\n{table.text()}\n-> {c.out / table.name}.txt, .md, .csv, _images.csv")
    table.write(c.out, [*(f"{file}: sha256 {sha256(file)}" for file in checkpoints), *notes])


def origin(c: Config, device: torch.device, argv: list[str] | None) -> list[str]:
    """What it takes to make a table again, beside its checkpoints."""
    record = provenance()
    words = sys.argv[1:] if argv is None else argv
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    images = "all images" if c.limit is None else f"at most {c.limit} images of a test set"
    return [
        f"seed {c.seed}, {images}",
        f"device: {gpu or record['hardware']}",
        "versions: " + ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
        f"commit: {record['commit']}",
        f"command: {shlex.join(['python', 'supp_tbl.py', *words])}",
    ]


# ------------------------------------------------------------------------------ what to measure


def check(c: Config) -> None:
    for flag, value, least in (
        ("--seed", c.seed, 0),
        ("--limit", c.limit, 1),
        ("--passes", c.passes, 1),
        ("--batch-size", c.batch_size, 1),
        ("--workers", c.workers, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"{flag} {value}: expected {least} or more")


def open_generator(c: Config, device: torch.device) -> NoiseTransfer | None:
    if "noise" not in c.tables:
        return None
    for file in (c.nt / "VUNet.pt", c.nt / "encoder_k.pt"):
        if not file.is_file():
            print(
                f"noise table left out: no {file}; train it with `python train_noiseTransfer.py`, "
                "or name its folder with --nt"
            )
            return None
    return NoiseTransfer.from_checkpoint(c.nt, device)


def open_denoisers(
    c: Config, table: str, folder: Path, script: str, device: torch.device
) -> dict[Path, nn.Module]:
    """The denoisers of one table by their files; if there are none, a line says so."""
    if table not in c.tables:
        return {}
    files = sorted(folder.glob("*_g.pt"))
    if not files:
        print(
            f"{table} table left out: no {folder / 'ridnet_g.pt'}; train it with `python {script}`"
            f", or name its folder with --{'sidd' if table == 'denoising' else 'synthetic'}"
        )
    return {file: denoiser_from_checkpoint(file, device) for file in files}


def open_test_sets(c: Config) -> list[CleanTestSet | PairedTestSet]:
    """What is in test_images, else the bundled sample; a line for each published set not there."""
    sets = find_test_sets(c.test_images)
    present = {test_set.name.lower() for test_set in sets}
    for which in VALIDATION_SETS:
        if which.name not in present and c.tables != ("synthetic",):
            print(
                f"{which.title} is not there: put {which.clean}.mat and {which.noisy}.mat from "
                f"{which.source} into {c.test_images / which.name}"
            )
    if "bsds500" not in present and "synthetic" in c.tables:
        print(
            "BSDS500 is not there: put its images (BSR_bsds500.tgz, from https://www2.eecs.berkeley."
            "edu/Research/Projects/CS/vision/grouping/resources.html) into "
            f"{c.test_images / 'BSDS500/data/images'}"
        )
    if not sets:
        sample = write_sample(c.cache / "sample", seed=0)
        print(f"No test images in {c.test_images}: measuring the bundled sample, {sample}")
        sets = find_test_sets(sample / "test_images")
    return sets


if __name__ == "__main__":
    exit_on_user_error(main)
