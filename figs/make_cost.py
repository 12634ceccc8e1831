"""The picture of cost against size: figs/cost.png from benchmarks/results/.

    python -m benchmarks.cost --gpu cpu --width 32 --json benchmarks/results/cost_cpu.json
    python -m benchmarks.evaluate --gpu cpu --batches 1 --json benchmarks/results/evaluate_cpu.json
    python -m figs.make_cost

Time is the processor time of all threads, which a busy machine disturbs less than the clock's.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    cost = json.loads((RESULTS / "cost_cpu.json").read_text())["tables"]
    evaluation = json.loads((RESULTS / "evaluate_cpu.json").read_text())["tables"]
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    panel(axes[0], cost["by_batch"], "batch", "generator step, batch of 64x64")
    panel(axes[1], cost["by_area"], "area", "generator step, pixels of a patch")
    for task, colour in (("noise", "tab:blue"), ("denoising", "tab:orange")):
        rows = evaluation[f"{task} by image count, batch size as by default"]
        panel(axes[2], rows, "images", "evaluation, images of 256x256", colour, task)
    axes[2].legend(frameon=False)
    axes[0].set_ylabel("processor time [s]")
    figure.savefig(ROOT / "figs" / "cost.png", dpi=120)


def panel(axis: plt.Axes, rows: list, size: str, title: str, colour="tab:blue", label="") -> None:
    """Measured points and their least-squares line."""
    n = np.array([row[size] for row in rows], float)
    seconds = np.array([row["cpu_ms"] for row in rows]) / 1e3
    slope, fixed = np.polyfit(n, seconds, 1)
    r2 = np.corrcoef(n, seconds)[0, 1] ** 2
    axis.plot(n, seconds, "o", color=colour)
    ends = np.array([0, n.max()])
    axis.plot(ends, fixed + slope * ends, color=colour, label=f"{label} $R^2$ {r2:.4f}".strip())
    axis.set_title(title if label else f"{title}; $R^2$ {r2:.4f}", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
