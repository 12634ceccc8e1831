"""Networks of NoiseTransfer (Lee and Kim, ACCV 2022, arXiv:2301.13554) and the denoisers."""

from models.denoisers import build_denoiser
from models.encoder import NoiseEncoder
from models.generator import NoiseGenerator
from models.noise_transfer import NoiseTransfer

__all__ = ["NoiseEncoder", "NoiseGenerator", "NoiseTransfer", "build_denoiser"]
