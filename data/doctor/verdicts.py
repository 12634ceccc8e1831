"""What the doctor concludes from the measured pairs of a data set; thresholds and their reasons."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes

from data.doctor.measures import PairStats, noise_strengths
from data.folders import Finding
from data.sidd import Scene

# `noisier_side`: 1 in theory. Worst good 0.49 (PolyU, whose JPEG takes noise off flat areas; 0.74
# elsewhere), worst swapped therefore -0.49; the middle is 0.
SWAPPED_BELOW = -0.1
# `displacement` gain of aligned pairs: at most -0.02; shifted by 3 pixels: at least 0.146.
SHIFT_GAIN = 0.05
SHIFT_PIXELS = 2.0  # RENOIR, native SIDD and PolyU have pairs that are off by 1 by nature
# `jpeg_lattice` of lossless pairs: at most 0.09; saved as JPEG of quality 50 to 95: at least 0.41.
JPEG_ABOVE = 0.25
# Fine correlation against the set's median. Worst good 0.08 (SIDD), a pair resized by 2 either way
# 0.2 and more (RENOIR); the spread of a varied set raises it (PolyU: 0.6, so nothing is found).
CORRELATION_OFF, CORRELATION_MADS = 0.13, 8.0
# Log strength against the other scenes of the phone. Worst good 0.47 (0180_008_GP_00100...), next
# 0.35; ISO wrong by a factor of 8: at least 1.0, by 4: 0.7 (strength grows with ISO^0.5 in theory,
# 1.4 to 1.5-fold per octave as measured). On the iPhone 7 it does not grow with ISO: no verdict.
STRENGTH_OFF, NEIGHBOURS = 0.65, 5
# Brightness of a pair, grey levels: worst good 9.1 (SIDD at a high ISO, clipped at black).
BIAS_ABOVE = 20.0
MANY = 0.5  # a property of more than half the pairs is the set's nature: one note


@dataclass(frozen=True)
class MeasuredPair:
    clean: Path
    noisy: Path
    stats: PairStats


def pair_findings(root: Path, pairs: Sequence[MeasuredPair]) -> Iterator[Finding]:
    """Misaligned, recompressed, swapped, unlike exposed and resized pairs of the set `root`.

    Each pair is judged once, in this order: what stands first explains what follows. (JPEG takes
    noise off: in a weakly noisy pair its clean partner is then the noisier one.)
    """
    stats = [pair.stats for pair in pairs]
    shifts = np.array([np.hypot(*s.shift) for s in stats])
    compressed = np.array([s.lattice > JPEG_ABOVE for s in stats])
    loose = len(pairs) > 3 and (shifts >= 1).mean() > MANY
    all_compressed = len(pairs) > 1 and compressed.mean() > MANY
    middle, limit = _robust_limit(np.array([s.fine_correlation for s in stats]))
    if loose:
        far = [p for p, d in zip(pairs, shifts, strict=True) if d >= SHIFT_PIXELS]
        names = ", ".join(_shifted(p.noisy, p.stats) for p in far)
        message = f"{int((shifts >= 1).sum())} of {len(pairs)} pairs are off by a pixel or more"
        message += f"; by 2 or more: {names}" if names else ""
        action = "its noise holds traces of edges: prefer an aligned set, or leave these pairs out"
        yield Finding("note", "alignment", root, message, action)
    if all_compressed:
        message = f"{int(compressed.sum())} of {len(pairs)} noisy images have been JPEG compressed"
        action = "its noise is smoothed and blocked: do not take it for a camera's own"
        yield Finding("note", "recompressed", root, message, action)
    for pair, s, shift, jpeg in zip(pairs, stats, shifts, compressed, strict=True):
        if not loose and shift >= SHIFT_PIXELS and s.shift_gain > SHIFT_GAIN:
            message = f"shifted against its clean partner: {_shifted(pair.noisy, s)}"
            action = "fetch the pair again or remove it"
            yield Finding("error", "misaligned", pair.noisy, message, action)
        elif jpeg and not all_compressed:
            message = (
                "has been JPEG compressed, whatever it is stored as now, other than the rest of "
                f"its set (lattice {s.lattice:.2f}, lossless below 0.1)"
            )
            action = "fetch the original or remove the pair"
            yield Finding("warning", "recompressed", pair.noisy, message, action)
        elif s.noisier < SWAPPED_BELOW:
            message = f"less noise than in its clean partner {pair.clean.name} "
            message += f"(index {s.noisier:.2f}, expected about 1)"
            yield Finding("error", "swapped", pair.noisy, message, "exchange the two files")
        elif abs(s.bias) > BIAS_ABOVE:
            message = f"differs from its clean partner by {s.bias:+.0f} grey levels in the mean"
            action = "make sure that both are of one exposure and one processing"
            yield Finding("warning", "brightness", pair.noisy, message, action)
        elif abs(s.fine_correlation - middle) > limit:
            message = (
                f"noise of neighbouring pixels correlates by {s.fine_correlation:.2f}, in its set "
                f"by {middle:.2f}: resized, denoised or of another source"
            )
            action = "fetch the original at native resolution or remove the pair"
            yield Finding("warning", "resized", pair.noisy, message, action)


def iso_findings(scenes: Sequence[tuple[Path, Scene, PairStats]]) -> Iterator[Finding]:
    """Scenes whose noise does not go with the ISO in their name; (folder, name's settings, stats).

    Strength at equal brightness is compared with the NEIGHBOURS other scenes of the phone that are
    nearest in ISO, carried over along the phone's own slope; phones with fewer scenes are left out.
    """
    if not scenes:
        return
    levels, counts = (np.array([getattr(s, x) for *_, s in scenes]) for x in ("levels", "counts"))
    strength = noise_strengths(levels, counts)
    for phone in sorted({scene.phone for _, scene, _ in scenes}):
        mine = [i for i, (_, scene, _) in enumerate(scenes) if scene.phone == phone]
        mine = [i for i in mine if np.isfinite(strength[i])]
        iso = np.log2([scenes[i][1].iso for i in mine])
        expected, slope = expected_strengths(iso, strength[mine])
        for i, off in zip(mine, strength[mine] - expected, strict=True):
            if abs(off) > STRENGTH_OFF:
                folder, scene, _ = scenes[i]
                near = f" (about ISO {scene.iso * 2 ** (off / slope):.0f})" if slope > 0.1 else ""
                message = f"noise {np.exp(off):.1f} times that of other {phone} scenes at ISO "
                action = "restore the published folder name, or remove the scene"
                yield Finding("warning", "iso", folder, f"{message}{scene.iso}{near}", action)


def expected_strengths(iso: np.ndarray, strength: np.ndarray) -> tuple[np.ndarray, float]:
    """(n,) log strength that each scene should have by the others, and the slope per octave.

    iso: log2. Medians throughout: a few wrong names do not move them. NaN, so no verdict, for up to
    NEIGHBOURS scenes.
    """
    expected = np.full(len(iso), np.nan)
    if len(iso) <= NEIGHBOURS:
        return expected, 0.0
    slope = float(theilslopes(strength, iso)[0]) if np.ptp(iso) > 0 else 0.0
    for i in range(len(iso)):
        distance = np.abs(iso - iso[i])
        distance[i] = np.inf
        near = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        expected[i] = np.median(strength[near] + slope * (iso[i] - iso[near]))
    return expected, slope


def summary(pairs: Sequence[MeasuredPair]) -> dict[str, tuple[float, float, float]]:
    """{statistic: (median, smallest, largest)} over the pairs."""
    rows = {}
    for name in ("std", "bias", "psnr", "correlation"):
        values = np.array([getattr(pair.stats, name) for pair in pairs])
        values = values[np.isfinite(values)]
        if values.size:
            rows[name] = tuple(float(f(values)) for f in (np.median, np.min, np.max))
    return rows


def _robust_limit(values: np.ndarray) -> tuple[float, float]:
    """Median, and how far from it is too far; never too far among fewer than 5."""
    values = values[np.isfinite(values)]
    if values.size < 5:
        return 0.0, np.inf
    middle = float(np.median(values))
    spread = float(np.median(np.abs(values - middle))) / 0.6745
    return middle, max(CORRELATION_OFF, CORRELATION_MADS * spread)


def _shifted(path: Path, stats: PairStats) -> str:
    down, right = stats.shift
    return f"{path.name} by {down:+d} down, {right:+d} right"
