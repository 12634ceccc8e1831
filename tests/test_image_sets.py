"""Test sets: what is asked of one; noise of known parameters, and what a blind estimate scores."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from data.noise import NoiseModelDistribution
from evaluation.baselines import white_gaussian_blind
from evaluation.image_sets import KnownNoise, middle
from evaluation.measure import evaluate_transfer
from tests.test_protocols import ramp
from utils.noise_statistics import neighbour_correlation


class Photos:
    """Clean images in memory: ramps of the given sizes."""

    name, title = "photos", "Photos"

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> Tensor:
        return ramp(*self.sizes[i])

    def size(self, i: int) -> tuple[int, int]:
        return self.sizes[i]

    def image_name(self, i: int) -> str:
        return f"photo{i}"


MODELS = {
    "sigma 25": NoiseModelDistribution((1, 0, 0), sigma=(25, 25), chi=(30, 30)),
    "chi 30": NoiseModelDistribution((0, 1, 0), sigma=(25, 25), chi=(30, 30)),
}
GREYS = {
    f"sigma {s}": NoiseModelDistribution((1, 0, 0), sigma=(s, s), chi=(30, 30)) for s in (5, 20)
}
SIZES = [(60, 40), (31, 70), (50, 50)]


def test_known_noise_is_a_test_set_of_every_image_under_every_model() -> None:
    known = KnownNoise(Photos(*SIZES), MODELS, limit=9, side=48)
    assert (known.name, known.title, len(known)) == ("photos", "Photos", (3 + 3) * 2)
    names = ["flat_0.25", "flat_0.5", "flat_0.75", "photo0", "photo1", "photo2"]
    sizes = [(128, 128)] * 3 + [(48, 40), (31, 48), (48, 48)]
    for i in range(12):
        clean, noisy = known[i]
        assert known.image_name(i) == names[i // 2]
        assert known.kind(i) == ("sigma 25", "chi 30")[i % 2]
        assert known.size(i) == clean.shape[1:] == noisy.shape[1:] == sizes[i // 2]
        assert known.is_flat(i) == (i < 6)
        assert known.second_shot(i) is None
        if i < 6:
            assert clean.unique().tolist() == [0.25 * (1 + i // 2)]
        else:
            assert torch.equal(clean, middle(ramp(*SIZES[i // 2 - 3]), 48))
    assert len(KnownNoise(Photos(*SIZES), MODELS, limit=1)) == (3 + 1) * 2


def test_the_middle_of_an_image() -> None:
    pixels = torch.arange(7 * 4).view(1, 7, 4)
    assert middle(pixels, 4).tolist() == pixels[:, 1:5].tolist()
    assert middle(pixels, 3).tolist() == pixels[:, 2:5, :3].tolist()
    assert torch.equal(middle(pixels, 9), pixels)


def test_known_noise_has_the_strength_of_theory() -> None:
    """n = 3 * 128^2 = 49152. Gaussian on mid-grey: 5.1 sigma from either end. Poisson on 0.25: 7.5
    photons, never 31 of them; its variance, 0.25 / 30, has a standard error of
    sqrt((2 + 1 / 7.5) / n). 5 of them."""
    known = KnownNoise(Photos(*SIZES), MODELS, limit=1)
    clean, noisy = known[2]
    assert (noisy - clean).std().item() == pytest.approx(25 / 255, rel=5 / math.sqrt(2 * 49152))
    clean, noisy = known[1]
    photons = noisy * 30
    torch.testing.assert_close(photons, photons.round(), rtol=0, atol=1e-4)
    variance = (noisy - clean).var().item()
    assert variance == pytest.approx(0.25 / 30, rel=5 * math.sqrt(2.14 / 49152))


def test_known_noise_has_the_correlation_that_its_model_is_named_with() -> None:
    """Mid-grey, n = 49152: a correlation has an SE of (1 + 2 * 0.4^2 + 2 * 0.05^2) / sqrt(n) at
    most (test_noise.py), white noise 1 / sqrt(n), both are means over two directions."""
    models = {"white": MODELS["sigma 25"], "correlated": MODELS["sigma 25"]}
    known = KnownNoise(Photos(), models, limit=0, correlations={"correlated": 0.4})
    for i, expected, fewer in ((2, 0, 1), (3, 0.4, 1.33)):
        clean, noisy = known[i]
        measured = neighbour_correlation(noisy[None], clean[None]).item()
        assert measured == pytest.approx(expected, abs=5 * fewer / math.sqrt(49152))
        assert (noisy - clean).std().item() == pytest.approx(25 / 255, rel=0.03)


def test_known_noise_depends_on_seed_and_image_alone() -> None:
    known, again = (KnownNoise(Photos(*SIZES), MODELS, limit=n) for n in (3, 1))
    noises = [known[i][1] - known[i][0] for i in (0, 2, 4)]
    assert all(torch.equal(known[i][1], again[i][1]) for i in range(8))
    for a, b in ((0, 1), (0, 2), (1, 2)):  # 5 standard errors of the correlation of equal sizes
        assert abs(np.corrcoef(noises[a].ravel(), noises[b].ravel())[0, 1]) < 5 / math.sqrt(49152)
    assert not torch.equal(KnownNoise(Photos(*SIZES), MODELS, 1, seed=1)[0][1], known[0][1])


def test_a_blind_estimate_orders_the_protocols() -> None:
    """Gaussian noise of the reference's own strength, on flat images: right within 10 % from a
    reference of the same noise, wrong by a factor of 4 from one of the other."""
    known = KnownNoise(Photos(), GREYS, limit=0)
    scores = {
        p: evaluate_transfer(white_gaussian_blind, known, reference=p, progress=False)
        for p in ("paired", "unpaired", "cross")
    }
    for protocol in ("paired", "unpaired"):
        np.testing.assert_allclose(scores[protocol]["std_ratio"], 1, atol=0.1)
    np.testing.assert_allclose(scores["cross"]["std_ratio"][0::2], 4, rtol=0.1)
    np.testing.assert_allclose(scores["cross"]["std_ratio"][1::2], 1 / 4, rtol=0.1)
    assert scores["cross"]["akld"].min() > 3 * scores["unpaired"]["akld"].max()
