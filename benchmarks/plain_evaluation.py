"""The evaluation of a test set made plainly, image by image, for benchmarks.evaluate to beat."""

import piq
import torch
from torch import nn

from data.test_sets import PairedTestSet
from models import NoiseTransfer
from tests import oracle


def oracle_networks(
    transfer: NoiseTransfer, device: torch.device
) -> tuple[oracle.OracleEncoder, oracle.OracleGenerator]:
    """The same weights in the plain implementation; the state-dict keys are the same."""
    copies = []
    for network, plain in (
        (transfer.key_encoder, oracle.OracleEncoder),
        (transfer.generator, oracle.OracleGenerator),
    ):
        copies.append(plain(network.width, network.embed_dim).to(device).eval())
        copies[-1].load_state_dict(network.state_dict())
    return tuple(copies)


@torch.inference_mode()
def plain_transfer(
    encoder: oracle.OracleEncoder,
    generator: oracle.OracleGenerator,
    test_set: PairedTestSet,
    device: torch.device,
) -> list[tuple[float, float]]:
    figures = []
    for i in range(len(test_set)):
        clean, noisy = (x[None].to(device) for x in test_set[i])
        fake = oracle.oracle_transfer(encoder, generator, clean, noisy)
        images = [x[0].cpu().numpy() for x in (fake, noisy, clean)]
        figures.append((oracle.akld(*images), oracle.ks(*images)))
    return figures


@torch.inference_mode()
def plain_denoiser(
    denoiser: nn.Module, test_set: PairedTestSet, device: torch.device
) -> list[float]:
    figures = []
    for i in range(len(test_set)):
        clean, noisy = (x[None].to(device) for x in test_set[i])
        denoised = denoiser(noisy).clamp(0, 1)
        for image in (denoised, noisy):
            figures.append(piq.psnr(image, clean).item())
            figures.append(piq.ssim(image, clean).item())
    return figures
