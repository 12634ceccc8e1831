"""The evaluation as one HTML file: tables, pictures, and statistics of real and generated noise.

The file holds everything it shows and asks nothing of the network; it runs no script.
"""

import base64
import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from utils import figures
from utils.files import write_atomically
from utils.images import float_to_uint8
from utils.noise_statistics import noise_autocorrelation, noise_level_function
from utils.tables import Table

REAL = "real noise"
STRIPS = 4  # samples of a test set that are shown
CROP = 64  # noise does not compress: more would take a page of two test sets beyond 1 MB
MAX_LAG = 5


@dataclass(frozen=True)
class NoiseSample:
    """One image of a test set and what noise models make of it.

    name: of the image. clean, reference, real and each value of generated: (3, H, W) float32 on the
    CPU, in [0, 1], at most 256x256; clean, real and generated of one shape. generated: title of the
    noise model -> its noisy image, NoiseTransfer first; one or more.
    """

    name: str
    clean: Tensor
    reference: Tensor
    real: Tensor
    generated: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for title, image in {"real": self.real, **self.generated}.items():
            if image.shape != self.clean.shape:
                raise ValueError(
                    f"{self.name}: expected {title} of {tuple(self.clean.shape)}, as clean, "
                    f"got {tuple(image.shape)}"
                )


@dataclass(frozen=True)
class NoiseSection:
    """One test set. embeddings: (N, d) unit rows, of noisy images; groups: their N labels, camera
    and ISO or the image's name; both None where there is no encoder."""

    title: str
    samples: Sequence[NoiseSample]
    embeddings: np.ndarray | None
    groups: Sequence[str] | None

    def __post_init__(self) -> None:
        if (self.embeddings is None) != (self.groups is None) or (
            self.embeddings is not None and len(self.embeddings) != len(self.groups)
        ):
            raise ValueError(f"{self.title}: expected one group for each embedding")
        if len({tuple(s.generated) for s in self.samples}) > 1:
            raise ValueError(f"{self.title}: expected the same noise models for every sample")


def write_html(
    path: Path,
    title: str,
    tables: Sequence[Table],
    sections: Sequence[NoiseSection],
    notes: Sequence[str],
) -> None:
    """Write the page, whole or not at all; missing folders are made.

    notes: how the figures came about, for the footer. The same arguments give the same file. Raises
    UserError if the file cannot be written.
    """
    write_atomically(_page(title, tables, sections, notes).encode(), path)


def _page(
    title: str, tables: Sequence[Table], sections: Sequence[NoiseSection], notes: Sequence[str]
) -> str:
    parts = [(f"table-{i}", t.title, _table(t)) for i, t in enumerate(tables, 1)]
    parts += [
        (f"noise-{i}", f"Noise: {s.title}", _noise(s, f"noise-{i}"))
        for i, s in enumerate(sections, 1)
    ]
    contents = [(key, heading) for key, heading, _ in parts] + [("origin", "Origin")] * bool(notes)
    links = (f'<li><a href="#{key}">{_text(heading)}</a></li>' for key, heading in contents)
    body = "\n".join(
        f'<section id="{key}">\n<h2>{_text(heading)}</h2>\n{content}\n</section>'
        for key, heading, content in parts
    )
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    footer = f'<footer id="origin"><h2>Origin</h2><ul>{items}</ul></footer>\n' if notes else ""
    # The policy makes the browser refuse whatever is not in the file.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{_text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{_text(title)}</h1></header>
<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>
<main>
{body}
</main>
{footer}</body>
</html>
"""


def _text(text: str) -> str:
    """For elements and for attributes in double quotes alike."""
    return html.escape(text, quote=True)


def _table(table: Table) -> str:
    """Scrolls in its own box, which the keyboard reaches as well."""
    head = "".join(f'<th scope="col"{_align(c.spec)}>{_text(c.title)}</th>' for c in table.columns)
    rows = []
    for row in table.rows:
        cells = (f"<td{_align(c.spec)}>{_text(c.cell(row))}</td>" for c in table.columns)
        rows.append("".join(cells))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _align(spec: str) -> str:
    return ' class="number"' if spec else ""


# ------------------------------------------------------------------------- noise of a test set


def _noise(section: NoiseSection, key: str) -> str:
    drawn = []
    if section.samples:
        drawn += _statistics(section)
    # Two points span no plane.
    if section.embeddings is not None and section.groups is not None and len(section.groups) > 2:
        drawn.append(_embedding_figure(section.embeddings, section.groups))
    strips = _strips(section.samples) if section.samples else "<p>No images.</p>"
    if not drawn:
        return strips
    graphs = "\n".join(
        _graph(figures.with_unique_ids(svg, f"{key}-{i}"), name, caption)
        for i, (svg, name, caption) in enumerate(drawn)
    )
    return f'{strips}\n<h3>Statistics</h3>\n<div class="graphs">\n{graphs}\n</div>'


def _strips(samples: Sequence[NoiseSample]) -> str:
    """clean | reference | generated | real | difference, for the first noise model; the others'
    generated noise follows for the first sample alone, since every picture makes the page large."""
    shown = samples[:STRIPS]
    model, *others = shown[0].generated
    gain = _gain([s.generated[model] - s.real for s in shown])
    rows = []
    for sample in shown:
        generated = sample.generated[model]
        pictures = {
            "clean": sample.clean,
            "reference": sample.reference,
            f"generated: {model}": generated,
            "real": sample.real,
            f"difference ×{gain:g}": 0.5 + gain * (generated - sample.real),
        }
        if sample is shown[0]:
            pictures |= {f"generated: {other}": sample.generated[other] for other in others}
        rows.append(_strip(sample.name, pictures))
    said = (
        f"Centres ({CROP} pixels a side at most) of {len(shown)} of {_plural(len(samples))}."
        f" Difference: noise of {model} less real noise, around mid-grey, gain {gain:g};"
        " two draws of the same noise differ as well."
    )
    return f"<h3>Pictures</h3>\n<p>{_text(said)}</p>\n" + "\n".join(rows)


def _strip(name: str, pictures: Mapping[str, Tensor]) -> str:
    figures_of_strip = "".join(
        f'<figure><img src="{_png(image)}" alt="{_text(f"{name}, {what}")}" width="{w}" '
        f'height="{h}"><figcaption>{_text(what)}</figcaption></figure>'
        for what, image in pictures.items()
        for h, w in [_centre(image).shape[-2:]]
    )
    return f'<h4>{_text(name)}</h4>\n<div class="strip">{figures_of_strip}</div>'


def _gain(differences: Iterable[Tensor]) -> float:
    """The power of two, 1 to 16, that lets three standard deviations about fill the range."""
    std = torch.cat([d.flatten() for d in differences]).nan_to_num().std().item()
    return 2.0 ** min(4, max(0, math.floor(math.log2(0.5 / max(3 * std, 1e-6)))))


def _centre(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    top, left = max(0, (height - CROP) // 2), max(0, (width - CROP) // 2)
    return image[..., top : top + CROP, left : left + CROP]


def _png(image: Tensor) -> str:
    """Data URI of the centre of (3, H, W); black where it is not a number."""
    pixels = cv2.cvtColor(float_to_uint8(_centre(image).nan_to_num()), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _statistics(section: NoiseSection) -> list[tuple[str, str, str]]:
    """(SVG, what it shows, caption) of each figure, over all samples."""
    samples = section.samples
    pairs = {REAL: [(s.real, s.clean) for s in samples]}
    for model in samples[0].generated:
        pairs[model] = [(s.generated[model], s.clean) for s in samples]
    noises = {
        title: np.concatenate([(noisy - clean).flatten().numpy() for noisy, clean in images])
        for title, images in pairs.items()
    }
    maps = {title: _mean(_autocorrelation, images) for title, images in pairs.items()}
    variances = {title: _mean(_noise_variance, images) for title, images in pairs.items()}
    over = _plural(len(samples))
    return [
        (
            figures.noise_histograms(noises),
            "Noise histograms",
            f"All values of {over}; real noise is the wide, pale line.",
        ),
        (
            figures.cumulative_noise(noises),
            "Cumulative noise distributions",
            "The largest vertical distance to real noise is the KS distance of the pooled values.",
        ),
        (
            figures.autocorrelation_maps(maps),
            "Autocorrelation of the noise",
            f"Mean over channels and {over}; lags are (down, right).",
        ),
        (
            figures.noise_level_curves({t: np.sqrt(v) for t, v in variances.items()}),
            "Noise level",
            f"Root of the mean variance over channels and those of {over} that have enough pixels "
            "of an intensity.",
        ),
    ]


def _embedding_figure(embeddings: np.ndarray, groups: Sequence[str]) -> tuple[str, str, str]:
    count = len(set(groups))
    unnamed = "; too many for a legend" if count > figures.MAX_GROUPS else ""
    caption = f"First two principal components; {len(groups)} images, {count} groups{unnamed}."
    return figures.embedding_map(embeddings, groups), "Embeddings of noisy images", caption


def _mean(
    statistic: Callable[[Tensor, Tensor], Tensor], images: Iterable[tuple[Tensor, Tensor]]
) -> np.ndarray:
    """Of a statistic over images, which may differ in size; entries that are NaN do not count."""
    each = [statistic(noisy[None], clean[None]) for noisy, clean in images]
    return torch.stack(each).nanmean(0).numpy()


def _autocorrelation(noisy: Tensor, clean: Tensor) -> Tensor:
    """(11, 11) of one image: the mean of its channels' own correlations."""
    return noise_autocorrelation(noisy, clean, max_lag=MAX_LAG)[0].diagonal().mean(-1)


def _noise_variance(noisy: Tensor, clean: Tensor) -> Tensor:
    """(bins,) of one image."""
    return noise_level_function(noisy, clean)[0].nanmean(0)


def _graph(svg: str, name: str, caption: str) -> str:
    picture = svg.replace("<svg ", f'<svg role="img" aria-label="{_text(name)}" ', 1)
    return (
        f"<figure><h4>{_text(name)}</h4>{picture}<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _plural(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"


STYLE = """
:root { --page: #fff; --ink: #1b1f24; --faint: #57606a; --rule: #d0d7de; --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16191d; --ink: #e6e8eb; --faint: #a0a8b2; --rule: #3a4049; --link: #7cb7ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 16px; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1.1rem; margin: 1.5rem 0 .5rem; }
h4 { font-size: 1rem; margin: 1rem 0 .25rem; }
a { color: var(--link); }
nav ul { padding-left: 1.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .3rem .7rem; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
th.number, td.number { text-align: right; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--faint); font-size: .85rem; line-height: 1.35; }
.strip { max-width: 1088px; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, 192px); }
.strip img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.graphs { display: grid; gap: 24px 32px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.graphs svg { display: block; width: 100%; max-width: 540px; height: auto;
  stroke-linejoin: round; stroke-linecap: butt; }
footer { color: var(--faint); font-size: .85rem; }
footer h2 { color: var(--ink); }
footer ul { padding-left: 1.2rem; }
@media (max-width: 640px) { .strip { grid-template-columns: repeat(auto-fill, 160px); } }
"""
