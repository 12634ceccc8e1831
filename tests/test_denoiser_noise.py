"""What `--noise` of the denoisers' training scripts puts on the clean patches."""

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import train_denoiser as REAL
import train_denoiser_synthetic as SYNTHETIC
from evaluation.blind_noise_level import blind_sigma
from evaluation.denoising_tables import denoiser_of
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.generator import normal_noise
from tests.helpers import Items
from tests.test_training_step import Spy
from utils.checkpoint import load_state

CPU = torch.device("cpu")
NOISES = ("noisetransfer", "gaussian", "poisson-gaussian", "real")
FILES = {
    "noisetransfer": "ridnet_g.pt",
    "gaussian": "ridnet_gaussian_g.pt",
    "poisson-gaussian": "ridnet_poisson-gaussian_g.pt",
    "real": "ridnet_real_g.pt",
}
SIDE = 96


def noisy_greys(level: float, sigma: float, seed: int) -> tuple[Tensor, Tensor]:
    clean = torch.full((2, 3, SIDE, SIDE), level)
    rng = torch.Generator().manual_seed(seed)
    return clean, clean + sigma * torch.randn(clean.shape, generator=rng)


@pytest.fixture
def nt(tmp_path: Path, shallow: None) -> Path:
    """A folder of tiny random networks."""
    (tmp_path / "NT").mkdir()
    torch.save(NoiseEncoder(4, 8).state_dict(), tmp_path / "NT/encoder_k.pt")
    torch.save(NoiseGenerator(4, 8).state_dict(), tmp_path / "NT/VUNet.pt")
    return tmp_path / "NT"


def step(noise: str, clean: Tensor, reference: Tensor, nt: Path = Path("absent")) -> tuple:
    """(what the denoiser saw, the loss) of one step; the denoiser adds 0.25."""
    c = REAL.Config(noise=noise, border=0, width=4, nt=nt)
    s = REAL.State(c)
    s.denoiser = s.denoiser_ema = Spy()
    s.optimisers = {"denoiser": torch.optim.SGD(s.denoiser.parameters(), lr=0.5)}
    rng = normal_noise(torch.Generator().manual_seed(7))
    values = REAL.train_step(s, c, REAL.open_transfer(c, CPU), clean, reference, rng)
    return s.denoiser.seen, values["loss_l1"].item()


# ----------------------------------------------------------------------------------- one step


def test_real_noise_is_the_patchs_own() -> None:
    """L1 of the denoised reference itself to the clean patch; no weights are needed."""
    clean, noisy = noisy_greys(0.5, 0.1, 0)
    seen, loss = step("real", clean, noisy)
    assert torch.equal(seen, noisy)
    assert loss == pytest.approx((noisy + 0.25 - clean).abs().mean().item(), rel=1e-6)


@pytest.mark.parametrize("noise", ["gaussian", "poisson-gaussian"])
def test_fitted_noise_has_the_references_strength_and_is_another_draw(noise: str) -> None:
    """Within 5 % of sigma: the estimate from 27648 pixels is good to 0.5 % (one sigma), as is the
    sample's; 0.1 lies 5 sigma from black and white."""
    clean, reference = noisy_greys(0.5, 0.1, 0)
    seen, _ = step(noise, clean, reference)
    added = seen - clean
    assert added.std().item() == pytest.approx(0.1, rel=0.05)
    correlation = torch.corrcoef(torch.stack([added.ravel(), (reference - clean).ravel()]))[0, 1]
    assert abs(correlation) < 5 / added.numel() ** 0.5


def test_gaussian_and_poisson_gaussian_on_another_intensity() -> None:
    """A reference of two greys with variance 0.02 x: white noise has one sigma, their mean;
    Poisson-Gaussian noise follows the intensity of the patch. 10 %: a line from two greys."""
    rng = torch.Generator().manual_seed(0)
    grey = torch.full((1, 3, SIDE, SIDE), 0.2)
    grey[..., SIDE // 2 :] = 0.8
    reference = grey + (0.02 * grey).sqrt() * torch.randn(grey.shape, generator=rng)
    clean = torch.full_like(grey, 0.4)
    white, _ = step("gaussian", clean, reference)
    expected = blind_sigma(reference[0].permute(1, 2, 0).double().numpy())
    assert (white - clean).std().item() == pytest.approx(expected, rel=0.05)
    assert (white - clean).std().item() == pytest.approx((0.02 * 0.5) ** 0.5, rel=0.1)
    fitted, _ = step("poisson-gaussian", clean, reference)
    assert (fitted - clean).std().item() == pytest.approx((0.02 * 0.4) ** 0.5, rel=0.1)


def test_generated_noise_comes_from_the_networks(nt: Path) -> None:
    clean, reference = noisy_greys(0.5, 0.1, 0)
    transfer = NoiseTransfer.from_checkpoint(nt)
    expected = transfer(clean, reference, normal_noise(torch.Generator().manual_seed(7)))
    seen, _ = step("noisetransfer", clean, reference, nt)
    torch.testing.assert_close(seen, expected)


# --------------------------------------------------------------------------------- whole scripts


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("script", [REAL, SYNTHETIC])
def test_one_step_from_the_command_line(
    script: ModuleType, noise: str, nt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real patch's own noisy view for `real`, the other for the rest; synthetic: the patch's
    own in any case. The weights' file says what they were trained on."""
    references, original = [], script.train_step

    def train_step(s: nn.Module, c: object, transfer: object, clean: Tensor, ref: Tensor, noise):
        references.append(ref.unique().tolist())
        return original(s, c, transfer, clean, ref, noise)

    monkeypatch.setattr(script, "open_items", lambda c, device: Items())
    monkeypatch.setattr(script, "train_step", train_step)
    monkeypatch.setattr(script, "find_validation_sets", lambda root, **how: [])
    if script is SYNTHETIC:
        monkeypatch.setattr(script, "add_noise", lambda clean, model, generator: clean + 0.25)
    run = tmp_path / "run"
    script.main(
        [
            *("--debug", "--gpu", "cpu", "--batch", "2", "--patch", "16", "--border", "2"),
            *("--epochs", "1", "--steps-per-epoch", "1", "--nt", str(nt), "--noise", noise),
            *("--run-dir", str(run)),
        ]
    )
    assert references == [[0.75 if script is REAL and noise != "real" else 0.5]]
    assert {path.name for path in run.glob("*_g.pt")} == {FILES[noise]}
    assert all(x.isfinite().all() for x in load_state(run / FILES[noise]).values())


@pytest.mark.parametrize("denoiser", ["ridnet", "dncnn", "unet"])
@pytest.mark.parametrize("noise", NOISES)
def test_file_names(denoiser: str, noise: str) -> None:
    c = dataclasses.replace(REAL.Config(), denoiser=denoiser, noise=noise)
    assert c.weights_file == FILES[noise].replace("ridnet", denoiser)
    assert denoiser_of(Path("ckpts/sidd") / c.weights_file) == (denoiser, noise)
