"""A weight under spectral norm, and several that are used as one (docs/method.md 1).

Miyato et al. 2018, arXiv:1802.05957. Module and buffer names give the official state-dict keys.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-12  # under it, no vector is divided by its length


class SpectralWeight(nn.Module):
    """A weight divided by its largest singular value.

    Calling it returns the normalised weight. In training mode each call first does one power
    iteration, unless `shared_spectral_norm` holds a weight for it.

    dim: the axis of `shape` that becomes the rows of the matrix (1 for transposed convolutions).
    """

    def __init__(self, shape: tuple[int, ...], dim: int = 0) -> None:
        super().__init__()
        self.dim = dim
        weight = torch.empty(shape)
        nn.init.kaiming_uniform_(weight, a=5**0.5)  # PyTorch's default for convolutions and linears
        self.weight_orig = nn.Parameter(weight)
        rows = shape[dim]
        self.register_buffer("weight_u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(weight.numel() // rows), dim=0))
        self.shared: Tensor | None = None
        self.bank: WeightBank | None = None
        self.power_iteration(15)  # as torch's parametrisation starts

    def as_matrix(self) -> Tensor:
        return self.weight_orig.transpose(0, self.dim).flatten(1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """(rows, columns) -> the weight's own shape."""
        shape = self.weight_orig.transpose(0, self.dim).shape
        return matrix.view(shape).transpose(0, self.dim)

    @torch.no_grad()
    def power_iteration(self, times: int = 1) -> tuple[Tensor, Tensor]:
        """Moves u and v on; returns copies of them."""
        matrix, u, v = self.as_matrix(), self.weight_u.clone(), self.weight_v.clone()
        for _ in range(times):
            v = F.normalize(matrix.T @ u, dim=0, eps=EPS)
            u = F.normalize(matrix @ v, dim=0, eps=EPS)  # Eq. 1.1
        self.weight_u.copy_(u)
        self.weight_v.copy_(v)
        return u, v

    def forward(self) -> Tensor:
        if self.shared is not None:
            return self.shared
        device = self.weight_orig.device.type
        with torch.autocast(device, enabled=False):
            u, v = self.power_iteration(int(self.training))
            matrix = self.as_matrix()
            # u and v are constants here, sigma is not
            normalised = matrix / torch.dot(u, torch.mv(matrix, v))  # Eq. 1.1
        return self.from_matrix(normalised.to(autocast_dtype(device) or normalised.dtype))


class WeightBank:
    """Weights of one matrix shape that are used as one.

    Calling it returns them normalised and stacked, (n, rows, columns): in `shared_spectral_norm`
    as they were computed, without an operation.
    """

    def __init__(self, weights: Iterable[SpectralWeight]) -> None:
        self.weights, self.shared = list(weights), None
        for weight in self.weights:
            weight.bank = self

    def __call__(self) -> Tensor:
        if self.shared is not None:
            return self.shared
        return torch.stack([w().transpose(0, w.dim).flatten(1) for w in self.weights])


def autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
