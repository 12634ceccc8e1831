"""Make the bank that photos are compared with: where the encoder puts the training data.

    python -m evaluation.bank --nt ckpts/NT --pairs train_images/renoir train_images/camera

Of each kind of noise some photos are embedded as references are. Kinds are those of the pairs (a
sub-folder, SIDD's ISO; else each pair is its own), and of `--photos`, if given, random synthetic
noise, as the preset `lite` draws it. Half a second a photo on a CPU core.

A distance is the angle between an embedding and the mean direction of a kind. Thresholds are the
95th and 99th percentile, over the photos in the bank, of the distance to the nearest kind but their
own: what a photo with noise of an unseen kind, no stranger than those that are there, would have.
The third is the share of flat area that 5% of the photos do not reach.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar
from zlib import crc32

import numpy as np
import torch
from tqdm import tqdm

from data.folders import DataSet, PairFile, photo_folder, require_sound, survey
from data.noise import (
    NoiseCorrelation,
    NoiseCorrelationDistribution,
    NoiseModel,
    NoiseModelDistribution,
    add_noise,
    correlate,
)
from evaluation.image_sets import middle
from evaluation.references import FILE, Bank, blind_noise
from models.noise_transfer import NoiseTransfer
from utils.checkpoint import sha256
from utils.config import at_least, beside, choose_device, parse
from utils.errors import exit_on_user_error, require
from utils.images import float_to_uint8, integer_to_float, read_uint8
from utils.memory import keep_pages
from utils.seeding import derived_seed, randomness

T = TypeVar("T")
# As train_noiseTransfer.py's preset `lite` draws them.
SYNTHETIC = NoiseModelDistribution((0.2, 0.2, 0.2, 0.4), sigma=(0, 70), chi=(5, 100))
CORRELATED = NoiseCorrelationDistribution(0.7)
LOST_CORRELATION = NoiseCorrelationDistribution(0.9)
SIDE = 256  # pixels of a synthetic photo, at most


@dataclass(frozen=True)
class Config:
    """Embed training data, for inspect_references.py and transfer_noise.py to compare with."""

    pairs: tuple[Path, ...] = ()
    """Folders of noisy/clean pairs, as train_noiseTransfer.py takes them."""
    white_pairs: tuple[Path, ...] = ()
    """The same, resized: a random correlation is given to their noise, as in training."""
    photos: tuple[Path, ...] = ()
    """Folders of clean photographs for synthetic noise."""
    synthetic: int = 64
    """Kinds of synthetic noise."""
    per_kind: int = 4
    """Photos of a kind, at most."""
    nt: Path = Path("ckpts/NT")
    """Folder of VUNet.pt and encoder_k.pt."""
    output: Path | None = None
    """File to write; by default bank.npz beside the weights, where it is looked for."""
    seed: int = 0
    """Chooses the photos of a kind and the synthetic noise."""
    gpu: str = "0"
    """CUDA device number (of a list such as 0,1 the first is used), or cpu."""


class Photo(NamedTuple):
    """A photo of the bank, not read yet: noisy as it is, or what is made of it and clean."""

    kind: str
    seed: int  # the kind's own: of its synthetic noise, or the correlation given to it
    noisy: Path | None
    clean: Path | None = None


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    require(bool(c.pairs or c.white_pairs or c.photos), "--pairs, --photos: expected a folder")
    at_least(c, synthetic=1, per_kind=1, seed=0)
    photos = [*real_photos(c.pairs, c), *real_photos(c.white_pairs, c, white=True)]
    photos += synthetic_photos(c)
    keep_pages()
    weights = beside(c.nt)
    network = NoiseTransfer.from_checkpoint(weights, choose_device(c.gpu))
    device = next(network.parameters()).device
    embeddings, flat = [], []
    for photo in tqdm(photos, unit="photo"):
        pixels = read(photo)
        flat.append(blind_noise(pixels).flat)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)
        embeddings.append(network.direction(network.embed(image))[0].cpu().numpy())
    bank = Bank.build(
        np.stack(embeddings),
        [photo.kind for photo in photos],
        flat,
        sha256(weights / "encoder_k.pt"),
        network.reference_patch,
        f"{len(photos)} photos, at most {c.per_kind} a kind, seed {c.seed}",
    )
    path = c.output or weights / FILE
    bank.write(path)
    limits = bank.thresholds
    print(
        f"{path}: {len(photos)} photos of {len(bank.kinds)} kinds; other kinds within "
        f"{limits.usual:.1f} (95%) and {limits.far:.1f} degrees (99%), flat area over "
        f"{limits.flat:.1%} (95%)"
    )


def real_photos(folders: tuple[Path, ...], c: Config, white: bool = False) -> Iterator[Photo]:
    """Of each kind --per-kind at most, chosen by --seed. UserError for a folder without pairs."""
    for folder in folders:
        sets = [s for s in survey(folder).sets if s.pairs]
        require_sound(sets)
        require(bool(sets), f"{folder}: no noisy/clean pairs; expected clean/ and noisy/, or SIDD")
        kinds: dict[str, list[PairFile]] = {}
        for data_set in sets:
            for pair in data_set.pairs:
                kinds.setdefault(kind_name(folder, data_set, pair), []).append(pair)
        for kind, pairs in kinds.items():
            seed = derived_seed(c.seed, crc32(kind.encode()))
            for pair in chosen(pairs, c.per_kind, seed):
                yield Photo(kind, seed, pair.noisy, pair.clean if white else None)


def kind_name(folder: Path, data_set: DataSet, pair: PairFile) -> str:
    """From the folder on, without the way to it."""
    kind = Path(pair.kind)
    if kind == pair.noisy:
        kind = kind.with_suffix("")
    if kind.is_relative_to(data_set.within[1]):
        kind = kind.relative_to(data_set.within[1])
    place = data_set.root.absolute().relative_to(folder.absolute().parent)
    return (place / kind).as_posix()


def synthetic_photos(c: Config) -> Iterator[Photo]:
    """--per-kind photographs under each of --synthetic noises."""
    files = [file for folder in c.photos for file in photo_folder(folder)]
    for k in range(c.synthetic if files else 0):
        seed = derived_seed(c.seed, k, 1)
        model, correlation = draw(seed)
        parts = [("Gaussian", 255 * model.sigma, 0), ("Poisson", model.chi, torch.inf)]
        parts += [("level", 255 * model.level.mean().view(1), 0)]
        words = [f"{name} {value.item():.0f}" for name, value, none in parts if value != none]
        kernel = correlation.kernel
        neighbour = (kernel[..., 1:] * kernel[..., :-1]).sum(-1).mean().item()
        name = f"synthetic/{k:03d}, {', '.join(words)}, correlation {neighbour:.2f}"
        for file in chosen(files, c.per_kind, seed):
            yield Photo(name, seed, None, file)


def chosen(items: Sequence[T], count: int, seed: int) -> list[T]:
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))
    return [items[i] for i in order[:count].tolist()]


def draw(seed: int) -> tuple[NoiseModel, NoiseCorrelation]:
    rng = randomness(seed)
    return SYNTHETIC.draw(1, rng.choices), CORRELATED.draw(1, rng.choices)


def read(photo: Photo) -> np.ndarray:
    """(H, W, 3) uint8. UserError."""
    if photo.clean is None:
        return read_uint8(photo.noisy)
    clean = integer_to_float(read_uint8(photo.clean))[None]
    rng = randomness(photo.seed, crc32(photo.clean.name.encode()))
    if photo.noisy is None:
        clean = middle(clean, SIDE)
        model, correlation = draw(photo.seed)
        return float_to_uint8(add_noise(clean, model, rng.pixels, correlation)[0])
    noisy = integer_to_float(read_uint8(photo.noisy))[None]
    correlation = LOST_CORRELATION.draw(1, randomness(photo.seed).choices)
    return float_to_uint8(correlate(noisy, clean, correlation)[0])


if __name__ == "__main__":
    exit_on_user_error(main)
