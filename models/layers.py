"""Building blocks of encoder and generator: spectral norm, CIN, SFT (docs/method.md 1).

Symbols: B batch, C channels of the feature map that is modulated, d dimension of the embedding z.
Module and parameter names give the official state-dict keys; do not rename them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01  # of every LeakyReLU

NoiseSource = Callable[[tuple[int, int, int, int], torch.device], Tensor]
"""noise(shape (B, 1, H, W), device) -> one SFT layer's noise map."""


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


class SpectralWeight(nn.Module):
    """A weight divided by its largest singular value (Miyato et al. 2018, arXiv:1802.05957).

    Calling it returns the normalised weight. In training mode each call first does one power
    iteration, unless `shared_spectral_norm` holds a weight for it.

    dim: the axis of `shape` that becomes the rows of the matrix (1 for transposed convolutions).
    """

    def __init__(self, shape: tuple[int, ...], dim: int = 0) -> None:
        super().__init__()
        self.dim = dim
        weight = torch.empty(shape)
        nn.init.kaiming_uniform_(weight, a=5**0.5)  # PyTorch's default for convolutions and linears
        self.weight_orig = nn.Parameter(weight)
        rows = shape[dim]
        self.register_buffer("weight_u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(weight.numel() // rows), dim=0))
        self.shared: Tensor | None = None
        converge_spectral_norm(self, power_iterations=15)  # as torch's parametrisation starts

    def as_matrix(self) -> Tensor:
        return self.weight_orig.transpose(0, self.dim).flatten(1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        shape = self.weight_orig.transpose(0, self.dim).shape
        return matrix.view(shape).transpose(0, self.dim)

    def forward(self) -> Tensor:
        if self.shared is not None:
            return self.shared
        return _normalised_weights([self], power_iterations=int(self.training))[0]


def _normalised_weights(
    weights: list[SpectralWeight], power_iterations: int, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """The normalised weights of layers of one matrix shape, in one batch of small products.

    Computed in float32 and then converted to dtype; None: to autocast's, or left where it is off.
    """
    device = weights[0].weight_orig.device.type
    if dtype is None and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        normalised = _normalised_matrices(weights, power_iterations)
    parts = normalised.to(dtype or normalised.dtype).unbind()
    return [w.from_matrix(matrix) for w, matrix in zip(weights, parts, strict=True)]


def _normalised_matrices(weights: list[SpectralWeight], power_iterations: int) -> Tensor:
    matrices = torch.stack([w.as_matrix() for w in weights])  # (n, rows, columns)
    u = torch.stack([w.weight_u for w in weights]).unsqueeze(-1)
    v = torch.stack([w.weight_v for w in weights]).unsqueeze(-1)
    if power_iterations:
        with torch.no_grad():
            for _ in range(power_iterations):
                v = F.normalize(matrices.mT @ u, dim=1, eps=1e-12)
                u = F.normalize(matrices @ v, dim=1, eps=1e-12)  # Eq. 1.1
            for w, u_new, v_new in zip(weights, u, v, strict=True):
                w.weight_u.copy_(u_new.squeeze(-1))
                w.weight_v.copy_(v_new.squeeze(-1))
    sigma = u.mT @ (matrices @ v)  # (n, 1, 1); u and v are constants here, sigma is not
    return matrices / sigma  # Eq. 1.1


def _alike(networks: Iterable[nn.Module]) -> list[list[SpectralWeight]]:
    """The spectral weights, in groups that can be normalised in one batch.

    Never of two networks: a batch ties their weights together in autograd's eyes, and a gradient
    for one network's weights would walk the other's graph for contributions that are all zero.
    """
    groups: dict[tuple, list[SpectralWeight]] = defaultdict(list)
    for i, network in enumerate(networks):
        for module in network.modules():
            if isinstance(module, SpectralWeight):
                shape, trained = module.as_matrix().shape, module.weight_orig.requires_grad
                groups[i, shape, module.training, trained].append(module)
    return list(groups.values())


@contextmanager
def shared_spectral_norm(*networks: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Normalise every weight once; all forwards inside the block share the result.

    In training mode that is one power iteration a step however many forwards the step has. Leave
    the block before the optimisers' next use of the weights: they are computed on entry.

    dtype: that they are converted to, once instead of at every use; None: autocast's, if it is on.
    """
    groups = _alike(networks)
    try:
        for weights in groups:
            normalised = _normalised_weights(weights, int(weights[0].training), dtype)
            for module, weight in zip(weights, normalised, strict=True):
                module.shared = weight
        yield
    finally:
        for weights in groups:
            for module in weights:
                module.shared = None


@torch.no_grad()
def converge_spectral_norm(network: nn.Module, power_iterations: int = 50) -> None:
    """Bring every u and v to the leading singular vectors, for weights that came from elsewhere."""
    for weights in _alike([network]):
        _normalised_weights(weights, power_iterations)


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


class NormActConv(nn.Module):
    """Affine instance norm, LeakyReLU, 3x3 convolution: the end of an embedding head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=True)
        self.conv2d = SpectralWeight((channels, channels, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(leaky_relu(self.norm(x)), self.conv2d(), padding=1)


def modulation_mlp(c_in: int, c_out: int, embed_dim: int) -> nn.ModuleList:
    """mlp(c_in -> c_out): two 1x1 convolutions with a LeakyReLU between, applied by its users."""
    hidden = (embed_dim + c_out) // 4
    return nn.ModuleList([SNConv2d(c_in, hidden, 1), SNConv2d(hidden, c_out, 1)])


def per_image(conv: SNConv2d, z: Tensor) -> Tensor:
    """A 1x1 convolution of an image that is constant: (B, c_in) -> (B, c_out)."""
    return F.linear(z, conv.conv2d().flatten(1))


def apply_mlp(mlp: nn.ModuleList, z: Tensor) -> Tensor:
    """z (B, d) -> (B, C, 1, 1). Once an image: z is constant over it, so is the result."""
    return per_image(mlp[1], leaky_relu(per_image(mlp[0], z)))[:, :, None, None]  # Eq. 1.2


class ConditionalInstanceNorm(nn.Module):
    """CIN(x, z) = IN(x) (1 + gamma(z)) + beta(z)."""

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.convs_gamma = modulation_mlp(embed_dim, channels, embed_dim)
        self.convs_beta = modulation_mlp(embed_dim, channels, embed_dim)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x: (B, C, H, W); z: (B, d)."""
        gamma = apply_mlp(self.convs_gamma, z)
        beta = apply_mlp(self.convs_beta, z)
        return torch.addcmul(beta, F.instance_norm(x), 1 + gamma)  # Eq. 1.3


class SFT(nn.Module):
    """SFT(x, z) = x (1 + gamma(z)) + beta([z; n]), n ~ N(0, 1) for every pixel.

    beta's first layer is linear and z is constant over the image, so it splits into a vector an
    image and one outer product with the noise map: W [z; n] = W_z z + w_n n.
    """

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.convs_gamma = modulation_mlp(embed_dim, channels, embed_dim)
        self.convs_beta = modulation_mlp(embed_dim + 1, channels, embed_dim)

    def forward(self, x: Tensor, z: Tensor, n: Tensor) -> Tensor:
        """x: (B, C, H, W); z: (B, d); n: (B, 1, H, W)."""
        gamma = apply_mlp(self.convs_gamma, z)
        weight = self.convs_beta[0].conv2d().flatten(1)  # (r, d + 1)
        per_image_part = F.linear(z, weight[:, :-1])[:, :, None, None]  # (B, r, 1, 1)
        n = n.to(per_image_part.dtype)  # or a full-size map would be float32 under autocast
        hidden = torch.addcmul(per_image_part, n, weight[:, -1:, None])  # (B, r, H, W), Eq. 1.5
        beta = self.convs_beta[1](F.leaky_relu_(hidden, SLOPE))
        return torch.addcmul(beta, x, 1 + gamma)  # Eq. 1.4
