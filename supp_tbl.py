"""Every table of the evaluation, from checkpoints (paper, Sec. 4; the measures: utils/metrics.py).

    python supp_tbl.py --gpu 0
    python supp_tbl.py --tables noise --limit 4         # a quick look

Every test set below `test_images/` is measured: real pairs in the tables `noise` and `denoising`,
clean images in `known` and `synthetic`. Without any, the bundled sample is, whose scenes
`cross_scene` has in any case: noise of one put on another. Tables are printed and written to
`supp/tbl/`: <table>.txt, .md, .tex and .csv, and <table>_images.csv with every image; all of them,
with histograms, autocorrelations and pictures, to one page, `supp/tbl/report.html`. The same
command gives the same scores, whatever the batch size or number of workers, in float32 throughout.
"""

import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from utils.config import parse
from utils.errors import UserError, exit_on_user_error, require


@dataclass(frozen=True)
class Config:
    """Print and write every table of the evaluation, from checkpoints."""

    gpu: str = "0"
    """CUDA device number (of a list such as 0,1 the first is used), or cpu."""
    tables: tuple[Literal["noise", "cross_scene", "known", "denoising", "synthetic"], ...] = (
        "noise",
        "cross_scene",
        "known",
        "denoising",
        "synthetic",
    )
    """Which tables to make; cross_scene is about the bundled sample, whatever the test images."""
    nt: Path = Path("ckpts/NT")
    """Noise generator: folder of VUNet.pt and encoder_k.pt."""
    reference_patch: int | None = None
    """Embed references in patches of so many pixels, or whole (0, as the paper does); by default as
    transfer.json in --nt says, whole if it is not there."""
    sidd: Path = Path("ckpts/sidd")
    """Denoisers of real noise: folder of ridnet_g.pt; every *_g.pt in it is a row."""
    synthetic: Path = Path("ckpts/synthetic")
    """Denoisers of synthetic noise, likewise."""
    test_images: Path = Path("test_images")
    out: Path = Path("supp/tbl")
    cache: Path = Path("cache")
    """Where the bundled sample is written when there are no test images."""
    protocols: tuple[Literal["paired", "unpaired", "cross"], ...] = ("paired", "unpaired", "cross")
    """What generated noise is taken from, in the noise table (evaluation/protocols.py)."""
    draws: int = 1
    """Noisy images generated for an image; its scores are their means."""
    bm3d: bool = False
    """Also denoise by BM3D, blind: 10 s per image of 256x256."""
    report: bool = True
    """Write report.html, too."""
    seed: int = 0
    limit: int | None = None
    """Measure only the first so many images of each test set."""
    passes: int = 10
    """Passes over the images where the strength of synthetic noise is random (paper: 10)."""
    batch_size: int | None = None
    """Images of 256x256 at a time, of larger ones fewer. A matter of speed and memory alone: by
    default 8 on a GPU, 1 on the CPU, where more are slower."""
    workers: int | None = None
    """Threads that read images ahead; by default one a core, at most 8."""


if __name__ == "__main__":  # --help and mistyped flags do not wait for torch: seconds
    exit_on_user_error(partial(parse, Config))

import torch

from evaluation.baselines import require_bm3d
from evaluation.batches import WORKERS, How
from evaluation.denoising_tables import denoising_table, synthetic_table
from evaluation.noise_section import noise_section
from evaluation.noise_tables import cross_scene_table, known_table, noise_table
from evaluation.pictures import denoised_section
from evaluation.report import write_html
from evaluation.sources import generator_files, open_denoisers, open_generator, open_test_sets
from evaluation.tables import Table
from utils.checkpoint import sha256
from utils.config import at_least, choose_device, provenance


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    at_least(c, seed=0, limit=1, passes=1, draws=1, batch_size=1, workers=1)
    device = choose_device(c.gpu)
    how = How(
        seed=c.seed,
        limit=c.limit,
        batch_size=c.batch_size,
        workers=c.workers or WORKERS,
        device=device,
    )

    # All files are opened before anything is measured: a bad one is told now, not hours later.
    if c.bm3d:
        require_bm3d()
    transfer, real, synthetic = None, {}, {}
    if {"noise", "cross_scene", "known"} & set(c.tables):
        transfer = open_generator(c.nt, device, c.reference_patch, asked_for=c.nt != Config.nt)
    if "denoising" in c.tables:
        real = open_denoisers(c.sidd, device, of="sidd", asked_for=c.sidd != Config.sidd)
    if "synthetic" in c.tables:
        asked_for = c.synthetic != Config.synthetic
        synthetic = open_denoisers(c.synthetic, device, of="synthetic", asked_for=asked_for)
    if not (transfer or real or synthetic):
        raise UserError("no checkpoints for any of these tables; the lines above say what to train")
    require(
        c.test_images == Config.test_images or c.test_images.exists(),
        f"{c.test_images}: no such folder; check --test-images, or leave it out for the sample",
    )
    pairs, clean = open_test_sets(c.test_images, c.cache, c.tables)
    on_pairs = real or (transfer and "noise" in c.tables)
    on_clean = synthetic or (transfer and "known" in c.tables)
    on_sample = transfer and "cross_scene" in c.tables
    if not (on_sample or (pairs and on_pairs) or (clean and on_clean)):
        raise UserError(
            f"{c.test_images}: holds nothing for these tables; noise and denoising need real "
            "pairs, known and synthetic need clean images"
        )

    notes = origin(c, device, argv)
    tables, sections = [], []

    def report(table: Table, checkpoints: Iterable[Path]) -> None:
        print(f"\n{table.text()}\n-> {c.out / table.name}.txt, .md, .tex, .csv, _images.csv")
        table.write(c.out, [*(f"{file}: sha256 {sha256(file)}" for file in checkpoints), *notes])
        tables.append(table)

    files = generator_files(c.nt)
    if transfer and pairs and "noise" in c.tables:
        report(noise_table(transfer, pairs, c.protocols, c.draws, **how), files)
        if c.report:
            its = dict(seed=c.seed, limit=c.limit, device=device)
            sections = [noise_section(transfer, test_set, **its) for test_set in pairs]
    if on_sample:
        report(cross_scene_table(transfer, c.draws, **how), files)
    if transfer and clean and "known" in c.tables:
        report(known_table(transfer, clean, **how), files)
    if real and pairs:
        report(denoising_table(real, pairs, c.bm3d, **how), real)
        if c.report:
            its = dict(limit=c.limit, device=device)
            sections += [denoised_section(real, test_set, **its) for test_set in pairs]
    if synthetic and clean:
        report(synthetic_table(synthetic, clean, c.bm3d, c.passes, **how), synthetic)
    if c.report:
        page = c.out / "report.html"
        write_html(page, "NoiseTransfer: evaluation", tables, sections, notes)
        print(f"\n-> {page}")


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


if __name__ == "__main__":
    exit_on_user_error(main)
