"""Which module may import which: arrows from the scripts down to utils."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
PROGRAM = {"utils", "models", "data", "evaluation", "training"}
BESIDE = {"benchmarks", "figs"}
OURS = {*PROGRAM, *SCRIPTS, *BESIDE, "tests"}
# Of our own code, beside the package itself.
ALLOWED = {
    "utils": set(),
    "models": {"utils"},
    "data": {"utils"},
    "evaluation": {"data", "models", "utils"},
    "training": {"evaluation", "data", "models", "utils"},
}
SCRIPTS_ALLOWED = {*PROGRAM, *SCRIPTS}
FILES = sorted(ROOT.glob("*.py")) + [f for p in sorted(PROGRAM) for f in (ROOT / p).rglob("*.py")]


def imported(text: str) -> set[str]:
    """Top-level packages that a file imports anywhere: in functions and conditions, too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides where it leads"
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_go_down(file: Path) -> None:
    package = file.relative_to(ROOT).parts[0]
    allowed = {package, *ALLOWED[package]} if package in ALLOWED else SCRIPTS_ALLOWED
    assert imported(file.read_text()) & OURS <= allowed


def test_imports_are_found_wherever_they_stand() -> None:
    text = "import a.b, c\ndef f():\n    if f:\n        from d.e import g\n"
    assert imported(text) == {"a", "c", "d"}
    with pytest.raises(AssertionError, match="relative"):
        imported("from . import a")


def test_no_module_is_imported_by_name() -> None:
    """So that the walk above sees all imports."""
    for file in FILES:
        text = file.read_text()
        assert "import_module" not in text, file
        assert "__import__" not in text, file


def test_the_generator_needs_neither_data_nor_evaluation_nor_scipy() -> None:
    """Nor does torch, which it does need, load scipy by itself."""
    code = "import sys; from models import NoiseTransfer; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "models" in loaded
    assert not {"data", "evaluation", "training", "scipy"} & loaded


def test_files_are_short() -> None:
    """The one long file is the method's: it is read from top to bottom."""
    others = (ROOT / "evaluation").glob("*.css"), *((ROOT / p).glob("*.py") for p in BESIDE)
    for file in {*FILES, *itertools.chain(*others)} - {ROOT / "train_noiseTransfer.py"}:
        assert len(file.read_text().splitlines()) <= 300, file
