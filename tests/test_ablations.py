"""Ablations of train_noiseTransfer.py: what each row changes, and ablate.py."""

import csv
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ablate
import train_noiseTransfer as NT
from models.layers import shared_spectral_norm
from tests.helpers import equal_states
from tests.test_training_step import recorded_step, sin_noise, small, triplet
from utils.config import parse
from utils.errors import UserError
from utils.images import write_image
from utils.seeding import randomness

ADVERSARIAL = {
    "w_gan": 1, "w_fm_gan": 100, "w_consistency": 100, "w_contra_adv": 1, "w_fm_noise": 100,
    "w_gan_d": 1, "freeze_encoder": False,
}  # fmt: skip
MOMENTS = (
    "w_band", "w_shape", "w_local_variance", "w_local_mean", "w_quantile", "w_autocorrelation"
)  # fmt: skip
# What each row says, in the words of its name.
SAYS = {
    "none": {},
    "no-contrastive": {"w_contra": 0, "w_contra_adv": 0},
    "no-contra-adv": {"w_contra_adv": 0},
    "no-consistency": {"w_consistency": 0},
    "no-feature-matching": {"w_fm_gan": 0, "w_fm_noise": 0},
    "no-adversarial": {"w_gan": 0},
    "no-statistics": {"w_statistics": 0},
    "no-encoder-phase": {"encoder_steps": 0, "freeze_encoder": False},
    "adversarial-alone": dict.fromkeys(MOMENTS, 0) | ADVERSARIAL,
    "adversarial-too": ADVERSARIAL,
    "no-correlated-noise": {"p_correlated": 0},
    "paired-reference": {"embedded": "paired"},
    "no-noise-injection": {"inject_noise": False},
    "embed-32": {"embed_dim": 32},
    "embed-512": {"embed_dim": 512},
    "queue-256": {"queue_size": 256},
    "queue-16384": {"queue_size": 16384},
    "temperature-0.05": {"temperature": 0.05},
    "temperature-0.2": {"temperature": 0.2},
}


pytestmark = pytest.mark.usefixtures("shallow")


def config(*flags: str) -> NT.Config:
    return parse(NT.Config, [*flags], NT.PRESETS, NT.DEBUG, None, NT.ABLATIONS)


# ------------------------------------------------------------------------------------- the rows


def test_every_row_is_known_here() -> None:
    assert list(SAYS) == list(NT.ABLATIONS)


@pytest.mark.parametrize("preset", NT.PRESETS)
@pytest.mark.parametrize("row", SAYS)
def test_a_row_differs_from_its_preset_in_what_it_says(row: str, preset: str) -> None:
    default = dataclasses.asdict(config("--preset", preset))
    ablated = dataclasses.asdict(config("--preset", preset, "--ablation", row))
    assert ablated.pop("ablation") == row
    changed = {k: v for k, v in ablated.items() if v != default[k]}
    assert changed == {k: v for k, v in SAYS[row].items() if v != default[k]}


def test_explicit_flags_win_over_a_row_and_rows_must_exist() -> None:
    assert config("--ablation=no-adversarial", "--w-gan", "2").w_gan == 2
    with pytest.raises(UserError, match=r"--ablation no-gan: expected one of none, no-contrastive"):
        config("--ablation", "no-gan")


@pytest.mark.parametrize("row", SAYS)
def test_a_step_of_every_row(row: str) -> None:
    c = small(**dict(queue_size=64) | NT.ABLATIONS[row])
    s = NT.State(c)
    values = NT.train_step(s, c, triplet(), NT.noise_source(c, randomness(0)))
    assert all(math.isfinite(value) for value in values.values())
    assert all(p.isfinite().all() for p in s.parameters())
    assert s.keys.queue.shape == (c.embed_dim, c.queue_size)
    assert s.encoder_k.mlp_noise.linear2(torch.ones(1, 28)).shape == (1, c.embed_dim)


# -------------------------------------------------------------------------- what it does to a step


def test_rows_change_the_gradients_of_the_networks_that_they_are_about() -> None:
    """(E_q's, G's): each against the default row."""
    _, encoder, generator = recorded_step()
    for row, expected in {
        "none": (False, False),
        "no-contrastive": (True, True),
        "no-contra-adv": (False, True),
        "no-consistency": (False, True),
        "no-feature-matching": (False, True),
        "no-adversarial": (False, True),
        "paired-reference": (True, True),
        "temperature-0.05": (True, True),
        "temperature-0.2": (True, True),
    }.items():
        _, e, g = recorded_step(**NT.ABLATIONS[row])
        pairs = ((e, encoder), (g, generator))
        changed = tuple(not equal_states(a.grads, b.grads) for a, b in pairs)
        assert changed == expected, row


def test_without_the_contrastive_loss_nothing_teaches_the_embedding() -> None:
    """The discriminator shares the trunk, and is conditioned on keys of E_k: the layers between the
    trunk and the embedding get no gradient at all."""
    own = ("mlp_noise.", "post_noise", "pre_noise.")
    for row in ("none", "no-contra-adv", "no-contrastive"):
        _, encoder, _ = recorded_step(**NT.ABLATIONS[row])
        grads = {k: g for k, g in encoder.grads.items() if k.startswith(own)}
        assert "mlp_noise.linear2.linear.weight_orig" in grads
        silent = {k for k, g in grads.items() if not g.any()}
        assert silent == (set(grads) if row == "no-contrastive" else set())
        assert encoder.grads["pre_gan.conv2d.weight_orig"].any()


def test_noise_injection() -> None:
    """Off, the generated noise is a function of image and embedding; on, of the draw, too."""
    for row, same in (("none", False), ("no-noise-injection", True)):
        c = small(**NT.ABLATIONS[row])
        generator, clean = NT.State(c).generator.eval(), triplet().clean
        z = torch.nn.functional.normalize(torch.ones(3, 8))
        with torch.no_grad():
            a, b = (generator(clean, z, NT.noise_source(c, randomness(i))) for i in (0, 1))
        assert torch.equal(a, b) == same
        transfer = NT.NoiseTransfer(NT.State(c).encoder_k, generator, None, c.inject_noise)
        a, b = (
            transfer(clean, clean, NT.normal_noise(torch.Generator().manual_seed(i)))
            for i in (0, 1)
        )
        assert torch.equal(a, b) == same


@pytest.mark.parametrize(("row", "embedded"), [("none", "noisy2"), ("paired-reference", "noisy1")])
def test_what_the_keys_embed(row: str, embedded: str) -> None:
    batch, c = triplet(), small(**NT.ABLATIONS[row])
    key_encoder = NT.State(c).encoder_k
    with torch.no_grad(), shared_spectral_norm(key_encoder):
        _, z = key_encoder.embed(getattr(batch, embedded))
    s, _, _ = recorded_step(**NT.ABLATIONS[row])
    torch.testing.assert_close(s.keys.queue[:, :3].T, z)


def test_temperature_divides_the_logits() -> None:
    """At a high temperature all 3 + 64 logits are alike: the loss is log 67."""
    c = small(queue_size=64, temperature=1e4)
    values = NT.train_step(NT.State(c), c, triplet(), sin_noise)
    for name in ("loss_contra_noisy", "loss_contra_noisy_adv"):
        assert values[name].item() == pytest.approx(math.log(67), abs=1e-3)


# ------------------------------------------------------------------------------------ ablate.py


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two pairs to train and to measure on; runs in this process."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for root in ("train_images/pairs", "test_images/pairs"):
        for i in range(2):
            clean = rng.integers(60, 190, (1, 1, 3)) + np.zeros((24, 36, 3))
            for side, image in (("clean", clean), ("noisy", clean + rng.normal(0, 9, clean.shape))):
                image = image.round().clip(0, 255).astype(np.uint8)
                write_image(tmp_path / root / side / f"{i}.png", image)

    def run(command: list[str], check: bool) -> SimpleNamespace:
        assert command[1] == NT.__file__
        try:
            NT.main(command[2:])
        except UserError:
            return SimpleNamespace(returncode=1)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(ablate, "subprocess", SimpleNamespace(run=run))
    return tmp_path


TINY = "--debug --batch 2 --patch 16 --epochs 1 --steps-per-epoch 1 --embed-dim 8"


def run(*flags: str, train: str = TINY) -> None:
    ablate.main(["--gpu", "cpu", f"--train={train}", *flags])


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_two_rows_are_trained_and_tabulated(here: Path, capsys: pytest.CaptureFixture) -> None:
    run("--rows", "none", "no-noise-injection")
    out = capsys.readouterr().out
    tables = {path.name for path in (here / "supp/tbl").iterdir()}
    assert tables == {f"ablations{end}" for end in (".txt", ".md", ".tex", ".csv", "_images.csv")}
    rows = rows_of(here / "supp/tbl/ablations.csv")
    assert [(r["test_set"], r["images"], r["ablation"]) for r in rows] == [
        ("pairs", "2", "none"),
        ("pairs", "2", "no-noise-injection"),
    ]
    for row in rows:
        for key in ("akld", "akld_low", "akld_high", "akld_unpaired", "akld_cross", "std_ratio"):
            assert math.isfinite(float(row[key]))
        assert f"{float(row['akld']):.3f} [{float(row['akld_low']):.3f}" in out
    assert rows[0]["akld"] != rows[1]["akld"]
    for row in ("none", "no-noise-injection"):
        assert (here / f"runs/ablations/{row}/seed0/VUNet.pt").is_file()
        assert f"--ablation {row} --seed 0 --run-dir runs/ablations/{row}/seed0" in out

    before = (here / "supp/tbl/ablations.csv").read_bytes()
    run("--rows", "none", "no-noise-injection")  # finished: measured again, the same
    assert (here / "supp/tbl/ablations.csv").read_bytes() == before
    log = (here / "runs/ablations/none/seed0/stats.jsonl").read_text()
    assert log.count('"group": "train"') == 1


def test_seeds_are_rows_of_their_own(here: Path) -> None:
    run("--rows", "none", "--seeds", "0", "1")
    rows = rows_of(here / "supp/tbl/ablations.csv")
    assert [(r["ablation"], r["seed"]) for r in rows] == [("none", "0"), ("none", "1")]
    assert rows[0]["akld"] != rows[1]["akld"]
    with pytest.raises(UserError, match=r"--seeds: expected at least one number"):
        run("--seeds")


def test_one_image_has_no_cross_references(here: Path) -> None:
    for path in (here / "test_images").rglob("1.png"):
        path.unlink()
    run("--rows", "none")
    (row,) = rows_of(here / "supp/tbl/ablations.csv")
    assert row["akld_cross"] == "nan"
    assert math.isfinite(float(row["akld_unpaired"]))
    assert "  -  " in (here / "supp/tbl/ablations.txt").read_text()


def test_rows_and_trainings_that_fail(here: Path) -> None:
    with pytest.raises(UserError, match=r"--rows \['no-gan'\]: expected some of \['none', "):
        run("--rows", "none", "no-gan")
    # an explicit flag wins over the row, which would then be a row of another name
    with pytest.raises(UserError, match=r"--train --encoder-steps: the row no-encoder-phase sets"):
        run("--rows", "none", "no-encoder-phase", train=f"{TINY} --encoder-steps=1")
    with pytest.raises(UserError, match=r"--train --inject-noise: the row no-noise-injection sets"):
        run("--rows", "no-noise-injection", train=f"{TINY} --inject-noise")
    with pytest.raises(UserError, match=r"ablations/none/seed0: its training ended with status 1"):
        run("--rows", "none", train=f"{TINY} --batch 0")
    assert not (here / "supp").exists()
