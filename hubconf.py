"""For torch.hub: networks with the weights beside this file, from any folder.

noise = torch.hub.load("path/to/this/folder", "noise_transfer", source="local")
noisy = noise.transfer(clean, reference)  # (B, 3, H, W) in [0, 1]
denoise = torch.hub.load("path/to/this/folder", "denoiser", source="local")
"""

from pathlib import Path

from torch import nn

from models.denoisers import denoiser_from_checkpoint
from models.noise_transfer import NoiseTransfer

dependencies = ["torch", "numpy", "cv2", "PIL"]

_CHECKPOINTS = Path(__file__).parent / "ckpts"


def noise_transfer(checkpoint: str | Path = _CHECKPOINTS / "NT", device: str = "cpu") -> nn.Module:
    """`NoiseTransfer` of a folder with VUNet.pt and encoder_k.pt, in evaluation mode."""
    return NoiseTransfer.from_checkpoint(checkpoint, device)


def denoiser(
    checkpoint: str | Path = _CHECKPOINTS / "sidd" / "ridnet_g.pt", device: str = "cpu"
) -> nn.Module:
    """ridnet, dncnn or unet of a *_g.pt file: (B, 3, H, W) in [0, 1] -> the same, not clipped."""
    return denoiser_from_checkpoint(checkpoint, device)
