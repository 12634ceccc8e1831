"""Why AKLD is not enough: figs/akld.png.

    python -m figs.make_akld

Generated Gaussian noise of the right strength and any neighbour correlation, measured against real
noise whose correlation is 0.43, as SIDD's. AKLD is *least* for white noise, below the floor that a
perfect generator reaches; the autocorrelation distance is least where it should be.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from utils.metrics import akld, autocorrelation_distance
from utils.noise_statistics import neighbour_correlation

REAL_TAP = 0.2397  # of the kernel (a, 1, a), whose correlation is 2 a / (1 + 2 a^2) = 0.43
TAPS = np.linspace(0, 0.5, 11)
DRAWS, SIDE = 6, 192


def soft_noise(tap: float, seed: int) -> Tensor:
    """(DRAWS, 3, SIDE, SIDE), N(0, 1) filtered along both axes by (tap, 1, tap) of unit energy."""
    noise = np.random.default_rng(seed).standard_normal((DRAWS, 3, SIDE, SIDE))
    kernel = np.array([tap, 1, tap]) / np.sqrt(1 + 2 * tap**2)
    for axis in (2, 3):
        noise = correlate1d(noise, kernel, axis, mode="wrap")
    return torch.from_numpy(noise).float()


def main() -> None:
    clean, real = torch.zeros(DRAWS, 3, SIDE, SIDE), soft_noise(REAL_TAP, seed=0)
    measured = []
    for seed, tap in enumerate(TAPS, start=1):
        fake = soft_noise(tap, seed)
        figures = (
            neighbour_correlation(fake, clean),
            akld(fake, real, clean),
            autocorrelation_distance(fake, real, clean),
        )
        measured.append([x.mean().item() for x in figures])
    correlation, by_akld, by_acf = np.array(measured).T
    truth = neighbour_correlation(real, clean).mean().item()
    floor = np.interp(truth, correlation, by_akld)

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, values, name in (
        (axes[0], by_akld, "AKLD"),
        (axes[1], by_acf, "autocorrelation distance"),
    ):
        axis.plot(correlation, values, "o-", markersize=4)
        axis.axvline(truth, color="0.5", linestyle=":", label=f"real noise, {truth:.2f}")
        axis.set_xlabel("neighbour correlation of the generated noise")
        axis.set_ylabel(name)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(floor, color="tab:green", linestyle="--", label=f"perfect model, {floor:.3f}")
    for axis in axes:
        axis.legend(frameon=False, loc="lower right" if axis is axes[0] else "upper right")
    figure.savefig(Path(__file__).with_name("akld.png"), dpi=120)


if __name__ == "__main__":
    main()
