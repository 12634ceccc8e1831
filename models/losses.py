"""The loss terms of NoiseTransfer (paper, Sec. 3.4), each a function of network outputs.

The weights of the terms stand in `train_noiseTransfer.py`, where an ablation changes them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.filters import gaussian_blur


def contrastive_loss(
    q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.1, first: int = 0
) -> tuple[Tensor, Tensor]:
    """InfoNCE of queries against their keys, the batch's other keys and the queue.

    q: (N, d), k: (M, d) unit rows, row first + i of k the positive of row i of q; queue: (d, K)
    unit columns. M > N where keys of other processes were gathered. Returns the loss and the top-1
    accuracy in [0, 1], both scalars, means over q.
    """
    logits = torch.cat([q @ k.T, q @ queue], dim=1).float() / temperature  # (N, M + K)
    row = torch.arange(len(q), device=q.device)
    positive = first + row
    probability = logits.softmax(dim=1)[row, positive]
    accuracy = (logits.argmax(dim=1) == positive).float().mean()
    return -(probability + 1e-8).log().mean(), accuracy


def adversarial_loss(logits: list[Tensor], target: float) -> Tensor:
    """Binary cross-entropy of the stages' logit maps towards `target` (1 real, 0 generated)."""
    terms = [
        F.binary_cross_entropy_with_logits(x.float(), torch.full_like(x, target).float())
        for x in logits
    ]
    return torch.stack(terms).mean()


def feature_matching_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """L1 between feature maps, mean over stages; no gradient reaches the real side."""
    terms = [F.l1_loss(f.float(), r.detach().float()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(terms).mean()


def consistency_loss(real: Tensor, fake: Tensor) -> Tensor:
    """L1 between the images blurred by a 21x21 Gaussian (sigma 3.5): equal local colour."""
    return F.l1_loss(gaussian_blur(fake, 21, 3.5), gaussian_blur(real, 21, 3.5))
