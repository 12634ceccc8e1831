"""Batches of a test set: sizes, workers, precision and modes leave no trace in the scores."""

import pytest
import torch
from torch import Tensor, nn

from evaluation.batches import evaluation_mode
from evaluation.measure import evaluate_denoiser, evaluate_transfer
from models import build_denoiser
from tests.test_measure import ANY_NOISE, Images, assert_equal_scores, identity, tiny_transfer
from utils.errors import UserError


def test_the_number_of_workers_changes_no_bit(device: torch.device):
    transfer, denoiser = tiny_transfer().to(device), build_denoiser("ridnet", 4).to(device)
    how = dict(batch_size=2, device=device, progress=False)
    transferred = evaluate_transfer(transfer, Images(), workers=1, **how)
    how_noisy = dict(noise=ANY_NOISE, passes=3, **how)
    denoised = evaluate_denoiser(denoiser, Images(), workers=1, **how_noisy)
    for workers in (2, 20):  # 20: more than there are batches
        again = evaluate_transfer(transfer, Images(), workers=workers, **how)
        assert_equal_scores(transferred, again)
        again = evaluate_denoiser(denoiser, Images(), workers=workers, **how_noisy)
        assert_equal_scores(denoised, again)


def test_networks_compute_in_float32_whatever_is_set_outside(device: torch.device):
    """The training scripts validate with bf16 or TF32 on; afterwards all is as it was."""
    transfer, network = tiny_transfer().to(device), build_denoiser("unet", 4).to(device)
    seen = []

    def denoiser(noisy: Tensor) -> Tensor:
        denoised = network(noisy)
        seen.append(
            (
                denoised.dtype,
                torch.is_autocast_enabled(device.type),
                torch.get_float32_matmul_precision(),
                torch.backends.cudnn.allow_tf32,
                torch.backends.cudnn.enabled,
            )
        )
        return denoised

    how = dict(device=device, progress=False)

    def measure() -> tuple[dict, dict]:
        transferred = evaluate_transfer(transfer, Images(), **how)
        return transferred, evaluate_denoiser(denoiser, Images(), **how)

    plain = measure()
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.allow_tf32 = True
        with torch.autocast(device.type, torch.bfloat16):
            again = measure()
            assert torch.is_autocast_enabled(device.type)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    assert set(seen) == {(torch.float32, False, "highest", False, True)}
    for scores, others in zip(plain, again, strict=True):
        assert_equal_scores(scores, others)


def test_batches_by_device_and_size():
    """On a CPU by default as many as have 256 x 256 pixels, at most 8; larger images singly."""
    sizes = [(16, 16)] * 10 + [(128, 160)] * 4 + [(320, 256)] * 2

    def batches(**how) -> list[tuple[int, int, int]]:
        seen = []

        def denoiser(noisy: Tensor) -> Tensor:
            seen.append((len(noisy), *noisy.shape[2:]))
            return noisy

        evaluate_denoiser(denoiser, Images(sizes), progress=False, **how)
        return seen

    small = [(8, 16, 16), (2, 16, 16)]
    assert batches() == [*small, (3, 128, 160), (1, 128, 160), (1, 320, 256), (1, 320, 256)]
    assert batches(batch_size=8) == [*small, (4, 128, 160), (2, 320, 256)]
    assert batches(batch_size=1) == [(1, *size) for size in sizes]
    assert batches(limit=3) == [(3, 16, 16)]
    assert evaluate_denoiser(identity, Images(), limit=0, progress=False) == {}


def test_modes_come_back():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())
    network[0].eval()

    def modes() -> list[bool]:
        return [m.training for m in network.modules()]

    before = modes()
    statistics = network[0].running_mean.clone()
    with evaluation_mode(network):
        assert modes() == [False] * 3
    assert modes() == before == [True, False, True]
    network.train()
    evaluate_denoiser(network, Images(), progress=False)
    assert modes() == [True] * 3
    assert torch.equal(network[0].running_mean, statistics)


def test_too_small_an_image_is_named():
    with pytest.raises(UserError, match=r"memory: image1 is 12x20"):
        evaluate_denoiser(identity, Images(sizes=[(24, 24), (20, 12)]), progress=False)
