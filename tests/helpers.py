"""What several test files need."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.items import Triplet
from tests.golden import recipe


def images(seed: int, *shape: int) -> Tensor:
    """Uniform random images in [0, 1], the recipe's."""
    return torch.from_numpy(recipe.image(seed, shape))


def equal_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def load_recipe(network: nn.Module, name: str, shapes: dict) -> nn.Module:
    """The recipe's weights in `network`; name: "encoder", "generator" or "ridnet"."""
    state = recipe.weights(name, shapes[name])
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    return network


def read_png(path: Path) -> np.ndarray:
    """(H, W, 3) of a file that is an RGB PNG."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image)


class Items:
    """In place of a data set: constant patches, so that it shows which one is used for what."""

    stores = ()

    def triplets(self, n: int, rng: object, reference_size: int | None = None) -> Triplet:
        sizes = {0.25: 16, 0.5: 16, 0.75: reference_size or 16}
        return Triplet(*(torch.full((n, 3, size, size), x) for x, size in sizes.items()))

    def clean_patches(self, n: int, rng: object, size: int | None = None) -> Tensor:
        return torch.full((n, 3, size or 16, size or 16), 0.25)


def unit_rows(count: int) -> np.ndarray:
    """(count, 16), as embeddings are."""
    x = np.random.default_rng(0).normal(size=(count, 16)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)
