"""The evaluation as one HTML file: tables, pictures, and statistics of real and generated noise.

The file holds everything it shows and asks nothing of the network; it runs no script.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from evaluation.noise_section import NoiseSection, noise_html
from evaluation.pictures import DenoisedSection
from evaluation.tables import Column, Table
from utils.files import write_atomically

STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")


def write_html(
    path: Path,
    title: str,
    tables: Sequence[Table],
    sections: Sequence[NoiseSection | DenoisedSection],
    notes: Sequence[str],
) -> None:
    """Write the page, whole or not at all; missing folders are made.

    notes: how the scores came about, for the footer. The same arguments give the same file. Raises
    UserError if the file cannot be written.
    """
    parts = [(f"table-{i}", t.title, table_html(t)) for i, t in enumerate(tables, 1)]
    for i, s in enumerate(sections, 1):
        if isinstance(s, NoiseSection):
            parts.append((f"noise-{i}", f"Noise: {s.title}", noise_html(s, f"noise-{i}")))
        else:
            parts.append((f"denoised-{i}", f"Denoised: {s.title}", s.html()))
    write_atomically(page(title, parts, notes).encode(), path)


def page(title: str, parts: Sequence[tuple[str, str, str]], notes: Sequence[str]) -> str:
    """parts: id, heading and HTML of each section; notes: plain text, for the footer."""
    contents = [(key, heading) for key, heading, _ in parts] + [("origin", "Origin")] * bool(notes)
    links = (f'<li><a href="#{key}">{escape(heading)}</a></li>' for key, heading in contents)
    body = "\n".join(
        f'<section id="{key}">\n<h2>{escape(heading)}</h2>\n{content}\n</section>'
        for key, heading, content in parts
    )
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
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
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1></header>
<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>
<main>
{body}
</main>
{footer}</body>
</html>
"""


def table_html(table: Table) -> str:
    """Scrolls in its own box, which the keyboard reaches as well; on a phone a row is a card."""
    head = "".join(f'<th scope="col"{_class(c)}>{escape(c.title)}</th>' for c in table.columns)
    best = [table.best(column) for column in table.columns]
    rows = []
    for i, row in enumerate(table.rows):
        cells = (
            f'<td{_class(c, best[k][i])} data-label="{escape(c.title)}">{escape(c.cell(row))}</td>'
            for k, c in enumerate(table.columns)
        )
        rows.append("".join(cells))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    meant = "".join(
        f"<dt>{escape(c.title)}</dt><dd>{escape(c.meaning)}</dd>"
        for c in table.columns
        if c.meaning
    )
    marked = "Bold: the best of what is not told the truth. " if any(map(any, best)) else ""
    intervals = any(column.interval for column in table.columns)
    brackets = "[...]: 95% interval of the mean over images." if intervals else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
        f"<p>{marked}{brackets}</p><dl>{meant}</dl>"
    )


def _class(column: Column, best: bool = False) -> str:
    names = " ".join(["number"] * bool(column.spec) + ["best"] * best)
    return f' class="{names}"' if names else ""
