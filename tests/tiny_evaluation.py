"""supp_tbl.py on tiny random networks and images, for the tests of what it writes."""

from pathlib import Path

import numpy as np
import torch

import supp_tbl
from models import NoiseEncoder, NoiseGenerator, build_denoiser
from utils.images import write_image


def write_test_images(root: Path) -> Path:
    """real/: three pairs of two sizes; BSDS500: two clean images; returns `root`."""
    rng = np.random.default_rng(0)
    for i, (h, w) in enumerate([(24, 36), (36, 24), (24, 36)]):
        clean = rng.integers(60, 190, (1, 1, 3)) + np.arange(w)[:, None] * np.ones((h, 1, 1))
        noisy = clean + 12 * rng.standard_normal(clean.shape)
        for side, image in (("groundtruth", clean), ("input", noisy)):
            image = image.round().clip(0, 255).astype(np.uint8)
            write_image(root / "real" / side / f"{i}.png", image)
        if i < 2:
            folder = root / "BSDS500/data/images" / ("train", "test")[i]
            write_image(folder / f"{i}.png", clean.round().astype(np.uint8))
    return root


def write_networks(root: Path) -> None:
    """Random ones, of width 4."""
    torch.manual_seed(0)
    networks = {
        "NT/VUNet.pt": NoiseGenerator(4, 8),
        "NT/encoder_q.pt": NoiseEncoder(4, 8),
        "NT/encoder_k.pt": NoiseEncoder(4, 8),
        "sidd/ridnet_g.pt": build_denoiser("ridnet", 4),
        "sidd/unet_g.pt": build_denoiser("unet", 4),
        "synthetic/dncnn_g.pt": build_denoiser("dncnn", 4),
    }
    for name, network in networks.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), path)


def run(*argv: str) -> None:
    supp_tbl.main(["--gpu", "cpu", "--passes", "2", "--no-report", *argv])
