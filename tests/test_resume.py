"""Checkpoints that cannot tear, the lock, signals, settings of a resumed run; kills at random."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.faults import Faults
from training.run import TrainingRun
from training.settings import RunSettings
from utils import resume
from utils.config import parse
from utils.errors import UserError
from utils.resume import Checkpoints, RunLock, StopSignals, saved_settings, settings_of
from utils.training import TrainingState

ROOT = Path(__file__).parent.parent


def content(step: int) -> dict:
    weights = torch.full((1000,), float(step))
    return {"step": step, "networks": {"w": weights}, "settings": {"lr": 0.1}, "best": None}


def names(folder: Path) -> list[tuple[str, int]]:
    files = Checkpoints(folder).files("checkpoint") + Checkpoints(folder).files("best")
    return [(p.name.split("-")[0], int(p.name.split("-")[1])) for p in files]


# ------------------------------------------------------------------------------- checkpoints


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.load_newest() is None
    for step in range(1, 6):
        checkpoints.save(content(step), best=step == 2)
    assert names(tmp_path) == [("checkpoint", 5), ("checkpoint", 4), ("best", 2)]
    assert checkpoints.load_newest()["step"] == 5
    checkpoints.save(content(6), best=True)
    assert names(tmp_path) == [("checkpoint", 6), ("checkpoint", 5), ("best", 6)]
    assert len(list(tmp_path.iterdir())) == 3  # nothing temporary is left


def test_a_step_saved_twice_is_there_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 2):
        checkpoints.save(content(step) | {"best": {"score": time.monotonic(), "step": step}})
    assert names(tmp_path) == [("checkpoint", 2), ("checkpoint", 1)]


def test_damage_anywhere_is_recognised(tmp_path, capsys):
    """50 truncations and 50 flipped bytes: the one before is taken, loudly, each time."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(content(1))
    checkpoints.save(content(2))
    newest = checkpoints.files("checkpoint")[0]
    data, rng = newest.read_bytes(), random.Random(0)
    for i in range(100):
        at = rng.randrange(len(data))
        flipped = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        newest.write_bytes(data[:at] if i % 2 else flipped)
        assert checkpoints.load_newest()["step"] == 1
        assert f"WARNING: {newest} is damaged" in capsys.readouterr().err
    newest.write_bytes(data)
    assert checkpoints.load_newest()["step"] == 2


def test_a_damaged_one_goes_before_a_good_one(tmp_path):
    """Damage at step 20, on from 10, saved at 15: 10 and 15 stay."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20):
        checkpoints.save(content(step))
    newest = checkpoints.files("checkpoint")[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    assert checkpoints.load_newest()["step"] == 10
    checkpoints.save(content(15))
    assert names(tmp_path) == [("checkpoint", 15), ("checkpoint", 10)]


def test_other_training_images_are_told(tmp_path, capsys):
    def run(*images: str) -> str:
        sizes = torch.tensor([[64, 80]] * len(images))
        store = SimpleNamespace(files=[Path(image) for image in images], sizes=sizes)
        c = RunSettings(run_dir=tmp_path)
        with TrainingRun(c, TrainingState(), torch.device("cpu"), [store]) as training:
            training.save()
        return capsys.readouterr().err

    assert run("a/1.png", "a/2.png", "a/3.png") == ""
    assert run("b/3.png", "b/1.png", "b/2.png") == ""  # the same, from elsewhere
    assert "trained on 3 images until step 0, what is there now are 2" in run("a/1.png", "a/2.png")
    assert "2 images" in run("a/1.png", "a/4.png")  # as many, others


def test_the_best_is_the_last_resort(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(content(1), best=True)
    checkpoints.save(content(2))
    checkpoints.files("checkpoint")[0].write_bytes(b"")
    assert checkpoints.load_newest()["step"] == 1
    checkpoints.files("best")[0].unlink()
    with pytest.raises(UserError, match="no intact checkpoint among 1; restore one"):
        checkpoints.load_newest()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_ones(tmp_path, monkeypatch, call):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(content(1))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        checkpoints.save(content(2))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_without_hard_links_the_best_is_a_copy(tmp_path, monkeypatch):
    def refused(*args: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(resume.os, "link", refused)
    Checkpoints(tmp_path).save(content(3), best=True)
    newest, best = tmp_path.glob("checkpoint-*.pt"), tmp_path.glob("best-*.pt")
    assert next(newest).read_bytes() == next(best).read_bytes()


# ------------------------------------------------------------------------------------- the lock


def test_two_runs_in_one_folder(tmp_path):
    lock = RunLock(tmp_path / "run")
    with pytest.raises(UserError, match=rf"run: process {os.getpid()} on .* is training"):
        RunLock(tmp_path / "run")
    lock.release()
    RunLock(tmp_path / "run").release()


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from utils.resume import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {child.pid} "):
        RunLock(tmp_path)
    child.kill()
    child.wait()
    child.stdout.close()
    RunLock(tmp_path).release()


def test_lock_is_the_kernels(tmp_path):
    lock = RunLock(tmp_path)
    with open(tmp_path / ".lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.release()


# -------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_noted_and_a_second_one_is_an_interrupt(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


# ------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Config:
    run_dir: Path = Path("runs/x")
    epochs: int = 3
    width: int = 64
    pairs: tuple[Path, ...] = ()
    betas: tuple[float, float] = (0.5, 0.99)
    preset: str = "paper"


def test_settings_of_a_run_become_the_defaults_of_its_resume(tmp_path):
    first = parse(Config, f"--run-dir {tmp_path} --width 16 --pairs a b --epochs 5".split())
    Checkpoints(tmp_path).save(content(1) | {"settings": settings_of(first)})
    assert saved_settings(tmp_path / "other") is None

    def again(flags: str) -> Config:
        return parse(Config, f"--run-dir {tmp_path} {flags}".split(), saved=saved_settings)

    c = again("")
    assert (c.width, c.pairs, c.betas) == (16, (Path("a"), Path("b")), (0.5, 0.99))
    assert again("--width 16 --epochs 9").epochs == 9  # equal, and free to change
    for flags, message in (
        ("--width 64", "--width 64: the run in .* has 16; leave the flag out"),
        ("--pairs a c", "--pairs a c: the run in .* has a b"),
        ("--betas 0.9 0.999", "--betas 0.9 0.999: the run in .* has 0.5 0.99"),
    ):
        with pytest.raises(UserError, match=message):
            again(flags)


# ------------------------------------------------------------- processes, ended from outside


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> Faults:
    return Faults(tmp_path_factory.mktemp("faults"), seed=0)


def test_a_killed_run_ends_like_one_that_was_not(faults):
    """Here two kills, one of them inside a save; benchmarks/faults.py does thirty."""
    for during_save in (False, True):
        # A kill whose moment comes after the end of the run, on a busy machine, is tried again.
        tries = (faults.kill_and_resume(during_save) for _ in range(5))
        result = next(result for result in tries if result.killed or not result.identical)
        assert result.identical


def test_a_terminated_run_loses_no_step(faults):
    result = faults.terminate_and_resume(signal.SIGTERM)
    assert result.status == 128 + signal.SIGTERM
    assert result.resumed_at == result.last_step
    assert result.identical
