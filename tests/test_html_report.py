"""The HTML report: what a browser would load from it, and what its figures show."""

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from torch import Tensor

from utils import figures, html_report
from utils.errors import UserError
from utils.html_report import NoiseSample, NoiseSection, write_html
from utils.tables import Column, Table

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = "<script>alert(1)</script> & \"a\" 'b' $x$ %s"
NAN = float("nan")


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


def unit_rows(count: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def table(**values: str | float) -> Table:
    columns = Column("test_set", "test set"), Column("akld", "AKLD", ".4f")
    return Table("noise", "A table", columns, [{"test_set": "a set", "akld": 0.25, **values}])


def write(path: Path, tables=(), sections=(), notes=(), title: str = "A report") -> Page:
    write_html(path, title, tables, sections, notes)
    page = Page(path)
    page.check()
    return page


# ---------------------------------------------------------------------------------- the page


def test_page_of_two_sets_is_complete_and_below_a_megabyte(tmp_path: Path) -> None:
    groups = [f"S6 ISO {100 * 2**i}" for i in range(4)] * 5
    sections = [
        NoiseSection(
            title, [sample(f"{i}.png", (256, 256), 5) for i in range(5)], unit_rows(20), groups
        )
        for title in ("set 1", "set 2")
    ]
    path = tmp_path / "new" / "folder" / "report.html"
    page = write(path, [table(), table()], sections, ["seed 0", "commit: abc"])
    assert path.stat().st_size < 1e6
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
    maps = {"real noise": np.eye(11)}
    assert figures.autocorrelation_maps(maps) == figures.autocorrelation_maps(maps)


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
    # In figures, dollars are no mathematics either; legends of groups are cut to 26 characters.
    assert HOSTILE in page.texts("text")
    assert any(text.startswith("<script>") and text.endswith("…") for text in page.texts("text"))


def test_cells_are_those_of_the_columns_and_numbers_are_marked(tmp_path: Path) -> None:
    page = write(tmp_path / "a.html", [table(test_set="banana", akld=NAN)])
    column = Column("akld", "AKLD", ".4f")
    assert page.texts("td") == ["banana", column.cell({"akld": NAN})]
    assert [cell.get("class") for cell in page.all("td")] == [None, "number"]
    assert not page.all("footer")


def test_pictures_are_the_middle_of_the_images_to_the_level(tmp_path: Path) -> None:
    one = sample(size=(80, 100))
    page = write(tmp_path / "a.html", sections=[NoiseSection("s", [one], None, None)])

    def middle(image: Tensor) -> np.ndarray:
        return 255 * image.double().numpy().transpose(1, 2, 0)[8:72, 18:82]  # 64 of 80 and of 100

    generated = one.generated["NoiseTransfer"]
    for what, image in (
        ("clean", one.clean),
        ("reference", one.reference),
        ("real", one.real),
        ("generated: NoiseTransfer", generated),
        ("generated: white Gaussian", one.generated["white Gaussian"]),
    ):
        shown = page.picture(f"a.png, {what}")
        np.testing.assert_allclose(shown, middle(image), rtol=0, atol=0.501, err_msg=what)
    # The difference has a standard deviation of sqrt(0.05^2 + 0.03^2) = 0.058; 0.5 / (3 * 0.058) is
    # 2.9, and the power of two below it 2.
    assert "gain 2;" in page.text
    expected = middle((0.5 + 2 * (generated - one.real)).clamp(0, 1))
    shown = page.picture("a.png, difference ×2")
    np.testing.assert_allclose(shown, expected, rtol=0, atol=0.501)


@pytest.mark.parametrize(("std", "gain"), [(0.0, 16), (0.005, 16), (0.03, 4), (0.3, 1)])
def test_gain_lets_three_standard_deviations_fill_the_range(std: float, gain: float) -> None:
    # 0.5 / (3 std): infinite, 33, 5.6 and 0.6
    noise = std * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert html_report._gain([noise]) == gain


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


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    one = sample()
    with pytest.raises(ValueError, match=r"expected real of \(3, 80, 100\)"):
        NoiseSample("a", one.clean, one.real, one.real[:, 1:], {"NoiseTransfer": one.real})
    with pytest.raises(ValueError, match="one group for each embedding"):
        NoiseSection("s", [one], unit_rows(3), ["a", "b"])
    with pytest.raises(ValueError, match="one group for each embedding"):
        NoiseSection("s", [one], None, ["a", "b"])
    with pytest.raises(ValueError, match="same noise models"):
        NoiseSection("s", [one, sample(models=1)], None, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write_html(tmp_path / "file" / "report.html", "t", [], [], [])


# ----------------------------------------------------------------------------- the statistics


def drawn(figure, *args) -> Figure:
    """The Figure behind its SVG."""
    with figures.matplotlib.rc_context(figures.STYLE):
        return figure.__wrapped__(*args)


def test_autocorrelation_of_a_horizontal_average_is_printed_and_drawn(tmp_path: Path) -> None:
    # Half the sum of two neighbours in a row: correlation 1/2 at lag (0, 1), 0 at (1, 0).
    white = torch.randn(2, 3, 128, 129, generator=torch.Generator().manual_seed(0))
    averaged = (white[0, ..., 1:] + white[0, ..., :-1]) / 2
    clean = torch.full((3, 128, 128), 0.5)
    one = NoiseSample(
        "a", clean, clean, clean + 0.05 * averaged, {"white": clean + 0.05 * white[1, :, :, 1:]}
    )
    page = write(tmp_path / "a.html", sections=[NoiseSection("s", [one], None, None)])
    right = [float(t.removeprefix("(0,1):")) for t in page.texts("text") if "(0,1):" in t]
    below = [float(t.removeprefix("(1,0):")) for t in page.texts("text") if "(1,0):" in t]
    # 5 standard errors, 1 / sqrt(3 * 128^2) each or less but for the noise's own correlation,
    # which makes them at most sqrt(1 + 2 / 4) times larger; and rounding to two digits.
    tolerance = 5 * np.sqrt(1.5 / (3 * 128**2)) + 0.005
    np.testing.assert_allclose(right, [0.5, 0], atol=tolerance)
    np.testing.assert_allclose(below, [0, 0], atol=tolerance)


def test_autocorrelation_maps_share_a_scale_that_fits_all_but_the_centre() -> None:
    first, second = np.zeros((11, 11)), np.zeros((11, 11))
    first[5, 5] = second[5, 5] = 1
    first[5, 6], first[6, 5] = 0.25, -0.125  # lags (0, 1) and (1, 0)
    second[0, 10] = -0.32  # lag (-5, 5)
    figure = drawn(figures.autocorrelation_maps, {"real noise": first, "a": second})
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert [image.get_clim() for image in images] == [(-0.4, 0.4)] * 2
    # Row 0 of the array is drawn at the top, where the axis says -5, column 0 at -5 on the left.
    assert images[0].origin == "upper"
    assert tuple(images[0].get_extent()) == (-5.5, 5.5, 5.5, -5.5)
    assert figure.axes[0].get_title() == "real noise\n(0,1): 0.25\n(1,0): -0.12"
    np.testing.assert_array_equal(images[1].get_array(), second)


def test_level_counts_agree_with_numpy_and_keep_the_tails() -> None:
    levels = np.random.default_rng(0).integers(-40, 41, 5000)
    noise = levels.astype(np.float32) / 255
    counts = figures.level_counts(np.append(noise, np.nan), limit=15, width=3)
    edges = np.arange(-16.5, 17, 3)
    np.testing.assert_array_equal(counts[1:-1], np.histogram(levels, edges)[0])
    assert counts[0] == (levels < -16.5).sum()
    assert counts[-1] == (levels > 16.5).sum()


def test_distributions_of_gaussian_noise_are_the_closed_form() -> None:
    n, std = 200_000, 0.04
    noise = np.random.default_rng(0).normal(0, std, n).astype(np.float32)
    noises = {"real noise": noise, "NoiseTransfer": noise / 2}
    figure = drawn(figures.cumulative_noise, noises)
    for line, scale in zip(figure.axes[0].lines, (std, std / 2), strict=True):
        x, share = line.get_data()
        expected = stats.norm.cdf(x, scale=255 * scale)
        # 5 standard errors of a share of n values, at most 1 / (2 sqrt n) each
        np.testing.assert_allclose(share, expected, atol=5 * 0.5 / np.sqrt(n))
        assert expected[0] < 0.01
        assert expected[-1] > 0.99

    figure = drawn(figures.noise_histograms, noises)
    assert figure.axes[0].get_yscale() == "log"
    levels, share = figure.axes[0].lines[0].get_data()
    half = (levels[1] - levels[0]) / 2
    scale = 255 * std
    expected = stats.norm.cdf(levels + half, scale=scale) - stats.norm.cdf(
        levels - half, scale=scale
    )
    likely = expected * n > 100
    assert likely.sum() > 30
    standard_error = np.sqrt(expected * (1 - expected) / n)
    assert (abs(share * 2 * half - expected) < 5 * standard_error)[likely].all()


def test_noise_level_curve_has_the_true_standard_deviation(tmp_path: Path) -> None:
    # Two images of different intensities, noise of standard deviation 0.1 x intensity.
    rng = torch.Generator().manual_seed(0)
    pairs = []
    for height, intensity in ((96, 0.28125), (128, 0.71875)):  # centres of bins 4 and 11 of 16
        clean = torch.full((3, height, 128), intensity)
        pairs.append((clean + 0.1 * clean * torch.randn(clean.shape, generator=rng), clean))
    variance = html_report._mean(html_report._noise_variance, pairs)
    assert np.isfinite(variance).nonzero()[0].tolist() == [4, 11]
    figure = drawn(figures.noise_level_curves, {"real noise": np.sqrt(variance)})
    x, y = figure.axes[0].lines[0].get_data()
    for k, intensity, n in ((4, 0.28125, 3 * 96 * 128), (11, 0.71875, 3 * 128 * 128)):
        assert x[k] == pytest.approx(255 * intensity)
        # The standard error of a standard deviation over n values is 1 / sqrt(2 n) of it.
        assert y[k] == pytest.approx(25.5 * intensity, rel=5 / np.sqrt(2 * n))


def test_principal_components_agree_with_the_covariance() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8)) * [1, 5, 1, 1, 3, 0.5, 1, 1] + 7
    points, share = figures.principal_components(x)
    variances = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    np.testing.assert_allclose(points.var(axis=0, ddof=1), variances[:2])
    np.testing.assert_allclose(share, variances[:2] / variances.sum())
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    # The axes are those of the coordinates with the largest spread, in their own direction.
    assert np.corrcoef(points[:, 0], x[:, 1])[0, 1] > 0.95
    assert np.corrcoef(points[:, 1], x[:, 4])[0, 1] > 0.9
    shuffled = rng.permutation(50)
    np.testing.assert_allclose(figures.principal_components(x[shuffled])[0], points[shuffled])
    # Equal embeddings have no plane: all in one point, no division by zero.
    points, share = figures.principal_components(np.ones((4, 8), np.float32))
    assert not points.any()
    assert not share.any()


def test_embedding_map_shows_every_image_in_its_group() -> None:
    groups = ["ISO 3200", "ISO 800", "ISO 3200", "ISO 100", "ISO 800"]
    x = unit_rows(5)
    figure = drawn(figures.embedding_map, x, groups)
    points, _ = figures.principal_components(x)
    names = ["ISO 100", "ISO 800", "ISO 3200"]  # by number, not by letter
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    for name, drawn_points in zip(names, figure.axes[0].collections, strict=True):
        np.testing.assert_allclose(
            drawn_points.get_offsets(), points[[g == name for g in groups]], atol=1e-7
        )


def test_groups_and_models_never_look_alike() -> None:
    styles = [(s["color"], str(s.get("linestyle"))) for s in figures._lines()]
    assert len(set(styles)) == len(styles) > 12
    looks = {
        (i % len(figures.COLOURS), i % len(figures.MARKERS)) for i in range(figures.MAX_GROUPS)
    }
    assert len(looks) == figures.MAX_GROUPS
