"""Bad input of every kind, to the loaders and to the scripts, and what the user is told.

The table is in bad_files.py (images, .mat files, checkpoints) and bad_calls.py (folders, scripts):
a case a line or a few, with how the bad input is made, in an empty folder, and handed over, and a
pattern that the message must match: which file or flag, what was expected, what to do.
"""

import os
import re
import runpy
import signal
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_calls import CALL_CASES, NT, REAL, SYNTHETIC, networks, weights
from tests.bad_files import FILE_CASES, Case, pixels
from utils.errors import UserError
from utils.images import write_image

SECONDS = 120  # after which a case counts as hanging


def complaint(case: Case, folder: Path, capfd: pytest.CaptureFixture) -> str:
    """What the user reads: the UserError, or all that a script prints whose status is not 0."""
    capfd.readouterr()
    try:
        status = case.call(folder)
    except UserError as error:
        return str(error)
    except SystemExit as error:
        status = error.code
    assert isinstance(status, int)
    assert status in (1, 2)
    printed = capfd.readouterr()
    return " ".join((printed.out + printed.err).split())


CASES = FILE_CASES + CALL_CASES


@pytest.fixture(autouse=True, scope="module")
def own_weights(shallow: None) -> Iterator[None]:
    """The cases' networks are shallow, and nobody else's."""
    yield
    weights.cache_clear()


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """What hangs fails, instead of holding up everything."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"hangs for {SECONDS} s")

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_named(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    message = complaint(case, tmp_path, capfd)
    assert "\n" not in message
    assert re.search(case.message, message), message


@pytest.mark.parametrize("script", [NT, REAL, SYNTHETIC])
def test_scripts_leave_with_one_line_and_status_2(
    script: types.ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    networks(tmp_path)
    argv = ["--gpu", "cpu", "--train-images", str(empty), "--run-dir", str(tmp_path / "run")]
    argv += ["--batch", "2"] if script is NT else ["--nt", str(tmp_path / "NT")]
    monkeypatch.setattr("sys.argv", [script.__file__, *argv])
    with pytest.raises(SystemExit) as leave:
        runpy.run_path(script.__file__, run_name="__main__")
    assert leave.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {empty}: no training images; put")
    assert not (tmp_path / "run").exists()


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_output_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"out/a\.png: cannot be written .*; choose another"):
        write_image(tmp_path / "out" / "a.png", pixels())
