"""What demo.py shows of one photo whose noise is generated: crops, histograms, noise levels."""

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from evaluation import plots
from evaluation.blind_noise_level import blind_noise_level
from evaluation.noise_section import graph
from utils.images import integer_to_float, uint16_to_uint8
from utils.metrics import psnr
from utils.noise_statistics import neighbour_correlation, noise_level_function
from utils.photos import Tags, encode

STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
CROP, SHOWN, MEASURED = 256, 1600, 1024  # pixels a side, at most
BINS = 16  # of the noise levels


@dataclass(frozen=True)
class Result:
    """Images (H, W, 3) uint8 or uint16; all but the reference of one shape and depth.

    name, tags: of the clean photo, for the files that are written.
    """

    name: str
    tags: Tags
    reference: np.ndarray
    clean: np.ndarray
    noisy: np.ndarray
    white: np.ndarray
    denoised: np.ndarray | None = None


def white_noise(clean: np.ndarray, noisy: np.ndarray, seed: int = 0) -> np.ndarray:
    """clean with white Gaussian noise, after clipping as strong in each channel as noisy's."""
    rng, peak = np.random.default_rng(seed), np.iinfo(clean.dtype).max
    sample = thinned(clean).astype(np.float64)
    draw = rng.standard_normal(sample.shape)
    target = (thinned(noisy) - sample).std(axis=(0, 1))
    std = target
    for _ in range(5):  # clipping takes a part of it
        measured = ((sample + std * draw).clip(0, peak) - sample).std(axis=(0, 1))
        std = std * target / np.maximum(measured, 1e-9)
    result = np.empty_like(clean)
    for y in range(0, len(clean), 256):  # as floats the whole would take eight times the memory
        rows = clean[y : y + 256]
        result[y : y + 256] = (rows + rng.normal(0, std, rows.shape)).round().clip(0, peak)
    return result


def thinned(image: np.ndarray) -> np.ndarray:
    """Pixels from all over the image, MEASURED a side at most."""
    step = -(-max(image.shape[:2]) // MEASURED)
    return image[::step, ::step]


def piece(image: np.ndarray, side: int, x: float = 0.5, y: float = 0.5) -> np.ndarray:
    """The square around (x, y), shares of width and height, moved inside where it sticks out."""
    top, left = (
        min(max(round(at * n - side / 2), 0), max(n - side, 0))
        for at, n in zip((y, x), image.shape, strict=False)
    )
    return image[top : top + side, left : left + side]


def preview(image: np.ndarray) -> np.ndarray:
    """8 bits, SHOWN pixels a side at most."""
    height, width = image.shape[:2]
    if max(height, width) > SHOWN:
        size = [max(1, round(n * SHOWN / max(height, width))) for n in (width, height)]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return _uint8(image)


def _uint8(image: np.ndarray) -> np.ndarray:
    return uint16_to_uint8(image) if image.dtype == np.uint16 else image


def crops_html(result: Result, x: float, y: float) -> str:
    """All images around (x, y), shares of width and height, pixel for pixel."""
    clean = _measured(result.clean)
    images = {
        "Reference": (result.reference, "a piece of the noisy photo"),
        "Clean": (result.clean, "the other photo as it was"),
        "NoiseTransfer": (result.noisy, _noise_words(result.noisy, clean)),
        "White noise": (result.white, _noise_words(result.white, clean)),
    }
    if result.denoised is not None:
        before, after = (psnr(_measured(i), clean).item() for i in (result.noisy, result.denoised))
        images["Denoised"] = result.denoised, f"PSNR {before:.1f} → {after:.1f} dB"
    figures = []
    for title, (image, words) in images.items():
        crop = _uint8(piece(image, CROP, x, y))
        data = base64.b64encode(encode(".png", crop, Tags())).decode()
        figures.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{title}, at 1:1" '
            f'width="{crop.shape[1]}" height="{crop.shape[0]}">'
            f"<figcaption><strong>{title}</strong><br>{words}</figcaption></figure>"
        )
    return f'<div class="crops">{"".join(figures)}</div>'


def _measured(image: np.ndarray) -> Tensor:
    """(1, 3, H, W) in [0, 1]: the middle."""
    return integer_to_float(piece(image, MEASURED))[None]


def _noise_words(image: np.ndarray, clean: Tensor) -> str:
    noisy = _measured(image)
    std = 255 * (noisy - clean).std(correction=0).item()
    if std == 0:
        return "no noise"
    correlation = neighbour_correlation(noisy, clean).item()
    return f"std. {std:.1f} of 255, neighbours correlate by {correlation:.2f}"


def curves_html(result: Result) -> str:
    """Histograms and noise levels of what is generated, and the reference's level, estimated."""
    clean = integer_to_float(thinned(result.clean))[None]
    noises, levels = {}, {}
    for title, image in (("NoiseTransfer", result.noisy), ("white noise", result.white)):
        noisy = integer_to_float(thinned(image))[None]
        noises[title] = (noisy - clean).flatten().numpy()
        variances = noise_level_function(noisy, clean, bins=BINS)[0]
        levels[title] = variances.nanmean(0).sqrt().numpy()
    reference = _measured(result.reference)[0].permute(1, 2, 0).double().numpy()
    slope, offset = blind_noise_level(reference).mean(axis=0)
    intensity = (np.arange(BINS) + 0.5) / BINS
    low, high = np.quantile(reference, (0.01, 0.99))
    there = (intensity >= low) & (intensity <= high)
    estimate = np.where(there, np.sqrt(slope * intensity + offset), np.nan)
    levels["reference, estimated"] = estimate
    graphs = (
        (
            plots.noise_histograms(noises),
            "Noise histograms",
            "NoiseTransfer is the wide, pale line.",
        ),
        (
            plots.noise_level_curves(levels),
            "Noise levels",
            "The reference's is estimated from that photo alone, whatever the strength chosen.",
        ),
    )
    drawn = (graph(plots.with_unique_ids(svg, f"g{i}"), *w) for i, (svg, *w) in enumerate(graphs))
    return f'<div class="graphs">{"".join(drawn)}</div>'
