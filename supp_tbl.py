"""Every table of the evaluation, from checkpoints (paper, Sec. 4; the measures: utils/metrics.py).

    python supp_tbl.py --gpu 0
    python supp_tbl.py --tables noise --limit 4         # a quick look

Every test set below `test_images/` is measured: real pairs in the tables `noise` and `denoising`,
clean images in `known` and `synthetic`. Without any, the bundled sample is, whose scenes
`cross_scene` has in any case: noise of one put on another. Tables are printed and written to
`supp/tbl/`: <table>.txt, .md, .tex and .csv, and <table>_images.csv with every image; all of them,
with histograms, autocorrelations and pictures, to one page, `supp/tbl/report.html`. The same
command gives the same figures, whatever the batch size or number of workers, in float32 throughout.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from data.cross_scene import CrossSceneTestSet
from data.noise import NoiseModelDistribution
from data.sample import write_sample
from data.sidd import VALIDATION_SETS
from data.test_sets import CleanTestSet, PairedTestSet, find_test_sets
from models.baselines import BASELINES
from models.denoisers import bm3d, require_bm3d
from models.noise_transfer import NoiseTransfer
from utils.checkpoint import sha256
from utils.config import at_least, choose_device, parse, provenance
from utils.errors import UserError, exit_on_user_error
from utils.evaluation import (
    WORKERS,
    denoiser_from_checkpoint,
    evaluate_denoiser,
    evaluate_floor,
    evaluate_transfer,
    per_image_noise,
    scene_figures,
)
from utils.html_report import NoiseSample, NoiseSection, write_html
from utils.metrics import pgap
from utils.noise_statistics import DIRECTIONS
from utils.protocols import KnownNoise, Protocol, has_cross_references, middle
from utils.seeding import derived_seed
from utils.tables import Column, Table


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
    references: tuple[Protocol, ...] = ("paired", "unpaired", "cross")
    """What generated noise is taken from, in the noise table (utils/protocols.py)."""
    draws: int = 1
    """Noisy images generated for an image; its figures are their means."""
    bm3d: bool = False
    """Also denoise by BM3D, blind: 10 s an image of 256x256."""
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

# References of known noise, for the table `known`.
KNOWN_CORRELATIONS = {f"Gaussian, sigma 25, corr. {r}": r for r in (0.2, 0.4, 0.6)}
KNOWN_NOISE = {
    f"Gaussian, sigma {s}": NoiseModelDistribution((1, 0, 0), sigma=(s, s), chi=(30, 30))
    for s in (5, 10, 25, 50)
}
KNOWN_NOISE |= dict.fromkeys(KNOWN_CORRELATIONS, KNOWN_NOISE["Gaussian, sigma 25"])
KNOWN_NOISE |= {
    f"Poisson, chi {chi}": NoiseModelDistribution((0, 1, 0), sigma=(25, 25), chi=(chi, chi))
    for chi in (10, 30)
}
KNOWN_IMAGES, KNOWN_SIDE = 12, 192  # of a set and of an image, at most: a check, not a benchmark

TEST_SET = (Column("test_set", "test set"), Column("images", "images", "d"))
NOISE_COLUMNS = (
    *TEST_SET,
    Column("noise", "noise"),
    Column("reference", "reference"),
    Column("akld", "AKLD", ".3f", interval=True),
    Column("corr_generated", "corr.", ".3f", interval=True),  # of neighbouring pixels
    Column("corr_real", "real corr.", ".3f"),
    Column("std_ratio", "std ratio", ".3f"),  # generated over real
    Column("ks", "KS", ".4f"),
    Column("kld", "KLD", ".4f"),
    Column("kld_tails", "KLD, tails", ".4f"),
    Column("acf", "ACF dist.", ".3f", interval=True),
    Column("nlf", "NLF dist.", ".3f"),
)
SCENE_COLUMNS = (
    *TEST_SET,
    Column("noise", "noise"),
    Column("std_ratio", "std ratio", ".3f", interval=True),
    Column("nlf", "log std, mean", ".3f", interval=True),  # over intensities and channels
    Column("nlf_worst", "worst", ".3f", interval=True),
    Column("mean_shift", "mean shift", ".2f", interval=True),  # in 8-bit steps, the worst channel
    *(Column(f"corr_{d}", f"corr. {d}", ".3f", truth=f"corr_{d}_real") for d in DIRECTIONS),
    Column("corr_distance", "corr. dist.", ".3f", interval=True),
    Column("akld", "AKLD", ".3f", interval=True),
)
KNOWN_COLUMNS = (
    *TEST_SET,
    Column("noise", "reference's noise"),
    Column("std_ratio", "std ratio", ".3f", interval=True),
    Column("std_ratio_flat", "flat", ".3f"),
    Column("akld", "AKLD paired", ".3f", interval=True),
    Column("akld_unpaired", "unpaired", ".3f"),
    Column("akld_cross", "cross", ".3f"),
    Column("akld_floor", "floor", ".3f"),
    Column("corr_generated", "corr.", ".3f", truth="corr_real"),
)
RESTORED = (
    Column("denoiser", "denoiser"),
    Column("trained_on", "trained on"),
    Column("psnr", "PSNR", ".2f", interval=True),
    Column("ssim", "SSIM", ".4f"),
    Column("pgap", "PGap", ".2f"),
)
DENOISING_COLUMNS = (*TEST_SET, *RESTORED)
SYNTHETIC_COLUMNS = (*TEST_SET, Column("noise", "noise"), *RESTORED)


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    at_least(c, seed=0, limit=1, passes=1, draws=1, batch_size=1, workers=1)
    device = choose_device(c.gpu)
    how = dict(
        seed=c.seed, limit=c.limit, batch_size=c.batch_size, workers=c.workers, device=device
    )

    # All files are opened before anything is measured: a bad one is told now, not hours later.
    if c.bm3d:
        require_bm3d()
    transfer = open_generator(c, device)
    real = open_denoisers(c, "denoising", c.sidd, "train_denoiser.py", device)
    synthetic = open_denoisers(c, "synthetic", c.synthetic, "train_denoiser_synthetic.py", device)
    if not (transfer or real or synthetic):
        raise UserError("no checkpoints for any of these tables; the lines above say what to train")
    sets = open_test_sets(c)
    pairs = [s for s in sets if isinstance(s, PairedTestSet)]
    clean = [s for s in sets if not isinstance(s, PairedTestSet)]
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
    files = [c.nt / "VUNet.pt", c.nt / "encoder_k.pt"]
    if transfer and pairs and "noise" in c.tables:
        tables.append(report(noise_table(transfer, pairs, c, how), c, files, notes))
        if c.report:
            sections = [noise_section(transfer, test_set, c, device) for test_set in pairs]
    if on_sample:
        tables.append(report(cross_scene_table(transfer, c, how), c, files, notes))
    if transfer and clean and "known" in c.tables:
        tables.append(report(known_table(transfer, clean, c, how), c, files, notes))
    if real and pairs:
        tables.append(report(denoising_table(real, pairs, c, how), c, list(real), notes))
    if synthetic and clean:
        tables.append(report(synthetic_table(synthetic, clean, c, how), c, list(synthetic), notes))
    if c.report:
        page = c.out / "report.html"
        write_html(page, "NoiseTransfer: evaluation", tables, sections, notes)
        print(f"\n-> {page}")


# ----------------------------------------------------------------------------------- the tables


def noise_table(transfer: NoiseTransfer, sets: list[PairedTestSet], c: Config, how: dict) -> Table:
    """The floor, NoiseTransfer by reference, then models that see the same, or the pair itself."""
    table = Table("noise", "Generated against real noise, means and 95% intervals", NOISE_COLUMNS)
    for test_set in sets:
        labels = {"noise": "real, another draw", "reference": "(floor)"}
        table.add(test_set, labels, evaluate_floor(test_set, **how))
        for reference in c.references:
            labels = {"noise": "NoiseTransfer", "reference": reference}
            if reference == "cross" and not has_cross_references(test_set):
                print(f"{test_set.title}: one kind of noise only, no cross references")
                continue
            figures = evaluate_transfer(
                transfer, test_set, reference=reference, draws=c.draws, **how
            )
            table.add(test_set, labels, figures)
        for name, model in BASELINES.items():
            labels = {"noise": name, "reference": "(the pair)" if model.oracle else "paired"}
            table.add(test_set, labels, evaluate_transfer(model, test_set, draws=c.draws, **how))
    return table


def cross_scene_table(transfer: NoiseTransfer, c: Config, how: dict) -> Table:
    """The floor, another shot of the target; NoiseTransfer and the blind models from a reference of
    another scene, brighter or darker."""
    title = (
        "Noise of another scene of other brightness: strength, by intensity and channel, too, mean "
        "shift (8-bit steps), correlation of neighbours, generated / real; means and 95% intervals"
    )
    table = Table("cross_scene", title, SCENE_COLUMNS)
    scenes = CrossSceneTestSet()
    count = min(len(scenes.pairs), c.limit or len(scenes.pairs))
    how = how | {"limit": count, "measures": scene_figures}
    table.add(scenes, {"noise": "real, another draw"}, evaluate_floor(scenes, **how))
    models = {name: model for name, model in BASELINES.items() if not model.oracle}
    for name, model in {"NoiseTransfer": transfer, **models}.items():
        figures = evaluate_transfer(
            model, scenes, reference=scenes.references, draws=c.draws, **how
        )
        table.add(scenes, {"noise": name}, figures)
    return table


def known_table(transfer: NoiseTransfer, sets: list[CleanTestSet], c: Config, how: dict) -> Table:
    title = (
        "Generated noise where the reference's is known: its strength over the true one, AKLD, and "
        "correlation of neighbours, generated / true"
    )
    table = Table("known", title, KNOWN_COLUMNS)
    how = how | {"limit": None}
    for clean in sets:
        known = KnownNoise(
            clean,
            KNOWN_NOISE,
            min(KNOWN_IMAGES, c.limit or KNOWN_IMAGES),
            KNOWN_SIDE,
            correlations=KNOWN_CORRELATIONS,
        )
        figures = evaluate_transfer(transfer, known, **how)
        for reference in ("unpaired", "cross"):
            other = evaluate_transfer(transfer, known, reference=reference, **how)
            figures[f"akld_{reference}"] = other["akld"]
        figures["akld_floor"] = evaluate_floor(known, **how)["akld"]
        flat = np.array([known.is_flat(i) for i in range(len(known))])
        figures["std_ratio_flat"] = np.where(flat, figures["std_ratio"], np.nan)
        for k, noise in enumerate(KNOWN_NOISE):
            its = {name: column[k :: len(KNOWN_NOISE)] for name, column in figures.items()}
            names = [known.image_name(i) for i in range(k, len(known), len(KNOWN_NOISE))]
            table.add(known, {"noise": noise}, its, names)
    return table


def denoising_table(
    denoisers: dict[Path, nn.Module], sets: list[PairedTestSet], c: Config, how: dict
) -> Table:
    table = Table("denoising", "Denoising of real noise", DENOISING_COLUMNS)
    for test_set in sets:
        add_denoisers(table, denoisers, test_set, {}, c, how)
    return table


def synthetic_table(
    denoisers: dict[Path, nn.Module], sets: list[CleanTestSet], c: Config, how: dict
) -> Table:
    title = f"Denoising of synthetic noise; mean of {c.passes} passes where its strength is random"
    table = Table("synthetic", title, SYNTHETIC_COLUMNS)
    rows = [(name, noise, 1) for name, noise in FIXED_NOISE.items()]
    rows += [(name, noise, c.passes) for name, noise in RANDOM_NOISE.items()]
    for test_set in sets:
        for name, noise, passes in rows:
            add_denoisers(
                table, denoisers, test_set, {"noise": name}, c, how, noise=noise, passes=passes
            )
    return table


def add_denoisers(
    table: Table,
    denoisers: dict[Path, nn.Module],
    test_set: CleanTestSet | PairedTestSet,
    labels: dict[str, str],
    c: Config,
    how: dict,
    **noise: Any,
) -> None:
    """Rows of one test set and noise: the input, BM3D if asked for, and every denoiser."""
    measured = {
        file: evaluate_denoiser(d, test_set, **noise, **how) for file, d in denoisers.items()
    }
    first = next(iter(measured.values()))
    rows = [("noisy input", "", {"psnr": first["psnr_noisy"], "ssim": first["ssim_noisy"]})]
    if c.bm3d:
        rows.append(("BM3D, blind", "", evaluate_denoiser(bm3d, test_set, **noise, **how)))
    rows += [(*denoiser_titles(file), figures) for file, figures in measured.items()]
    # PGap: what is lost by training on this noise, against real noise and the same architecture.
    ceiling = {name: f["psnr"] for name, on, f in rows if on == TRAINED_ON["real"]}
    for name, trained_on, figures in rows:
        shown = {"psnr": figures["psnr"], "ssim": figures["ssim"]}
        shown["pgap"] = pgap(ceiling.get(name, np.nan), figures["psnr"])
        table.add(test_set, {**labels, "denoiser": name, "trained_on": trained_on}, shown)


TRAINED_ON = {
    "": "NoiseTransfer",
    "gaussian": "white Gaussian, blind",
    "poisson-gaussian": "Poisson-Gaussian, blind",
    "real": "real pairs",
}


def denoiser_titles(checkpoint: Path) -> tuple[str, str]:
    """ridnet_real_g.pt, as train_denoiser.py names it -> (architecture, what it was trained on)."""
    name, _, noise = checkpoint.name.removesuffix("_g.pt").partition("_")
    return name, TRAINED_ON.get(noise, noise)


def noise_section(
    transfer: NoiseTransfer, test_set: PairedTestSet, c: Config, device: torch.device
) -> NoiseSection:
    """What the report shows of a test set: middles of four images, and all images' embeddings."""
    count = len(test_set) if c.limit is None else min(c.limit, len(test_set))
    count = min(count, 256)
    samples = []
    for i in np.unique(np.linspace(0, count - 1, 4).round().astype(int)).tolist():
        clean, real = (middle(x, 256)[None].to(device) for x in test_set[i])
        generated = {
            name: model(clean, real, per_image_noise([derived_seed(c.seed, i)]))[0].cpu()
            for name, model in {"NoiseTransfer": transfer, **BASELINES}.items()
        }
        clean, real = clean[0].cpu(), real[0].cpu()
        samples.append(NoiseSample(test_set.image_name(i), clean, real, real, generated))
    embeddings = [transfer.embed(test_set[i][1][None].to(device))[0].cpu() for i in range(count)]
    groups = [test_set.kind(i) or test_set.image_name(i) for i in range(count)]
    return NoiseSection(test_set.title, samples, torch.stack(embeddings).numpy(), groups)


def report(table: Table, c: Config, checkpoints: list[Path], notes: list[str]) -> Table:
    print(f"\n{table.text()}\n-> {c.out / table.name}.txt, .md, .tex, .csv, _images.csv")
    table.write(c.out, [*(f"{file}: sha256 {sha256(file)}" for file in checkpoints), *notes])
    return table


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


def open_generator(c: Config, device: torch.device) -> NoiseTransfer | None:
    if not {"noise", "cross_scene", "known"} & set(c.tables):
        return None
    for file in (c.nt / "VUNet.pt", c.nt / "encoder_k.pt"):
        if not file.is_file():
            leave_out(
                c, "nt", "noise, cross_scene and known tables", file, "train_noiseTransfer.py"
            )
            return None
    return NoiseTransfer.from_checkpoint(c.nt, device, c.reference_patch)


def open_denoisers(
    c: Config, table: str, folder: Path, script: str, device: torch.device
) -> dict[Path, nn.Module]:
    """The denoisers of one table by their files; if there are none, a line says so."""
    if table not in c.tables:
        return {}
    files = sorted(folder.glob("*_g.pt"))
    if not files:
        flag = "sidd" if table == "denoising" else "synthetic"
        leave_out(c, flag, f"{table} table", folder / "ridnet_g.pt", script)
    return {file: denoiser_from_checkpoint(file, device) for file in files}


def leave_out(c: Config, flag: str, tables: str, file: Path, script: str) -> None:
    """Say what is left out for want of a file; UserError if its folder was asked for by name."""
    if getattr(c, flag) != getattr(Config(), flag):
        raise UserError(
            f"--{flag} {getattr(c, flag)}: no {file}; train it with `python {script}`, or leave "
            f"out the {tables} with --tables"
        )
    print(
        f"{tables} left out: no {file}; train it with `python {script}`, or name its folder with "
        f"--{flag}"
    )


def open_test_sets(c: Config) -> list[CleanTestSet | PairedTestSet]:
    """What is in test_images, else the bundled sample; a line for each published set not there."""
    if c.tables == ("cross_scene",):  # it has its own
        return []
    sets = find_test_sets(c.test_images)
    present = {test_set.name.lower() for test_set in sets}
    for which in VALIDATION_SETS:
        if which.name not in present and {"noise", "denoising"} & set(c.tables):
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
