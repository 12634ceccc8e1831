"""Denoisers to train on generated noise: RIDNet (the paper's choice), DnCNN and a residual U-Net.

All share one form, `denoised = denoiser(noisy)`: noisy (B, 3, H, W) in [0, 1], any H and W from 1
up; the result has the same shape and is *not* clipped. Each predicts a residual that is added to
its input (DnCNN: the noise, subtracted), so a network whose last layer is zero is the identity.
Equations: docs/method.md 5.
"""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.checkpoint import load_state, load_weights
from utils.errors import UserError
from utils.padding import pad_to_multiple


def build_denoiser(name: str, width: int = 64) -> nn.Module:
    """The denoiser called `name`: "ridnet", "dncnn" or "unet".

    width: feature channels at full resolution; 64 is the published size of the first two, with
    1.50 M (ridnet), 0.67 M (dncnn) and 9.94 M (unet) parameters.

    Raises UserError for any other name.
    """
    if name == "ridnet":
        return RIDNet(width)
    if name == "dncnn":
        return DnCNN(width)
    if name == "unet":
        return UNet(width)
    raise UserError(f"denoiser {name!r}: expected ridnet, dncnn or unet; choose one of the three")


def denoiser_from_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The denoiser of a `*_g.pt` file, in evaluation mode; kind and width are read off its keys."""
    state = load_state(path)
    for name, first in (
        ("ridnet", "head.weight"),
        ("dncnn", "body.0.weight"),
        ("unet", "enc.0.0.weight"),
    ):
        if first in state:
            denoiser = build_denoiser(name, width=state[first].shape[0])
            load_weights(denoiser, path)
            return denoiser.eval().requires_grad_(False).to(device)
    raise UserError(f"{path}: not the weights of ridnet, dncnn or unet; which file is it?")


def conv3(c_in: int, c_out: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=dilation, dilation=dilation)


# ---------------------------------------------------------------------------------------- RIDNet


class MergeRun(nn.Module):
    """Two dilated branches side by side, merged and added to the input."""

    def __init__(self, c: int) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.body1 = nn.Sequential(conv3(c, c), relu, conv3(c, c, dilation=2), relu)
        self.body2 = nn.Sequential(conv3(c, c, dilation=3), relu, conv3(c, c, dilation=4), relu)
        self.body3 = nn.Sequential(conv3(2 * c, c), relu)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body3(torch.cat([self.body1(x), self.body2(x)], dim=1))


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Conv1(nn.Module):
    # One layer below its own name, because the published keys say `c1.body.0`.
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c_in, c_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class ChannelAttention(nn.Module):
    def __init__(self, c: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(4, c // reduction)  # a single ReLU channel may be dead from the start
        self.c1 = Conv1(c, squeezed)
        self.c2 = Conv1(squeezed, c)
        self.mean: Tensor | None = None  # (1, C, 1, 1) of the whole image, where x is a part of it

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True) if self.mean is None else self.mean
        scale = self.c2(F.relu(self.c1(mean)))
        return x * torch.sigmoid(scale)


class EAM(nn.Module):
    """Enhancement attention module, RIDNet's building block."""

    def __init__(self, c: int) -> None:
        super().__init__()
        relu = nn.ReLU()
        self.r1 = MergeRun(c)
        self.r2 = Residual(conv3(c, c), relu, conv3(c, c))
        self.r3 = Residual(conv3(c, c), relu, conv3(c, c), relu, nn.Conv2d(c, c, 1))
        self.ca = ChannelAttention(c)

    def forward(self, x: Tensor) -> Tensor:
        return self.ca(self.r3(self.r2(self.r1(x))))  # Eq. 5.3


class RIDNet(nn.Module):
    """RIDNet, Anwar & Barnes, ICCV 2019 (DOI 10.1109/ICCV.2019.00325), as NoiseTransfer uses it.

    State-dict keys are the published ones. Channel attention looks at the whole image: for tiles of
    one, models/tiles.py has its means.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.head = conv3(3, width)
        self.b1, self.b2, self.b3, self.b4 = (EAM(width) for _ in range(4))
        self.tail = conv3(width, 3)

    def forward(self, noisy: Tensor) -> Tensor:
        head = self.head(noisy)
        # The long skip carries the head from before its ReLU.
        features = self.b4(self.b3(self.b2(self.b1(F.relu(head)))))
        return noisy + self.tail(features + head)  # Eq. 5.2


# ----------------------------------------------------------------------------------------- DnCNN


class DnCNN(nn.Module):
    """CDnCNN-B, the blind colour model of Zhang et al., TIP 2017 (DOI 10.1109/TIP.2017.2662206).

    `depth` 3x3 convolutions: conv ReLU, (depth - 2) x conv BN ReLU, conv; the result is the noise.
    He initialisation as in the paper. Convolutions before a BN have no bias, which BN
    would cancel.
    """

    def __init__(self, width: int = 64, depth: int = 20) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Conv2d(width, 3, 3, padding=1))
        self.body = nn.Sequential(*layers)
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, noisy: Tensor) -> Tensor:
        return noisy - self.body(noisy)


# ------------------------------------------------------------------------------------------ UNet


def conv_block(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        conv3(c_in, c_out), nn.LeakyReLU(0.2), conv3(c_out, c_out), nn.LeakyReLU(0.2)
    )


class UNet(nn.Module):
    """Plain U-Net (Ronneberger et al., DOI 10.1007/978-3-319-24574-4_28) on a global residual.

    Four scales of width, 2, 4, 8 x width channels, two 3x3 convolutions each and no normalisation,
    which would tie the result to the strength of the noise. Scales are joined by 2x2 stride 2
    convolutions, plain down and transposed up: kernel = stride leaves no checkerboard.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        c = [width, 2 * width, 4 * width, 8 * width]
        self.enc = nn.ModuleList(conv_block(a, b) for a, b in zip([3, *c[1:]], c, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in pairwise(c))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(c))
        self.dec = nn.ModuleList(conv_block(2 * a, a) for a in c[:-1])
        self.tail = conv3(width, 3)

    def forward(self, noisy: Tensor) -> Tensor:
        h, w = noisy.shape[-2:]
        x = pad_to_multiple(noisy, 8)
        skips = []
        for enc, down in zip(self.enc, self.down, strict=False):
            x = enc(x)
            skips.append(x)
            x = down(x)
        x = self.enc[-1](x)
        for up, dec in zip(reversed(self.up), reversed(self.dec), strict=True):
            x = dec(torch.cat([up(x), skips.pop()], dim=1))
        return noisy + self.tail(x)[..., :h, :w]
