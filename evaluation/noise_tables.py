"""Tables of a noise generator: against real noise, between scenes, and where the truth is known.

`how` goes to evaluation.measure: seed, limit, batch_size, workers, device.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np

from data.cross_scene import CrossSceneTestSet
from data.noise import NoiseModelDistribution
from evaluation.baselines import BASELINES
from evaluation.batches import How
from evaluation.image_sets import CleanImages, ImagePairs, KnownNoise
from evaluation.measure import evaluate_floor, evaluate_transfer, scene_scores
from evaluation.protocols import ReferenceProtocol, has_cross_references
from evaluation.tables import TEST_SET, Column, Table
from models.noise_transfer import NoiseTransfer
from utils.noise_statistics import DIRECTIONS

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

AKLD = Column(
    "akld", "AKLD", ".3f", interval=True, best="least",
    meaning="distance of the noise's local strengths (paper, Sec. 4)",
)  # fmt: skip
STRENGTH = "generated standard deviation over the real one: 1 is right"
NOISE_COLUMNS = (
    *TEST_SET,
    Column("noise", "noise"),
    Column("reference", "reference", meaning="what it was taken from; (...): told the truth"),
    AKLD,
    Column(
        "corr_generated", "corr.", ".3f", interval=True,
        meaning="correlation of neighbouring pixels' noise: should be the real one",
    ),
    Column("corr_real", "real corr.", ".3f"),
    Column("std_ratio", "std ratio", ".3f", best="one", meaning=STRENGTH),
    Column("ks", "KS", ".4f", best="least", meaning="largest difference of the distributions"),
    Column("kld", "KLD", ".4f", best="least", meaning="divergence of the histograms"),
    Column("kld_tails", "KLD, tails", ".4f", best="least", meaning="the same, of the tails"),
    Column(
        "acf", "ACF dist.", ".3f", interval=True, best="least",
        meaning="distance of the autocorrelations",
    ),
    Column("nlf", "NLF dist.", ".3f", best="least", meaning="distance of the noise level curves"),
)  # fmt: skip
SCENE_COLUMNS = (
    *TEST_SET,
    Column("noise", "noise"),
    Column("std_ratio", "std ratio", ".3f", interval=True, best="one", meaning=STRENGTH),
    Column(
        "nlf", "log std, mean", ".3f", interval=True, best="least",
        meaning="error of the log standard deviation, over intensities and channels",
    ),
    Column("nlf_worst", "worst", ".3f", interval=True, best="least", meaning="the worst of those"),
    Column(
        "mean_shift", "mean shift", ".2f", interval=True, best="least",
        meaning="of the worst channel, in steps of 255: a colour cast",
    ),
    *(Column(f"corr_{d}", f"corr. {d}", ".3f", truth=f"corr_{d}_real") for d in DIRECTIONS),
    Column("corr_distance", "corr. dist.", ".3f", interval=True, best="least"),
    AKLD,
)  # fmt: skip
KNOWN_COLUMNS = (
    *TEST_SET,
    Column("noise", "reference's noise"),
    Column("std_ratio", "std ratio", ".3f", interval=True, meaning=STRENGTH),
    Column("std_ratio_flat", "flat", ".3f", meaning="the same, of uniform images alone"),
    replace(AKLD, title="AKLD paired", best=""),
    Column("akld_unpaired", "unpaired", ".3f"),
    Column("akld_cross", "cross", ".3f"),
    Column("akld_floor", "floor", ".3f"),
    Column("corr_generated", "corr.", ".3f", truth="corr_real"),
)


def noise_table(
    transfer: NoiseTransfer,
    sets: Sequence[ImagePairs],
    references: Sequence[ReferenceProtocol] = ("paired", "unpaired", "cross"),
    draws: int = 1,
    **how: Unpack[How],
) -> Table:
    """The floor, NoiseTransfer by reference, then models that see the same, or the pair itself."""
    table = Table("noise", "Generated against real noise, means and 95% intervals", NOISE_COLUMNS)
    for test_set in sets:
        labels = {"noise": "real, another draw", "reference": "(floor)"}
        table.add(test_set, labels, evaluate_floor(test_set, **how))
        for reference in references:
            labels = {"noise": "NoiseTransfer", "reference": reference}
            if reference == "cross" and not has_cross_references(test_set):
                print(f"{test_set.title}: one kind of noise only, no cross references")
                continue
            scores = evaluate_transfer(transfer, test_set, reference=reference, draws=draws, **how)
            table.add(test_set, labels, scores)
        for model in BASELINES.values():
            labels = {"noise": model.title, "reference": "(the pair)" if model.oracle else "paired"}
            table.add(test_set, labels, evaluate_transfer(model, test_set, draws=draws, **how))
    return table


def cross_scene_table(transfer: NoiseTransfer, draws: int = 1, **how: Unpack[How]) -> Table:
    """The floor, another shot of the target; NoiseTransfer and the blind models from a reference of
    another scene, brighter or darker."""
    title = (
        "Noise of another scene of other brightness: strength, by intensity and channel, too, mean "
        "shift (8-bit steps), correlation of neighbours, generated / real; means and 95% intervals"
    )
    table = Table("cross_scene", title, SCENE_COLUMNS)
    scenes = CrossSceneTestSet()
    count = min(len(scenes.pairs), how.get("limit") or len(scenes.pairs))
    how = how | {"limit": count, "measures": scene_scores}
    table.add(scenes, {"noise": "real, another draw"}, evaluate_floor(scenes, **how))
    blind = {model.title: model for model in BASELINES.values() if not model.oracle}
    for title, model in {"NoiseTransfer": transfer, **blind}.items():
        scores = evaluate_transfer(model, scenes, reference=scenes.references, draws=draws, **how)
        table.add(scenes, {"noise": title}, scores)
    return table


def known_table(transfer: NoiseTransfer, sets: Sequence[CleanImages], **how: Unpack[How]) -> Table:
    """A row per kind of noise: every protocol, and the floor."""
    title = (
        "Generated noise where the reference's is known: its strength over the true one, AKLD, and "
        "correlation of neighbours, generated / true"
    )
    table = Table("known", title, KNOWN_COLUMNS)
    count = min(KNOWN_IMAGES, how.get("limit") or KNOWN_IMAGES)
    how = how | {"limit": None}
    for clean in sets:
        known = KnownNoise(clean, KNOWN_NOISE, count, KNOWN_SIDE, correlations=KNOWN_CORRELATIONS)
        scores = evaluate_transfer(transfer, known, **how)
        for reference in ("unpaired", "cross"):
            other = evaluate_transfer(transfer, known, reference=reference, **how)
            scores[f"akld_{reference}"] = other["akld"]
        scores["akld_floor"] = evaluate_floor(known, **how)["akld"]
        flat = np.array([known.is_flat(i) for i in range(len(known))])
        scores["std_ratio_flat"] = np.where(flat, scores["std_ratio"], np.nan)
        for k, noise in enumerate(KNOWN_NOISE):
            its = {name: column[k :: len(KNOWN_NOISE)] for name, column in scores.items()}
            names = [known.image_name(i) for i in range(k, len(known), len(KNOWN_NOISE))]
            table.add(known, {"noise": noise}, its, names)
    return table
