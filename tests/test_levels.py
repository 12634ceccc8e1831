"""How strong the noise is at each intensity: measured, corrected, and fitted."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz

from data.items import Triplet
from data.noise import known_correlation
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from models.generator import no_noise
from models.levels import (
    BINS,
    BLOCK,
    CURVE,
    EDGES,
    KNOTS,
    MEASURED,
    LevelGain,
    in_bins,
    measured_levels,
    windows,
)
from models.noise_transfer import GAINS
from training.levels import EDGES as COMPARED
from training.levels import Observed, fit_levels, level_loss, observe
from utils.errors import UserError
from utils.training import save_weights


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(levels: LevelGain | None = None, reference_patch: int | None = 32) -> NoiseTransfer:
    torch.manual_seed(0)
    parts = NoiseEncoder(4, 8), NoiseGenerator(4, 8)
    return NoiseTransfer(*parts, reference_patch=reference_patch, levels=levels)


def random_levels(seed: int = 0) -> LevelGain:
    torch.manual_seed(seed)
    levels = LevelGain(8)
    for parameter in levels.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return levels.requires_grad_(False)


# ---------------------------------------------------------------------------------------- measured


def test_energies_of_white_noise_are_its_variance() -> None:
    x = 0.5 + 0.05 * torch.randn(1, 3, 200, 200, generator=rng())
    # Of 3 x 198^2 values, correlated over 3x3: about 1 / 3.8 of them independent squares, so that
    # the mean has a relative error of 0.8 %; of 3 x 25^2 x 61 in blocks, overlapping, at most 0.4 %
    w = windows(x)
    for energy in w.fine, w.block:
        assert energy.mean() == pytest.approx(0.05**2, rel=0.03)


def test_energies_of_correlated_noise() -> None:
    """By the autocorrelation alone: a filter's energy; and what a plane leaves of a block."""
    correlation = known_correlation(0.5)
    x = 0.5 + 0.05 * correlation(torch.randn(1, 3, 400, 400, generator=rng()))
    kernel = correlation.kernel[0, 0, 0].double().numpy()
    second = np.array([1.0, -2.0, 1.0])
    fine = (np.convolve(kernel, second) ** 2).sum() ** 2 / 36
    across = np.correlate(kernel, kernel, "full")[len(kernel) - 1 :]
    one = toeplitz(np.pad(across, (0, BLOCK - len(across))))
    place = np.arange(BLOCK) - (BLOCK - 1) / 2
    y, x_place = (v.ravel() for v in np.meshgrid(place, place, indexing="ij"))
    plane = np.linalg.qr(np.stack([np.ones(BLOCK**2), y, x_place], axis=1))[0]
    covariance = np.kron(one, one)
    block = (np.trace(covariance) - np.trace(plane.T @ covariance @ plane)) / (BLOCK**2 - 3)
    w = windows(x)
    assert fine < 0.4
    assert block > 0.8
    # 3 x 400^2 values with a tenth of them independent: 0.6 %
    assert w.fine.mean() / 0.05**2 == pytest.approx(fine, rel=0.03)
    assert w.block.mean() / 0.05**2 == pytest.approx(block, rel=0.03)


def test_surfaces_without_energy() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 50), indexing="ij")
    bilinear = windows((0.2 * y + 0.3 * x + 0.4 * x * y).expand(1, 3, -1, -1))
    plane = windows((0.2 * y + 0.3 * x + 0.4).expand(1, 3, -1, -1))
    assert bilinear.fine.max() < 1e-12
    assert plane.block.max() < 1e-12
    for intensity in bilinear.fine_intensity, bilinear.block_intensity:
        assert intensity.min() > 0
        assert intensity.max() < 0.9


def test_autocast_changes_no_window(device: torch.device) -> None:
    """Rounded to 8 bits, what is left of a bright block beside a dark one would be the rounding."""
    x = 0.1 + 0.002 * torch.randn(1, 3, 64, 64, generator=rng())
    x[..., 32:] += 0.8
    x = x.to(device)
    expected = windows(x)
    with torch.autocast(device.type, torch.bfloat16):
        for a, b in zip(windows(x), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_a_blocks_intensity_is_its_mean() -> None:
    x = torch.rand(2, 3, 8, 12, generator=rng())
    means = torch.stack([x[..., :8].mean((2, 3)), x[..., 4:].mean((2, 3))], dim=2)
    torch.testing.assert_close(windows(x).block_intensity, means)


def test_bins_are_numpys() -> None:
    x = torch.rand(1000, generator=rng())
    x[: len(EDGES)] = torch.tensor(EDGES)  # an edge is in the upper one
    inside = in_bins(x)
    assert inside.sum(0).eq(1).all()
    np.testing.assert_array_equal(inside.argmax(0), np.digitize(x, EDGES))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_levels_of_two_areas(scale: float, device: torch.device) -> None:
    """Twice the deviation in the bright half: log 2 apart, whatever the strength; the red channel
    has twice the noise of the others."""
    clean = torch.full((1, 3, 96, 192), 0.2)
    clean[..., 96:] = 0.6
    channel = torch.tensor([2.0, 1.0, 1.0])[:, None, None]
    sigma = scale * channel * torch.where(clean < 0.4, 0.02, 0.04)
    noisy = clean + sigma * torch.randn(clean.shape, generator=rng())
    parts = measured_levels(windows(noisy.to(device)))[0].cpu().split([BINS, BINS, 4, BINS], dim=1)
    dark, bright = (int(np.digitize(v, EDGES)) for v in (0.2, 0.6))
    for level in parts[:2]:  # of 900 half-overlapping windows with 36 correlated squares each: 3 %
        difference = level[:, bright] - level[:, dark]
        torch.testing.assert_close(difference, torch.full((3,), math.log(2)), rtol=0, atol=0.1)
        assert not level[:, :dark].any()
    # Of two equal halves, the harmonic mean: variance 2 / (1 + 1/4) times the dark one's; the floor
    # of the energy is 0.02 of a mean, 2.5, of them: 0.03 in the logarithm.
    expected = (scale * 0.02 * channel[:, 0, 0] * math.sqrt(1.6) * 25.5).log()
    for pair in parts[2].view(3, 2, 2).unbind(1):
        own, mean = pair.unbind(1)
        torch.testing.assert_close(own, expected, rtol=0, atol=0.1)
        torch.testing.assert_close(mean, own.mean().expand(3))
    torch.testing.assert_close(
        parts[3][:, [dark, bright]], torch.full((3, 2), 0.7), rtol=0, atol=0.1
    )


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_nothing_to_measure(value: float) -> None:
    level, whole, share = measured_levels(windows(torch.full((2, 3, 64, 64), value))).split(
        [2 * BINS, 4, BINS], dim=2
    )
    assert level.abs().max() < 1e-5
    torch.testing.assert_close(whole, torch.full_like(whole, math.log(0.3 / 10)))
    assert share.sum(2).eq(1).all()


# --------------------------------------------------------------------------------------- corrected


def test_gain_is_linear_between_the_knots_in_the_logarithm(device: torch.device) -> None:
    curve = torch.randn(2, CURVE, generator=rng())
    x = torch.rand(2, 3, 7, 11, generator=rng(1))
    x[0, 0, 0, : len(KNOTS)] = torch.tensor(KNOTS)
    gain = LevelGain(8).to(device).gain(curve.to(device), x.to(device)).cpu()
    for image in range(2):
        for channel in range(3):
            values = curve[image].view(3, -1)[channel]
            expected = np.exp(np.interp(x[image, channel], KNOTS, values))
            np.testing.assert_allclose(gain[image, channel], expected, rtol=2e-5)


def test_a_channel_is_corrected_by_what_is_measured_on_it() -> None:
    levels, z = random_levels(), torch.nn.functional.normalize(torch.randn(1, 8, generator=rng()))
    measured = torch.randn(1, 3, MEASURED, generator=rng(1))
    other = measured.clone()
    other[:, 0] = torch.randn(MEASURED, generator=rng(2))
    same = (levels(z, measured) == levels(z, other)).view(3, -1)
    assert not same[0].any()
    assert same[1:].all()


def test_unfitted_levels_change_nothing() -> None:
    clean, reference = torch.rand(2, 3, 20, 24), torch.rand(2, 3, 64, 64)
    without, fresh = (network(x).transfer(clean, reference, no_noise) for x in (None, LevelGain(8)))
    torch.testing.assert_close(without, fresh, rtol=0, atol=1e-6)


def test_the_noise_is_scaled_by_the_curve() -> None:
    levels = LevelGain(8)
    with torch.no_grad():
        levels.last.bias.copy_(torch.arange(len(KNOTS)) / len(KNOTS) - 0.5)
    clean, reference = 0.3 + 0.4 * torch.rand(1, 3, 20, 24), torch.rand(1, 3, 64, 64)
    # little enough that nothing is clipped
    noisy = [
        network(x).generate(clean, network(x).embed(reference), no_noise, strength=0.05)
        for x in (None, levels)
    ]
    gain = levels.gain(levels.last.bias.detach().repeat(3)[None], clean)
    torch.testing.assert_close(noisy[1] - clean, (noisy[0] - clean) * gain, rtol=0, atol=1e-6)


def test_a_batch_is_embedded_as_each_alone_and_integers_as_floats() -> None:
    transfer = network(random_levels())
    reference = (255 * torch.rand(2, 3, 64, 90, generator=rng())).to(torch.uint8)
    both = transfer.embed(reference)
    assert both.shape == (2, 8 + CURVE)
    torch.testing.assert_close(both, torch.cat([transfer.embed(one[None]) for one in reference]))
    torch.testing.assert_close(both, transfer.embed(reference / 255), rtol=0, atol=1e-5)
    torch.testing.assert_close(transfer.direction(both).norm(dim=1), torch.ones(2))


def test_mean_of_references() -> None:
    transfer = network(random_levels())
    one, two = (transfer.embed(torch.rand(1, 3, 64, 64, generator=rng(i))) for i in (0, 1))
    mean = transfer.mean([one, two])
    torch.testing.assert_close(transfer.direction(mean).norm(), torch.tensor(1.0))
    torch.testing.assert_close(mean[:, 8:], (one + two)[:, 8:] / 2)
    torch.testing.assert_close(transfer.mean([one]), one)


def test_weights_are_read_and_damage_is_named(tmp_path: Path) -> None:
    transfer = network(random_levels())
    save_weights(transfer.key_encoder, tmp_path / "encoder_k.pt")
    save_weights(transfer.generator, tmp_path / "VUNet.pt")
    reference = torch.rand(1, 3, 64, 64)
    assert NoiseTransfer.from_checkpoint(tmp_path).embed(reference).shape == (1, 8)
    save_weights(transfer.levels, tmp_path / GAINS)
    read = NoiseTransfer.from_checkpoint(tmp_path, reference_patch=32)
    torch.testing.assert_close(read.embed(reference), transfer.embed(reference), rtol=0, atol=0)
    save_weights(LevelGain(5), tmp_path / GAINS)
    with pytest.raises(UserError, match=r"levels.pt: .* LevelGain"):
        NoiseTransfer.from_checkpoint(tmp_path)


def test_to_the_hub_and_back(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    transfer = network(random_levels())
    transfer.save_pretrained(tmp_path)
    reference = torch.rand(1, 3, 64, 64)
    read = NoiseTransfer.from_pretrained(tmp_path)
    torch.testing.assert_close(read.embed(reference), transfer.embed(reference), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------ fitted


def test_observed_energies_are_sums_over_pixels() -> None:
    transfer = network()
    clean = torch.rand(2, 3, 32, 32, generator=rng())
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=rng(1))).clamp(0, 1)
    seen = observe(transfer, [(Triplet(clean, noisy, noisy), no_noise)] * 2)
    assert seen.z.shape == (4, 8)
    assert seen.measured.shape == (4, 3, MEASURED)
    place = np.digitize(clean[1, 2], [edge / 255 for edge in COMPARED])
    squares = ((noisy - clean)[1, 2] ** 2).numpy()
    for i in range(len(COMPARED) + 1):
        assert seen.count[1, 2, i] == (place == i).sum()
        assert seen.real[1, 2, i] == pytest.approx(squares[place == i].sum(), rel=1e-4, abs=1e-9)
    made = transfer.transfer(clean, noisy, no_noise)
    assert seen.made[1].sum() == pytest.approx(float((made - clean)[1].square().sum()), rel=1e-4)


def test_a_fit_learns_what_the_reference_shows() -> None:
    """Items whose noise grows with the intensity or not, as measured; the generator never does."""
    n, bins = 600, len(COMPARED) + 1
    grows = torch.rand(n, generator=rng()) < 0.5
    middles = torch.tensor(np.mean([(0, *COMPARED), (*COMPARED, 255)], axis=0) / 255).float()
    sigma = torch.where(grows[:, None], 0.02 + 0.1 * middles, torch.tensor(0.05))
    measured = torch.zeros(n, 3, MEASURED)
    measured[:, :, 0] = -0.8 * grows[:, None]
    measured[:, :, BINS - 1] = 0.8 * grows[:, None]
    count = torch.full((n, 3, bins), 100.0)
    real = count * sigma.square()[:, None]
    z = torch.nn.functional.normalize(torch.randn(n, 8, generator=rng(1)), dim=1)
    items = Observed(z, measured, count, real, count * 0.05**2)
    before = level_loss(LevelGain(8), items)
    levels = fit_levels(items, seed=0, steps=300)
    assert level_loss(levels, items) < 0.1 * before
    again = fit_levels(items, seed=0, steps=300)
    assert all(
        torch.equal(a, b) for a, b in zip(levels.parameters(), again.parameters(), strict=True)
    )
