"""Generators under every protocol, several draws, and the floor, over batches of mixed sizes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.baselines import white_gaussian_blind
from evaluation.measure import evaluate_floor, evaluate_transfer, noise_scores
from evaluation.protocols import OTHER_HALF, floor_pair, reference_indices
from models import encoder, generator
from models.layers import NoiseSource
from tests.test_measure import Images, assert_equal_scores, tiny_transfer
from utils import metrics
from utils.errors import UserError
from utils.metrics import akld
from utils.noise_statistics import neighbour_correlation

# Kinds of two sizes, so that references differ in size from the image and from one another.
SIZES = [(40, 32), (32, 41), (40, 32), (40, 32), (32, 41), (40, 32), (40, 32), (32, 41)]
KINDS = ["a", "a", "b", "b", "a", None, "a", None]
SHOTS = {0: 6, 6: 0}
PROTOCOLS = ["paired", "unpaired", "cross"]


class Kinds(Images):
    """Noise of sigma 0.02 in kind a, 0.08 in b, 0.05 else; 0 and 6 are shots of one scene."""

    def __init__(self) -> None:
        super().__init__(SIZES)
        rng = torch.Generator().manual_seed(0)
        for i, clean in enumerate(self.clean):
            self.clean[i] = clean = 0.3 + 0.4 * clean + 0.01 * i
            sigma = {"a": 0.02, "b": 0.08}.get(KINDS[i], 0.05)
            self.noisy[i] = clean + sigma * torch.randn(clean.shape, generator=rng)

    def kind(self, i: int) -> str | None:
        return KINDS[i]

    def second_shot(self, i: int) -> int | None:
        return SHOTS.get(i)


def find(image: Tensor, images: list[Tensor]) -> list[int]:
    return [i for i, x in enumerate(images) if x.shape == image.shape and torch.equal(x, image)]


# ------------------------------------------------------------------------------------- protocols


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_image_meets_its_reference(protocol: str, batch_size: int) -> None:
    """Whole images with the whole noisy image that the protocol names, or half with half."""
    images = Kinds()
    chosen = reference_indices(images, len(images), protocol, 3)
    left = [image[..., : image.shape[2] // 2] for image in images.clean]
    top = [image[:, : image.shape[1] // 2] for image in images.clean]
    whole, halves = {}, set()

    def transfer(clean: Tensor, reference: Tensor, noise: NoiseSource) -> Tensor:
        for one, its in zip(clean, reference, strict=True):
            for i in find(one, images.clean):
                (whole[i],) = find(its, images.noisy)
            halves.update(find(one, left) + find(one, top))
        return clean

    evaluate_transfer(
        transfer, images, reference=protocol, seed=3, batch_size=batch_size, progress=False
    )
    split = {i for i, other in enumerate(chosen) if other == OTHER_HALF}
    assert split == ({5, 7} if protocol == "unpaired" else set())
    assert halves == split
    assert whole == {i: other for i, other in enumerate(chosen) if i not in split}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_depend_on_seed_and_image_alone(
    protocol: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (encoder, generator):  # nothing here depends on the depth
        monkeypatch.setattr(module, "DEPTHS", (1, 1, 1))
    transfer, images = tiny_transfer().to(device), Kinds()
    how = dict(reference=protocol, device=device, progress=False)
    scores = evaluate_transfer(transfer, images, batch_size=8, workers=1, **how)
    assert all(np.isfinite(column).all() for column in scores.values())
    again = evaluate_transfer(transfer, images, batch_size=8, workers=5, **how)
    assert_equal_scores(scores, again)  # no bit
    # Sums over another batch round differently.
    again = evaluate_transfer(transfer, images, batch_size=3, **how)
    assert_equal_scores(scores, again, atol=1e-5)
    limited = evaluate_transfer(transfer, images, limit=6, batch_size=1, **how)
    assert_equal_scores({k: v[:6] for k, v in scores.items()}, limited, atol=1e-5)
    reseeded = evaluate_transfer(transfer, images, seed=1, batch_size=8, **how)
    assert np.abs(scores["corr_generated"] - reseeded["corr_generated"]).min() > 1e-7


def test_the_reference_decides_the_strength() -> None:
    """Blind white noise of the reference's sigma over the image's own.

    For 40 blocks, 1920 pixels a channel: 5 standard errors of the estimate, 1 / sqrt(2 * 3 * 1920),
    and as much for either sample's, are 0.05 each; the textureless ramps add little.
    """
    images = Kinds()
    sigma = np.array([{"a": 0.02, "b": 0.08}.get(kind, 0.05) for kind in KINDS])
    for protocol in PROTOCOLS:
        chosen = np.array(reference_indices(images, len(images), protocol, 0))
        chosen = np.where(chosen == OTHER_HALF, np.arange(len(images)), chosen)
        scores = evaluate_transfer(white_gaussian_blind, images, reference=protocol, progress=False)
        np.testing.assert_allclose(scores["std_ratio"], sigma[chosen] / sigma, rtol=0.15)


def test_one_kind_alone_has_no_cross_references() -> None:
    images = Kinds()
    images.kind = lambda i: "a"
    with pytest.raises(UserError, match="memory: all images are of one kind of noise, a"):
        evaluate_transfer(white_gaussian_blind, images, reference="cross", progress=False)


# ----------------------------------------------------------------------------------------- draws


def test_scores_are_means_over_independent_draws() -> None:
    images, maps = Kinds(), []

    def transfer(clean: Tensor, reference: Tensor, noise: NoiseSource) -> Tensor:
        maps.extend(noise(tuple(clean.shape), clean.device))
        return clean + 0.05 * torch.stack(maps[-len(clean) :])

    how = dict(batch_size=1, progress=False)
    three = evaluate_transfer(transfer, images, draws=3, **how)
    assert len(maps) == 3 * len(images)
    for a in range(len(maps)):  # no two alike; each image's first is that of a single draw
        assert len(find(maps[a], maps)) == 1
    several = maps.copy()
    maps.clear()
    one = evaluate_transfer(transfer, images, **how)
    assert all(len(find(noise, several)) == 1 for noise in maps)

    order = [i for size in dict.fromkeys(SIZES) for i, s in enumerate(SIZES) if s == size]
    for k, i in enumerate(order):
        clean, noisy = (x[i][None] for x in (images.clean, images.noisy))
        draws = [akld(clean + 0.05 * n, noisy, clean).item() for n in several[3 * k : 3 * k + 3]]
        assert three["akld"][i] == pytest.approx(np.mean(draws), rel=1e-5)
        assert one["akld"][i] == pytest.approx(draws[0], rel=1e-5)


# ----------------------------------------------------------------------------------------- floor


def test_floor_of_every_image_is_that_of_its_pair(device: torch.device) -> None:
    images = Kinds()
    scores = evaluate_floor(images, device=device, progress=False)
    for i, (clean, noisy) in enumerate(zip(images.clean, images.noisy, strict=True)):
        other = SHOTS.get(i)
        second = None if other is None else images.noisy[other] - images.clean[other]
        pair = [x[None].to(device) for x in floor_pair(clean, noisy, second)]
        assert scores["akld"][i] == pytest.approx(akld(*pair).item(), rel=1e-5)
    for how in (dict(batch_size=1), dict(batch_size=3), dict(workers=3), dict(seed=5)):
        again = evaluate_floor(images, device=device, progress=False, **how)
        assert_equal_scores(scores, again, atol=1e-5)
    limited = evaluate_floor(images, device=device, limit=3, progress=False)
    assert_equal_scores({k: v[:3] for k, v in scores.items()}, limited, atol=1e-5)


def test_second_shots_have_each_others_strength() -> None:
    """Of sigma 0.02 both, 1 within 5 standard errors of a ratio, 1 / sqrt(n), n = 3 * 40 * 32; the
    second shot is taken even if it lies beyond `limit`."""
    scores = evaluate_floor(Kinds(), limit=1, progress=False)
    assert scores["std_ratio"][0] == pytest.approx(1, abs=5 / math.sqrt(3 * 40 * 32))
    assert scores["akld"][0] > 0.01


def test_the_smallest_images_have_a_floor() -> None:
    """16x16 pixels, of which the shift leaves 8x8: no bin of the level function is full."""
    scores = evaluate_floor(Images([(16, 16)] * 2), progress=False)
    assert np.isfinite(scores["akld"]).all()


# -------------------------------------------------------------------------------------- measures


def test_every_measure_is_its_metric_of_generated_real_and_clean() -> None:
    fake, real, clean = (torch.rand(2, 3, 64, 64) for _ in range(3))
    scores = noise_scores(fake, real, clean)
    expected = {
        "akld": metrics.akld(fake, real, clean),
        "ks": metrics.ks(fake, real, clean),
        "kld": metrics.kld(fake, real, clean),
        "kld_tails": metrics.kld(fake, real, clean, bins="tails"),
        "std_ratio": metrics.noise_std_ratio(fake, real, clean),
        "corr_generated": neighbour_correlation(fake, clean),
        "corr_real": neighbour_correlation(real, clean),
        "acf": metrics.autocorrelation_distance(fake, real, clean),
        "nlf": metrics.noise_level_distance(fake, real, clean),
    }
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(scores[name], value), name
