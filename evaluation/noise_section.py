"""Noise of one test set in the report: pictures, statistics, embeddings.

Statistics are means over the samples; their plots are evaluation/plots.py's.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from torch import Tensor

from evaluation import plots
from evaluation.baselines import BASELINES
from evaluation.embedding_maps import MAX_GROUPS, embedding_map
from evaluation.image_sets import ImagePairs, middle
from evaluation.pictures import CROP, strip
from models.generator import per_image_noise
from models.noise_transfer import NoiseTransfer
from utils.noise_statistics import noise_autocorrelation, noise_level_function
from utils.seeding import derived_seed

REAL = "real noise"
STRIPS = 4  # samples of a test set that are shown
MAX_LAG = 5
MAX_EMBEDDINGS = 256


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


@dataclass(frozen=True)
class NoiseSection:
    """One test set. embeddings: (N, d) unit rows, of noisy images; groups: their N labels, camera
    and ISO or the image's name; both None where there is no encoder."""

    title: str
    samples: Sequence[NoiseSample]
    embeddings: np.ndarray | None
    groups: Sequence[str] | None


def noise_section(
    transfer: NoiseTransfer,
    test_set: ImagePairs,
    *,
    seed: int = 0,
    limit: int | None = None,
    device: torch.device | str = "cpu",
) -> NoiseSection:
    """What the report shows of a test set: middles of four images, and all images' embeddings."""
    count = min(len(test_set) if limit is None else min(limit, len(test_set)), MAX_EMBEDDINGS)
    models = {"NoiseTransfer": transfer, **{b.title: b for b in BASELINES.values()}}
    samples = []
    for i in np.unique(np.linspace(0, count - 1, STRIPS).round().astype(int)).tolist():
        clean, real = (middle(x, 256)[None].to(device) for x in test_set[i])
        generated = {
            title: model(clean, real, per_image_noise([derived_seed(seed, i)]))[0].cpu()
            for title, model in models.items()
        }
        clean, real = clean[0].cpu(), real[0].cpu()
        samples.append(NoiseSample(test_set.image_name(i), clean, real, real, generated))
    embedded = (transfer.embed(test_set[i][1][None].to(device)) for i in range(count))
    embeddings = [transfer.direction(one)[0].cpu() for one in embedded]
    groups = [test_set.kind(i) or test_set.image_name(i) for i in range(count)]
    return NoiseSection(test_set.title, samples, torch.stack(embeddings).numpy(), groups)


def noise_html(section: NoiseSection, key: str) -> str:
    """The section's content; key: of the page's, makes the ids inside it unique."""
    drawn = []
    if section.samples:
        drawn += _statistics(section)
    # Two points span no plane.
    if section.embeddings is not None and section.groups is not None and len(section.groups) > 2:
        drawn.append(_embedding_plot(section.embeddings, section.groups))
    strips = _strips(section.samples) if section.samples else "<p>No images.</p>"
    if not drawn:
        return strips
    graphs = "\n".join(
        graph(plots.with_unique_ids(svg, f"{key}-{i}"), name, caption)
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
        rows.append(strip(sample.name, pictures))
    said = (
        f"Centres ({CROP} pixels a side at most) of {len(shown)} of {_plural(len(samples))}."
        f" Difference: noise of {model} less real noise, around mid-grey, gain {gain:g};"
        " two draws of the same noise differ as well."
    )
    return f"<h3>Pictures</h3>\n<p>{escape(said)}</p>\n" + "\n".join(rows)


def _gain(differences: Iterable[Tensor]) -> float:
    """The power of two, 1 to 16, that lets three standard deviations about fill the range."""
    std = torch.cat([d.flatten() for d in differences]).nan_to_num().std().item()
    return 2.0 ** min(4, max(0, math.floor(math.log2(0.5 / max(3 * std, 1e-6)))))


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
            plots.noise_histograms(noises),
            "Noise histograms",
            f"All values of {over}; real noise is the wide, pale line.",
        ),
        (
            plots.cumulative_noise(noises),
            "Cumulative noise distributions",
            "The largest vertical distance to real noise is the KS distance of the pooled values.",
        ),
        (
            plots.autocorrelation_maps(maps),
            "Autocorrelation of the noise",
            f"Mean over channels and {over}; lags are (down, right).",
        ),
        (
            plots.noise_level_curves({t: np.sqrt(v) for t, v in variances.items()}),
            "Noise level",
            f"Root of the mean variance over channels and those of {over} that have enough pixels "
            "of an intensity.",
        ),
    ]


def _embedding_plot(embeddings: np.ndarray, groups: Sequence[str]) -> tuple[str, str, str]:
    count = len(set(groups))
    unnamed = "; too many for a legend" if count > MAX_GROUPS else ""
    caption = f"First two principal components; {len(groups)} images, {count} groups{unnamed}."
    return embedding_map(embeddings, groups), "Embeddings of noisy images", caption


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


def graph(svg: str, name: str, caption: str) -> str:
    picture = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(name)}" ', 1)
    below = f"<figcaption>{escape(caption)}</figcaption>"
    return f"<figure><h4>{escape(name)}</h4>{picture}{below}</figure>"


def _plural(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"
