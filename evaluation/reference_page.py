"""What inspect_references.py writes: a table, and a page that shows it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from evaluation.embedding_maps import embedding_map
from evaluation.noise_section import graph
from evaluation.plots import noise_level_curves, with_unique_ids
from evaluation.references import BINS, Bank, BlindNoise, Warned
from evaluation.report import page, table_html
from evaluation.tables import Column, Row, Table, write_csv
from utils.files import write_atomically

TITLE = "Noisy photos as references"
SHOWN = 24  # photos whose noise level is drawn; the others' is in the table of the file
NEAREST = 3
UNKNOWN = "unknown"
CHANNELS = "red", "green", "blue"

COLUMNS = (
    Column("number", "#", "d"),
    Column("verdict", "verdict"),
    Column("distance", "distance", ".1f"),
    Column("photo", "photo"),
    Column("std", "noise std", ".1f"),
    Column("correlation", "correlation", ".2f"),
    Column("flat", "flat area", ".0%"),
    Column("camera", "camera"),
    Column("iso", "ISO"),
    Column("nearest", "nearest kinds of noise"),
)
LEVELS = [round(255 * (k + 0.5) / BINS) for k in range(BINS)]
FILE_COLUMNS = (
    *(c for c in COLUMNS if c.key not in ("number", "nearest")),
    *(Column(key, "") for key in ("correlation_horizontal", "correlation_vertical")),
    *(Column(f"{key}_{k}", "") for k in range(1, NEAREST + 1) for key in ("kind", "distance")),
    *(Column(f"std_{channel}_{level}", "") for channel in CHANNELS for level in LEVELS),
    Column("warnings", ""),
)


@dataclass(frozen=True)
class Inspected:
    """A photo. z: (d,); camera and iso: UNKNOWN where it has no such EXIF data."""

    name: str
    camera: str
    iso: str
    noise: BlindNoise
    z: np.ndarray
    warnings: Sequence[Warned]

    @property
    def camera_or_folder(self) -> str:
        folder = self.name.rpartition("/")[0]
        return self.camera if self.camera != UNKNOWN else folder or UNKNOWN

    @property
    def text(self) -> str:
        return "; ".join(w.text for w in self.warnings)


def write_report(
    folder: Path, photos: Sequence[Inspected], bank: Bank | None, skipped: Sequence[str]
) -> None:
    """references.csv and references.html in `folder`; UserError if they cannot be written."""
    rows = [row(i, photo, bank) for i, photo in enumerate(photos, 1)]
    write_csv(folder / "references.csv", FILE_COLUMNS, rows)
    table = Table("references", "Photos", COLUMNS, rows)
    parts = [("verdict", "Verdict", _verdict(photos, bank, skipped))]
    if photos:
        parts += [
            ("photos", "Photos", table_html(table)),
            ("map", "Map of embeddings", _maps(photos, bank)),
            ("noise", "Noise level", _curves(photos)),
        ]
    html = page(TITLE, parts, _notes(bank))
    write_atomically(html.encode(), folder / "references.html")


def row(number: int, photo: Inspected, bank: Bank | None) -> Row:
    """Of COLUMNS and FILE_COLUMNS; standard deviations in 8-bit levels."""
    nearest = bank.nearest(photo.z, NEAREST) if bank else []
    noise = photo.noise
    values: dict[str, str | int | float] = {
        "number": number,
        "photo": photo.name,
        "camera": photo.camera,
        "iso": photo.iso,
        "verdict": ", ".join(w.word for w in photo.warnings) or ("known" if bank else "-"),
        "distance": nearest[0][1] if nearest else np.nan,
        "nearest": ", ".join(f"{kind} ({distance:.1f})" for kind, distance in nearest) or "-",
        "std": 255 * noise.sigma,
        "correlation": float(noise.correlation.mean()),
        "correlation_horizontal": float(noise.correlation[0]),
        "correlation_vertical": float(noise.correlation[1]),
        "flat": noise.flat,
        "warnings": photo.text,
    }
    for k in range(NEAREST):
        kind, distance = nearest[k] if k < len(nearest) else ("", np.nan)
        values |= {f"kind_{k + 1}": kind, f"distance_{k + 1}": distance}
    for channel, curve in zip(CHANNELS, noise.curve, strict=True):
        for level, std in zip(LEVELS, curve, strict=True):
            values[f"std_{channel}_{level}"] = float(255 * std)
    return values


def _verdict(photos: Sequence[Inspected], bank: Bank | None, skipped: Sequence[str]) -> str:
    """How many photos of each verdict, and what it means; then what could not be read."""
    if bank is None:
        said, meanings = f"{len(photos)} photos, not judged: there is no bank to compare with.", {}
    else:
        t = bank.thresholds
        good = sum(not photo.warnings for photo in photos)
        said = f"{good} of {len(photos)} photos are like the training data."
        meanings = {
            "far": f"over {t.far:.1f} degrees from every known kind of noise, as 1% of photos of "
            "an unseen kind are: expect other noise than theirs.",
            "unusual": f"over {t.usual:.1f} degrees, as 5% are: look at what is generated.",
            "not flat": f"less than {t.flat:.1%} flat area, as 5% of the training photos have: "
            "take one with sky, a wall or defocus.",
        }
    counts = Counter(w.word for photo in photos for w in photo.warnings)
    lines = [f"{counts[word]} {word}: {text}" for word, text in meanings.items() if counts[word]]
    html = f"<p>{escape(said)}</p>{_list(lines)}"
    return html + (f"<h3>Skipped</h3>{_list(skipped)}" if skipped else "")


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _maps(photos: Sequence[Inspected], bank: Bank | None) -> str:
    """Their plane is the bank's, always the same; without one, the photos' own."""
    z = np.stack([photo.z for photo in photos])
    if bank is None and len(photos) < 3:
        return "<p>Two points span no plane.</p>"
    graphs = []
    for name, groups in (
        (
            "By camera, or folder where that is not known",
            [photo.camera_or_folder for photo in photos],
        ),
        ("By ISO", [photo.iso for photo in photos]),
    ):
        svg = embedding_map(z, groups, bank and bank.embeddings)
        caption = f"{len(photos)} photos"
        caption += f", on {len(bank.embeddings)} of the training data in grey." if bank else "."
        key = str(len(graphs))
        graphs.append(graph(with_unique_ids(svg, f"map-{key}"), name, caption))
    return f'<div class="graphs">{"".join(graphs)}</div>'


def _curves(photos: Sequence[Inspected]) -> str:
    graphs = []
    for i, photo in enumerate(photos[:SHOWN], 1):
        red, green, blue = photo.noise.curve
        # In the order of the plot's colours; the mean is its wide, pale line.
        curves = {"all": _root_mean(photo.noise.curve), "red": red, "blue": blue, "green": green}
        svg = with_unique_ids(noise_level_curves(curves), f"noise-{i}")
        graphs.append(graph(svg, f"{i}: {photo.name}", "In flat areas; dots where there are any."))
    rest = len(photos) - len(graphs)
    more = f"<p>{rest} more are in references.csv.</p>" if rest else ""
    return f'<div class="graphs">{"".join(graphs)}</div>{more}'


def _root_mean(curve: np.ndarray) -> np.ndarray:
    """(3, BINS) -> (BINS,), over the channels that have flat area of an intensity."""
    seen = np.isfinite(curve)
    total = np.where(seen, curve**2, 0).sum(axis=0)
    return np.sqrt(np.where(seen.any(axis=0), total / np.maximum(seen.sum(axis=0), 1), np.nan))


def _notes(bank: Bank | None) -> list[str]:
    notes = [
        "Noise is measured in 8x8 blocks without texture: its standard deviation in 8-bit levels, "
        "its correlation that of neighbouring pixels, mean of both directions. What is finer than "
        "a block and not noise is taken for it; coarse noise is missed.",
        "Flat area is the share of blocks without texture and hardly clipped, mean over channels.",
    ]
    if bank is None:
        return notes
    return [
        *notes,
        "Distance is the angle, in degrees, between the photo's embedding and the mean of a kind "
        f"of noise in the bank: {bank.origin}, {len(bank.kinds)} kinds.",
        "Its thresholds are the 95th and 99th percentile of the distance of the bank's photos to "
        "the nearest kind but their own, as if that were not there; that of flat area is its "
        "5th percentile over them.",
        "The map's axes are the bank's principal components, the same for every folder. Points "
        "near each other there may be far in the other dimensions; distances are not.",
    ]
