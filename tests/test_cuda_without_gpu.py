"""Everything that computes, on CUDA tensors without data: no GPU is needed, see fake_cuda.py.

Where two devices meet, where the CPU waits for the GPU, and where an optimiser gets a gradient of
another layout than its parameter's, these fail.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import train_denoiser as DENOISER
import train_denoiser_synthetic as SYNTHETIC
import train_noiseTransfer as NT
from data.augment import SceneDistribution
from data.items import GeneratorItems, PatchSource, RealItems, SyntheticItems, Triplet
from data.noise import add_noise
from data.store import ImageStore
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer, build_denoiser
from models.embedding import StatisticsHead
from models.generator import per_image_noise
from models.layers import SNConvTranspose2d
from models.levels import LevelGain
from tests.fake_cuda import CUDA, FakeCuda, fake_cuda
from training.denoisers import State, open_transfer
from utils import metrics
from utils.noise_statistics import noise_level_function
from utils.seeding import randomness
from utils.training import Means, apply_gradients

pytestmark = pytest.mark.usefixtures("shallow")

SMALL = dict(width=4, embed_dim=8, queue_size=8)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as mode:
        yield mode


def images(*shape: int) -> Tensor:
    return torch.rand(shape, device=CUDA)


def transfer_on_cuda() -> NoiseTransfer:
    # as train_noiseTransfer.export makes it, of what is on the device
    parts = (part.to(CUDA) for part in (NoiseEncoder(4, 8), NoiseGenerator(4, 8)))
    more = dict(statistics=StatisticsHead(8).to(CUDA), levels=LevelGain(8).to(CUDA))
    return NoiseTransfer(*parts, **more).requires_grad_(False)


def assert_all_on_cuda(s: nn.Module) -> None:
    assert {v.device for v in s.state_dict().values()} == {CUDA}
    for optimiser in s.optimisers.values():
        for p, state in optimiser.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                assert (state[name].stride(), state[name].device) == (p.stride(), CUDA)


# ------------------------------------------------------------------------------- training steps

LITE = NT.PRESETS["lite"] | dict(batch=4, queue_size=16)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(precision="fp32", ema=0.9),
        dict(grad_accum=2, embedded="paired", inject_noise=False),
        LITE | dict(encoder_steps=9),
        LITE | dict(encoder_steps=0),
        LITE | dict(encoder_steps=0, precision="fp32", freeze_encoder=False, grad_accum=2),
        LITE | dict(encoder_steps=0, w_quantile=1.0, second_draw_steps=10**9),
        NT.PRESETS["release"] | dict(encoder_steps=0, queue_size=16),
    ],
    ids=["paper", "fp32, EMA", "accumulated, no noise", "lite, encoder", "lite",
         "lite, accumulated", "two draws", "release"],
)  # fmt: skip
def test_generator_step(cuda: FakeCuda, changes: dict) -> None:
    c = NT.Config(**changes | SMALL)
    s, means = NT.State(c, CUDA), Means(CUDA)
    size = max((32, *c.embedded_sizes))
    batch = Triplet(images(4, 3, 32, 32), images(4, 3, 32, 32), images(4, 3, size, size))
    for _ in range(2):  # the first fills caches
        cuda.forget()
        s.set_lr(NT.learning_rate(c, s.step))
        values = NT.train_step(s, c, batch, NT.noise_source(c, randomness(0, device=CUDA)))
        means.update(values, s.step)
    assert cuda.waits == []
    assert {(v.device, v.dtype, v.shape) for v in values.values()} == {(CUDA, torch.float32, ())}
    assert_all_on_cuda(s)


@pytest.mark.parametrize(
    "changes",
    [
        dict(denoiser="ridnet"),
        dict(denoiser="dncnn", grad_accum=2, ema=0.9),
        dict(denoiser="unet", precision="fp32"),
        dict(denoiser="dncnn", noise="real", ema=0.9),
    ],
    ids=str,
)
def test_denoiser_step(cuda: FakeCuda, changes: dict) -> None:
    """Of both scripts, which share it."""
    c = DENOISER.Config(**dict(width=8) | changes)
    s, means = State(c, CUDA), Means(CUDA)
    transfer = transfer_on_cuda() if c.noise == "noisetransfer" else open_transfer(c, CUDA)
    clean, reference = images(4, 3, 32, 32), images(4, 3, 32, 32)
    for _ in range(2):
        cuda.forget()
        noise = NT.normal_noise(randomness(0, device=CUDA).pixels)
        values = DENOISER.train_step(s, c, transfer, clean, reference, noise)
        means.update(values, s.step)
    assert cuda.waits == []
    assert {(v.device, v.dtype, v.shape) for v in values.values()} == {(CUDA, torch.float32, ())}
    assert_all_on_cuda(s)


# ---------------------------------------------------------------------------------------- items


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    """Six random images, to be three pairs or photographs."""
    folder: Path = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(256, size=(6, 40, 48, 3), dtype=np.uint8)
    files = [folder / f"{i}.png" for i in range(6)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    return ImageStore.open(files, folder / "cache", "pairs", min_size=32)


def assert_batches(tensors: list[Tensor], sizes: list[int]) -> None:
    assert {(x.device, x.dtype) for x in tensors} == {(CUDA, torch.float32)}
    assert [tuple(x.shape) for x in tensors] == [(8, 3, size, size) for size in sizes]


@pytest.mark.parametrize("on_device", [True, False], ids=["images on the GPU", "on the host"])
def test_items(cuda: FakeCuda, store: ImageStore, on_device: bool) -> None:
    """Real, white, synthetic and blurred ones with all that is done to them: nothing is read back.

    Choices are drawn on the CPU and their few numbers copied; the images come from pinned memory.
    """
    images = store.to(CUDA) if on_device else store
    recipe = dataclasses.replace(
        NT.RECIPE,
        noise=dataclasses.replace(NT.RECIPE.noise, probabilities=NT.OUR_DATA["noise_models"]),
        correlation=NT.RECIPE.lost_correlation,
        scenes=SceneDistribution(0.5),
    )
    real = RealItems(images, ["a", "a", "b"], 24, CUDA, recipe, 1)
    synthetic = SyntheticItems(PatchSource(images, 24, CUDA), recipe, real)
    items = GeneratorItems(synthetic, real, 0.5, reference_sizes=(32,))
    for step in range(3):
        triplet = items.triplets(8, randomness(0, step, device=CUDA))
        assert_batches([triplet.clean, triplet.noisy1, triplet.noisy2], [24, 24, 32])
    assert not [wait for wait in cuda.waits if wait.startswith("cuda")]


def test_items_of_the_synthetic_denoiser(cuda: FakeCuda, store: ImageStore) -> None:
    items = SyntheticItems(PatchSource(store.to(CUDA), 24, CUDA), SYNTHETIC.RECIPE)
    rng = randomness(0, device=CUDA)
    clean = items.clean_patches(8, rng, 32)
    noise = SYNTHETIC.RECIPE.noise.draw(8, rng.choices)
    assert_batches([clean, add_noise(clean, noise, rng.pixels)], [32, 32])
    assert not [wait for wait in cuda.waits if wait.startswith("cuda")]


# --------------------------------------------------------------------------- what is used, figures


@pytest.mark.parametrize("reference_patch", [None, 16])
@pytest.mark.parametrize("size", [(32, 32), (21, 30)])
def test_transfer(cuda: FakeCuda, reference_patch: int | None, size: tuple[int, int]) -> None:
    transfer = transfer_on_cuda()
    transfer.reference_patch = reference_patch
    clean, reference = images(2, 3, *size), images(1, 3, 40, 33)
    transfer(clean, reference)  # fills caches
    cuda.forget()
    for noise in (None, per_image_noise([1, 2])):
        noisy = transfer(clean, reference, noise)
        assert (noisy.shape, noisy.dtype, noisy.device) == (clean.shape, torch.float32, CUDA)
    assert cuda.waits == []


@pytest.mark.parametrize("name", ["ridnet", "dncnn", "unet"])
def test_denoisers(cuda: FakeCuda, name: str) -> None:
    denoiser = build_denoiser(name, 8).eval().to(CUDA)
    noisy = images(2, 3, 21, 30)
    cuda.forget()
    with torch.no_grad():
        denoised = denoiser(noisy)
    assert (denoised.shape, denoised.stride()) == (noisy.shape, noisy.stride())
    assert (denoised.dtype, denoised.device) == (torch.float32, CUDA)
    assert cuda.waits == []


@pytest.mark.parametrize(
    "metric",
    [
        metrics.akld, metrics.ks, metrics.kld, metrics.noise_std_ratio,
        metrics.directional_distance, metrics.autocorrelation_distance,
        metrics.noise_level_distance, metrics.worst_noise_level,
    ],
    ids=lambda metric: metric.__name__,
)  # fmt: skip
def test_noise_metrics(cuda: FakeCuda, metric: object) -> None:
    figures = metric(*(images(3, 3, 32, 40) for _ in range(3)))
    assert (figures.shape, figures.dtype, figures.device) == ((3,), torch.float32, CUDA)
    assert cuda.waits == []


def test_other_metrics(cuda: FakeCuda) -> None:
    a, b = images(3, 3, 32, 40), images(3, 3, 32, 40)
    figures = metrics.mean_shift(a, b)
    assert (figures.shape, figures.dtype, figures.device) == ((3,), torch.float32, CUDA)
    noise_level_function(a, b)
    assert cuda.waits == []


# ------------------------------------------------------------------- the rules themselves are kept


def test_two_devices_must_not_meet(cuda: FakeCuda) -> None:
    with pytest.raises(RuntimeError, match="device"):
        images(3, 3) + torch.rand(3, 3)


def test_values_cannot_be_read(cuda: FakeCuda) -> None:
    x = images(3)
    for read in (lambda: x[0].item(), lambda: bool((x > 0).all()), lambda: x[x > 0], x.nonzero):
        with pytest.raises(RuntimeError):
            read()


def test_waits_are_seen(cuda: FakeCuda) -> None:
    x, on_host = images(3), torch.rand(3)
    for wait in (x.cpu, lambda: on_host.to(CUDA), lambda: x.copy_(on_host), lambda: x[[0, 2]],
                 lambda: torch.tensor([1.0, 2.0], device=CUDA),
                 lambda: x[torch.tensor([0, 2])]):  # fmt: skip
        cuda.forget()
        wait()
        assert len(cuda.waits) == 1
    cuda.forget()
    on_host.pin_memory().to(CUDA, non_blocking=True)
    assert cuda.waits == []


def test_an_optimiser_must_get_its_parameters_layout(cuda: FakeCuda) -> None:
    up = SNConvTranspose2d(8, 4).to(CUDA)
    optimiser = torch.optim.Adam(up.parameters(), fused=True)
    (grad,) = torch.autograd.grad(up(images(1, 8, 4, 4)).sum(), [*up.parameters()])
    other = grad.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3)
    assert other.stride() != up.tconv2d.weight_orig.stride()
    up.tconv2d.weight_orig.grad = other
    with pytest.raises(RuntimeError, match="one layout"):
        optimiser.step()
    apply_gradients(optimiser, up.parameters(), [other])
