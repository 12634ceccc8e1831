"""Noise transfer itself: what is used of a trained encoder and generator.

Equations: docs/method.md 3 and, beyond the paper, 9.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.embedding import Pooling, StatisticsHead, share_of_intensities, spread_patches
from models.encoder import NoiseEncoder
from models.generator import NoiseGenerator, no_noise
from models.layers import NoiseSource, shared_spectral_norm
from models.levels import LevelGain, Windows, measured_levels, windows
from utils.checkpoint import load_state, load_weights
from utils.errors import UserError
from utils.memory import memory_named
from utils.padding import pad_to_multiple
from utils.transfer_settings import FILE, MIN_REFERENCE, TransferSettings

try:
    from huggingface_hub import PyTorchModelHubMixin
except ImportError:  # all but two methods do without

    class PyTorchModelHubMixin:
        """In place of what is not installed."""

        def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
            raise ImportError("needs more packages: pip install huggingface_hub safetensors")

        push_to_hub = save_pretrained


ROUNDING = 1e-3  # that values may lie outside [0, 1], as after a resize
WHOLE, CARD = "model.safetensors", "README.md"  # as the Hub calls them
HEAD, GAINS = "statistics.pt", "levels.pt"


def _to_float(image: Tensor) -> Tensor:
    if image.is_floating_point():
        return image
    return image.to(torch.float32) / torch.iinfo(image.dtype).max


def check_shape(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images (B, 3, H, W), got {tuple(images.shape)}")


def check_range(images: Tensor) -> None:
    """ValueError for anything but floats in [0, 1]."""
    if not images.is_floating_point():
        raise ValueError(f"expected floats in [0, 1], got {images.dtype}")
    low, high = images.aminmax()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # nor for NaN
        raise ValueError(f"expected values in [0, 1], got {low:.3g} to {high:.3g}")


class NoiseTransfer(nn.Module, PyTorchModelHubMixin):
    """Put the noise of one noisy reference on any clean image (Eq. 3.3).

    Evaluation mode throughout: using it does not move the spectral-norm vectors.

    reference_patch: None embeds a reference whole, as the paper does. A number of pixels embeds
    patches of this size, evenly spread, at most 64, and takes their mean direction: an embedding
    drifts with the size of what is embedded, so weights trained on small patches are at their best
    there; and a reference of any size then takes the memory and time of its patches alone. Eq. 3.4.
    statistics: the head that the encoder was trained with, if it was: patches then count by what
    they show, see `Pooling`.
    inject_noise: False for a generator that was trained on maps of zeros: it gets those, whatever
    `noise` says.
    margin: pixels, divisible by 4, that images are mirrored by a side before the generator and that
    are cut off after it; for weights whose losses left out the border.
    """

    def __init__(
        self,
        key_encoder: NoiseEncoder,
        generator: NoiseGenerator,
        reference_patch: int | None = None,
        inject_noise: bool = True,
        margin: int = 0,
        statistics: StatisticsHead | None = None,
        levels: LevelGain | None = None,
    ) -> None:
        super().__init__()
        self.key_encoder, self.generator = key_encoder, generator
        self.pooling, self.levels = Pooling(statistics), levels
        self.reference_patch, self.inject_noise = reference_patch, inject_noise
        self.margin = margin
        self.card: str | None = None  # README.md of the weights, which goes where they go
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode; see the class."""
        return super().train(False)

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        device: torch.device | str = "cpu",
        reference_patch: int | None = None,
    ) -> Self:
        """From a folder with `encoder_k.pt`, `VUNet.pt` and, if there were any, `statistics.pt` and
        `levels.pt`; or without them `model.safetensors`.

        Width, d and depth are read off the files. reference_patch: pixels, 0 for references
        embedded whole; None: what transfer.json beside them says, see TransferSettings.
        """
        folder = Path(folder)
        whole = (folder / WHOLE).is_file() and not (folder / "VUNet.pt").is_file()
        networks = []
        for part, network, file, first in (
            ("key_encoder", NoiseEncoder, "encoder_k.pt", "pre_noise.conv2d.weight_orig"),
            ("generator", NoiseGenerator, "VUNet.pt", "conv_first.conv2d.weight_orig"),
        ):
            source = (folder / WHOLE, part) if whole else (folder / file,)
            state = load_state(*source)
            gamma = next((k for k in state if "convs_gamma.0.conv2d.weight_orig" in k), None)
            if first not in state or gamma is None:
                raise UserError(f"{source[0]}: not the weights of a {network.__name__}")
            depths = [
                len({key.split(".")[1] for key in state if key.startswith(f"blocks{stage}.")})
                for stage in (1, 2, 3)
            ]
            net = network(state[first].shape[0], state[gamma].shape[1], depths)
            load_weights(net, *source)
            networks.append(net)
        encoder, generator = networks
        if encoder.embed_dim != generator.embed_dim:
            raise UserError(
                f"{folder}: encoder_k.pt embeds into {encoder.embed_dim} dimensions, VUNet.pt "
                f"expects {generator.embed_dim}; take both from one training run"
            )
        extra = []
        for part, network, file in (
            ("pooling.head", StatisticsHead, HEAD),
            ("levels", LevelGain, GAINS),
        ):
            source = (folder / WHOLE, part) if whole else (folder / file,)
            there = source[0].is_file() and (not whole or bool(load_state(*source)))
            extra.append(network(encoder.embed_dim) if there else None)
            if there:
                load_weights(extra[-1], *source)
        settings = TransferSettings.read(folder)
        if reference_patch is None:
            reference_patch = settings.reference_patch
        elif 0 != reference_patch < MIN_REFERENCE:
            raise UserError(
                f"reference patch {reference_patch}: expected 0, whole, or at least {MIN_REFERENCE}"
            )
        network = cls(
            encoder, generator, reference_patch or None, settings.inject_noise, settings.margin,
            *extra,
        )  # fmt: skip
        if (folder / CARD).is_file():
            network.card = (folder / CARD).read_text(encoding="utf-8", errors="replace")
        return network.requires_grad_(False).to(device)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: torch.device | str = "cpu", **download: Any
    ) -> Self:
        """From a folder, see `from_checkpoint`, or else a repository of the Hugging Face Hub.

        download: revision, token, local_files_only, ... of huggingface_hub's `snapshot_download`.
        """
        if not Path(name).is_dir():
            try:
                from huggingface_hub import snapshot_download
            except ImportError as error:
                raise UserError(
                    f"{name}: no such folder; for the Hub's, pip install huggingface_hub"
                ) from error
            files = [WHOLE, "encoder_k.pt", "VUNet.pt", HEAD, GAINS, FILE, CARD]
            name = snapshot_download(str(name), allow_patterns=files, **download)
        return cls.from_checkpoint(name, device)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `save_pretrained(folder)` and `push_to_hub(name)` of the mix-in write."""
        super()._save_pretrained(save_directory)  # model.safetensors
        TransferSettings(self.reference_patch, self.inject_noise, self.margin).write(
            save_directory, width=self.generator.width, embed_dim=self.generator.embed_dim
        )
        self._hub_mixin_config = None  # no config.json, which would say the same
        if self.card and not (save_directory / CARD).exists():
            (save_directory / CARD).write_text(self.card, encoding="utf-8")

    @property
    def embed_dim(self) -> int:
        return self.generator.embed_dim

    @torch.no_grad()
    def embed(self, reference: Tensor) -> Tensor:
        """Noisy reference (B, 3, H, W), at least 16 pixels a side -> unit z (B, d), and with
        `levels`, behind it, the curve of log gains: (B, d + CURVE).

        In [0, 1], or uint8 or uint16 of full range, of which only the patches become floats.
        """
        if self.levels is None:
            return self.look(reference, measure=False)[0]
        z, measured = self.look(reference)
        return torch.cat([z, self.levels(z, measured)], dim=1)

    @torch.no_grad()
    def look(self, reference: Tensor, measure: bool = True) -> tuple[Tensor, Tensor | None]:
        """As `embed` -> unit z (B, d), measured_levels (B, 3, MEASURED)."""
        check_shape(reference)
        if min(reference.shape[-2:]) < MIN_REFERENCE:
            raise ValueError(
                f"a reference needs {MIN_REFERENCE} pixels a side, got {tuple(reference.shape)}"
            )
        patches = [reference]  # whole
        if self.reference_patch:
            patches = spread_patches(reference, self.reference_patch)
        height, width = patches[0].shape[-2:]
        doing = f"embedding {len(patches) * len(reference)} references of {width}x{height} pixels"
        advice = "give smaller or fewer of them (--reference-patch, --batch), or --gpu cpu"
        z, shares, seen = [], [], []
        with (
            memory_named(reference.device, doing, advice),
            shared_spectral_norm(self.key_encoder),
        ):
            # Some at a time: the feature maps of all would be the peak of a whole transfer.
            for i in range(0, len(patches), 16):
                some = torch.cat([_to_float(patch) for patch in patches[i : i + 16]])
                z.append(self.key_encoder.embed(some)[1])
                if patches[1:]:
                    shares.append(share_of_intensities(some))
                if measure:
                    seen.append(windows(some))
        each = (len(patches), len(reference))
        z = torch.cat(z).unflatten(0, each)
        z = self.pooling(z, torch.cat(shares).unflatten(0, each)) if patches[1:] else z[0]
        if not measure:
            return z, None
        parts = (torch.cat(x).unflatten(0, each) for x in zip(*seen, strict=True))
        return z, measured_levels(Windows(*(x.permute(1, 2, 0, 3).flatten(2) for x in parts)))

    def direction(self, embedding: Tensor) -> Tensor:
        """The unit z (..., d) of `embed`'s result: what the encoder says, and what is compared."""
        return embedding[..., : self.embed_dim]

    def mean(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Of `embed`'s results, (B, ...) each: the mean direction, and of the curves the mean."""
        mean = torch.stack(list(embeddings)).mean(0)
        z, curve = mean[:, : self.embed_dim], mean[:, self.embed_dim :]
        return torch.cat([F.normalize(z), curve], dim=1)

    @torch.no_grad()
    def generate(
        self,
        clean: Tensor,
        z: Tensor,
        noise: NoiseSource | None = None,
        strength: float | Tensor = 1.0,
    ) -> Tensor:
        """clean (B, 3, H, W) in [0, 1], z of `embed`, of each or one -> noisy, clipped to [0, 1].

        strength: factor of the noise, one or (B, 1, 1, 1). Its deviation and its mean are scaled,
        exactly; not its correlation, nor the way it depends on the intensity, as another ISO would
        change them.
        Sizes that do not divide by 4 are padded (reflected) and cropped, as is `margin`.
        """
        check_shape(clean)
        height, width = clean.shape[-2:]
        noise = noise if self.inject_noise else no_noise
        z = z.expand(len(clean), -1)
        x = pad_to_multiple(clean, 4)
        margin = min(self.margin, (min(x.shape[-2:]) - 1) // 4 * 4)  # what there is to be mirrored
        x = F.pad(x, (margin,) * 4, mode="reflect") if margin else x
        with shared_spectral_norm(self.generator):
            residual = self.generator(x, z[:, : self.embed_dim], noise)
        residual = residual[..., margin : margin + height, margin : margin + width]
        if self.levels is not None:
            residual = residual * self.levels.gain(z[:, self.embed_dim :], clean)
        return (clean + strength * residual).clamp(0, 1)  # Eq. 3.3

    def forward(self, clean: Tensor, reference: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """`transfer` that does not look at the values, for which a GPU would be waited for."""
        return self.generate(clean, self.embed(reference), noise)

    def transfer(
        self, clean: Tensor, reference: Tensor, noise: NoiseSource | None = None
    ) -> Tensor:
        """clean (B, 3, H, W) with the noise of reference (B or 1, 3, H', W') -> noisy in [0, 1].

        ValueError for images of another shape, or with values outside [0, 1]; a reference may also
        be of integers, see `embed`.
        """
        check_range(clean)
        if reference.is_floating_point():
            check_range(reference)
        return self(clean, reference, noise)
