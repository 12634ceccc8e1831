"""What training the encoder takes beside it: the queue of past keys, and the key encoder's update.

Equations: docs/method.md 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The dictionary of past keys (MoCo, He et al. 2020, arXiv:1911.05722): first in, first out.

    queue: (d, K) unit columns, random at first; pointer: the column that the next key replaces.
    """

    def __init__(self, embed_dim: int = 128, size: int = 4096) -> None:
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(embed_dim, size), dim=0))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """keys (N, d), N <= K: replace the oldest N columns, across the end where it comes."""
        size = self.queue.shape[1]
        if len(keys) > size:
            raise ValueError(f"{len(keys)} keys do not fit a queue of {size}")
        columns = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.queue[:, columns] = keys.T.to(self.queue.dtype)  # Eq. 4.11
        self.pointer.copy_((self.pointer + len(keys)) % size)


@torch.no_grad()
def momentum_update(key_encoder: nn.Module, query_encoder: nn.Module, m: float) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q; spectral-norm vectors stay each encoder's own."""
    keys, queries = list(key_encoder.parameters()), list(query_encoder.parameters())
    torch._foreach_lerp_(keys, queries, 1 - m)  # Eq. 4.10
