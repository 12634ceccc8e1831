"""The model cards in ckpts/: those of today's page and tables, and true of tables made up here."""

import csv
from pathlib import Path

import pytest

from figs import make_cards
from figs.make_cards import CARDS, denoising_scores, failures_of_denoising, failures_of_noise
from models import NoiseTransfer

CKPTS = Path(__file__).parent.parent / "ckpts"


@pytest.mark.parametrize("name", CARDS)
def test_cards_are_up_to_date(name: str) -> None:
    found = (CKPTS / name / "README.md").read_text(encoding="utf-8")
    assert found == make_cards.card(name, CKPTS), "run: python -m figs.make_cards"
    for file in (CKPTS / name).glob("*.pt"):
        assert f"| `{file.name}` |" in found


def test_a_card_goes_with_its_weights() -> None:
    card = NoiseTransfer.from_pretrained(CKPTS / "NT").card
    _, header, text = card.split("---\n", 2)
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(header)["license"] == "mit"
    for section in "Data", "What it does not know", "Scores":
        assert f"\n## {section}\n" in text
    assert "Licences" in text


def noise_rows(test_set: str, strength: float, akld: float) -> list[dict[str, str]]:
    ours = {"std_ratio": str(strength), "akld": str(akld)}
    return [
        {"test_set": test_set, "noise": "NoiseTransfer", "reference": "paired"} | ours,
        {"test_set": test_set, "noise": "NoiseTransfer", "reference": "cross", "akld": "9"},
        {"test_set": test_set, "noise": "white Gaussian, blind", "akld": "0.5"},
    ]


def test_noise_that_is_not_known() -> None:
    """Too weak, worse than white noise, or neither."""
    good = noise_rows("good", 1.0, 0.1)
    assert failures_of_noise(noise_rows("weak", 0.5, 0.1) + noise_rows("far", 1.0, 0.6) + good) == [
        "- weak: 0.50 of the real strength; AKLD 0.100, of white Gaussian noise 0.500.",
        "- far: 1.00 of the real strength; AKLD 0.600, of white Gaussian noise 0.500.",
    ]
    assert failures_of_noise(good) == ["- none of the test sets is far off."]


def test_denoisers_that_do_worse_than_nothing() -> None:
    text = "a,input,,30 a,BM3D,,33 a,unet,NoiseTransfer,32 b,input,,40 b,unet,NoiseTransfer,39.5"
    header = "test_set", "denoiser", "trained_on", "psnr"
    found = list(csv.DictReader([*text.split(), "b,unet,real,41"], header))
    assert failures_of_denoising(found) == [
        "- a: 32.00 dB, BM3D 33.00 dB.", "- b: 39.50 dB, input 40.00 dB.",
    ]  # fmt: skip
    assert denoising_scores(found).splitlines()[2:] == [
        "| a | 30.00 | 33.00 | 32.00 | - |", "| b | 40.00 | - | 39.50 | 41.00 |",
    ]  # fmt: skip
