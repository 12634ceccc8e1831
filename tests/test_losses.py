"""The loss terms against plain loops, other libraries and closed forms."""

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from models.key_queue import KeyQueue
from models.losses import (
    adversarial_loss,
    consistency_loss,
    contrastive_loss,
    feature_matching_loss,
)
from tests.golden import recipe
from tests.helpers import images


def unit_rows(seed: int, rows: int, d: int) -> Tensor:
    return torch.from_numpy(recipe.unit_rows(recipe.image(seed, (rows, d)) - 0.5))


@pytest.mark.parametrize("temperature", [0.1, 0.07, 1.0])
def test_contrastive_loss_equals_a_plain_loop(temperature, device):
    n, d, size = 5, 16, 11
    q, queue = unit_rows(1, n, d), unit_rows(3, size, d).T
    k = unit_rows(2, n, d) + torch.tensor([1.5, 1.5, 0.0, 1.5, 0.0])[:, None] * q
    k = k / k.norm(dim=1, keepdim=True)
    losses, hits = [], 0
    for i in range(n):
        logits = [q[i].double() @ k[j].double() / temperature for j in range(n)]
        logits += [q[i].double() @ queue[:, j].double() / temperature for j in range(size)]
        total = sum(math.exp(x) for x in logits)
        losses.append(-math.log(math.exp(logits[i]) / total + 1e-8))
        hits += all(x <= logits[i] for x in logits)
    loss, accuracy = contrastive_loss(*(x.to(device) for x in (q, k, queue)), temperature)
    assert loss.item() == pytest.approx(np.mean(losses), abs=1e-5)
    assert accuracy.item() == pytest.approx(hits / n)
    assert 0 < hits < n  # or the accuracy would hardly be tested


def test_contrastive_loss_of_a_perfect_match():
    """Orthonormal keys: each positive has logit 10, the 3 + 4 others of its row have 0."""
    axes = torch.eye(8)
    loss, accuracy = contrastive_loss(axes[:4], axes[:4], axes[4:].T, 0.1)
    assert loss.item() == pytest.approx(math.log1p(7 * math.exp(-10)), abs=1e-6)
    assert accuracy.item() == 1


def test_contrastive_loss_is_bounded_by_the_term_inside_the_logarithm():
    """One opposite key, one equal negative: the positive's probability is e^-20 / (1 + e^-20)."""
    q = torch.tensor([[1.0, 0.0]])
    loss, accuracy = contrastive_loss(q, -q, q.T, 0.1)
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(20)) + 1e-8), abs=1e-5)
    assert accuracy.item() == 0


def test_contrastive_loss_without_information():
    """All logits equal: log of how many there are."""
    q = torch.tensor([[1.0, 0.0, 0.0]]).expand(4, 3)
    loss, _ = contrastive_loss(q, q, q[0][:, None].expand(3, 12))
    assert loss.item() == pytest.approx(math.log(16), abs=1e-5)


def test_contrastive_loss_reaches_queries_alone():
    keys = KeyQueue(8, 16)
    assert not list(keys.parameters())
    q, k = unit_rows(1, 3, 8).requires_grad_(), unit_rows(2, 3, 8)
    loss, accuracy = contrastive_loss(q, k, keys.queue)
    loss.backward()
    assert q.grad.abs().min() > 0
    assert not accuracy.requires_grad
    assert keys.queue.grad is None
    assert not keys.queue.requires_grad


def test_contrastive_loss_of_half_precision_is_computed_in_float32():
    q, k, queue = unit_rows(1, 3, 8).bfloat16(), unit_rows(2, 3, 8).bfloat16(), unit_rows(3, 4, 8).T
    loss, _ = contrastive_loss(q, k, queue.bfloat16())
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("target", [0, 1])
def test_adversarial_loss_at_zero_logits_is_log_2(target):
    logits = [torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)]
    assert adversarial_loss(logits, target).item() == pytest.approx(math.log(2))


def test_adversarial_loss_is_a_mean_over_stages_whatever_their_size():
    """BCE of logit x towards 1 is log(1 + e^-x), towards 0 log(1 + e^x)."""
    logits = [torch.full((2, 1, 8, 8), 2.0), torch.full((2, 1, 4, 4), -1.0)]
    one = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2
    zero = (math.log1p(math.exp(2)) + math.log1p(math.exp(-1))) / 2
    assert adversarial_loss(logits, 1).item() == pytest.approx(one, rel=1e-6)
    assert adversarial_loss(logits, 0).item() == pytest.approx(zero, rel=1e-6)
    assert adversarial_loss([torch.full((1, 1, 2, 2), 200.0)], 0).item() == pytest.approx(200)


def test_feature_matching_is_l1_averaged_over_stages():
    real = [images(1, 2, 4, 8, 8), images(2, 2, 8, 4, 4)]
    fake = [real[0] + 0.25, real[1] - 0.75]
    assert feature_matching_loss(real, fake).item() == pytest.approx(0.5, rel=1e-5)


def test_feature_matching_detaches_the_real_side():
    real = [images(1, 1, 2, 4, 4).requires_grad_(), images(2, 1, 2, 2, 2).requires_grad_()]
    fake = [images(3, 1, 2, 4, 4).requires_grad_(), images(4, 1, 2, 2, 2).requires_grad_()]
    feature_matching_loss(real, fake).backward()
    assert all(r.grad is None for r in real)
    assert all(f.grad.abs().min() > 0 for f in fake)


def test_consistency_loss_equals_opencv(device):
    real, fake = images(1, 2, 3, 32, 40), images(2, 2, 3, 32, 40)

    def blurred(x: Tensor) -> np.ndarray:
        border = cv2.BORDER_REFLECT_101
        return np.stack(
            [
                cv2.GaussianBlur(image, (21, 21), 3.5, borderType=border)
                for image in x.permute(0, 2, 3, 1).double().numpy()
            ]
        )

    expected = np.abs(blurred(real) - blurred(fake)).mean()
    got = consistency_loss(real.to(device), fake.to(device)).item()
    assert got == pytest.approx(expected, rel=1e-4)


def test_consistency_loss_sees_colour_and_not_grain():
    real = images(1, 1, 3, 32, 32)
    assert consistency_loss(real, real).item() == 0
    assert consistency_loss(real, real + 0.125).item() == pytest.approx(0.125, rel=1e-5)
    grain = 0.1 * (-1.0) ** (torch.arange(32)[:, None] + torch.arange(32))  # a checkerboard
    assert consistency_loss(real, real + grain).item() < 1e-3
