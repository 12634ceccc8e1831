"""README: its Python runs on the shipped weights, its links lead somewhere, its sums are true."""

import re
from pathlib import Path

import pytest

from utils.checkpoint import sha256

ROOT = Path(__file__).parent.parent


def test_python_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    names: dict = {}
    exec(code, names)
    noisy = names["noisy"]
    assert noisy.shape == (4, 3, 200, 300)
    assert noisy.min() >= 0
    assert noisy.max() <= 1


@pytest.mark.parametrize("page", ["README.md", "ckpts/README.md"])
def test_links(page: str) -> None:
    path = ROOT / page
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_checksums_of_the_weights() -> None:
    rows = re.findall(
        r"^\| `(\S+\.pt)` .*`([0-9a-f]{64})` \|$", (ROOT / "ckpts/README.md").read_text(), re.M
    )
    assert {name for name, _ in rows} == {
        path.relative_to(ROOT / "ckpts").as_posix() for path in (ROOT / "ckpts").rglob("*.pt")
    }
    for name, expected in rows:
        assert sha256(ROOT / "ckpts" / name) == expected, name
