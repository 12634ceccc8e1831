"""What an embedding tells of its noise, and how those of a reference's patches become one.

Beyond the paper, which embeds a reference whole: docs/method.md 9.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PATCHES_A_SIDE = 8  # of a reference that is embedded in patches
INTENSITY_BINS = 4
# (down, right): the neighbours whose noise a pixel's correlates with.
NEIGHBOURS = (0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0)
LEVELS = 3 * INTENSITY_BINS
STATISTICS = LEVELS + 3 * (len(NEIGHBOURS) + 1)
UNSEEN = 1e-4  # weight of a patch for an intensity that none of its pixels has
RIDGE = 1.0  # of Eq. 9.16, on an embedding of length sqrt(d)


class StatisticsHead(nn.Linear):
    """Linear in the embedding z (B, d): the noise statistics that it tells, (B, 33).

    The first 12 are log standard deviations, of 3 channels in each of 4 bins of the intensity; the
    rest correlations. See `noise_statistics` in models/losses.py.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__(embed_dim, STATISTICS)
        with torch.no_grad():
            self.bias[:LEVELS] = -3  # of 255: 13, a usual standard deviation

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.float() * self.in_features**0.5)  # Eq. 9.2: unit variance


def spread_patches(image: Tensor, patch: int) -> list[Tensor]:
    """Patches (B, 3, P, P) of image (B, 3, H, W), evenly spread from border to border.

    As many a side as cover it, at most MAX_PATCHES_A_SIDE; of a shorter side the whole.
    """
    sides = image.shape[-2:]
    counts = [min(-(-n // patch), MAX_PATCHES_A_SIDE) for n in sides]
    tops, lefts = (
        [round(i * max(n - patch, 0) / max(count - 1, 1)) for i in range(count)]
        for n, count in zip(sides, counts, strict=True)
    )
    return [image[..., y : y + patch, x : x + patch] for y in tops for x in lefts]


def share_of_intensities(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1] -> (..., 12): the share of a channel's pixels in each bin of the
    intensity, in the order of the statistics."""
    level = (images.clamp(0, 0.999) * INTENSITY_BINS).long()
    bins = [(level == i).float().mean((-2, -1)) for i in range(INTENSITY_BINS)]
    return torch.cat(bins, dim=-1)


class Pooling(nn.Module):
    """One embedding of many patches: their mean, moved to tell of each intensity's noise what those
    patches tell that show it.

    A patch without bright places tells a usual noise of them; most patches of a dark photo would
    outvote the few that see it. Eq. 9.15: those few decide; Eq. 9.16: z moves as little as that
    takes. Without a head, the mean alone.
    """

    def __init__(self, head: StatisticsHead | None = None) -> None:
        super().__init__()
        self.head = head
        if head is not None:
            tells = head.weight.detach() * head.in_features**0.5  # (33, d)
            ridge = RIDGE * torch.eye(head.in_features, device=tells.device)
            pull = torch.linalg.solve(tells.T @ tells + ridge, tells.T)[:, :LEVELS]
            self.register_buffer("pull", pull, persistent=False)  # (d, 12)

    def forward(self, z: Tensor, shares: Tensor) -> Tensor:
        """z (patches, B, d) of unit length, shares (patches, B, 12) -> (B, d) of unit length."""
        mean = z.float().mean(0)
        if self.head is None:
            return F.normalize(mean)
        told, weight = self.head(z)[..., :LEVELS], shares.square() + UNSEEN
        seen = (weight * told).sum(0) / weight.sum(0)  # Eq. 9.15
        return F.normalize(mean + (seen - told.mean(0)) @ self.pull.T)  # Eq. 9.16
