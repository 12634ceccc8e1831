"""Maps of embeddings, as evaluation.plots draws them."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluation.plots import COLOURS, add_legend, as_svg, new_axes

MARKERS = "osD^vP*X"
MAX_GROUPS = 24  # named in the legend
MANY_POINTS = 2000  # drawn as pixels from here on, to keep the page small


def principal_components(
    x: np.ndarray, plane: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) coordinates of (N, d) rows on the first two principal axes of the rows of `plane`, by
    default their own, and (2,) the shares of the variance along them; N and d of 2 or more.

    The entry of largest size in each axis is positive, so that the map does not flip between runs.
    """
    plane = x if plane is None else plane
    centre = plane.mean(axis=0)
    _, singular, axes = np.linalg.svd((plane - centre).astype(np.float64), full_matrices=False)
    axes = axes[:2]
    axes = axes * np.sign(np.take_along_axis(axes, abs(axes).argmax(1)[:, None], 1))
    power = singular**2
    return (x - centre) @ axes.T, power[:2] / max(power.sum(), np.finfo(float).tiny)


@as_svg
def embedding_map(
    embeddings: np.ndarray, groups: Sequence[str], known: np.ndarray | None = None
) -> Figure:
    """(N, d) embeddings, a colour and shape a group (N,), in their plane of largest variance.

    known: (M, d), grey points below them, whose plane it is then, whatever the others are.
    """
    points, share = principal_components(embeddings, known)
    names = sorted(set(groups), key=_natural)
    labels = np.array(groups)
    figure, axes = new_axes(height=3.2)
    if known is not None:
        grey = dict(color="#888888", linewidths=0, alpha=0.45, rasterized=True)
        axes.scatter(*principal_components(known)[0].T, 8, **grey, label="known noise")
    for i, name in enumerate(names):
        x, y = points[labels == name].T
        # Shape changes with colour, so that no two of the first 24 groups look alike.
        style = dict(color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)])
        axes.scatter(x, y, 16, **style, label=_short(name, 26), linewidths=0, alpha=0.85)
    if len(labels) > MANY_POINTS:
        for points_of_group in axes.collections:
            points_of_group.set_rasterized(True)
    axes.set_xlabel(f"component 1 ({share[0]:.0%} of variance)")
    axes.set_ylabel(f"component 2 ({share[1]:.0%} of variance)")
    axes.set_aspect("equal", adjustable="datalim")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    if len(names) <= MAX_GROUPS:
        add_legend(figure, axes)
    return figure


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _natural(text: str) -> list:
    """ISO 800 comes before ISO 3200."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]
