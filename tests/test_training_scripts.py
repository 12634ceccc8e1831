"""The training scripts from the command line to the files, on tiny images and networks.

Most kinds of bad input are in test_bad_input.py.
"""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import train_denoiser as REAL
import train_denoiser_synthetic as SYNTHETIC
import train_noiseTransfer as NT
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.denoisers import denoiser_from_checkpoint
from models.layers import SpectralWeight
from models.levels import CURVE
from tests.helpers import Items, equal_states, images
from training.run import TrainingRun
from utils.checkpoint import load_state
from utils.errors import UserError
from utils.resume import Checkpoints

pytestmark = pytest.mark.usefixtures("shallow")

SCRIPTS = [NT, REAL, SYNTHETIC]
LOAD = functools.cache(NoiseTransfer.from_checkpoint)  # a second or so each time


def write_png(path: Path, height: int, width: int, seed: int, like: Path | None = None) -> None:
    """Random pixels; or those of `like`, noisy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(40, 216, (height, width, 3), np.uint8)
    if like is not None:
        noise = rng.normal(0, 8, pixels.shape)
        pixels = (cv2.imread(str(like)) + noise).round().clip(0, 255).astype(np.uint8)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture(scope="module")
def data(shallow: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train_images, test_images and weights NT, all tiny."""
    root = tmp_path_factory.mktemp("data")
    for i, iso in enumerate(("00100", "00800", "00100")):
        scene = root / f"train_images/sidd/Data/000{i}_001_S6_{iso}_00060_3200_L"
        clean = scene / f"000{i}_GT_SRGB_010.PNG"
        write_png(clean, 24, 32, i)
        write_png(scene / f"000{i}_NOISY_SRGB_010.PNG", 24, 32, i, like=clean)
        write_png(root / f"train_images/DIV2K/DIV2K_train_HR/000{i}.png", 28, 20, 10 + i)
        write_png(root / f"test_images/pairs/groundtruth/{i}.png", 16, 20, 20 + i)
        clean = root / f"test_images/pairs/groundtruth/{i}.png"
        write_png(root / f"test_images/pairs/input/{i}.png", 16, 20, 30 + i, like=clean)
        write_png(root / f"test_images/BSDS500/data/images/test/{i}.png", 16, 20, 40 + i)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        write_nt(root / "NT", 8, 8)
    return root


def write_nt(folder: Path, encoder_dim: int, generator_dim: int) -> None:
    folder.mkdir()
    torch.save(NoiseEncoder(4, encoder_dim).state_dict(), folder / "encoder_k.pt")
    torch.save(NoiseGenerator(4, generator_dim).state_dict(), folder / "VUNet.pt")


Command = Callable[..., list[str]]


@pytest.fixture
def command(data: Path, tmp_path: Path) -> Command:
    """command(script, *flags) -> argv of a tiny run on the CPU below tmp_path."""

    def command(script: ModuleType, *flags: str) -> list[str]:
        own = ["--embed-dim", "8"] if script is NT else ["--nt", str(data / "NT"), "--border", "2"]
        return [
            *("--debug", "--gpu", "cpu", "--batch", "2", "--patch", "16", *own),
            *("--train-images", str(data / "train_images")),
            *("--test-images", str(data / "test_images"), "--cache", str(tmp_path / "cache")),
            *("--run-dir", str(tmp_path / "run"), *flags),
        ]

    return command


@pytest.fixture(autouse=True)
def quick_loading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoiseTransfer, "from_checkpoint", LOAD)


def stats(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def checkpoint(run: Path) -> Path:
    """The newest; there may be no other of its step."""
    return Checkpoints(run).files("checkpoint")[0]


def networks(run: Path) -> dict[str, Tensor]:
    return torch.load(checkpoint(run), weights_only=True)["networks"]


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


FILES = {
    NT: {"VUNet.pt", "encoder_q.pt", "encoder_k.pt", "transfer.json"},
    REAL: {"ridnet_g.pt"},
    SYNTHETIC: {"ridnet_g.pt"},
}
VALIDATION = {NT: "val/pairs", REAL: "val/pairs", SYNTHETIC: "val/BSDS500"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_run_and_resume(script, command, tmp_path, capsys):
    run = tmp_path / "run"
    script.main(command(script, "--epochs", "1"))
    assert "finished after step 2" in capsys.readouterr().out
    record = {"config.json", "stats.jsonl", "tensorboard", "best", ".lock", ".lock.holder"}
    (newest,) = run.glob("checkpoint-00000002-*.pt")
    (best,) = run.glob("best-*.pt")
    record |= {newest.name, best.name}
    assert {p.name for p in run.iterdir()} == record | FILES[script]
    assert {p.name for p in (run / "best").iterdir()} == FILES[script]
    first = (run / "stats.jsonl").read_text()
    groups = [(x["group"], x["step"]) for x in stats(run)]
    assert groups == [("train", 1), ("train", 2), (VALIDATION[script], 2)]
    assert all(math.isfinite(v) for x in stats(run) for v in x.values() if isinstance(v, float))
    before = networks(run)
    if script is NT:
        assert_weights_are_the_checkpoints(run)

    script.main(command(script, "--epochs", "2"))
    said = capsys.readouterr().out
    assert f"Resuming {run} after step 2" in said
    assert "finished after step 4" in said
    second = (run / "stats.jsonl").read_text()
    assert second.startswith(first)
    assert [(x["group"], x["step"]) for x in stats(run)[3:]] == [
        ("train", 3),
        ("train", 4),
        (VALIDATION[script], 4),
    ]
    assert not equal_states(networks(run), before)
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert len(board.Tags()["images"]) == 1
    assert f"{VALIDATION[script]}/{'akld' if script is NT else 'psnr'}" in board.Tags()["scalars"]

    script.main(command(script, "--epochs", "2"))  # finished: nothing to do, nothing to lose
    assert (run / "stats.jsonl").read_text() == second


def assert_weights_are_the_checkpoints(run: Path) -> None:
    """Those of train_noiseTransfer.py, and they make a NoiseTransfer."""
    state = networks(run)
    for file, prefix in (
        ("VUNet.pt", "generator."),
        ("encoder_q.pt", "encoder_q."),
        ("encoder_k.pt", "encoder_k."),
    ):
        assert equal_states(load_state(run / file), below(state, prefix))
    noisy = LOAD.__wrapped__(run).transfer(images(1, 2, 3, 9, 12), images(2, 1, 3, 16, 16))
    assert noisy.shape == (2, 3, 9, 12)


def test_averaged_generator_is_saved_with_converged_spectral_norm(command, tmp_path):
    NT.main(command(NT, "--epochs", "1", "--ema", "0.5", "--lr", "0.01"))
    state, saved = networks(tmp_path / "run"), load_state(tmp_path / "run" / "VUNet.pt")
    for key, value in saved.items():
        if key.endswith("weight_orig"):
            assert torch.equal(value, state[f"generator_ema.{key}"])
            assert not torch.equal(value, state[f"generator.{key}"])
    generator = NoiseGenerator(4, 8).eval()
    generator.load_state_dict(saved)
    norms = [
        torch.linalg.svdvals(w().transpose(0, w.dim).flatten(1))[0].item()
        for w in generator.modules()
        if isinstance(w, SpectralWeight)
    ]
    assert np.median(norms) == pytest.approx(1, abs=1e-4)
    assert max(norms) < 1.02


def test_levels_after_a_training_and_of_weights_alone(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(NT, "fit_levels", functools.partial(NT.fit_levels, steps=10))
    write_png(tmp_path / "photos/0.png", 40, 48, 0)
    flags = ["--levels", "20", "--photos", str(tmp_path / "photos")]
    flags += ["--train-images", str(tmp_path / "none")]
    NT.main(command(NT, "--epochs", "1", *flags))
    assert "levels.pt: strength at an intensity is off by" in capsys.readouterr().out
    run, other = tmp_path / "run", tmp_path / "other"
    alone = ["--init", str(run), "--epochs", "0", *flags, "--run-dir", str(other)]
    NT.main(command(NT, *alone))
    for folder in (run, other):
        transfer = NoiseTransfer.from_checkpoint(folder)
        assert transfer.embed(torch.rand(1, 3, 16, 16)).shape == (1, 8 + CURVE)
    before, after = (load_state(folder / "VUNet.pt") for folder in (run, other))
    assert all(torch.equal(before[key], after[key]) for key in before if "weight_orig" in key)
    with pytest.raises(UserError, match="--epochs 0: expected 1 or more"):
        NT.main(command(NT, "--epochs", "0", *flags))


@pytest.mark.parametrize("denoiser", ["ridnet", "dncnn", "unet"])
def test_each_denoiser(denoiser, command, tmp_path):
    run = tmp_path / "run"
    REAL.main(command(REAL, "--epochs", "1", "--denoiser", denoiser, "--steps-per-epoch", "1"))
    state, file = networks(run), run / f"{denoiser}_g.pt"
    assert equal_states(load_state(file), below(state, "denoiser."))
    assert denoiser_from_checkpoint(file)(images(1, 2, 3, 9, 12)).shape == (2, 3, 9, 12)


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        # its two phases, a stop within the first and a kill within the second
        (NT, ["--preset", "lite", "--encoder-steps", "2", "--embedded-sizes", "16", "--ema", "0.9",
              "--warm-up", "2", "--draw-together", "3"]),
        (REAL, ["--denoiser", "dncnn", "--ema", "0.9", "--lr-decay", "cosine"]),
        (REAL, ["--ema", "0.9", "--halve-after", "1"]),
    ],
)  # fmt: skip
def test_an_interrupted_run_ends_like_one_that_was_not(
    script, flags, command, data, tmp_path, monkeypatch
):
    """Stopped by the clock in mid-epoch, then killed in mid-epoch, then left to finish."""
    if script is NT:
        flags = [*flags, "--white-pairs", str(data / "train_images/sidd")]
    script.main(command(script, *flags, "--run-dir", str(tmp_path / "whole")))

    train_step, done = script.train_step, []

    def counted(*args: object) -> dict:
        if len(done) == kill_at:
            raise KeyboardInterrupt
        done.append(args)
        return train_step(*args)

    monkeypatch.setattr(script, "train_step", counted)
    kill_at = None
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "must_stop", lambda self: len(done) == 1)
        script.main(command(script, *flags))
    assert len(done) == 1
    kill_at = 3
    with pytest.raises(KeyboardInterrupt):
        script.main(command(script, *flags))
    kill_at = None
    script.main(command(script, *flags))
    assert len(done) == 5  # step 3 was lost and done again

    whole, parts = (
        torch.load(checkpoint(tmp_path / run), weights_only=True) for run in ("whole", "run")
    )
    assert whole["step"] == parts["step"] == 4
    assert equal_states(parts["networks"], whole["networks"])
    for name, optimiser in whole["optimisers"].items():
        assert parts["optimisers"][name]["param_groups"] == optimiser["param_groups"]
        for i, moments in optimiser["state"].items():
            assert equal_states(parts["optimisers"][name]["state"][i], moments)
    file = "VUNet.pt" if script is NT else next(p.name for p in (tmp_path / "run").glob("*_g.pt"))
    assert equal_states(load_state(tmp_path / "run" / file), load_state(tmp_path / "whole" / file))
    if script is NT:
        assert_phases(tmp_path / "whole", encoder_steps=2)


def assert_phases(run: Path, encoder_steps: int) -> None:
    """Of four steps, the first ones are the encoder's alone, the others the generator's."""
    train = {x["step"]: x.keys() for x in stats(run) if x["group"] == "train"}
    alone, together = {"loss_statistics", "contraAcc_noisy"}, {"loss_band", "error_log_strength"}
    for step in range(1, 5):
        assert (alone <= train[step]) == (step <= encoder_steps)
        assert (together <= train[step]) == (step > encoder_steps)
    validated = [x["step"] for x in stats(run) if x["group"] == "val/pairs"]
    assert validated == [4]  # at the end of the first epoch the generator is as it began
    settings = json.loads((run / "transfer.json").read_text())
    assert (settings["width"], settings["embed_dim"], settings["steps"]) == (4, 8, 4)


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_writes_nothing(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script.main(["--dry-run", "--preset", "lite", "--gpu", "7", "--batch", "5"])
    lines = capsys.readouterr().out.splitlines()
    assert {"preset = lite", "batch = 5", "width = 16", "dry_run = True"} <= set(lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_minutes_left_stops_and_saves(script, command, tmp_path, capsys):
    script.main(command(script, "--max-minutes", "0"))
    assert "stopped, the same command goes on after step 0" in capsys.readouterr().out
    run = tmp_path / "run"
    assert FILES[script] <= {p.name for p in run.iterdir()}
    assert torch.load(checkpoint(run), weights_only=True)["step"] == 0
    assert stats(run) == []


def test_bundled_sample_where_there_are_no_images(command, data, tmp_path, monkeypatch, capsys):
    asked = []

    def write_sample(root: Path) -> Path:
        asked.append(root)
        return data  # in its place, to save the time

    monkeypatch.setattr("data.training_data.write_sample", write_sample)
    REAL.main(command(REAL, "--train-images", str(tmp_path / "none"), "--max-minutes", "0"))
    assert asked == [tmp_path / "cache" / "sample"]
    assert "using the bundled sample" in capsys.readouterr().out


@pytest.fixture
def pairs_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """(clean, reference) of the denoisers' training steps, which do nothing else."""
    seen = []

    def step(
        s: object, c: object, transfer: object, clean: Tensor, reference: Tensor, noise
    ) -> dict:
        seen.append((clean, reference))
        s.step += 1
        return {"loss_l1": torch.tensor(0.0)}

    for script in (REAL, SYNTHETIC):
        monkeypatch.setattr(script, "open_items", lambda c, device: Items())
        monkeypatch.setattr(script, "train_step", step)
        monkeypatch.setattr(script, "find_validation_sets", lambda root, **how: [])
    monkeypatch.setattr(SYNTHETIC, "add_noise", lambda clean, model, generator: clean + 0.25)
    return seen


@pytest.mark.parametrize(("script", "expected"), [(REAL, 0.75), (SYNTHETIC, 0.5)])
def test_reference_of_the_denoisers(script, expected, command, pairs_seen):
    """Real: the other view, never the patch's own noise; synthetic: the patch itself, noisy."""
    script.main(command(script, "--epochs", "1", "--steps-per-epoch", "1"))
    ((clean, reference),) = pairs_seen
    assert (clean.unique().tolist(), reference.unique().tolist()) == ([0.25], [expected])
    assert clean.shape == reference.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("script", [REAL, SYNTHETIC])
def test_larger_references(script, command, pairs_seen, monkeypatch):
    """Synthetic: the patch in the middle of its surroundings, which are what is noisy."""
    image = torch.arange(24 * 24.0).view(1, 1, 24, 24).expand(2, 3, -1, -1)
    monkeypatch.setattr(Items, "clean_patches", lambda self, n, rng, size: image)
    flags = ("--epochs", "1", "--steps-per-epoch", "1", "--embedded-size", "24")
    script.main(command(script, *flags))
    ((clean, reference),) = pairs_seen
    assert clean.shape == (2, 3, 16, 16)
    assert reference.shape == (2, 3, 24, 24)
    if script is SYNTHETIC:
        assert torch.equal(clean, image[..., 4:20, 4:20])
        assert torch.equal(reference, image + 0.25)


@pytest.mark.parametrize("script", [REAL, SYNTHETIC])
def test_the_patchs_own_noise_is_never_larger(script, command, pairs_seen):
    """--noise real beside --embedded-size: the input of the denoiser is of the patch's size."""
    flags = ("--epochs", "1", "--steps-per-epoch", "1", "--embedded-size", "24", "--noise", "real")
    script.main(command(script, *flags))
    ((clean, noisy),) = pairs_seen
    assert clean.shape == noisy.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("kind", ["DIV2K", "sidd"])
def test_one_kind_of_images_is_enough_for_the_generator(kind, command, data, tmp_path):
    images = str(data / "train_images" / kind)
    NT.main(command(NT, "--train-images", images, "--epochs", "1", "--steps-per-epoch", "1"))
    assert stats(tmp_path / "run")[0]["step"] == 1


def test_the_checkpoint_before_a_damaged_one_is_used(command, tmp_path, capsys):
    REAL.main(command(REAL, "--epochs", "2"))
    newest = checkpoint(tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:1000])
    REAL.main(command(REAL, "--epochs", "2"))
    said = capsys.readouterr()
    assert f"WARNING: {newest} is damaged" in said.err
    assert "Resuming" in said.out
    assert "after step 2" in said.out
    for path in (tmp_path / "run").glob("*-*.pt"):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="no intact checkpoint among"):
        REAL.main(command(REAL))


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint(command, tmp_path, monkeypatch):
    REAL.main(command(REAL, "--epochs", "1"))
    before = checkpoint(tmp_path / "run").read_bytes()
    monkeypatch.setattr(REAL, "learning_rate", lambda c, step: 1e38)
    with pytest.raises(UserError, match=r"step 4: loss_l1 not finite|not saved: .* not finite"):
        REAL.main(command(REAL, "--epochs", "3"))
    assert checkpoint(tmp_path / "run").read_bytes() == before
