"""The HTML report: what a browser would load from it, and what it shows."""

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.noise_section import NoiseSample, NoiseSection
from evaluation.pictures import denoised_section
from evaluation.report import write_html
from evaluation.tables import Column, Table
from tests.helpers import unit_rows
from utils.errors import UserError

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = "<script>alert(1)</script> & \"a\" 'b' $x$ %s"
NAN = float("nan")


class Pairs(list):
    title = "set"

    def image_name(self, i: int) -> str:
        return f"image {i}"


class Page(HTMLParser):
    """What is in a page; raises AssertionError if its elements are not properly nested."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.text = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.said: list[tuple[str, str]] = []  # innermost element, its text
        self.feed(self.text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        assert len(dict(attributes)) == len(attributes), f"an attribute twice in <{tag}>"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.said.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [data for name, data in self.said if name == tag]

    def picture(self, alt: str) -> np.ndarray:
        (source,) = (image["src"] for image in self.all("img") if image["alt"] == alt)
        return np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))

    def check(self) -> None:
        """Well-formed (see __init__), complete, and asking nothing of the network."""
        assert self.text.startswith("<!DOCTYPE html>")
        tags = Counter(tag for tag, _ in self.elements)
        assert tags["h1"] == tags["main"] == tags["title"] == 1
        assert not {"script", "iframe", "object", "embed", "audio", "video"} & set(tags)
        assert all(link["rel"] == "icon" for link in self.all("link"))
        ids = [a["id"] for _, a in self.elements if "id" in a]
        assert len(ids) == len(set(ids))
        for _, attributes in self.elements:
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
                if name in attributes:
                    value = attributes[name]
                    assert value.startswith("data:") or (value[:1] == "#" and value[1:] in ids)
            for target in re.findall(r"url\(([^)]*)\)", " ".join(map(str, attributes.values()))):
                assert target[:1] == "#"
                assert target[1:] in ids
        assert "@import" not in self.text
        for image in self.all("img"):
            assert image["src"].startswith("data:image/png;base64,")
            assert image["alt"]
        for svg in self.all("svg"):
            assert svg["role"] == "img"
            assert svg["aria-label"]
            assert svg["viewbox"]


def sample(name: str = "a.png", size: tuple[int, int] = (80, 100), models: int = 2) -> NoiseSample:
    """Noise of standard deviation 0.05 (real) and 0.03 (generated) on a ramp."""
    rng = torch.Generator().manual_seed(len(name))
    clean = torch.linspace(0.3, 0.7, size[1]).expand(3, *size).contiguous()

    def noisy(std: float) -> Tensor:
        return (clean + std * torch.randn(clean.shape, generator=rng)).clamp(0, 1)

    titles = ["NoiseTransfer", "white Gaussian", *(f"model {i}" for i in range(2, models))]
    generated = {title: noisy(0.03) for title in titles[:models]}
    return NoiseSample(name, clean, noisy(0.05), noisy(0.05), generated)


def section(title: str = "a set", **kwargs) -> NoiseSection:
    return NoiseSection(title, [sample(**kwargs)], None, None)


def table(**values: str | float) -> Table:
    columns = Column("test_set", "test set"), Column("akld", "AKLD", ".4f")
    return Table("noise", "A table", columns, [{"test_set": "a set", "akld": 0.25, **values}])


def write(path: Path, tables=(), sections=(), notes=(), title: str = "A report") -> Page:
    write_html(path, title, tables, sections, notes)
    page = Page(path)
    page.check()
    return page


# ---------------------------------------------------------------------------------- the page


def test_page_of_two_sets_is_complete_and_below_four_megabytes(tmp_path: Path) -> None:
    groups = [f"S6 ISO {100 * 2**i}" for i in range(4)] * 5
    sections = [
        NoiseSection(
            title, [sample(f"{i}.png", (256, 256), 5) for i in range(5)], unit_rows(20), groups
        )
        for title in ("set 1", "set 2")
    ]
    path = tmp_path / "new" / "folder" / "report.html"
    page = write(path, [table(), table()], sections, ["seed 0", "commit: abc"])
    assert path.stat().st_size < 4e6
    assert page.texts("h2") == ["A table", "A table", "Noise: set 1", "Noise: set 2", "Origin"]
    assert [text for text in page.texts("a") if text.strip()] == page.texts("h2")
    assert page.texts("li")[-2:] == ["seed 0", "commit: abc"]
    assert len(page.all("svg")) == 2 * 5
    # clean, reference, generated, real, difference of four samples; four more models of the first
    assert len(page.all("img")) == 2 * (4 * 5 + 4)
    assert "4 of 5 images" in page.text
    assert "@media (prefers-color-scheme: dark)" in page.text
    assert not list(path.parent.glob(".*"))  # no temporary file is left


def test_same_arguments_give_the_same_file(tmp_path: Path) -> None:
    args = [table()], [NoiseSection("s", [], unit_rows(4), ["a", "b", "a", "c"])], ["note"]
    first, second = (write(tmp_path / name, *args) for name in ("1.html", "2.html"))
    assert first.text == second.text


def test_texts_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    one = sample(HOSTILE)
    one = NoiseSample(HOSTILE, one.clean, one.reference, one.real, {HOSTILE: one.real})
    sections = [NoiseSection(HOSTILE, [one], unit_rows(3), [HOSTILE, "a", "b"])]
    columns = (Column("a", HOSTILE),)
    hostile = Table("name", HOSTILE, columns, [{"a": HOSTILE}])
    page = write(tmp_path / "a.html", [hostile], sections, [HOSTILE], title=HOSTILE)
    for tag in ("title", "h1", "h2", "h4", "th", "td", "li"):
        assert HOSTILE in page.texts(tag), tag
    assert page.all("img")[0]["alt"] == f"{HOSTILE}, clean"
    # In plots, dollars are no mathematics either; legends of groups are cut to 26 characters.
    assert HOSTILE in page.texts("text")
    assert any(text.startswith("<script>") and text.endswith("…") for text in page.texts("text"))


def test_cells_are_those_of_the_columns_and_numbers_are_marked(tmp_path: Path) -> None:
    page = write(tmp_path / "a.html", [table(test_set="banana", akld=NAN)])
    column = Column("akld", "AKLD", ".4f")
    assert page.texts("td") == ["banana", column.cell({"akld": NAN})]
    assert [cell.get("class") for cell in page.all("td")] == [None, "number"]
    assert not page.all("footer")


def test_the_best_are_marked_and_columns_explained(tmp_path: Path) -> None:
    """Of each test set: the least distance, the ratio nearest to 1 (0.8 is nearer than 1.3, as
    factors); what is told the truth does not compete, nor does what is missing."""
    columns = (
        Column("noise", "noise"),
        Column("akld", "AKLD", ".2f", best="least", meaning="a distance"),
        Column("std_ratio", "std ratio", ".2f", best="one"),
    )
    scores = [
        ("x", "ours", 0.2, 0.8), ("x", "white", 0.3, 1.3), ("x", "(fitted)", 0.1, 1.0),
        ("y", "ours", 0.5, 2.0), ("y", "white", NAN, 1.1),
    ]  # fmt: skip
    keys = ("test_set", "noise", "akld", "std_ratio")
    rows = [dict(zip(keys, row, strict=True)) for row in scores]
    page = write(tmp_path / "a.html", [Table("t", "T", columns, rows)])
    cells = [cell for cell in page.all("td") if cell["data-label"] != "noise"]
    best = ["best" in cell["class"].split() for cell in cells]
    assert best == [True, True, False, False, False, False, True, False, False, True]
    assert (page.texts("dt"), page.texts("dd")) == (["AKLD"], ["a distance"])


def test_denoised_pictures(tmp_path: Path) -> None:
    """Noisy, by each denoiser, clean; at most three images."""
    clean = torch.full((3, 40, 40), 0.5)
    pairs = Pairs([(clean, clean + 0.1)] * 5)
    threshold = {Path("ckpts/sidd/ridnet_real_g.pt"): torch.nn.Threshold(1.0, 0.25)}
    page = write(tmp_path / "a.html", sections=[denoised_section(threshold, pairs)])
    assert "Denoised: set" in page.texts("h2")
    shown = ["noisy", "ridnet, trained on real pairs", "clean"]
    assert page.texts("figcaption") == shown * 3
    values = [np.unique(page.picture(f"image 0, {what}")).tolist() for what in shown]
    assert values == [[153], [64], [128]]  # 0.6, 0.25 and 0.5 of 255


def test_small_images_of_several_sizes_and_missing_values(tmp_path: Path) -> None:
    tiny = sample("tiny.png", (12, 17), models=1)
    broken = sample("broken.png", (40, 30), models=1)
    broken.generated["NoiseTransfer"][:, 3:5] = NAN
    silent = NoiseSample(
        "silent.png", tiny.clean, tiny.real, tiny.clean, {"NoiseTransfer": tiny.clean}
    )
    page = write(
        tmp_path / "a.html", sections=[NoiseSection("s", [tiny, broken, silent], None, None)]
    )
    assert page.picture("tiny.png, clean").shape == (12, 17, 3)
    assert page.picture("broken.png, generated: NoiseTransfer").shape == (40, 30, 3)
    write(tmp_path / "b.html", sections=[NoiseSection("s", [silent], None, None)])


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    page = write(tmp_path / "a.html", sections=[section()])
    assert "Embeddings" not in page.text
    assert "1 of 1 image." in page.text
    two = NoiseSection("s", [], unit_rows(2), ["a", "b"])  # two points span no plane
    page = write(tmp_path / "b.html", sections=[two])
    assert not page.all("svg")
    many = NoiseSection("s", [], unit_rows(60), [f"image {i}" for i in range(60)])
    page = write(tmp_path / "c.html", sections=[many])
    assert "60 groups; too many for a legend" in page.text
    assert "image 7" not in page.texts("text")
    write(tmp_path / "d.html")


def test_a_page_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_html(tmp_path / "file" / "report.html", "t", [], [], [])
