"""Plots of the HTML report: each function takes NumPy arrays and returns inline SVG.

Text, axes and the curves of real noise are drawn in `currentColor`, so that one picture suits light
and dark pages. Lines differ in dashes, and points in shape, as well as in colour. The same arrays
give the same text.
"""

import functools
import io
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

P = ParamSpec("P")

# Okabe and Ito's colours for all kinds of colour vision, less those that vanish on white or black.
COLOURS = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
DASHES = "-", (0, (6, 2)), (0, (6, 2, 1, 2)), (0, (1, 1.5)), (0, (3, 1.5)), (0, (8, 2, 3, 2))
INK = "#010203"  # stands for currentColor, which matplotlib does not know
WIDTH = 4.6  # inches: 331 units, about the width of a phone, so that 9 point text stays readable

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#88888855",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.5,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
    "text.parse_math": False,  # a file name may hold a $
    "svg.fonttype": "none",
    "svg.hashsalt": "figure",
}


def as_svg(draw: Callable[P, Figure]) -> Callable[P, str]:
    """Let `draw` return its figure as SVG for a page; the `Figure` itself by `__wrapped__`."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        file = io.StringIO()
        with matplotlib.rc_context(STYLE):
            no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            draw(*args, **kwargs).savefig(file, format="svg", metadata=no_metadata)
        return _inline(file.getvalue())

    return drawn


def _inline(svg: str) -> str:
    """A file's SVG made fit for HTML: no prolog, no rules for the whole page, no loose ids."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<style.*?</style>|<!--.*?-->|<metadata.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", svg)
    # The page sets the size; the shape stays in the viewBox.
    svg = re.sub(r"^<svg [^>]*>", lambda m: re.sub(r' (?:width|height)="[^"]*"', "", m[0]), svg)
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    return re.sub(r">\s+<", "><", svg).replace(INK, "currentColor")


def with_unique_ids(svg: str, prefix: str) -> str:
    """The same SVG, its ids beginning with `prefix`: two plots of a page may not share one."""
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)


# ------------------------------------------------------------------------------------- noise


def level_counts(noise: np.ndarray, limit: int, width: int) -> np.ndarray:
    """Histogram of noise (any shape, image range [0, 1]) over 8-bit levels.

    Bins are `width` levels wide (odd) and centred on multiples of `width` levels, so that no value
    of an 8-bit image falls on an edge; they reach from -limit to limit (a multiple of width). The
    first and the last of the 2 limit / width + 3 counts hold what lies beyond. Values that are not
    finite are left out.
    """
    last = limit // width + 1
    bins = np.rint(noise[np.isfinite(noise)] * (255 / width)).clip(-last, last)
    return np.bincount(bins.astype(np.int64) + last, minlength=2 * last + 1)


def _level_bins(noises: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(limit, width) for `level_counts`: 99.9 % of every noise, in about 80 bins."""
    finite = [abs(n[np.isfinite(n)]) for n in noises.values()]
    reach = max((255 * float(np.quantile(n, 0.999)) for n in finite if n.size), default=0)
    reach = max(reach, 4)
    width = int(np.ceil(reach / 40))
    width += 1 - width % 2
    return int(np.ceil(reach / width)) * width, width


@as_svg
def noise_histograms(noises: Mapping[str, np.ndarray]) -> Figure:
    """Share of the pixels a level of noise, log scale. noises: title -> (N,), real noise first."""
    limit, width = _level_bins(noises)
    levels = np.arange(-limit, limit + 1, width)
    figure, axes = new_axes()
    for (title, noise), line in zip(noises.items(), _lines(), strict=False):
        counts = level_counts(noise, limit, width)
        share = np.where(counts > 0, counts, np.nan) / (max(counts.sum(), 1) * width)
        axes.plot(levels, share[1:-1], label=title, drawstyle="steps-mid", **line)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    return _named(figure, axes, "noise [8-bit levels]", "share of values [1/level]")


@as_svg
def cumulative_noise(noises: Mapping[str, np.ndarray]) -> Figure:
    """Share of the pixels with noise up to x. noises: title -> (N,), real noise first."""
    limit, width = _level_bins(noises)
    upper_edges = np.arange(-limit - width, limit + 1, width) + width / 2
    figure, axes = new_axes()
    for (title, noise), line in zip(noises.items(), _lines(), strict=False):
        counts = level_counts(noise, limit, width)
        share = counts.cumsum()[:-1] / max(counts.sum(), 1)
        axes.plot(upper_edges, share, label=title, **line)
    axes.set_ylim(0, 1)
    return _named(figure, axes, "noise [8-bit levels]", "cumulative share of values")


@as_svg
def noise_level_curves(curves: Mapping[str, np.ndarray]) -> Figure:
    """Standard deviation against clean intensity.

    curves: title -> (bins,) standard deviation in the image's range [0, 1], over equal bins of
    clean intensity in [0, 1]; NaN leaves a gap; real noise first.
    """
    figure, axes = new_axes()
    for (title, std), line in zip(curves.items(), _lines(), strict=False):
        intensity = 255 * (np.arange(len(std)) + 0.5) / len(std)
        axes.plot(intensity, 255 * std, label=title, marker="o", markersize=3, **line)
    axes.set_xlim(0, 255)
    axes.set_ylim(bottom=0)
    return _named(figure, axes, "clean intensity [8-bit levels]", "noise std. dev. [8-bit levels]")


@as_svg
def autocorrelation_maps(maps: Mapping[str, np.ndarray]) -> Figure:
    """maps: title -> (2 L + 1, 2 L + 1) correlation at lag (row - L, column - L); real noise first.

    One diverging scale for all, fitted to the lags other than (0, 0), which is 1 by definition.
    Under each title: the correlation at lag (0, 1), right neighbours, and (1, 0), lower ones.
    """
    off_centre = [np.abs(m).ravel()[np.arange(m.size) != m.size // 2] for m in maps.values()]
    finite = np.concatenate(off_centre)
    peak = np.ceil(10 * max(finite[np.isfinite(finite)], default=0)) / 10
    norm = Normalize(-max(peak, 0.1), max(peak, 0.1))
    columns, rows = min(3, len(maps)), -(-len(maps) // 3)
    # Placed by hand, in inches: automatic layout cuts off titles above panels of fixed shape.
    left, foot, panel, gap, title_band = 0.55, 1.0, 1.18, 0.17, 0.75
    height = foot + rows * (panel + title_band)
    figure = Figure(figsize=(WIDTH, height))

    def place(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / WIDTH, y / height, w / WIDTH, h / height))

    for i, (title, correlation) in enumerate(maps.items()):
        row, column = divmod(i, columns)
        bottom = foot + (rows - 1 - row) * (panel + title_band)
        axes = place(left + column * (panel + gap), bottom, panel, panel)
        lag = len(correlation) // 2
        extent = (-lag - 0.5, lag + 0.5, lag + 0.5, -lag - 0.5)
        # Not resampled: the browser enlarges the pixels.
        axes.imshow(correlation, "RdBu_r", norm=norm, extent=extent, interpolation="none")
        right, below = correlation[lag, lag + 1], correlation[lag + 1, lag]
        name = "\n".join(textwrap.wrap(title, 20, max_lines=2, placeholder="…"))
        axes.set_title(f"{name}\n(0,1): {right:z.2f}\n(1,0): {below:z.2f}", fontsize=8)
        axes.grid(False)
        is_lowest = i + columns >= len(maps)
        axes.set_xticks([-lag, 0, lag], [-lag, 0, lag] if is_lowest else [""] * 3)
        axes.set_yticks([-lag, 0, lag], [-lag, 0, lag] if column == 0 else [""] * 3)
        if column == 0:
            axes.set_ylabel("vertical lag [px]")
        if is_lowest:
            axes.set_xlabel("horizontal lag [px]", fontsize=8)
    bar = figure.colorbar(
        ScalarMappable(norm, "RdBu_r"),
        cax=place(left, 0.43, columns * (panel + gap) - gap, 0.1),
        orientation="horizontal",
        extend="max",
        label="correlation",
    )
    bar.solids.set_rasterized(True)
    return figure


# ----------------------------------------------------------------------------------- shared


def new_axes(height: float = 2.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _named(figure: Figure, axes: Axes, x: str, y: str) -> Figure:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    add_legend(figure, axes)
    return figure


def _lines() -> list[dict]:
    """Styles for real noise and for the models, as many as there are models or more."""
    styles = [dict(color=c, linestyle=d) for c, d in zip(COLOURS, DASHES, strict=True)]
    crossed = [dict(color=c, linestyle=d) for d in DASHES for c in COLOURS]
    # Wide and pale below the others, so that it shows where a model agrees with it.
    real = dict(color=INK, linewidth=4.5, alpha=0.35, solid_capstyle="butt")
    return [real, *styles, *(s for s in crossed if s not in styles)]


def add_legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    columns = 3 if longest < 15 else 2 if longest < 25 else 1
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.17 * -(-len(labels) // columns))
    # Constrained layout makes room for legends of the figure alone, not for those of axes.
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=3.6)
