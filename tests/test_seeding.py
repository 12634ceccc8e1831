"""Seeds derived from numbers: distinct, ordered, and nothing taken from the global generators."""

import itertools

import numpy as np
import torch

from utils.seeding import derived_seed, randomness


def draws(generator: torch.Generator, n: int = 4) -> list[float]:
    device = generator.device
    return torch.rand(n, generator=generator, device=device, dtype=torch.float64).tolist()


def test_seeds_are_distinct_and_ordered() -> None:
    """(seed, rank, step): 63 bits, so that not even neighbours coincide among 8000."""
    numbers = list(itertools.product(range(20), range(4), range(100)))
    seeds = {derived_seed(*n) for n in numbers}
    assert len(seeds) == len(numbers)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    assert derived_seed(1, 2, 3) != derived_seed(3, 2, 1)
    assert derived_seed(1, 2, 3) == derived_seed(1, 2, 3)


def test_trailing_zeros_count() -> None:
    """numpy's SeedSequence alone pads with zeros."""
    assert len({derived_seed(*[5, *[0] * n]) for n in range(4)}) == 4


def test_every_bit_of_the_seeds_varies() -> None:
    """Set in about half of 2000 seeds; 5 sqrt(n / 4) = 112."""
    seeds = np.array([derived_seed(0, 0, step) for step in range(2000)], np.uint64)
    for bit in range(63):
        assert abs(int((seeds >> np.uint64(bit) & np.uint64(1)).sum()) - 1000) <= 112


def test_equal_numbers_give_equal_draws(device: torch.device) -> None:
    one, again = randomness(5, 0, 7, device=device), randomness(5, 0, 7, device=device)
    assert one.choices.device.type == "cpu"
    assert one.pixels.device.type == device.type
    assert draws(one.choices) == draws(again.choices)
    assert draws(one.pixels) == draws(again.pixels)


def test_seed_rank_step_and_purpose_give_other_draws() -> None:
    made = [randomness(*n) for n in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))]
    first = [draws(g, 1)[0] for r in made for g in (r.choices, r.pixels)]
    assert len(set(first)) == 10


def test_choices_do_not_depend_on_the_device(device: torch.device) -> None:
    assert draws(randomness(1, 2, 3, device=device).choices) == draws(randomness(1, 2, 3).choices)


def test_global_generators_are_left_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = draws(randomness(3, device="cpu").pixels)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    torch.rand(3)
    assert draws(randomness(3, device="cpu").pixels) == first
