"""Command lines: defaults, presets, flags, the device, what identifies a run."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

import train_denoiser
import train_denoiser_synthetic
import train_noiseTransfer
from utils import config
from utils.config import choose_device, choose_devices, git_commit, parse, print_config, provenance
from utils.errors import UserError
from utils.precision import set_float32_precision

SCRIPTS = [train_noiseTransfer, train_denoiser, train_denoiser_synthetic]


@dataclasses.dataclass(frozen=True)
class Config:
    preset: Literal["paper", "lite"] = "paper"
    debug: bool = False
    width: int = 64
    batch: int = 32
    lr: float = 1e-4
    run: Path = Path("runs/x")
    pairs: tuple[Path, ...] = ()


PRESETS = {"paper": {}, "lite": dict(width=16, batch=16)}
DEBUG = dict(batch=2, lr=0.5)


def resolve(line: str) -> Config:
    return parse(Config, line.split(), PRESETS, DEBUG)


def test_defaults():
    assert resolve("") == Config()
    assert resolve("--preset paper") == Config()
    assert parse(Config, []) == Config()


@pytest.mark.parametrize("line", ["--preset lite", "--preset=lite"])
def test_preset(line):
    assert resolve(line) == Config(preset="lite", width=16, batch=16)


@pytest.mark.parametrize("line", ["--debug --preset lite", "--preset=lite --debug"])
def test_debug_goes_on_top_of_the_preset(line):
    assert resolve(line) == Config(preset="lite", debug=True, width=16, batch=2, lr=0.5)


@pytest.mark.parametrize(
    "line",
    [
        "--preset lite --debug --batch 7 --width 5 --lr 3",
        "--batch 7 --preset lite --width=5 --lr=3 --debug",
        "--lr 3 --width 5 --batch=7 --debug --preset=lite",
    ],
)
def test_explicit_flags_win_in_any_order(line):
    assert resolve(line) == Config(preset="lite", debug=True, batch=7, width=5, lr=3)


def test_explicit_flag_equal_to_the_default_wins():
    assert resolve("--preset lite --width 64").width == 64
    assert resolve("--width 64 --debug --batch 32").batch == 32


def test_the_last_of_two_presets_counts():
    assert resolve("--preset lite --preset paper") == Config()
    assert resolve("--preset paper --preset=lite").width == 16


def test_paths_and_lists():
    c = resolve("--run a/b --pairs c d")
    assert c.run == Path("a/b")
    assert c.pairs == (Path("c"), Path("d"))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--no-such-flag 3", "--no-such-flag"),
        ("--width wide", "wide"),
        ("--preset heavy", "heavy"),
        ("--preset", "--preset"),
        ("--debug yes", "yes"),
        ("stray", "stray"),
    ],
)
def test_unknown_flag_or_value_leaves_with_status_2(line, named, capsys):
    with pytest.raises(SystemExit) as leave:
        resolve(line)
    assert leave.value.code == 2
    shown = capsys.readouterr()
    assert named in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err


def test_print_config(capsys):
    print_config(Config(width=3))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(dataclasses.fields(Config))
    assert lines[2] == "width = 3"


# ----------------------------------------------------------------------------- the scripts' own


@pytest.mark.parametrize("script", SCRIPTS)
def test_paper_is_the_default(script):
    assert script.PRESETS["paper"] == {}
    assert parse(script.Config, [], script.PRESETS, script.DEBUG) == script.Config()
    assert script.Config().width == 64


def test_published_settings():
    c = train_noiseTransfer.Config()
    assert (c.batch, c.patch, c.epochs, c.steps_per_epoch) == (32, 96, 200, 2000)
    assert (c.lr, c.lr_decay, c.betas, c.weight_decay) == (1e-4, "constant", (0.5, 0.99), 1e-7)
    assert (c.queue_size, c.momentum, c.temperature, c.embed_dim) == (4096, 0.999, 0.1, 128)
    assert (c.w_gan, c.w_fm_gan, c.w_consistency) == (1, 100, 100)
    assert (c.w_contra_adv, c.w_fm_noise, c.ema) == (1, 100, 0)
    assert c.p_real == pytest.approx(320 / 1120)
    for script, weight_decay in ((train_denoiser, 1e-5), (train_denoiser_synthetic, 1e-6)):
        c = script.Config()
        assert (c.denoiser, c.batch, c.patch, c.border) == ("ridnet", 32, 88, 4)
        assert (c.epochs, c.steps_per_epoch, c.lr, c.lr_decay) == (200, 5000, 1e-4, "halve")
        assert (c.halve_after, c.weight_decay, c.ema) == ((150, 170, 190), weight_decay, 0)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", [["--preset", "lite"], ["--debug"], ["--preset=lite", "--debug"]])
def test_presets_of_the_scripts_resolve(script, flags):
    c = parse(script.Config, flags, script.PRESETS, script.DEBUG)
    expected = (script.PRESETS["lite"] if "--debug" not in flags else {}) | (
        script.DEBUG if "--debug" in flags else {}
    )
    assert {k: getattr(c, k) for k in expected} == expected


# ---------------------------------------------------------------------------------------- device


@pytest.fixture
def gpus(monkeypatch):
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)

    def pretend(count: int) -> list[torch.device]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return used

    return pretend


@pytest.mark.parametrize(
    ("gpu", "count", "expected", "said"),
    [
        ("0", 2, "cuda:0", 0),
        ("1", 2, "cuda:1", 0),
        ("0,1", 2, "cuda:0", 1),
        ("1, 0", 2, "cuda:1", 1),
        ("0", 0, "cpu", 1),
        ("0,1", 0, "cpu", 1),
        ("cpu", 2, "cpu", 0),
        ("cpu", 0, "cpu", 0),
    ],
)
def test_choose_device(gpus, capsys, gpu, count, expected, said):
    used = gpus(count)
    assert choose_device(gpu) == torch.device(expected)
    assert len(capsys.readouterr().out.splitlines()) == said
    assert used == ([] if expected == "cpu" else [torch.device(expected)])


def test_a_script_of_one_process_computes_in_full_float32(gpus):
    """cuDNN's default is TF32, of 10 bits."""
    gpus(0)
    torch.backends.cudnn.allow_tf32 = True
    try:
        choose_device("0")
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        set_float32_precision("fp32")


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("gpu", ["7", "x", "", "-1", "0,x", "cuda:0", "1.5"])
def test_devices_that_are_not_there(gpus, gpu, count):
    gpus(count)
    with pytest.raises(UserError, match=re.escape(f"--gpu {gpu}:")):
        choose_device(gpu)


def test_a_device_for_each_process(gpus, capsys):
    gpus(3)
    assert choose_devices("0,2") == [torch.device("cuda", 0), torch.device("cuda", 2)]
    assert choose_devices("cpu,cpu") == [torch.device("cpu")] * 2
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="--gpu 1,1: expected device numbers"):
        choose_devices("1,1")
    with pytest.raises(UserError, match="--gpu cpu,0: expected device numbers"):
        choose_devices("cpu,0")
    gpus(0)
    assert choose_devices("0,1") == [torch.device("cpu")]
    assert "running on the CPU" in capsys.readouterr().out


def test_a_list_with_a_missing_device(gpus):
    gpus(2)
    with pytest.raises(UserError, match="no GPU 7, the GPUs here are 0 to 1"):
        choose_device("0,7")


# ------------------------------------------------------------------------------------ provenance


def test_provenance(monkeypatch):
    monkeypatch.setattr(config.sys, "argv", ["/somewhere/train_denoiser.py", "--gpu", "0"])
    record = provenance()
    assert record["command"] == "python train_denoiser.py --gpu 0"
    assert set(config.PACKAGES) | {"python"} == record["versions"].keys()
    assert "missing" not in record["versions"]["torch"]
    assert record["hardware"]


def test_hardware_is_what_was_used(gpus, monkeypatch):
    """With --gpu cpu on a machine with GPUs, that is the CPU, and no GPU is asked for its name."""
    gpus(2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "the current GPU")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert re.fullmatch(r"CPU, \d+ threads, \w+", provenance()["hardware"])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert provenance()["hardware"] == "the current GPU"


def test_git_commit(monkeypatch, tmp_path):
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?|unknown", git_commit())

    def no_git(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert git_commit() == "unknown"


# ------------------------------------------------------------------------- --help without torch

ROOT = Path(__file__).parent.parent
NEEDED = {"transfer_noise": ["input", "output", "reference"], "denoise": ["input", "output"]}
WITHOUT_TORCH = ["ablate", "demo", "denoise", "inspect_references", "supp_tbl", "transfer_noise",
                 "train_denoiser", "train_denoiser_synthetic", "train_noiseTransfer",
                 "data.doctor"]  # fmt: skip


@pytest.mark.parametrize("script", WITHOUT_TORCH)
def test_help_needs_no_torch_and_names_what_is_required(script: str) -> None:
    """torch takes seconds and most of a gigabyte to import."""
    code = "import runpy, sys; script = sys.argv.pop(1)\n"
    code += "try: runpy.run_module(script, run_name='__main__', alter_sys=True)\n"
    code += "finally: assert 'torch' not in sys.modules"

    def run(flag: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, script, flag]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    shown = run("--help")
    assert shown.returncode == 0, shown.stderr
    usage = " ".join(shown.stdout.partition("\n\n")[0].split())
    for name in ("input", "output", "reference"):
        assert (f" --{name} {name.upper()}" in usage) == (name in NEEDED.get(script, []))
    mistyped = run("--no-such-flag")
    assert mistyped.returncode == 2
    if "." in script:  # one that is run by -m
        words = [sys.executable, "-m", script, "--no-such-flag"]
        shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert f"python -m {script} --help" in " ".join(shown.stderr.split())
    assert "Assertion" not in mistyped.stderr
