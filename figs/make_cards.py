"""A model card, README.md, beside each set of weights in ckpts/: written from ckpts/README.md.

    python -m figs.make_cards    # figs.make_readme does it, too

What the weights are, their data and commands are that page's words; scores, and where the weights
fail, come from ckpts/tables/. `NoiseTransfer.save_pretrained` takes the card along to the Hub.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from figs.make_readme import ROOT, CsvRow, read_csv, short_table, weights_table


class Card(NamedTuple):
    title: str
    script: str  # that trained them
    tables: tuple[str, ...]  # of their scores
    does: str


CARDS = {
    "NT": Card(
        "NoiseTransfer",
        "train_noiseTransfer",
        ("noise", "noise_real"),
        "Puts the camera noise of one noisy sRGB photo on any clean image: "
        '`NoiseTransfer.from_pretrained("this folder")`.',
    ),
    "sidd": Card(
        "Denoisers of camera noise",
        "train_denoiser",
        ("denoising", "denoising_real"),
        'sRGB images in [0, 1]: `denoiser_from_checkpoint("this folder/ridnet_g.pt")`.',
    ),
    "synthetic": Card(
        "Denoisers of Gaussian and Poisson noise",
        "train_denoiser_synthetic",
        ("synthetic", "synthetic_real"),
        'sRGB images in [0, 1]: `denoiser_from_checkpoint("this folder/ridnet_g.pt")`.',
    ),
}
HEADER = """---
license: mit
library_name: pytorch
pipeline_tag: image-to-image
tags: [noise-synthesis, image-denoising]
---
"""
SHOWN = "real, another draw", "NoiseTransfer", "white Gaussian, blind"
STRENGTH = 0.8, 1.25  # generated over real; outside, the noise is called unknown


def card(name: str, ckpts: Path) -> str:
    """The card of ckpts/name, whose parts are those of ckpts/README.md."""
    c, page = CARDS[name], (ckpts / "README.md").read_text(encoding="utf-8")
    rows = [row for table in c.tables for row in rows_of(ckpts / "tables" / f"{table}.csv")]
    files = [
        line.replace(f"`{name}/", "`")
        for line in weights_table(ckpts).splitlines()
        if line.startswith(("| file", "| ---", f"| `{name}/"))
    ]
    about = page.partition("<!-- table: weights -->")[0].strip().split("\n\n")[-1]
    data = re.search(r"^## Data\n(.*?)^## ", page, re.DOTALL | re.M)[1].strip()
    commands = re.findall(rf"^python {c.script}\.py (?:.*\\\n)*.*$", page, re.M)
    parts = [
        f"{HEADER}\n# {c.title}",
        f"{c.does} The repository that this folder is from has the code,\nthe method, all "
        "measurements, and what their rows and columns mean.",
        about,
        "\n".join(files),
        f"## Data\n\n{data}",
        "\n".join(["Trained by:\n\n```sh", *commands, "```"]),
        "## What it does not know",
        "Noise unlike that of its data: of raw files, film, video, banding. Of what was measured:",
        "\n".join(failures_of_noise(rows) if name == "NT" else failures_of_denoising(rows)),
        "## Scores",
        noise_scores(rows) if name == "NT" else denoising_scores(rows),
    ]
    return "\n\n".join(parts) + "\n"


def rows_of(path: Path) -> list[CsvRow]:
    """None of a table that was not measured."""
    return read_csv(path) if path.is_file() else []


def by(keys: Iterable[str], rows: list[CsvRow]) -> dict[str, list[CsvRow]]:
    """Rows of the same test set (and noise), in their order."""
    found: dict[str, list[CsvRow]] = {}
    for row in rows:
        found.setdefault(", ".join(row[key] for key in keys if key in row), []).append(row)
    return found


def failures_of_noise(rows: list[CsvRow]) -> list[str]:
    """Test sets whose noise is too weak or strong, or farther off than white noise."""
    lines = []
    for test_set, group in by(["test_set"], rows).items():
        ours = next(r for r in group if (r["noise"], r["reference"]) == ("NoiseTransfer", "paired"))
        white = next(r for r in group if r["noise"] == "white Gaussian, blind")
        strength, a, b = float(ours["std_ratio"]), float(ours["akld"]), float(white["akld"])
        if a > b or not STRENGTH[0] <= strength <= STRENGTH[1]:
            lines.append(
                f"- {test_set}: {strength:.2f} of the real strength; AKLD {a:.3f}, of white "
                f"Gaussian noise {b:.3f}."
            )
    return lines or ["- none of the test sets is far off."]


def failures_of_denoising(rows: list[CsvRow]) -> list[str]:
    """Where nothing done, or BM3D, is better than the denoiser trained on NoiseTransfer's noise."""
    lines = []
    for test_set, group in by(["test_set", "noise"], rows).items():
        ours = [float(r["psnr"]) for r in group if r["trained_on"] == "NoiseTransfer"]
        for other in group:
            psnr = float(other["psnr"])
            if not other["trained_on"] and psnr > max(ours):
                what = other["denoiser"]
                lines.append(f"- {test_set}: {max(ours):.2f} dB, {what} {psnr:.2f} dB.")
    return lines or ["- on none of the test sets is the noisy input, or BM3D, better."]


def noise_scores(rows: list[CsvRow]) -> str:
    """README.md's table of each test set, of some of its rows."""
    parts = []
    for test_set, group in by(["test_set"], rows).items():
        shown = [row for row in group if row["noise"] in SHOWN]
        parts += [f"{test_set}, {group[0]['images']} images:", short_table(shown)]
    return "\n\n".join(parts)


def denoising_scores(rows: list[CsvRow]) -> str:
    """Mean PSNR: a row for each test set and noise, a column for each denoiser."""
    groups = by(["test_set", "noise"], rows)
    named = {
        name: {", ".join(filter(None, (r["denoiser"], r["trained_on"]))): r["psnr"] for r in group}
        for name, group in groups.items()
    }
    columns = list(dict.fromkeys(column for cells in named.values() for column in cells))
    lines = [f"| PSNR, dB | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for name, cells in named.items():
        shown = (f"{float(cells[c]):.2f}" if c in cells else "-" for c in columns)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    for name in CARDS:
        path = ROOT / "ckpts" / name / "README.md"
        path.write_text(card(name, ROOT / "ckpts"), encoding="utf-8")
        print(f"ckpts/{name}/README.md")


if __name__ == "__main__":
    main()
