"""Tables of denoisers: on real noise, and on synthetic noise (paper, Sec. 4).

Denoisers go by the files they come from; `how` goes to evaluation.measure: seed, limit, batch_size,
workers, device.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
from torch import Tensor, nn

from data.noise import NoiseModelDistribution
from evaluation.baselines import BASELINES, bm3d, non_local_means
from evaluation.batches import How
from evaluation.image_sets import CleanImages, ImagePairs
from evaluation.measure import evaluate_denoiser
from evaluation.tables import TEST_SET, Column, Table
from utils.metrics import pgap

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

RESTORED = (
    Column("denoiser", "denoiser"),
    Column("trained_on", "trained on"),
    Column("psnr", "PSNR", ".2f", interval=True, best="greatest", meaning="dB; mean over images"),
    Column("ssim", "SSIM", ".4f", best="greatest", meaning="structural similarity, 1 at best"),
    Column("pgap", "PGap", ".2f", meaning="dB below the same denoiser trained on real noise"),
)
BM3D = {"BM3D, blind": bm3d}
DENOISING_COLUMNS = (*TEST_SET, *RESTORED)
SYNTHETIC_COLUMNS = (*TEST_SET, Column("noise", "noise"), *RESTORED)

# What a denoiser was trained on (train_denoiser.py's --noise) -> its title in tables.
TRAINED_ON = {"noisetransfer": "NoiseTransfer", "real": "real pairs"}
TRAINED_ON |= {name: BASELINES[name].title for name in ("gaussian", "poisson-gaussian")}


def denoising_table(
    denoisers: Mapping[Path, nn.Module],
    sets: Sequence[ImagePairs],
    with_bm3d: bool = False,
    **how: Unpack[How],
) -> Table:
    table = Table("denoising", "Denoising of real noise", DENOISING_COLUMNS)
    untrained = {"non-local means, blind": non_local_means} | (BM3D if with_bm3d else {})
    for test_set in sets:
        _add_denoisers(table, denoisers, test_set, {}, untrained, **how)
    return table


def synthetic_table(
    denoisers: Mapping[Path, nn.Module],
    sets: Sequence[CleanImages],
    with_bm3d: bool = False,
    passes: int = 10,
    **how: Unpack[How],
) -> Table:
    title = f"Denoising of synthetic noise; mean of {passes} passes where its strength is random"
    table = Table("synthetic", title, SYNTHETIC_COLUMNS, group=("test_set", "noise"))
    rows = [(name, noise, 1) for name, noise in FIXED_NOISE.items()]
    rows += [(name, noise, passes) for name, noise in RANDOM_NOISE.items()]
    for test_set in sets:
        for name, noise, count in rows:
            its = {"noise": noise, "passes": count, **how}
            untrained = BM3D if with_bm3d else {}
            _add_denoisers(table, denoisers, test_set, {"noise": name}, untrained, **its)
    return table


def _add_denoisers(
    table: Table,
    denoisers: Mapping[Path, nn.Module],
    test_set: CleanImages | ImagePairs,
    labels: dict[str, str],
    untrained: Mapping[str, Callable[[Tensor], Tensor]],
    **how: Unpack[How],
) -> None:
    """Rows of one test set and noise: the input, the untrained by title, and every denoiser."""
    measured = {file: evaluate_denoiser(d, test_set, **how) for file, d in denoisers.items()}
    first = next(iter(measured.values()))
    rows = [("noisy input", "", {"psnr": first["psnr_noisy"], "ssim": first["ssim_noisy"]})]
    rows += [(name, "", evaluate_denoiser(d, test_set, **how)) for name, d in untrained.items()]
    rows += [(*denoiser_of(file), scores) for file, scores in measured.items()]
    # PGap: what is lost by training on this noise, against real noise and the same architecture.
    ceiling = {name: scores["psnr"] for name, noise, scores in rows if noise == "real"}
    for name, noise, scores in rows:
        shown = {"psnr": scores["psnr"], "ssim": scores["ssim"]}
        shown["pgap"] = pgap(ceiling.get(name, np.nan), scores["psnr"])
        trained_on = TRAINED_ON.get(noise, noise)
        table.add(test_set, {**labels, "denoiser": name, "trained_on": trained_on}, shown)


def denoiser_of(checkpoint: Path) -> tuple[str, str]:
    """(architecture, noise it was trained on), by the file's name: train_denoiser.py's --denoiser
    and --noise. ridnet_real_g.pt was trained on real pairs, ridnet_g.pt on NoiseTransfer's."""
    name, _, noise = checkpoint.name.removesuffix("_g.pt").partition("_")
    return name, noise or "noisetransfer"
