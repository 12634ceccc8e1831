"""The method written the plain way: the outside truth for tests, the baseline for benchmarks.

Every operation is PyTorch's own and stands where the paper has it: `torch.nn.utils.spectral_norm`
on each layer, the embedding repeated over the image before its 1x1 convolutions, one forward and
backward for the generator, then another forward for the encoder. Module names give the official
state-dict keys. Clarity over speed; nothing here is imported from the code under test.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

NoiseSource = Callable[[tuple[int, int, int, int], torch.device], Tensor]


def standard_normal(shape: tuple[int, int, int, int], device: torch.device) -> Tensor:
    return torch.randn(shape, device=device)


# ------------------------------------------------------------------------------- building blocks


class Conv(nn.Module):
    """Spectrally normalised convolution without bias."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv2d = spectral_norm(nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2d(x)


class Up(nn.Module):
    """Spectrally normalised 4x4 stride 2 transposed convolution without bias."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.tconv2d = spectral_norm(nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.tconv2d(x)


class Linear(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = spectral_norm(nn.Linear(c_in, c_out, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class PixelMlp(nn.Sequential):
    """1x1 conv, LeakyReLU, 1x1 conv. Keys `0` and `1`: the activation is no entry of its own."""

    def __init__(self, c_in: int, hidden: int, c_out: int) -> None:
        super().__init__(Conv(c_in, hidden, 1), Conv(hidden, c_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self[1](F.leaky_relu(self[0](x)))


def over_image(z: Tensor, x: Tensor) -> Tensor:
    """z (B, d) repeated over the pixels of x (B, C, H, W): (B, d, H, W)."""
    return z[:, :, None, None].expand(-1, -1, *x.shape[-2:])


class CIN(nn.Module):
    """Conditional instance norm: IN(x) (1 + gamma(z)) + beta(z)."""

    def __init__(self, c: int, d: int) -> None:
        super().__init__()
        self.convs_gamma = PixelMlp(d, (d + c) // 4, c)
        self.convs_beta = PixelMlp(d, (d + c) // 4, c)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        zs = over_image(z, x)
        return F.instance_norm(x) * (1 + self.convs_gamma(zs)) + self.convs_beta(zs)


class SFT(nn.Module):
    """x (1 + gamma(z)) + beta([z; n]), n one fresh noise map."""

    def __init__(self, c: int, d: int) -> None:
        super().__init__()
        self.convs_gamma = PixelMlp(d, (d + c) // 4, c)
        self.convs_beta = PixelMlp(d + 1, (d + c) // 4, c)

    def forward(self, x: Tensor, z: Tensor, noise: NoiseSource) -> Tensor:
        b, _, h, w = x.shape
        zs = over_image(z, x)
        zn = torch.cat([zs, noise((b, 1, h, w), x.device)], dim=1)
        return x * (1 + self.convs_gamma(zs)) + self.convs_beta(zn)


# ----------------------------------------------------------------------------------- the encoder


class EncoderBlock(nn.Module):
    def __init__(self, c: int, d: int) -> None:
        super().__init__()
        self.noise_inorm1 = nn.InstanceNorm2d(c, affine=True)
        self.gan_cin1 = CIN(c, d)
        self.conv1 = Conv(c, c, 3)
        self.noise_inorm2 = nn.InstanceNorm2d(c, affine=True)
        self.gan_cin2 = CIN(c, d)
        self.conv2 = Conv(c, c, 3)

    def embed(self, x: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(self.noise_inorm1(x)))
        return x + self.conv2(F.leaky_relu(self.noise_inorm2(h)))

    def discriminate(self, x: Tensor, z: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(self.gan_cin1(x, z)))
        return x + self.conv2(F.leaky_relu(self.gan_cin2(h, z)))


class NormActConv(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(c, affine=True)
        self.conv2d = spectral_norm(nn.Conv2d(c, c, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2d(F.leaky_relu(self.norm(x)))


class EmbeddingMlp(nn.Module):
    def __init__(self, c_in: int, d: int) -> None:
        super().__init__()
        self.linear1 = Linear(c_in, c_in)
        self.linear2 = Linear(c_in, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.leaky_relu(self.linear1(x)))


class OracleEncoder(nn.Module):
    """Noise encoder and discriminator on one trunk (method, section 2)."""

    def __init__(self, width: int = 64, embed_dim: int = 128) -> None:
        super().__init__()
        d, widths = embed_dim, [width, 2 * width, 4 * width]
        self.pre_noise = Conv(3, width, 3)
        self.pre_gan = Conv(6, width, 3)
        for stage, c, blocks in zip((1, 2, 3), widths, (2, 3, 4), strict=True):
            self.add_module(
                f"blocks{stage}", nn.ModuleList(EncoderBlock(c, d) for _ in range(blocks))
            )
            self.add_module(f"post_noise{stage}", nn.Sequential(Conv(c, c, 1), NormActConv(c)))
            self.add_module(
                f"post_gan{stage}", nn.ModuleList([Conv(c, c, 1), CIN(c, d), Conv(c, c, 3)])
            )
            self.add_module(f"conv_gan{stage}", Conv(c, 1, 1))
            if stage < 3:
                self.add_module(f"conv_down{stage}", Conv(c, 2 * c, 4, stride=2))
        self.mlp_noise = EmbeddingMlp(sum(widths), d)

    def embed(self, noisy: Tensor) -> tuple[list[Tensor], Tensor]:
        """noisy (B, 3, H, W) in [0, 1] -> three feature maps, unit embedding (B, d)."""
        x, features = self.pre_noise(2 * noisy - 1), []
        for stage in (1, 2, 3):
            for block in getattr(self, f"blocks{stage}"):
                x = block.embed(x)
            features.append(getattr(self, f"post_noise{stage}")(x))
            if stage < 3:
                x = getattr(self, f"conv_down{stage}")(x)
        pooled = torch.cat([f.mean(dim=(2, 3)) for f in features], dim=1)
        return features, F.normalize(self.mlp_noise(pooled), dim=1)

    def discriminate(
        self, clean: Tensor, noisy: Tensor, z: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Images in [0, 1], z (B, d) -> three feature maps, three logit maps (B, 1, H_s, W_s)."""
        x = self.pre_gan(torch.cat([2 * clean - 1, noisy - clean], dim=1))
        features, logits = [], []
        for stage in (1, 2, 3):
            for block in getattr(self, f"blocks{stage}"):
                x = block.discriminate(x, z)
            conv1, cin, conv3 = getattr(self, f"post_gan{stage}")
            # The published network goes on from the head's normalised map, not from the trunk's
            # output as in `embed`; golden.json has no other reading.
            x = cin(conv1(x), z)
            features.append(conv3(F.leaky_relu(x)))
            logits.append(getattr(self, f"conv_gan{stage}")(features[-1]))
            if stage < 3:
                x = getattr(self, f"conv_down{stage}")(x)
        return features, logits


# --------------------------------------------------------------------------------- the generator


class GeneratorBlock(nn.Module):
    def __init__(self, c: int, d: int) -> None:
        super().__init__()
        self.sft1 = SFT(c, d)
        self.conv1 = Conv(c, c, 3)
        self.sft2 = SFT(c, d)
        self.conv2 = Conv(c, c, 3)

    def forward(self, x: Tensor, z: Tensor, noise: NoiseSource) -> Tensor:
        h = self.conv1(F.leaky_relu(self.sft1(x, z, noise)))
        return x + self.conv2(F.leaky_relu(self.sft2(h, z, noise)))


class OracleGenerator(nn.Module):
    """Noise generator (method, section 3). H and W must divide by 4."""

    def __init__(self, width: int = 64, embed_dim: int = 128) -> None:
        super().__init__()
        d, k1, k2, k3 = embed_dim, width, 2 * width, 4 * width

        def blocks(c: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(GeneratorBlock(c, d) for _ in range(count))

        self.conv_first = Conv(3, k1, 3)
        self.blocks1 = blocks(k1, 4)
        self.conv_down1 = Conv(k1, k2, 4, stride=2)
        self.blocks2 = blocks(k2, 3)
        self.conv_down2 = Conv(k2, k3, 4, stride=2)
        self.blocks3 = blocks(k3, 2)
        self.conv_up2 = Up(k3, k2)
        self.conv_skip2 = Conv(2 * k2, k2, 3)
        self.blocks2_ = blocks(k2, 3)
        self.conv_up1 = Up(k2, k1)
        self.conv_skip1 = Conv(2 * k1, k1, 3)
        self.blocks1_ = blocks(k1, 4)
        self.conv_last = Conv(k1, 3, 1)

    def forward(self, clean: Tensor, z: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """clean (B, 3, H, W) in [0, 1], z (B, d) -> noise (B, 3, H, W)."""
        noise = noise or standard_normal

        def run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
            for block in blocks:
                x = block(x, z, noise)
            return x

        x1 = run(self.blocks1, self.conv_first(2 * clean - 1))
        x2 = run(self.blocks2, self.conv_down1(x1))
        x3 = run(self.blocks3, self.conv_down2(x2))
        y2 = torch.cat([self.conv_up2(x3), x2], dim=1)
        y2 = run(self.blocks2_, self.conv_skip2(F.leaky_relu(y2)))
        y1 = torch.cat([self.conv_up1(y2), x1], dim=1)
        y1 = run(self.blocks1_, self.conv_skip1(F.leaky_relu(y1)))
        return self.conv_last(F.leaky_relu(y1))


@torch.no_grad()
def oracle_transfer(
    encoder_k: OracleEncoder,
    generator: OracleGenerator,
    clean: Tensor,
    reference: Tensor,
    noise: NoiseSource | None = None,
) -> Tensor:
    """Networks in evaluation mode; clean (B, 3, H, W) at least 4x4 -> noisy image in [0, 1].

    Padding is reflection at the bottom and the right, to sides that divide by 4.
    """
    h, w = clean.shape[-2:]
    z = encoder_k.embed(reference)[1]
    padded = F.pad(clean, (0, -w % 4, 0, -h % 4), mode="reflect")
    return (clean + generator(padded, z, noise)[..., :h, :w]).clamp(0, 1)


# ------------------------------------------------------------------------------------ the losses


def contrastive_loss(
    q: Tensor, k: Tensor, queue: Tensor, temperature: float = 0.1
) -> tuple[Tensor, float]:
    """q, k (N, d), queue (d, K) -> InfoNCE with positive i in column i, top-1 accuracy."""
    logits = torch.cat([q @ k.T, q @ queue], dim=1) / temperature
    probability = torch.softmax(logits, dim=1)
    positives = torch.arange(len(q), device=q.device)
    loss = -torch.log(probability[positives, positives] + 1e-8).mean()
    return loss, (logits.argmax(dim=1) == positives).float().mean().item()


def gaussian_kernel(size: int, sigma: float) -> np.ndarray:
    """(size, size) float64, sum 1."""
    t = np.arange(size) - (size - 1) / 2
    kernel = np.exp(-(t[:, None] ** 2 + t[None, :] ** 2) / (2 * sigma**2))
    return kernel / kernel.sum()


def blur21(x: Tensor) -> Tensor:
    kernel = torch.from_numpy(gaussian_kernel(21, 3.5)).to(x)[None, None].repeat(3, 1, 1, 1)
    return F.conv2d(F.pad(x, (10, 10, 10, 10), mode="reflect"), kernel, groups=3)


def mean_l1(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return sum(F.l1_loss(x, y) for x, y in zip(a, b, strict=True)) / len(a)


def mean_bce(logits: list[Tensor], target: float) -> Tensor:
    return sum(
        F.binary_cross_entropy_with_logits(x, torch.full_like(x, target)) for x in logits
    ) / len(logits)


# ----------------------------------------------------------------------------------- the metrics


def local_variance(noise: np.ndarray) -> np.ndarray:
    """noise (3, H, W) -> its 7x7 Gaussian-weighted local mean square, floored at 1e-10."""
    # OpenCV's fixed 7-tap table, which stands for sigma 1.4 and differs from exp(-t^2 / 2 sigma^2)
    # by up to 8 % a tap; golden.json's sigma_real decides for the table.
    taps = np.array([1, 3.5, 7, 9, 7, 3.5, 1]) / 32
    kernel = np.outer(taps, taps)
    square = np.pad(noise.astype(np.float64) ** 2, ((0, 0), (3, 3), (3, 3)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(square, (7, 7), axis=(1, 2))
    return np.maximum((windows * kernel).sum(axis=(-1, -2)), 1e-10)


def akld(fake: np.ndarray, real: np.ndarray, clean: np.ndarray) -> float:
    """All (3, H, W)."""
    t = np.clip(local_variance(fake - clean) / local_variance(real - clean), 0.1, 10)
    return float(np.mean((t - 1 - np.log(t)) / 2))


def ks(fake: np.ndarray, real: np.ndarray, clean: np.ndarray) -> float:
    """All (3, H, W)."""
    fake_cdf, real_cdf = (
        np.cumsum(np.histogram(image - clean, bins=256, range=(-1, 1))[0] / image.size)
        for image in (fake, real)
    )
    return float(np.abs(fake_cdf - real_cdf).max())


def mean_over_images(metric: Callable[..., float], *batches: Tensor) -> float:
    images = zip(*(b.detach().cpu().numpy() for b in batches), strict=True)
    return float(np.mean([metric(*image) for image in images]))


# --------------------------------------------------------------------------------- the training


class OracleTrainer:
    """The training step of method, section 4."""

    def __init__(
        self,
        encoder_q: OracleEncoder,
        encoder_k: OracleEncoder,
        generator: OracleGenerator,
        queue: Tensor,
        noise: NoiseSource | None = None,
        momentum: float = 0.999,
    ) -> None:
        """queue (d, K) of unit columns, copied; K a multiple of the batch size.

        The key encoder is given the query encoder's state.
        """
        encoder_k.load_state_dict(encoder_q.state_dict())
        self.encoder_q, self.encoder_k = encoder_q.train(), encoder_k.train()
        self.generator, self.noise, self.momentum = generator.train(), noise, momentum
        self.queue, self.queue_ptr = queue.clone(), 0
        adam = {"lr": 1e-4, "betas": (0.5, 0.99), "weight_decay": 1e-7}
        self.opt_g = torch.optim.Adam(generator.parameters(), **adam)
        self.opt_e = torch.optim.Adam(encoder_q.parameters(), **adam)

    def step(self, clean: Tensor, noisy1: Tensor, noisy2: Tensor) -> dict[str, float]:
        """One step on three batches (B, 3, H, W) in [0, 1]; returns the eleven logged values."""
        encoder = self.encoder_q
        with torch.no_grad():
            z = self.encoder_k.embed(noisy2)[1]
        fake = clean + self.generator(clean, z, self.noise)

        real_f = [f.detach() for f in encoder.embed(noisy1)[0]]
        fake_f, q_fake = encoder.embed(fake)
        con_adv, acc_adv = contrastive_loss(q_fake, z, self.queue)
        fm_noise = mean_l1(fake_f, real_f)
        consistency = F.l1_loss(blur21(fake), blur21(noisy1))
        real_g = [g.detach() for g in encoder.discriminate(clean, noisy1, z)[0]]
        fake_g, fake_logits = encoder.discriminate(clean, fake, z)
        gan_g = mean_bce(fake_logits, 1.0)
        fm_gan = mean_l1(fake_g, real_g)
        self.opt_g.zero_grad()
        (gan_g + 100 * fm_gan + 100 * consistency + con_adv + 100 * fm_noise).backward()
        self.opt_g.step()

        fake = fake.detach()
        con, acc = contrastive_loss(encoder.embed(noisy1)[1], z, self.queue)
        on_real = encoder.discriminate(clean, noisy1, z)[1]
        on_fake = encoder.discriminate(clean, fake, z)[1]
        gan_d = 0.5 * (mean_bce(on_real, 1.0) + mean_bce(on_fake, 0.0))
        self.opt_e.zero_grad()  # also drops what the generator's loss left in the encoder
        (con + gan_d).backward()
        self.opt_e.step()

        self.update_key_encoder()
        self.enqueue(z)
        return {
            "loss_consistency": consistency.item(),
            "loss_contra_noisy_adv": con_adv.item(),
            "loss_fm_noise": fm_noise.item(),
            "contraAcc_noisy_adv": acc_adv,
            "loss_gan_g": gan_g.item(),
            "loss_fm_gan": fm_gan.item(),
            "akld": mean_over_images(akld, fake, noisy1, clean),
            "ks": mean_over_images(ks, fake, noisy1, clean),
            "loss_contra_noisy": con.item(),
            "contraAcc_noisy": acc,
            "loss_gan_d": gan_d.item(),
        }

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """Parameters only: spectral-norm vectors are each encoder's own."""
        pairs = zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True)
        for key, query in pairs:
            key.copy_(self.momentum * key + (1 - self.momentum) * query)

    def enqueue(self, keys: Tensor) -> None:
        self.queue[:, self.queue_ptr : self.queue_ptr + len(keys)] = keys.T
        self.queue_ptr = (self.queue_ptr + len(keys)) % self.queue.shape[1]
