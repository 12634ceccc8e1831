"""Pairs of scenes under one camera's noise: what they have in common and what not."""

import pytest
import torch

from data.camera import NOISE_LEVEL
from data.cross_scene import DIM, PAIRS, CrossSceneTestSet
from data.sample import TEST_CAMERA, TEST_PHOTOS
from evaluation.measure import evaluate_floor, evaluate_transfer, scene_scores

SE = (8 / (3 * 256 * 256)) ** 0.5


@pytest.fixture(scope="module")
def scenes() -> CrossSceneTestSet:
    return CrossSceneTestSet()


def test_pairs_cover_phones_levels_and_both_ways() -> None:
    assert len(PAIRS) >= 8
    assert {p.phone for p in PAIRS} == {phone for phone, _ in NOISE_LEVEL}
    beta1 = sorted(NOISE_LEVEL[p.phone, p.iso][0] for p in PAIRS)
    assert beta1[0] == min(b for b, _ in NOISE_LEVEL.values())  # the weakest of all
    assert beta1[-1] == max(b for b, _ in NOISE_LEVEL.values())
    held_out = {area for area, _, _ in TEST_CAMERA} | set(TEST_PHOTOS)
    for pair in PAIRS:
        assert pair.reference.photo != pair.target.photo
        assert {pair.exposure, pair.target_exposure} == {1, DIM}
        assert {pair.reference, pair.target} <= held_out  # no training areas
    assert sum(p.exposure == 1 for p in PAIRS) == len(PAIRS) / 2


def test_reference_and_target_differ_in_scene_and_brightness(scenes: CrossSceneTestSet) -> None:
    for i, reference in enumerate(scenes.references):
        clean, other = scenes[i][0], scenes[reference][0]
        assert scenes.kind(i) == scenes.kind(reference)
        brighter, darker = (other, clean) if PAIRS[i].exposure == 1 else (clean, other)
        assert brighter.mean() > 1.5 * darker.mean()
        assert scenes.size(i) == tuple(clean.shape[1:]) == (256, 256)
    assert scenes.image_name(0) == "01_GP_00100_chelsea_1_to_immunohistochemistry_0.35"


def test_the_other_shot_has_the_same_scene_and_other_noise(scenes: CrossSceneTestSet) -> None:
    for i in range(len(PAIRS)):
        (clean, noisy), (same, again) = scenes[i], scenes[scenes.second_shot(i)]
        assert torch.equal(clean, same)
        a, b = (x - clean for x in (noisy, again))
        # Clipped noise has a mean, which follows the picture in both shots, and correlates them:
        # by 0.14 in the darkest. The same draw would have 1.
        assert torch.corrcoef(torch.stack([a.ravel(), b.ravel()]))[0, 1].abs() < 0.2
        # 5 standard errors of a ratio of standard deviations, of values of which, correlated
        # themselves, one in 8 is independent (the sum of the squared correlations)
        assert a.std().item() == pytest.approx(b.std().item(), rel=5 * SE)
    assert scenes.second_shot(len(PAIRS)) is None


def test_everything_depends_on_the_seed_alone(scenes: CrossSceneTestSet) -> None:
    again, other = CrossSceneTestSet(), CrossSceneTestSet(seed=1)
    for i in range(len(scenes)):
        assert torch.equal(scenes[i][1], again[i][1])
        assert not torch.equal(scenes[i][1], other[i][1])


def test_scores_of_a_model_that_hands_out_what_it_is_given(scenes: CrossSceneTestSet) -> None:
    """It gets the reference of the pair, and its scores are those of that image by hand; another
    shot is the floor, better than it in all."""
    given = []

    def copy(clean: torch.Tensor, reference: torch.Tensor, noise: object) -> torch.Tensor:
        given.append(reference)
        return reference

    how = dict(limit=2, measures=scene_scores, batch_size=1, workers=1, progress=False)
    copied = evaluate_transfer(copy, scenes, reference=scenes.references, **how)
    floor = evaluate_floor(scenes, **how)
    for i in range(2):
        reference = scenes[scenes.references[i]][1]
        assert torch.equal(given[i][0], reference)
        shift = (reference - scenes[i][1]).mean(dim=(1, 2)).abs().max() * 255
        assert copied["mean_shift"][i] == pytest.approx(shift.item(), rel=1e-4)
        assert floor["std_ratio"][i] == pytest.approx(1, abs=0.05)
        for measure in ("nlf", "nlf_worst", "mean_shift", "corr_distance", "akld"):
            assert floor[measure][i] < copied[measure][i]
