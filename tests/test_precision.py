"""bf16 beside float32 on the path that trains; what a step may cost."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import train_denoiser as DENOISER
import train_noiseTransfer as NT
from data.items import Triplet
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer, build_denoiser
from models.generator import normal_noise
from models.layers import SpectralWeight, shared_spectral_norm
from tests.helpers import images
from utils.precision import autocast, set_float32_precision, with_cast_weights

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("precision", "device", "hardware", "bf16"),
    [
        ("auto", CPU, True, False), ("auto", CUDA, True, True), ("auto", CUDA, False, False),
        ("fp32", CUDA, True, False), ("tf32", CUDA, True, False), ("bf16", CPU, False, True),
        ("bf16", CUDA, True, True),
    ],
)  # fmt: skip
def test_what_autocast_is_on(precision, device, hardware, bf16, monkeypatch) -> None:
    """By itself only where the hardware has it: PyTorch also counts what it emulates."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: (
            hardware or including_emulation
        )
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    context = autocast(precision, device)
    assert context._enabled == bf16
    assert context.fast_dtype == torch.bfloat16


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_products_are_exact_unless_asked(tf32) -> None:
    try:
        set_float32_precision("tf32" if tf32 else "bf16")
        assert torch.backends.cuda.matmul.allow_tf32 == tf32
        assert torch.backends.cudnn.allow_tf32 == tf32
    finally:
        set_float32_precision("fp32")


@pytest.mark.parametrize("name", ["ridnet", "dncnn", "unet"])
def test_weights_cast_together_are_those_of_autocast(name: str) -> None:
    """Bit for bit: result, gradients, and the statistics of norms."""
    torch.manual_seed(0)
    x, results = images(0, 2, 3, 16, 16), []
    network = build_denoiser(name, 4)
    for run in (lambda twin: twin(x), lambda twin: with_cast_weights(twin, x)):
        twin = copy.deepcopy(network)
        with torch.autocast("cpu", torch.bfloat16):
            y = run(twin)
        grads = torch.autograd.grad(y.float().square().sum(), list(twin.parameters()))
        results.append([y, *grads, *twin.buffers()])
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*results, strict=True))


def step(precision: str, device: torch.device) -> tuple[NT.State, dict[str, float], dict]:
    """A state after one step, its logged values, and the gradients it was given."""
    c = NT.Config(width=8, embed_dim=16, queue_size=8, precision=precision)
    s = NT.State(c, device)
    grads = {}
    for name, optimiser in s.optimisers.items():
        optimiser.register_step_pre_hook(
            lambda o, *_, name=name: grads.update(
                {name: torch.cat([p.grad.flatten() for p in o.param_groups[0]["params"]])}
            )
        )
    batch = Triplet(*(images(i, 4, 3, 32, 32).to(device) for i in range(3)))
    noise = normal_noise(torch.Generator(device).manual_seed(0))
    values = NT.train_step(s, c, batch, noise)
    return s, {k: v.item() for k, v in values.items()}, grads


def test_a_bf16_step_is_a_float32_step_within_its_rounding(device) -> None:
    """bf16 keeps 8 bits: a relative error of 2^-9 a rounding, of which some forty follow one
    another and average out; a tenth would be a fault."""
    _, exact, exact_grads = step("fp32", device)
    s, rounded, rounded_grads = step("bf16", device)
    for name in ("loss_gan_g", "loss_fm_gan", "loss_consistency", "loss_contra_noisy",
                 "loss_contra_noisy_adv", "loss_fm_noise", "loss_gan_d", "akld"):  # fmt: skip
        assert rounded[name] == pytest.approx(exact[name], rel=0.03), name
        assert rounded[name] != exact[name], f"{name}: was it bf16 at all?"
    for name, grad in exact_grads.items():
        assert rounded_grads[name].dtype == torch.float32
        assert torch.cosine_similarity(grad, rounded_grads[name], dim=0) > 0.95, name
    assert all(v.dtype in (torch.float32, torch.int64) for v in s.state_dict().values())


def test_spectral_norm_is_float32_under_autocast(device) -> None:
    network = NoiseGenerator(4, 8).to(device)
    with shared_spectral_norm(network):
        exact = [m.shared for m in network.modules() if isinstance(m, SpectralWeight)]
    vectors = {k: v.clone() for k, v in network.state_dict().items() if k.endswith(("_u", "_v"))}
    network.eval()
    with torch.autocast(device.type, torch.bfloat16), shared_spectral_norm(network):
        for m, weight in zip(
            (m for m in network.modules() if isinstance(m, SpectralWeight)), exact, strict=True
        ):
            assert m.shared.dtype == torch.bfloat16
            # rounded once, at the end: half a unit in the last of 8 bits
            torch.testing.assert_close(m.shared.float(), weight, rtol=2**-8, atol=1e-6)
    for key, value in vectors.items():
        assert torch.equal(network.state_dict()[key], value)


def test_embedding_has_unit_length_in_float32_under_autocast(device) -> None:
    with autocast("bf16", device):
        _, z = NoiseEncoder(4, 16).to(device).embed(images(1, 3, 3, 16, 16).to(device))
    assert z.dtype == torch.float32
    assert z.norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_a_bf16_denoiser_step(device) -> None:
    transfer = NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8)).to(device)
    clean, reference = images(1, 2, 3, 24, 24).to(device), images(2, 2, 3, 24, 24).to(device)
    losses = {}
    for precision in ("fp32", "bf16"):
        c = DENOISER.Config(width=8, precision=precision)
        s = DENOISER.State(c, device)
        noise = normal_noise(torch.Generator(device).manual_seed(0))
        losses[precision] = DENOISER.train_step(s, c, transfer, clean, reference, noise)["loss_l1"]
        assert all(p.dtype == torch.float32 for p in s.denoiser.parameters())
    assert losses["bf16"].dtype == torch.float32
    assert losses["bf16"].item() == pytest.approx(losses["fp32"].item(), rel=0.03)


def test_a_step_computes_no_gradient_to_throw_away() -> None:
    """Counted by hand, the method needs 282 GFLOP a sample of 96x96 at width 64 where nothing is
    computed twice or for nothing, 387 as it is usually written; convolutions count by area."""
    c = NT.Config(queue_size=8)
    s = NT.State(c)
    batch = Triplet(*(images(i, 1, 3, 32, 32) for i in range(3)))
    with FlopCounterMode(display=False) as counter:
        NT.train_step(s, c, batch, normal_noise(torch.Generator().manual_seed(0)))
    assert counter.get_total_flops() * 9 / 1e9 == pytest.approx(282, rel=0.06)
