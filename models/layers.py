"""Building blocks of encoder and generator: spectral norm, CIN, SFT (docs/method.md 1).

Symbols: B batch, C channels of the feature map that is modulated, d dimension of the embedding z.
Module and parameter names give the official state-dict keys; do not rename them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.spectral_norm import converge_spectral_norm as converge_spectral_norm
from models.spectral_norm import shared_spectral_norm as shared_spectral_norm
from models.spectral_weight import SpectralWeight, WeightBank

SLOPE = 0.01  # of every LeakyReLU
AT_ONCE = 2**17  # pixels of the SFT layers' maps, an image, that are computed together

NoiseSource = Callable[[tuple[int, int, int, int], torch.device], Tensor]
"""noise(shape (B, 1, H, W), device) -> one SFT layer's noise map."""


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def leaky_relu_(x: Tensor) -> Tensor:
    """In place: half the memory that is kept for the gradient."""
    return F.leaky_relu_(x, SLOPE)


class CompilableBlock(nn.Module):
    """A block that a network repeats: what is worth compiling, once a size and not once a block."""


def compile_blocks(*networks: nn.Module) -> None:
    """torch.compile the repeated blocks of the networks, in place; copies of them stay plain."""
    # Or no graph that a compiled block is in could be walked with retain_graph.
    torch._functorch.config.donated_buffer = False
    for network in networks:
        for module in network.modules():
            if isinstance(module, CompilableBlock):
                module.compile()


class SNConv2d(nn.Module):
    """Convolution without bias, spectrally normalised. 3x3 and 1x1 keep the size; 4x4 halves it."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.stride = 2 if kernel == 4 else 1
        self.padding = {1: 0, 3: 1, 4: 1}[kernel]
        self.conv2d = SpectralWeight((c_out, c_in, kernel, kernel))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv2d(), stride=self.stride, padding=self.padding)


class SNConvTranspose2d(nn.Module):
    """4x4 transposed convolution, stride 2, no bias, spectrally normalised: doubles the size."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.tconv2d = SpectralWeight((c_in, c_out, 4, 4), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.tconv2d(), stride=2, padding=1)


class SNLinear(nn.Module):
    """Linear layer without bias, spectrally normalised."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = SpectralWeight((c_out, c_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.linear())


Affine = tuple[Tensor, Tensor]
"""Factor and offset (B, C) of an instance norm, or factor (B, C, 1, 1) and offset (B, C, H, W)."""


def instance_norm(x: Tensor, affine: Affine) -> Tensor:
    """IN(x) * factor + offset of x (B, C, H, W), in one operation."""
    factor, offset = (a.reshape(-1) for a in affine)
    flat = x.reshape(1, -1, *x.shape[2:])
    return F.batch_norm(flat, None, None, factor, offset, training=True).view_as(x)


def shared_affine(norms: Iterable[nn.InstanceNorm2d], batch: int) -> list[Affine]:
    """What `instance_norm` takes, of norms of one width whose parameters serve every image."""
    weights = [p for norm in norms for p in (norm.weight, norm.bias)]
    each = torch.stack(weights)[:, None].expand(-1, batch, -1).contiguous().unbind()
    return list(zip(each[::2], each[1::2], strict=True))


class NormActConv(nn.Module):
    """Affine instance norm, LeakyReLU, 3x3 convolution: the end of an embedding head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=True)
        self.conv2d = SpectralWeight((channels, channels, 3, 3))

    def forward(self, x: Tensor, affine: Affine) -> Tensor:
        return F.conv2d(leaky_relu(instance_norm(x, affine)), self.conv2d(), padding=1)


def modulation_mlp(c_in: int, c_out: int, embed_dim: int) -> nn.ModuleList:
    """mlp(c_in -> c_out): two 1x1 convolutions with a LeakyReLU between, applied by a bank."""
    hidden = (embed_dim + c_out) // 4
    return nn.ModuleList([SNConv2d(c_in, hidden, 1), SNConv2d(hidden, c_out, 1)])


def layer_bank(mlps: Iterable[nn.ModuleList], layer: int) -> WeightBank:
    return WeightBank(mlp[layer].conv2d for mlp in mlps)


def per_image(first: Tensor, z: Tensor) -> Tensor:
    """The first layers of n mlps, (n, r, d), of images that are constant: z (B, d) -> (n, B, r)."""
    n, r, _ = first.shape
    return F.linear(z, first.reshape(n * r, -1)).view(-1, n, r).transpose(0, 1)


def second_layers(hidden: Tensor, second: Tensor) -> Tensor:
    """The rest of n mlps, second (n, C, r): hidden (n, B, r) -> (n, B, C)."""
    return torch.bmm(leaky_relu(hidden), second.mT)  # Eq. 1.2


class ConditionalInstanceNorm(nn.Module):
    """CIN(x, z) = IN(x) (1 + gamma(z)) + beta(z); gamma and beta come from `CINBank`."""

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.convs_gamma = modulation_mlp(embed_dim, channels, embed_dim)
        self.convs_beta = modulation_mlp(embed_dim, channels, embed_dim)

    def forward(self, x: Tensor, affine: Affine) -> Tensor:
        """x: (B, C, H, W); affine: (1 + gamma, beta)."""
        return instance_norm(x, affine)  # Eq. 1.3


class CINBank:
    """What modulates n conditional instance norms of one width, for all of them at once.

    z is constant over an image, so are gamma and beta: once an image, not once a pixel.
    """

    def __init__(self, norms: Iterable[ConditionalInstanceNorm]) -> None:
        norms = list(norms)
        mlps = [norm.convs_gamma for norm in norms] + [norm.convs_beta for norm in norms]
        self.first, self.second = layer_bank(mlps, 0), layer_bank(mlps, 1)

    def __call__(self, z: Tensor) -> list[Affine]:
        """z: (B, d)."""
        both = second_layers(per_image(self.first(), z), self.second())  # (2 n, B, C)
        gamma, beta = both.to(z.dtype).chunk(2)  # a norm's affine part is not in bf16
        return list(zip((1 + gamma).unbind(), beta.unbind(), strict=True))


class SFT(nn.Module):
    """SFT(x, z) = x (1 + gamma(z)) + beta([z; n]), n ~ N(0, 1) for every pixel.

    gamma and beta come from `SFTBank`.
    """

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.convs_gamma = modulation_mlp(embed_dim, channels, embed_dim)
        self.convs_beta = modulation_mlp(embed_dim + 1, channels, embed_dim)

    def forward(self, x: Tensor, affine: Affine) -> Tensor:
        """x: (B, C, H, W); affine: (1 + gamma, beta)."""
        factor, offset = affine
        return torch.addcmul(offset, x, factor)  # Eq. 1.4


class SFTBank:
    """What modulates n SFT layers of one width, for all of them at once.

    beta's first layer is linear and z is constant over the image, so it splits into a vector an
    image and one outer product with the noise map: W [z; n] = W_z z + w_n n. Both together are a
    product of two columns with the rows n and 1.
    """

    def __init__(self, layers: Iterable[SFT]) -> None:
        layers = list(layers)
        gammas, betas = (
            [getattr(m, f"convs_{name}") for m in layers] for name in ("gamma", "beta")
        )
        self.first_gamma, self.first_beta = layer_bank(gammas, 0), layer_bank(betas, 0)
        self.second = layer_bank([*gammas, *betas], 1)

    def __call__(self, z: Tensor, runs: Sequence[list[Tensor]]) -> list[Iterator[Affine]]:
        """z: (B, d); runs: noise maps (B, 1, H, W), a list for each run of layers."""
        second_gamma, second_beta = self.second().chunk(2)
        gamma = second_layers(per_image(self.first_gamma(), z), second_gamma)
        first = self.first_beta()  # (n, r, d + 1)
        hidden = per_image(first[..., :-1], z)  # (n, B, r)
        columns = torch.stack([first[:, None, :, -1].expand_as(hidden), hidden], dim=-1)
        counts = [len(run) for run in runs]
        factors = (1 + gamma)[..., None, None].split(counts)
        parts = zip(runs, factors, columns.split(counts), second_beta.split(counts), strict=True)
        return [self._run(*part) for part in parts]

    def _run(
        self, maps: list[Tensor], factors: Tensor, columns: Tensor, second: Tensor
    ) -> Iterator[Affine]:
        """Of layers that follow one another; takes the maps out of their list."""
        height, width = maps[0].shape[2:]
        most = max(1, AT_ONCE // (height * width))
        for i in range(0, len(columns), most):
            some, maps[:most] = maps[:most], []
            offsets = self._offsets(some, columns[i : i + most], second[i : i + most])
            yield from zip(factors[i : i + most].unbind(), offsets, strict=True)

    def _offsets(self, maps: list[Tensor], columns: Tensor, second: Tensor) -> Iterable[Tensor]:
        """beta of k layers (B, C, H, W) each: columns (k, B, r, 2), second (k, C, r)."""
        if len(maps) == 1:  # of a large image: on a CPU, its products would take more memory
            slope, constant = columns[0, ..., None, None].unbind(2)  # (B, r, 1, 1)
            hidden = torch.addcmul(constant, maps[0].to(columns.dtype), slope)
            return [F.conv2d(leaky_relu_(hidden), second[0, ..., None, None])]
        n = torch.stack(maps).flatten(3).to(columns.dtype)  # (k, B, 1, H W)
        hidden = columns @ F.pad(n, (0, 0, 0, 1), value=1.0)  # (k, B, r, H W), Eq. 1.5
        beta = second[:, None] @ leaky_relu_(hidden)
        return beta.unflatten(3, maps[0].shape[2:]).unbind()
