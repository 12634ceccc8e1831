"""What a noisy photo tells about its noise, and how far from a generator's training that is.

The noise is measured blind, in the photo's flat areas. The distance is that of embeddings: between
the photo's, and the mean of each kind of noise in a bank of the training data's (`evaluation.bank`
makes it, beside the weights).
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch

from evaluation.blind_noise_level import BLOCK, MIN_BLOCKS, flat_blocks
from models.embedding import spread_patches
from models.noise_transfer import NoiseTransfer
from models.tiles import bytes_per_pixel
from utils.checkpoint import sha256
from utils.errors import UserError, require
from utils.files import open_file, write_atomically
from utils.memory import free_memory
from utils.transfer_settings import MIN_REFERENCE

FILE = "bank.npz"  # beside the weights
MAX_BYTES = 2**27
MEASURED = 128  # pixels a side of the patches, at most 64, in which the noise is measured
BINS = 16  # of intensity


class BlindNoise(NamedTuple):
    """Standard deviations are in the image's range, [0, 1]; NaN where there is no flat area."""

    sigma: float  # over the photo and its channels
    curve: np.ndarray  # (3, BINS): by channel, in equal bins of the intensity
    correlation: np.ndarray  # (2,): of horizontal and of vertical neighbours, mean over channels
    flat: float  # share of 8x8 blocks without texture and hardly clipped, mean over channels


def embed_photo(network: NoiseTransfer, path: Path, pixels: np.ndarray) -> torch.Tensor:
    """Of a reference (H, W, 3) uint8 or uint16; UserError, naming `path`, for its size."""
    device = next(network.parameters()).device
    whole = 0 if network.reference_patch else 2 * bytes_per_pixel(network.key_encoder)
    height, width, _ = pixels.shape
    require(
        min(height, width) >= MIN_REFERENCE,
        f"{path}: {width}x{height} pixels, expected at least {MIN_REFERENCE} a side; "
        "give a larger piece of the noisy photo",
    )
    require(
        whole * height * width <= free_memory(device),
        f"{path}: {width}x{height} pixels are too many for the memory that is free; give a "
        "piece of the noisy photo, or --reference-patch 96",
    )
    return network.embed(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device))


def blind_noise(pixels: np.ndarray) -> BlindNoise:
    """Of (H, W, 3) uint8 or uint16, at least 8 pixels a side, from the noisy photo alone.

    See `flat_blocks` for what is flat and for what it misses; of large photos in patches evenly
    spread. The correlation is 0 in expectation for white noise, and too small by 6% for noise as
    correlated as a phone's (0.44), since coarse noise looks like the picture.
    """
    height, width = (BLOCK * (n // BLOCK) for n in pixels.shape[:2])
    image = torch.from_numpy(pixels[:height, :width]).permute(2, 0, 1)
    tall = torch.cat(spread_patches(image, MEASURED), dim=1).numpy()
    channels = [flat_blocks(x / float(np.iinfo(pixels.dtype).max)) for x in tall]
    variance = [np.mean(c.line[0] * c.mean + c.line[1]) for c in channels]
    correlations = np.stack([c.correlation for c in channels])
    known = np.isfinite(correlations).all(axis=1)
    return BlindNoise(
        sigma=float(np.sqrt(np.mean(variance))),
        curve=np.stack([_curve(c.mean[c.flat], c.variance[c.flat]) for c in channels]),
        correlation=correlations[known].mean(axis=0) if known.any() else np.full(2, np.nan),
        flat=float(np.mean([c.flat for c in channels])),
    )


def _curve(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """(BINS,) standard deviation of blocks (M,); NaN for fewer than MIN_BLOCKS."""
    level = np.clip(mean * BINS, 0, BINS - 1).astype(int)
    count, total = (np.bincount(level, w, BINS) for w in (None, variance))
    return np.sqrt(np.where(count >= MIN_BLOCKS, total / np.maximum(count, 1), np.nan))


@dataclass(frozen=True)
class Thresholds:
    """Distances in degrees, percentiles over the bank's photos of that to the nearest *other* kind:
    as far as photos of noise that the bank does not have are from it."""

    usual: float  # the 95th
    far: float  # the 99th
    flat: float  # share of flat area that 95% of the photos exceed


@dataclass(frozen=True)
class Bank:
    """Embeddings of training photos, (N, d) unit rows, the kind of each by its number, and names.

    encoder: SHA-256 of the encoder_k.pt that embedded them, in patches of reference_patch (None:
    whole); origin: how the bank was made.
    """

    embeddings: np.ndarray
    kind: np.ndarray
    kinds: tuple[str, ...]
    thresholds: Thresholds
    encoder: str
    reference_patch: int | None
    origin: str

    @classmethod
    def build(
        cls,
        embeddings: np.ndarray,
        names: Sequence[str],
        flat: Sequence[float],
        encoder: str,
        reference_patch: int | None,
        origin: str,
    ) -> Self:
        """embeddings (N, d), of each the name of its kind and the photo's share of flat area."""
        kinds = sorted(set(names))
        require(len(kinds) > 1, f"{len(kinds)} kind of noise: expected at least two to compare")
        kind = np.array([kinds.index(name) for name in names], np.uint16)
        embeddings = embeddings.astype(np.float16).astype(np.float32)  # as they are stored
        none = Thresholds(np.nan, np.nan, np.nan)
        bank = cls(embeddings, kind, tuple(kinds), none, encoder, reference_patch, origin)
        distance = bank.distances(embeddings)
        distance[np.arange(len(kind)), kind] = np.inf
        usual, far = np.percentile(distance.min(axis=1), (95, 99)).tolist()
        return cls(
            **{**vars(bank), "thresholds": Thresholds(usual, far, float(np.percentile(flat, 5)))}
        )

    def distances(self, z: np.ndarray) -> np.ndarray:
        """(M, d) -> (M, K): degrees between each and the mean direction of each kind."""
        centres = np.zeros((len(self.kinds), self.embeddings.shape[1]))
        np.add.at(centres, self.kind, self.embeddings)
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, centres)]
        return np.degrees(np.arccos(np.clip(unit[0] @ unit[1].T, -1, 1)))

    def nearest(self, z: np.ndarray, count: int = 3) -> list[tuple[str, float]]:
        """Kinds and their distances in degrees from z (d,), the nearest first."""
        distance = self.distances(z[None])[0]
        return [(self.kinds[i], float(distance[i])) for i in np.argsort(distance)[:count]]

    def write(self, path: Path) -> None:
        """The embeddings as float16. The same bank gives the same file."""
        about = {
            key: getattr(self, key) for key in ("kinds", "encoder", "reference_patch", "origin")
        } | {"thresholds": asdict(self.thresholds)}
        file = io.BytesIO()
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        half = self.embeddings.astype(np.float16)
        np.savez(file, embeddings=half, kind=self.kind, about=text)
        write_atomically(file.getbuffer(), path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """UserError for a file that is no bank."""
        try:
            with open_file(path, MAX_BYTES) as file, np.load(file, allow_pickle=False) as content:
                about = json.loads(content["about"].tobytes())
                thresholds = Thresholds(**{k: float(v) for k, v in about["thresholds"].items()})
                embeddings = content["embeddings"].astype(np.float32)
                kind, kinds = content["kind"], tuple(map(str, about["kinds"]))
                sound = (
                    embeddings.ndim == 2
                    and kind.shape == embeddings.shape[:1]
                    and set(kind.tolist()) == set(range(len(kinds)))
                    and np.isfinite([*embeddings.ravel(), *asdict(thresholds).values()]).all()
                )
                others = (about[key] for key in ("encoder", "reference_patch", "origin"))
                if sound:
                    return cls(embeddings, kind, kinds, thresholds, *others)
        except UserError:
            raise
        except Exception:  # damaged archives fail in nearly any way
            pass
        raise UserError(f"{path}: no bank of embeddings; {_MAKE}")


_MAKE = "make it with `python -m evaluation.bank`"


def open_bank(folder: Path, network: NoiseTransfer) -> Bank | None:
    """That of the weights in `folder`; None where there is none, or none of use, said in a line."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        bank = Bank.read(path)
        require(
            bank.encoder == sha256(folder / "encoder_k.pt"),
            f"{path}: is of other weights than those beside it; {_MAKE}",
        )
        require(
            bank.reference_patch == network.reference_patch,
            f"{path}: embedded {_patches(bank.reference_patch)}, but references are now embedded "
            f"{_patches(network.reference_patch)}",
        )
    except UserError as error:
        print(f"no distance to the training data: {error}")
        return None
    return bank


def _patches(size: int | None) -> str:
    return f"in patches of {size}" if size else "whole"


class Warned(NamedTuple):
    word: str  # far, unusual or not flat
    text: str


def warn(bank: Bank, z: np.ndarray, flat: float) -> list[Warned]:
    """What speaks against a reference of embedding z (d,) and this share of flat area."""
    found, t = [], bank.thresholds
    (name, distance), *_ = bank.nearest(z, 1)
    if distance > t.usual:
        far = distance > t.far
        word, share, limit = ("far", 99, t.far) if far else ("unusual", 95, t.usual)
        text = (
            f"its noise is {distance:.1f} degrees from the nearest known kind ({name}), where "
            f"{share}% of photos of an unseen kind are within {limit:.1f}; expect other noise"
        )
        found.append(Warned(word, text))
    if flat < t.flat:
        text = (
            f"{flat:.1%} of it is flat, where 95% of the training photos have more than "
            f"{t.flat:.1%}; take one with sky, a wall or defocus"
        )
        found.append(Warned("not flat", text))
    return found
