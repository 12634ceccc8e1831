"""What transfer_noise.py and denoise.py do with the folders that users have; denoise.py stands for
both, with a network that is the identity."""

import base64
import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import denoise
from models import build_denoiser
from utils import folder_jobs
from utils.folder_jobs import COMPARISON, _fitting
from utils.images import read_image, write_image

ROOT = Path(__file__).parent.parent


def pixels(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    state = build_denoiser("dncnn", 2).state_dict()
    state |= {k: torch.zeros_like(v) for k, v in state.items() if k.startswith("body.56.")}
    torch.save(state, tmp_path / "dncnn_g.pt")
    return tmp_path / "dncnn_g.pt"


@pytest.fixture
def run(tmp_path: Path, weights: Path):
    def run(*flags: str, source: Path = tmp_path / "in", output: Path = tmp_path / "out") -> int:
        flags = (*flags, "--input", str(source), "--output", str(output))
        return denoise.main([*flags, "--checkpoint", str(weights), "--gpu", "cpu"])

    return run


def written(folder: Path) -> set[bytes]:
    """Names below it as bytes, hidden and temporary ones included; not the page to look at."""
    root = os.fsencode(folder)
    found = {os.path.relpath(os.path.join(d, n), root) for d, _, ns in os.walk(root) for n in ns}
    return found - {COMPARISON.encode()}


def test_odd_names_are_converted(run, tmp_path):
    """Not UTF-8, of 255 bytes, in the middle of a character, spaces and line ends."""
    folder = tmp_path / "in"
    write_image(folder / "a.png", pixels())
    names = [
        *(b"latin-\xe9.png", b"-dash.png", b"two\nlines.png", b" .png", b"x" * 251 + b".png"),
        *("ä".encode() * 125 + b".jpg", b"\xff" * 250 + b".webp"),
    ]
    for name in names:
        Image.fromarray(pixels()).save(tmp_path / "x.png")
        os.rename(tmp_path / "x.png", os.fsencode(folder) + b"/" + name)
    assert run() == 0
    found = written(tmp_path / "out")
    assert found >= {b"a.png", *(n for n in names if n.endswith(b".png"))}
    assert len(found) == len(names) + 1
    assert max(map(len, found)) <= 255
    assert run() == 0
    assert written(tmp_path / "out") == found


def test_names_that_become_too_long_are_cut_and_stay_apart():
    for stem in ("x" * 251, "ä" * 125, "\udcff" * 251):
        names = {_fitting(Path(f"{stem}{i}.png"), f"_{k:03d}") for i in range(3) for k in range(2)}
        assert len(names) == 6
        assert all(len(os.fsencode(name)) <= 255 for name in names)
        assert all(name.endswith(("_000.png", "_001.png")) for name in names)
    assert _fitting(Path("a.b.png"), "_000") == "a.b_000.png"


def test_what_cannot_be_read_is_named_and_the_rest_is_made(run, tmp_path, capsys):
    folder = tmp_path / "in"
    write_image(folder / "good.png", pixels())
    write_image(folder / "sub" / "wide.png", pixels(3, 4000))
    write_image(folder / "one.bmp", pixels(1, 1))
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "notes.txt").write_text("left alone")
    frames = [Image.fromarray(pixels(seed=i)) for i in range(3)]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    Image.fromarray(pixels()).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(pixels()).convert("LA").save(folder / "grey.png")
    assert run() == 1
    said = capsys.readouterr()
    for name in ("empty.png", "text.jpg", "dangling.png", "pipe.png"):
        assert len(re.findall(rf"in/{name}: ", said.err)) == 1
    assert "6 images written" in said.out
    assert "4 skipped" in said.out
    out = tmp_path / "out"
    good = {b"good.png", b"sub/wide.png", b"one.png", b"moving.png", b"print.png", b"grey.png"}
    assert written(out) == good
    np.testing.assert_array_equal(read_image(out / "moving.png"), pixels())
    np.testing.assert_array_equal(read_image(out / "sub" / "wide.png"), pixels(3, 4000))


@pytest.mark.skipif(sys.platform != "linux", reason="its limit")
def test_paths_that_are_too_long_are_named(run, tmp_path, capsys):
    write_image(tmp_path / "in" / "a.png", pixels())
    here = os.getcwd()
    try:
        os.chdir(tmp_path / "in")
        for _ in range(18):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        Path("deep.png").touch()
    finally:
        os.chdir(here)
    assert run() == 1
    said = capsys.readouterr()
    assert "1 images written" in said.out
    assert "File name too long" in said.err


def test_only_links_to_nothing(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to("gone.png")
    assert run() == 1
    assert "a.png: cannot be read (No such file" in capsys.readouterr().err
    assert run(source=tmp_path / "in" / "a.png") == 1


def test_what_is_there_stays_and_a_second_run_does_the_rest(run, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    for i in range(3):
        write_image(folder / f"{i}.png", pixels(seed=i))
    out.mkdir()
    (out / "1.png").write_bytes(b"a user's")
    assert run() == 0
    assert (out / "1.png").read_bytes() == b"a user's"
    assert "2 images written" in (said := capsys.readouterr().out)
    assert "1 there already (--overwrite: anew)" in said
    (out / "2.png").unlink()
    before = (out / "0.png").stat().st_mtime_ns
    assert run() == 0
    assert "1 images written" in capsys.readouterr().out
    assert (out / "0.png").stat().st_mtime_ns == before
    assert run("--overwrite") == 0
    np.testing.assert_array_equal(read_image(out / "1.png"), pixels(seed=1))


def test_full_disk(run, tmp_path, capsys, monkeypatch):
    """The file that does not fit is named, nothing of it stays, a second run makes it."""
    folder, out, write = tmp_path / "in", tmp_path / "out", os.replace
    for i in range(3):
        write_image(folder / f"{i}.png", pixels(seed=i))

    def full(source: Path, target: Path) -> None:
        if target.name == "1.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert run() == 1
    assert "out/1.png: cannot be written (No space left" in capsys.readouterr().err
    assert written(out) == {b"0.png", b"2.png"}
    assert run() == 0
    assert written(out) == {b"0.png", b"1.png", b"2.png"}


def test_terminated_in_the_middle(tmp_path, weights):
    """What is written is whole, nothing else is left, and the same command goes on."""
    for i in range(40):
        write_image(tmp_path / "in" / f"{i:02d}.png", pixels(300, 300, seed=i))
    out = tmp_path / "out"
    command = [sys.executable, "denoise.py", "--input", str(tmp_path / "in"), "--output", str(out)]
    command += ["--checkpoint", str(weights), "--gpu", "cpu"]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300  # a loaded machine takes minutes to import torch
    while time.monotonic() < deadline and not (out / "01.png").exists():
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    assert "stopped; the same command goes on from here" in said
    assert "Traceback" not in said
    done = written(out)
    assert 2 <= len(done) < 40
    for name in done:
        np.testing.assert_array_equal(
            read_image(out / os.fsdecode(name)), pixels(300, 300, seed=int(name[:2]))
        )
    for i in range(36):  # the rest in moments
        (tmp_path / "in" / f"{i:02d}.png").unlink()
    assert denoise.main(command[2:]) == 0
    assert b"39.png" in written(out)


def test_the_page_to_look_at(run, tmp_path):
    write_image(tmp_path / "in" / "a.png", pixels(400, 350))
    assert run() == 0
    page = tmp_path / "out" / "comparison.html"
    data = re.search('base64,([^"]*)', page.read_text())[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    middle = pixels(400, 350)[40:360, 15:335]
    for x in (0, 324):  # pixel for pixel, before and after
        np.testing.assert_array_equal(shown[18:338, x : x + 320], middle)
    page.write_text("a user's")
    assert run("--overwrite") == 0
    assert page.read_text() != "a user's"
    page.write_text("a user's")
    write_image(tmp_path / "in" / "b.png", pixels())
    assert run() == 0
    assert page.read_text() == "a user's"


def test_names_of_three_inputs_that_meet(run, tmp_path):
    for i, name in enumerate(("a.png", "a.bmp", "a.bmp.png")):
        write_image(tmp_path / "in" / name, pixels(seed=i))
    assert run() == 0
    found = {b"a.png": 0, b"a.bmp~.png": 1, b"a.bmp.png": 2}
    assert written(tmp_path / "out") == found.keys()
    for name, seed in found.items():
        image = read_image(tmp_path / "out" / os.fsdecode(name))
        np.testing.assert_array_equal(image, pixels(seed=seed))


def test_other_errors_keep_their_traceback(run, tmp_path, capsys, monkeypatch):
    write_image(tmp_path / "in" / "a.png", pixels())
    monkeypatch.setattr(folder_jobs, "write_photo", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run()
    assert "0 images written" in capsys.readouterr().out
