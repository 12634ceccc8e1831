"""What several test files need."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

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
