"""How exactly a run computes: float32, TF32 (CUDA) or bfloat16 autocast (CUDA and CPU).

Losses, the power iterations of the spectral norm, the queue, the optimisers and all figures are
float32 in each; what differs is the networks' convolutions and products.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from utils.config import Precision


def forward_dtype(precision: "Precision", device: torch.device) -> torch.dtype:
    """Of the convolutions and products in networks' forward passes."""
    bf16 = precision == "bf16"
    if precision == "auto" and device.type == "cuda":
        # Before Ampere it is emulated, and slower than float32.
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bf16 else torch.float32


def autocast(precision: "Precision", device: torch.device) -> torch.autocast:
    """The context for networks' forward passes; leave it before losses and gradients."""
    bf16 = forward_dtype(precision, device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def set_float32_precision(precision: "Precision") -> None:
    """Let float32 products on CUDA use TF32, or not, in this process. (cuDNN's default is TF32.)"""
    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


class _Cast(torch.autograd.Function):
    """Tensors in another dtype, and their gradients in the tensors' own: one operation each way."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        return _copies(tensors, dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_copies(grads, ctx.dtype)


def _copies(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(x, dtype=dtype) for x in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)


def with_cast_weights(network: nn.Module, x: Tensor) -> Tensor:
    """network(x); under autocast, the weights of its convolutions are cast together.

    Autocast would launch an operation for each, and one for the gradient of each.
    """
    if network._compiled_call_impl or not torch.is_autocast_enabled(x.device.type):
        return network(x)
    weights = {
        f"{name}.{kind}": weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        for kind, weight in module.named_parameters(recurse=False)
    }
    cast = _Cast.apply(torch.get_autocast_dtype(x.device.type), *weights.values())
    return torch.func.functional_call(network, dict(zip(weights, cast, strict=True)), x)
