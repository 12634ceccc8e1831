"""How exactly a run computes: float32, TF32 (CUDA) or bfloat16 autocast (CUDA and CPU).

Losses, the power iterations of the spectral norm, the queue, the optimisers and all figures are
float32 in each; what differs is the networks' convolutions and products.
"""

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "tf32", "bf16"]
"""auto: bf16 on a CUDA device that has it in hardware, else fp32."""


def forward_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Of the convolutions and products in networks' forward passes."""
    bf16 = precision == "bf16"
    if precision == "auto" and device.type == "cuda":
        # Before Ampere it is emulated, and slower than float32.
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bf16 else torch.float32


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context for networks' forward passes; leave it before losses and gradients."""
    bf16 = forward_dtype(precision, device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def set_float32_precision(precision: Precision) -> None:
    """Let float32 products on CUDA use TF32, or not, in this process. (cuDNN's default is TF32.)"""
    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
