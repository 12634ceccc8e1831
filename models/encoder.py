"""The noise encoder and discriminator: one network, two paths (docs/method.md 2).

Paper, Sec. 3.1 and 3.3.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import (
    Affine,
    CINBank,
    CompilableBlock,
    ConditionalInstanceNorm,
    NormActConv,
    SNConv2d,
    SNLinear,
    instance_norm,
    leaky_relu,
    shared_affine,
)

DEPTHS = (2, 3, 4)


class TwoPathBlock(CompilableBlock):
    """x + conv(LReLU(norm2(conv(LReLU(norm1(x)))))): convolutions shared, norms the path's own."""

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.noise_inorm1 = nn.InstanceNorm2d(channels, affine=True)
        self.gan_cin1 = ConditionalInstanceNorm(channels, embed_dim)
        self.conv1 = SNConv2d(channels, channels, 3)
        self.noise_inorm2 = nn.InstanceNorm2d(channels, affine=True)
        self.gan_cin2 = ConditionalInstanceNorm(channels, embed_dim)
        self.conv2 = SNConv2d(channels, channels, 3)

    def forward(self, x: Tensor, first: Affine, second: Affine) -> Tensor:
        """first, second: of the path's two norms."""
        h = self.conv1(leaky_relu(instance_norm(x, first)))
        h = self.conv2(leaky_relu(instance_norm(h, second)))
        return x + h  # Eq. 2.1


class EmbeddingMLP(nn.Module):
    def __init__(self, c_in: int, embed_dim: int) -> None:
        super().__init__()
        self.linear1 = SNLinear(c_in, c_in)
        self.linear2 = SNLinear(c_in, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(leaky_relu(self.linear1(x)))


class NoiseEncoder(nn.Module):
    """Noise encoder (`embed`) and conditional discriminator (`discriminate`) on a shared trunk.

    width: channels of the first stage, doubled at each of the two others (paper: 64; 9.38 M
    parameters). embed_dim: dimension d of the embedding. depths: residual blocks of the three
    stages; none: DEPTHS, the paper's.

    Images are (B, 3, H, W) in [0, 1], at least 8 pixels a side; feature maps and logit maps come
    as a list of three, at full, half and quarter resolution.
    """

    def __init__(self, width: int = 64, embed_dim: int = 128, depths: Sequence[int] = ()) -> None:
        super().__init__()
        k1, k2, k3 = width, 2 * width, 4 * width
        self.width, self.embed_dim = width, embed_dim
        self.pre_noise = SNConv2d(3, k1, 3)
        self.pre_gan = SNConv2d(6, k1, 3)
        for stage, (channels, blocks) in enumerate(
            zip((k1, k2, k3), depths or DEPTHS, strict=True), start=1
        ):
            trunk = nn.ModuleList(TwoPathBlock(channels, embed_dim) for _ in range(blocks))
            noise_head = nn.Sequential(SNConv2d(channels, channels, 1), NormActConv(channels))
            gan_head = nn.ModuleList(
                [
                    SNConv2d(channels, channels, 1),
                    ConditionalInstanceNorm(channels, embed_dim),
                    SNConv2d(channels, channels, 3),
                ]
            )
            setattr(self, f"blocks{stage}", trunk)
            setattr(self, f"post_noise{stage}", noise_head)
            setattr(self, f"post_gan{stage}", gan_head)
            setattr(self, f"conv_gan{stage}", SNConv2d(channels, 1, 1))
        self.conv_down1 = SNConv2d(k1, k2, 4)
        self.conv_down2 = SNConv2d(k2, k3, 4)
        self.mlp_noise = EmbeddingMLP(k1 + k2 + k3, embed_dim)
        self._banks = [
            CINBank(m for m in nn.ModuleList([blocks, head]).modules()
                    if isinstance(m, ConditionalInstanceNorm))
            for blocks, _, head, _, _ in self._stages()
        ]  # fmt: skip

    def embed(self, noisy: Tensor) -> tuple[list[Tensor], Tensor]:
        """noisy (B, 3, H, W) -> feature maps f_s [(B, C_s, H_s, W_s)] * 3, embedding z (B, d).

        z has unit length.
        """
        x = self.pre_noise(2 * noisy - 1)
        features = []
        for blocks, (conv1, end), _, _, down in self._stages():
            norms = [n for b in blocks for n in (b.noise_inorm1, b.noise_inorm2)]
            affine = iter(shared_affine([*norms, end.norm], len(noisy)))
            for block in blocks:
                x = block(x, next(affine), next(affine))
            features.append(end(conv1(x), next(affine)))  # Eq. 2.2
            x = down(x) if down is not None else x
        pooled = torch.cat([f.mean(dim=(2, 3)) for f in features], dim=1)
        return features, F.normalize(self.mlp_noise(pooled).float(), dim=1)  # Eq. 2.3

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Those that `embed` uses, in the order of `parameters`."""
        return [p for name, p in self.named_parameters() if "gan" not in name]

    def modulation(self, z: Tensor) -> list[list[Affine]]:
        """What `discriminate` takes of z (B, d), computed once where it is called twice."""
        return [bank(z) for bank in self._banks]

    def discriminate(
        self, clean: Tensor, noisy: Tensor, z: Tensor | list[list[Affine]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """clean, noisy (B, 3, H, W), z (B, d) -> feature maps g_s, logit maps (B, 1, H_s, W_s).

        Logits say whether `noisy` is `clean` under real noise of the kind that z embeds. z: or what
        `modulation` made of it.
        """
        x = self.pre_gan(torch.cat([2 * clean - 1, noisy - clean], dim=1))  # Eq. 2.4
        features, logits = [], []
        modulation = self.modulation(z) if isinstance(z, Tensor) else z
        for (blocks, _, (conv1, cin, conv3), to_logit, down), norms in zip(
            self._stages(), modulation, strict=True
        ):
            affine = iter(norms)
            for block in blocks:
                x = block(x, next(affine), next(affine))
            # Unlike in the embedding path, the trunk goes on from inside the head: golden.json's
            # figures hold for this only.
            x = cin(conv1(x), next(affine))  # Eq. 2.5
            g = conv3(leaky_relu(x))
            features.append(g)
            logits.append(to_logit(g))
            x = down(x) if down is not None else x
        return features, logits

    def _stages(self) -> tuple[tuple[nn.Module | None, ...], ...]:
        """Of each stage: blocks, embedding head, discriminating head, logit layer, downsampling."""
        return (
            (self.blocks1, self.post_noise1, self.post_gan1, self.conv_gan1, self.conv_down1),
            (self.blocks2, self.post_noise2, self.post_gan2, self.conv_gan2, self.conv_down2),
            (self.blocks3, self.post_noise3, self.post_gan3, self.conv_gan3, None),
        )
