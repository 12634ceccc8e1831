"""Scores against scikit-image and theory; independence of batch size, order, limit and workers.

References by protocol, several draws and the floor: test_measure_protocols.py.
"""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from data.noise import NoiseModelDistribution
from evaluation.baselines import white_gaussian_oracle
from evaluation.measure import evaluate_denoiser, evaluate_transfer, mean_over_images
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer, build_denoiser

SIGMA_25 = NoiseModelDistribution((1, 0, 0), sigma=(25, 25), chi=(30, 30))
ANY_NOISE = NoiseModelDistribution((1 / 3, 1 / 3, 1 / 3), sigma=(0, 50), chi=(5, 50))
# Two sizes in turn, so that batches by size do not follow the order of the images.
SIZES = [(24, 32), (32, 24), (24, 32), (32, 24), (24, 32), (24, 32), (32, 24)]


class Images:
    """A test set in memory: smooth clean images, and white noise of strength 0.1 on them."""

    name = title = "memory"

    def __init__(self, sizes: list[tuple[int, int]] = SIZES, paired: bool = True) -> None:
        rng = np.random.default_rng(3)
        self.paired = paired
        self.clean, self.noisy = [], []
        for h, w in sizes:
            ramp = np.linspace(0.2, 0.8, h)[:, None] * np.linspace(0.5, 1, w)
            clean = np.stack([ramp, ramp.mean() + 0 * ramp, ramp[::-1]]).astype(np.float32)
            noisy = np.clip(clean + 0.1 * rng.standard_normal(clean.shape), 0, 1)
            self.clean.append(torch.from_numpy(clean))
            self.noisy.append(torch.from_numpy(noisy.astype(np.float32)))

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, i: int) -> Tensor | tuple[Tensor, Tensor]:
        return (self.clean[i], self.noisy[i]) if self.paired else self.clean[i]

    def size(self, i: int) -> tuple[int, int]:
        return tuple(self.clean[i].shape[1:])

    def image_name(self, i: int) -> str:
        return f"image{i}"

    def kind(self, i: int) -> str | None:
        return None

    def second_shot(self, i: int) -> int | None:
        return None


def identity(noisy: Tensor) -> Tensor:
    return noisy


def tiny_transfer() -> NoiseTransfer:
    torch.manual_seed(0)
    return NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8))


def assert_equal_scores(a: dict, b: dict, atol: float = 0.0) -> None:
    """Within `atol`; of histograms, a pixel that rounding takes to the next bin counts more: about
    1 / (3 H W), 4e-4 here."""
    assert a.keys() == b.keys()
    for name in a:
        one_pixel = 1e-3 if atol and name in ("ks", "kld", "kld_tails") else 0
        close = dict(rtol=0, atol=max(atol, one_pixel), err_msg=name)
        np.testing.assert_allclose(a[name], b[name], **close)


def test_the_real_noise_itself_is_at_distance_zero():
    scores = evaluate_transfer(lambda clean, reference, noise: reference, Images(), progress=False)
    assert all(len(column) == len(SIZES) for column in scores.values())
    for distance in ("akld", "ks", "kld", "kld_tails", "acf", "nlf"):
        np.testing.assert_array_equal(scores[distance], 0)
    np.testing.assert_allclose(scores["std_ratio"], 1, rtol=1e-6)
    np.testing.assert_array_equal(scores["corr_generated"], scores["corr_real"])


def test_doubled_noise_has_the_akld_of_its_variance_ratio():
    """v_fake / v_real = 4 everywhere, so AKLD = (4 - 1 - log 4) / 2 = 0.80685 for every image."""
    scores = evaluate_transfer(
        lambda clean, reference, noise: clean + 2 * (reference - clean), Images(), progress=False
    )
    np.testing.assert_allclose(scores["akld"], (3 - math.log(4)) / 2, rtol=1e-3)
    np.testing.assert_allclose(scores["std_ratio"], 2, rtol=1e-5)
    np.testing.assert_allclose(scores["nlf"], math.log(2), rtol=1e-4)
    np.testing.assert_allclose(scores["acf"], 0, atol=1e-5)  # strength does not matter to it


def test_the_reference_is_the_images_own_noisy_image():
    seen = []

    def transfer(clean: Tensor, reference: Tensor, noise) -> Tensor:
        seen.append((clean, reference))
        return reference

    images = Images()
    evaluate_transfer(transfer, images, batch_size=1, progress=False)
    order = [i for size in dict.fromkeys(SIZES) for i, s in enumerate(SIZES) if s == size]
    for i, (clean, reference) in zip(order, seen, strict=True):
        assert torch.equal(clean[0], images.clean[i])
        assert torch.equal(reference[0], images.noisy[i])


@pytest.mark.parametrize("method", ["generator", "white"])
def test_transfer_scores_depend_on_seed_and_image_alone(method: str, device: torch.device):
    transfer = tiny_transfer().to(device) if method == "generator" else white_gaussian_oracle
    how = dict(device=device, progress=False)
    scores = evaluate_transfer(transfer, Images(), batch_size=8, **how)
    assert_equal_scores(scores, evaluate_transfer(transfer, Images(), batch_size=8, **how))
    # Sums over another batch round differently: 1e-5 is below the four digits that are printed.
    for other in (dict(batch_size=1), dict(batch_size=3), dict(batch_size=None)):
        again = evaluate_transfer(transfer, Images(), **other, **how)
        assert_equal_scores(scores, again, atol=1e-5)
    limited = evaluate_transfer(transfer, Images(), limit=3, **how)
    assert_equal_scores({k: v[:3] for k, v in scores.items()}, limited, atol=1e-5)
    other_seed = evaluate_transfer(transfer, Images(), seed=1, **how)
    assert np.abs(scores["corr_generated"] - other_seed["corr_generated"]).min() > 1e-6


def test_denoiser_scores_depend_on_seed_and_image_alone(device: torch.device):
    torch.manual_seed(0)
    denoiser = build_denoiser("unet", width=4).to(device)
    images = Images(paired=False)
    how = dict(noise=ANY_NOISE, passes=2, device=device, progress=False)
    scores = evaluate_denoiser(denoiser, images, **how)
    assert_equal_scores(scores, evaluate_denoiser(denoiser, images, **how))
    for other in (dict(batch_size=1), dict(batch_size=3), dict(batch_size=8)):
        assert_equal_scores(scores, evaluate_denoiser(denoiser, images, **other, **how), 1e-5)
    limited = evaluate_denoiser(denoiser, images, limit=3, **how)
    assert_equal_scores({k: v[:3] for k, v in scores.items()}, limited, atol=1e-4)
    other_seed = evaluate_denoiser(denoiser, images, seed=1, **how)
    assert np.abs(scores["psnr_noisy"] - other_seed["psnr_noisy"]).min() > 1e-4


def test_equal_images_get_independent_noise_and_passes_differ():
    images = Images(sizes=[(24, 24)] * 2, paired=False)
    one = evaluate_denoiser(identity, images, noise=SIGMA_25, progress=False)
    two = evaluate_denoiser(identity, images, noise=SIGMA_25, passes=2, progress=False)
    assert one["psnr"][0] != one["psnr"][1]
    assert (one["psnr"] != two["psnr"]).all()


def test_identity_has_the_noisy_images_psnr_by_scikit_image():
    images = Images()
    scores = evaluate_denoiser(identity, images, progress=False)
    expected = [
        peak_signal_noise_ratio(clean.numpy(), noisy.numpy(), data_range=1)
        for clean, noisy in zip(images.clean, images.noisy, strict=True)
    ]
    np.testing.assert_allclose(scores["psnr"], expected, atol=1e-4)
    assert_equal_scores(
        {"psnr": scores["psnr"], "ssim": scores["ssim"]},
        {"psnr": scores["psnr_noisy"], "ssim": scores["ssim_noisy"]},
    )


def test_denoised_images_are_clipped():
    """Overshoot on white vanishes: the clipped image equals the clean one, 80 dB by piq's 1e-8."""
    images = Images(sizes=[(24, 24)])
    images.clean[0] = torch.ones_like(images.clean[0])
    scores = evaluate_denoiser(lambda noisy: noisy + 2, images, progress=False)
    np.testing.assert_allclose(scores["psnr"], 80, atol=1e-3)


@pytest.mark.parametrize(("level", "clipped_share"), [(0.5, 1.0), (1.0, 0.5)])
def test_white_noise_of_sigma_25_has_the_psnr_of_theory(level: float, clipped_share: float):
    """20 log10(255 / 25) = 20.172 dB on mid-grey, 5.1 sigma from either end, so never clipped.

    On white the positive half is clipped away, which halves the squared error: 3.010 dB more.
    The mean of n = 3 * 128^2 squared normals has a relative standard error sqrt(2 / n) = 0.0064
    (on white: E e^4 = 3/2, E e^2 = 1/2, sqrt(5 / n) = 0.0101), so 5 of them are at most 0.22 dB.
    """
    images = Images(sizes=[(128, 128)], paired=False)
    images.clean[0] = torch.full((3, 128, 128), level)
    scores = evaluate_denoiser(identity, images, noise=SIGMA_25, progress=False)
    expected = 20 * math.log10(255 / 25) - 10 * math.log10(clipped_share)
    assert scores["psnr_noisy"][0] == pytest.approx(expected, abs=0.22)


def test_test_noise_is_not_quantised():
    seen = []
    images = Images(sizes=[(24, 24)], paired=False)
    evaluate_denoiser(lambda x: seen.append(x) or x, images, noise=SIGMA_25, progress=False)
    steps = seen[0] * 255
    assert ((steps - steps.round()).abs() > 0.01).float().mean() > 0.9


def test_a_pair_without_noise_does_not_void_the_mean():
    means = mean_over_images({"akld": np.array([1.0, 3.0]), "std_ratio": np.array([np.nan, 0.5])})
    assert means == {"akld": 2.0, "std_ratio": 0.5}
    assert math.isnan(mean_over_images({"akld": np.array([1.0, np.nan])})["akld"])
