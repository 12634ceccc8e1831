"""Fitting LevelGain to what a trained generator makes of the training items.

All that it sees of an item is how strong the real and the generated noise are at each intensity, so
that items are made once, a few numbers of each are kept, and the fit itself takes seconds.
docs/method.md 9, Eq. 9.20.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from data.items import Triplet
from models.layers import NoiseSource
from models.levels import LevelGain, in_bins
from models.noise_transfer import NoiseTransfer

# Bins of the clean intensity in which the noise is compared, of 255
EDGES = 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 240
FEWEST, ENOUGH = 16, 200  # pixels in a bin: to count at all, to count fully
STEPS, BATCH, LR, WEIGHT_DECAY = 8000, 256, 2e-3, 0.2  # of AdamW, with a cosine


class Observed(NamedTuple):
    """Of N items."""

    z: Tensor
    """(N, d), of the reference"""
    measured: Tensor
    """(N, 3, MEASURED), measured_levels of the reference"""
    count: Tensor
    """(N, 3, bins): pixels of a channel whose clean intensity is in a bin"""
    real: Tensor
    """(N, 3, bins): sum of the squares of their real noise"""
    made: Tensor
    """... of the generated noise"""


@torch.no_grad()
def observe(transfer: NoiseTransfer, batches: Iterable[tuple[Triplet, NoiseSource]]) -> Observed:
    """What a network without gains makes of the items, and what it should; on the CPU."""
    rows = []
    for batch, noise in batches:
        z, measured = transfer.look(batch.noisy2.clamp(0, 1))
        made = transfer.generate(batch.clean, z, noise)
        inside = in_bins(batch.clean, [edge / 255 for edge in EDGES])
        sums = [inside.sum((3, 4))]
        for noisy in (batch.noisy1, made):
            sums.append((inside * (noisy - batch.clean).square()).sum((3, 4)))
        rows.append(Observed(z, measured, *(x.permute(1, 2, 0) for x in sums)))
    return Observed(*(torch.cat(column).cpu() for column in zip(*rows, strict=True)))


def level_loss(levels: LevelGain, items: Observed) -> Tensor:
    """Mean absolute difference of the log root mean squares of real and generated noise, the latter
    times the gain; over bins, channels and items, bins of few pixels for less."""
    edges = torch.tensor([0, *EDGES, 255]) / 255
    middles = ((edges[1:] + edges[:-1]) / 2).expand(len(items.z), 3, -1)
    gain = levels.gain(levels(items.z, items.measured), middles)
    total = items.real.sum((1, 2)) / items.count.sum((1, 2))
    floor = (0.3 / 255) ** 2 + 0.001 * total[:, None, None]
    real, made = (x / items.count.clamp_min(1) for x in (items.real, items.made))
    error = ((gain.square() * made + floor).log() - (real + floor).log()).abs() / 2
    weight = items.count.clamp_max(ENOUGH) * (items.count >= FEWEST)
    return (error * weight).sum() / weight.sum()  # Eq. 9.20


def fit_levels(items: Observed, seed: int, steps: int = STEPS) -> LevelGain:
    """The gains of least level_loss, by AdamW; a minute on a CPU core."""
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        levels = LevelGain(items.z.shape[1])
    optimiser = torch.optim.AdamW(levels.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        drawn = torch.randint(len(items.z), (BATCH,), generator=rng)
        loss = level_loss(levels, Observed(*(x[drawn] for x in items)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return levels.requires_grad_(False).eval()
