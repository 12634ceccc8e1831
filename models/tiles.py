"""Images of any size through a network, in memory that does not grow with them, without seams.

A pixel that a convolutional network puts out depends on what is nearby. A tile is therefore cut
with a margin as wide as that, and the margin of the result is thrown away: what is left is what the
whole image would give, up to rounding. Nothing here is a number about a network: how far it sees,
what its tiles must be divisible by and how much memory it takes are found out by asking it.
"""

import copy
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.denoisers import ChannelAttention, RIDNet
from models.encoder import NoiseEncoder
from models.generator import NoiseGenerator, no_noise
from models.layers import SpectralWeight
from utils.errors import UserError
from utils.images import float_to_integer, integer_to_float
from utils.memory import free_memory, give_pages_back, is_out_of_memory

LEAST_SIDE = 32  # of a tile; smaller ones are nearly all margin
MULTIPLE = 8  # tiles start where every network's strides do: the deepest halves three times

PATCH, PATCHES_A_SIDE = 32, 8  # that tell RIDNet what the whole image is like

# Bytes of a tile's tensors at most: enough that the margins are a fourth of the work or less. Of
# what is free the rest is for what libraries take besides, and for holes between the blocks.
MOST_ON_CPU, MOST_ON_GPU, SHARE = 0.7e9, 8.0e9, 0.4


class Tile(NamedTuple):
    """Slices (rows, columns): of the image that is put out, that goes in, and of what comes out."""

    inner: tuple[slice, slice]
    outer: tuple[slice, slice]
    crop: tuple[slice, slice]


def cut(size: tuple[int, int], side: int, margin: int) -> Iterator[Tile]:
    """Tiles of at most about side x side pixels that cover size (H, W), as even as may be.

    Their outer parts start at multiples of MULTIPLE and end there or at the image's border.
    """
    rows, columns = (_intervals(n, side, margin) for n in size)
    for y in rows:
        for x in columns:
            yield Tile(*zip(y, x, strict=True))


def _intervals(length: int, side: int, margin: int) -> list[tuple[slice, slice, slice]]:
    count = -(-length // side)
    step = MULTIPLE * math.ceil(length / count / MULTIPLE)
    margin = MULTIPLE * math.ceil(margin / MULTIPLE)
    result = []
    for start in range(0, length, step):
        stop = min(start + step, length)
        first, last = max(start - margin, 0), min(stop + margin, length)
        result.append((slice(start, stop), slice(first, last), slice(start - first, stop - first)))
    return result


def _run(network: nn.Module, x: Tensor) -> Tensor:
    """One forward pass on an image of which only the shape matters."""
    if isinstance(network, NoiseGenerator):
        return network(x, x.new_zeros(1, network.embed_dim), no_noise)
    if isinstance(network, NoiseEncoder):
        return network.embed(x)[1]
    return network(x)


def receptive_radius(network: nn.Module) -> int:
    """How far, in pixels, a pixel of the result sees; of square kernels, and of any weights.

    The gradient is followed through a copy with weights that are all positive, so that no
    activation is shut and nothing cancels. Channel attention is left out: see `fixed_attention`.
    """
    probe = copy.deepcopy(network).cpu().double().eval().requires_grad_(False)
    for module in probe.modules():
        if isinstance(module, SpectralWeight):
            weight = module.weight_orig
            module.shared = torch.full_like(weight, weight.shape[module.dim] / weight.numel())
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.constant_(module.weight, module.out_channels / module.weight.numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, ChannelAttention):
            module.mean = torch.zeros(1, module.c1.body[0].in_channels, 1, 1, dtype=torch.double)
    length = 32 * MULTIPLE
    while True:
        strip = torch.ones(1, 3, 2 * MULTIPLE, length, dtype=torch.double, requires_grad=True)
        middle = length // 2
        with torch.enable_grad():
            result = _run(probe, strip)[..., middle : middle + MULTIPLE].sum()
            (gradient,) = torch.autograd.grad(result, strip)
        seen = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
        first, last = int(seen[0]), int(seen[-1])
        if first > 0 and last < length - 1:
            return max(middle - first, last - (middle + MULTIPLE - 1))
        length *= 2


class _Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and their most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _freed(self, size: int) -> None:
        self.now -= size


def bytes_per_pixel(network: nn.Module, side: int = 512) -> float:
    """Of the tensors that live at once at the peak of a forward pass; nothing is computed."""
    shadow = copy.deepcopy(network).to("meta").eval()
    for module in shadow.modules():
        if isinstance(module, SpectralWeight):
            module.shared = module.weight_orig  # normalised elsewhere, in no memory to speak of
    with torch.no_grad(), _Peak() as peak:
        _run(shadow, torch.empty(1, 3, side, side, device="meta"))
    return peak.most / side**2


Function = Callable[[Tensor, int, int], Tensor]
"""function(part (1, 3, h, w) in [0, 1], top, left) -> the same shape; (top, left): its place."""


class Tiler:
    """A network on whole photographs, by tiles: (H, W, 3) integers in, the same out.

    side: of what a tile puts out, in pixels; None: as much as the free memory allows at each image,
    the whole image at best. Out of memory, on the CPU or on a GPU, an image is begun again with
    tiles half as wide, and those that follow with them.
    """

    def __init__(self, network: nn.Module, device: torch.device, side: int | None = None) -> None:
        self.network, self.device, self.side = network, device, side

    @cached_property
    def margin(self) -> int:
        return receptive_radius(self.network)

    @cached_property
    def cost(self) -> float:
        return bytes_per_pixel(self.network)

    def __call__(
        self,
        image: np.ndarray,
        function: Function,
        dtype: np.dtype | type | None = None,
        progress: Callable[[int], object] = lambda pixels: None,
    ) -> np.ndarray:
        """function's result for the image (H, W, 3) uint8 or uint16, as dtype (None: the image's).

        progress: told the pixels of each tile that is done; a negative number takes them back.
        UserError if there is too little memory for the smallest tile.
        """
        side = self.side or self._side_for(image.shape[:2])
        while True:
            done = 0
            try:
                result = np.empty(image.shape, dtype or image.dtype)
                margin = self.margin if side < max(image.shape[:2]) else 0
                tiles = list(cut(image.shape[:2], side, margin))
                with torch.no_grad(), self._statistics(image, len(tiles)):
                    for tile in tiles:
                        result[tile.inner] = self._one(image, tile, function, result.dtype)
                        pixels = math.prod(s.stop - s.start for s in tile.inner)
                        progress(pixels)
                        done += pixels
                        if self.device.type == "cpu":
                            give_pages_back()
                return result
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            progress(-done)
            side = min(side, max(image.shape[:2])) // 2
            if side < LEAST_SIDE:
                raise UserError(
                    f"out of memory with tiles of {2 * side} pixels; close other programs, or "
                    "raise the limit of this one"
                )
            self.side = side
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _one(self, image: np.ndarray, tile: Tile, function: Function, dtype: np.dtype) -> Any:
        part = integer_to_float(image[tile.outer])[None].to(self.device)
        made = function(part, tile.outer[0].start, tile.outer[1].start)[0]
        return float_to_integer(made[(slice(None), *tile.crop)], dtype)

    def _side_for(self, size: tuple[int, int]) -> int:
        most = MOST_ON_CPU if self.device.type == "cpu" else MOST_ON_GPU
        pixels = min(SHARE * free_memory(self.device), most) / self.cost
        if math.prod(size) <= pixels:
            return max(size)
        return max(int(pixels**0.5) - 2 * self.margin, LEAST_SIDE)

    def _statistics(self, image: np.ndarray, tiles: int) -> Any:
        if isinstance(self.network, RIDNet) and tiles > 1:
            return fixed_attention(self.network, image, self.device, self.margin)
        return nullcontext()


@contextmanager
def fixed_attention(
    network: RIDNet, image: np.ndarray, device: torch.device, margin: int
) -> Iterator[None]:
    """RIDNet's channel attention sees, in the block, the means of the whole image (H, W, 3).

    Exactly where it has at most PATCHES_A_SIDE patches of PATCH pixels a side, margins aside. Of a
    larger one those of as many patches, evenly spread: all of it would cost as much as three more
    passes, since each of the four attentions needs the one before. Measured on photographs of 1.2
    megapixels with noise of sigma 15 (shipped weights): PSNR changes by 0.003 dB at most.
    """
    rows, columns = (_spread(n, margin) for n in image.shape[:2])
    patches = [Tile(*zip(y, x, strict=True)) for y in rows for x in columns]
    exact = max(image.shape[:2]) <= PATCH * PATCHES_A_SIDE
    blocks = network.b1, network.b2, network.b3, network.b4
    maps = []
    for patch in patches:
        part = integer_to_float(image[patch.outer])[None].to(device)
        maps.append(F.relu(network.head(part)))
    try:
        for number, block in enumerate(blocks):
            total, count = 0, 0
            used = -(-margin * (1 + number) // len(blocks))  # of the margin, up to here
            for i, patch in enumerate(patches):
                maps[i] = block.r3(block.r2(block.r1(maps[i])))
                inner = maps[i][(..., *(patch.crop if exact else _valid(patch, image.shape, used)))]
                total = total + inner.sum((2, 3), keepdim=True, dtype=torch.float64)
                count += inner.shape[2] * inner.shape[3]
            block.ca.mean = (total / count).to(maps[0].dtype)
            maps = [block.ca(x) for x in maps]
        del maps
        yield
    finally:
        for block in blocks:
            block.ca.mean = None


def _valid(patch: Tile, size: Sequence[int], margin: int) -> tuple[slice, ...]:
    """What of the patch's maps does not feel yet where it was cut."""
    return tuple(
        slice(
            margin if outer.start else 0,
            outer.stop - outer.start - (margin if outer.stop < length else 0),
        )
        for outer, length in zip(patch.outer, size, strict=False)
    )


def _spread(length: int, margin: int) -> list[tuple[slice, slice, slice]]:
    if length <= PATCH * PATCHES_A_SIDE:
        return _intervals(length, PATCH, margin)
    result = []
    for i in range(PATCHES_A_SIDE):
        start = round(i * (length - PATCH) / (PATCHES_A_SIDE - 1))
        first, last = max(start - margin, 0), min(start + PATCH + margin, length)
        crop = slice(start - first, start - first + PATCH)
        result.append((slice(start, start + PATCH), slice(first, last), crop))
    return result
