"""The noise generator: a U-Net modulated by the noise embedding (docs/method.md 3).

Paper, Sec. 3.2.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from models.layers import (
    SFT,
    Affine,
    CompilableBlock,
    NoiseSource,
    SFTBank,
    SNConv2d,
    SNConvTranspose2d,
    leaky_relu_,
)
from utils.seeding import derived_seed

DEPTHS = (4, 3, 2)
BLOCK = 64  # pixels a side of what is drawn of a noise map at once, see placed_noise


def normal_noise(generator: torch.Generator | None = None) -> NoiseSource:
    """Standard normal maps, from `generator` (on the maps' device) or the global one."""

    def draw(shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    return draw


def no_noise(shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
    """Maps of zeros: what is generated is then a function of clean image and reference alone."""
    return torch.zeros(shape, device=device)


def given_noise(maps: Iterable[Tensor]) -> NoiseSource:
    """These maps, one after the other, drawn by `NoiseGenerator.noise_maps` before."""
    remaining = iter(maps)
    return lambda shape, device: next(remaining)


def per_image_noise(seeds: Sequence[int]) -> NoiseSource:
    """Standard normal maps, each image's from a generator of its own, the same on every device."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        # From pinned memory the copy is queued: the CPU draws on while a GPU computes.
        maps = torch.empty(shape, pin_memory=device.type == "cuda")
        for one, generator in zip(maps, generators, strict=True):
            one.normal_(generator=generator)
        return maps.to(device, non_blocking=True)

    return draw


def placed_noise(seeds: Sequence[int], top: int = 0, left: int = 0) -> NoiseSource:
    """Standard normal maps that are a function of an image's seed, the layer and the position.

    For the part of the images whose first pixel is (top, left), both divisible by 4: it gets what
    the whole images get there, whatever else is computed. The same on every device.
    """
    layers = iter(range(2**31))
    full = 0

    def draw(shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
        nonlocal full
        layer, full = next(layers), full or shape[2]  # the first map is of full size
        y0, x0 = top * shape[2] // full, left * shape[2] // full
        maps = torch.empty(shape)
        for one, seed in zip(maps, seeds, strict=True):
            _fill(one[0], y0, x0, seed, layer)
        return maps.to(device)

    return draw


def _fill(part: Tensor, y0: int, x0: int, seed: int, layer: int) -> None:
    """The part (h, w) from (y0, x0) on of an endless map that is drawn in blocks."""
    height, width = part.shape
    generator = torch.Generator()
    block = torch.empty(BLOCK, BLOCK)
    for by in range(y0 // BLOCK, -(-(y0 + height) // BLOCK)):
        for bx in range(x0 // BLOCK, -(-(x0 + width) // BLOCK)):
            generator.manual_seed(derived_seed(seed, layer, by, bx))
            block.normal_(generator=generator)
            y, x = by * BLOCK - y0, bx * BLOCK - x0  # of the block's first pixel in the part
            rows, columns = slice(max(y, 0), y + BLOCK), slice(max(x, 0), x + BLOCK)
            target = part[rows, columns]
            first = max(-y, 0), max(-x, 0)
            target.copy_(block[first[0] :, first[1] :][: target.shape[0], : target.shape[1]])


class SFTBlock(CompilableBlock):
    """x + conv(LReLU(SFT2(conv(LReLU(SFT1(x)))))), each SFT with a noise map of its own."""

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.sft1 = SFT(channels, embed_dim)
        self.conv1 = SNConv2d(channels, channels, 3)
        self.sft2 = SFT(channels, embed_dim)
        self.conv2 = SNConv2d(channels, channels, 3)

    def forward(self, x: Tensor, first: Affine, second: Affine) -> Tensor:
        """x: (B, C, H, W); first, second: of the two SFT layers."""
        h = self.conv1(leaky_relu_(self.sft1(x, first)))
        h = self.sft2(h, second)
        return x + self.conv2(leaky_relu_(h))  # Eq. 3.1


class NoiseGenerator(nn.Module):
    """Clean image and noise embedding -> noise residual; noisy = clean + residual.

    width: channels of the first stage, doubled at each of the two others (paper: 64; 7.38 M
    parameters). embed_dim: dimension d of the embedding. depths: residual blocks of the three
    stages, the first two also upwards; none: DEPTHS, the paper's.
    """

    def __init__(self, width: int = 64, embed_dim: int = 128, depths: Sequence[int] = ()) -> None:
        super().__init__()
        k1, k2, k3 = width, 2 * width, 4 * width
        n1, n2, n3 = self.depths = depths or DEPTHS
        self.width, self.embed_dim = width, embed_dim

        def blocks(count: int, channels: int) -> nn.ModuleList:
            return nn.ModuleList(SFTBlock(channels, embed_dim) for _ in range(count))

        self.conv_first = SNConv2d(3, k1, 3)
        self.blocks1 = blocks(n1, k1)
        self.conv_down1 = SNConv2d(k1, k2, 4)
        self.blocks2 = blocks(n2, k2)
        self.conv_down2 = SNConv2d(k2, k3, 4)
        self.blocks3 = blocks(n3, k3)
        self.conv_up2 = SNConvTranspose2d(k3, k2)
        self.conv_skip2 = SNConv2d(2 * k2, k2, 3)
        self.blocks2_ = blocks(n2, k2)
        self.conv_up1 = SNConvTranspose2d(k2, k1)
        self.conv_skip1 = SNConv2d(2 * k1, k1, 3)
        self.blocks1_ = blocks(n1, k1)
        self.conv_last = SNConv2d(k1, 3, 1)
        stages = (self.blocks1, self.blocks1_), (self.blocks2, self.blocks2_), (self.blocks3,)
        self._banks = [
            SFTBank(sft for run in stage for block in run for sft in (block.sft1, block.sft2))
            for stage in stages
        ]

    def forward(self, clean: Tensor, z: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """clean (B, 3, H, W) in [0, 1], H and W divisible by 4; z (B, d) -> residual (B, 3, H, W).

        noise: callable(shape (B, 1, H, W), device) -> noise map of one SFT layer; None draws
        standard normals. These maps are the only source of randomness.
        """
        if clean.shape[2] % 4 or clean.shape[3] % 4:
            raise ValueError(f"height and width must divide by 4, got {tuple(clean.shape)}")
        affine = self.modulation(clean, z, noise or normal_noise())

        def run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
            own = affine.pop(0)
            for block in blocks:
                x = block(x, next(own), next(own))
            return x

        def joined(up: Tensor, skip: Tensor) -> Tensor:
            return leaky_relu_(torch.cat([up, skip], dim=1))

        x1 = run(self.blocks1, self.conv_first(2 * clean - 1))  # Eq. 3.2
        x2 = run(self.blocks2, self.conv_down1(x1))
        x3 = run(self.blocks3, self.conv_down2(x2))
        # Nested, and in place: of a large image, what has a name here would be the peak of memory.
        y2 = run(self.blocks2_, self.conv_skip2(joined(self.conv_up2(x3), x2)))
        y1 = run(self.blocks1_, self.conv_skip1(joined(self.conv_up1(y2), x1)))
        return self.conv_last(leaky_relu_(y1))

    def modulation(self, clean: Tensor, z: Tensor, noise: NoiseSource) -> list[Iterator[Affine]]:
        """Of every SFT layer, by the runs of layers in the order in which they are applied."""
        maps = self.noise_maps(clean, noise)
        runs = []
        for blocks in (self.blocks1, self.blocks2, self.blocks3, self.blocks2_, self.blocks1_):
            runs.append(maps[: 2 * len(blocks)])
            maps = maps[2 * len(blocks) :]
        down1, down2, middle, up2, up1 = runs
        first, second, third = self._banks
        (down1, up1), (down2, up2) = first(z, [down1, up1]), second(z, [down2, up2])
        return [down1, down2, *third(z, [middle]), up2, up1]

    @torch.compiler.disable  # the noise source may hold a generator, which cannot be traced
    def noise_maps(self, clean: Tensor, noise: NoiseSource) -> list[Tensor]:
        """A map for each SFT layer, in the layers' order and at their resolutions."""
        n1, n2, n3 = (2 * blocks for blocks in self.depths)
        batch, _, height, width = clean.shape
        return [
            noise((batch, 1, height // down, width // down), clean.device)
            for layers, down in ((n1, 1), (n2, 2), (n3, 4), (n2, 2), (n1, 1))
            for _ in range(layers)
        ]
