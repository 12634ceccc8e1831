"""docs/method.md: what the code cites is there, and its table of weights is that of the presets."""

import ast
import re
from pathlib import Path

import pytest

import train_noiseTransfer as script

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/method.md").read_text()
CODE = [
    f
    for folder in (".", "training", "evaluation", "models", "data", "utils")
    for f in (ROOT / folder).glob("*.py")
]
CITED = re.compile(r"\bEq\. (\d+\.\d+)")
DEFINED = re.compile(r"\\text\{Eq\. (\d+\.\d+)\}")


@pytest.mark.parametrize("file", CODE, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_cited_equations_exist(file: Path) -> None:
    text = file.read_text()
    cited = set(CITED.findall(text))
    assert cited <= set(DEFINED.findall(PAGE))
    if cited:
        assert "docs/method.md" in ast.get_docstring(ast.parse(text))


def test_equations_are_numbered_by_section_and_in_order() -> None:
    for number, section in enumerate(re.split(r"^## \d+\. ", PAGE, flags=re.M)[1:], start=1):
        own = DEFINED.findall(section)
        assert own == [f"{number}.{i}" for i in range(1, len(own) + 1)]
    assert set(CITED.findall(PAGE)) == set(DEFINED.findall(PAGE))


def test_weights_are_those_of_the_presets() -> None:
    header = re.search(r"^\| term \| weight \| (.*) \|$", PAGE, re.M)[1]
    presets = [script.PRESETS[name.strip("`")] for name in header.split(" | ")]
    configs = [script.Config(**preset) for preset in presets]
    rows = re.findall(r"^\| .* \| `(w_\w+)` \| (.*) \|$", PAGE, re.M)
    assert {name for name, _ in rows} == {n for n in vars(configs[0]) if n.startswith("w_")}
    for name, cells in rows:
        assert [float(x) for x in cells.split(" | ")] == [getattr(c, name) for c in configs], name


def test_length_of_the_encoders_phase_is_that_of_the_presets() -> None:
    for preset in ("lite", "release"):
        c = script.Config(**script.PRESETS[preset])
        assert f"`{preset}`: {c.encoder_steps:,} of {c.epochs * c.steps_per_epoch:,}" in PAGE
