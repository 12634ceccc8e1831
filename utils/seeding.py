"""Randomness derived from (seed, rank, step): a resumed run needs no saved random state."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Randomness:
    """The generators of one step: choices (which image, where) on the CPU, pixels on the device."""

    choices: torch.Generator
    pixels: torch.Generator


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed that depends on all `numbers` (non-negative), their order and count."""
    # SeedSequence pads with zeros: without the count, (1,) and (1, 0) would be one seed.
    high, low = np.random.SeedSequence([len(numbers), *numbers]).generate_state(2).tolist()
    return (high << 31) ^ low


def randomness(*numbers: int, device: torch.device | str = "cpu") -> Randomness:
    """Generators for, say, (seed, rank, step); equal numbers give equal draws."""
    choices = torch.Generator().manual_seed(derived_seed(*numbers, 0))
    pixels = torch.Generator(device).manual_seed(derived_seed(*numbers, 1))
    return Randomness(choices, pixels)
