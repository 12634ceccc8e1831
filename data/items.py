"""Training items (docs/method.md 4, 5): batches of patches from the stores of photos and pairs.

Patches are cropped, flipped, turned and mixed as the 8-bit pixels that they are, a quarter of the
bytes of float32, and become float32 in [0, 1] when arithmetic starts.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.augment import (
    SceneDistribution,
    cutmix_mask,
    dequantise,
    draw_flip_turn,
    flip_turn,
    replace_rows,
)
from data.noise import (
    GENERATOR_NOISE,
    NoiseCorrelation,
    NoiseCorrelationDistribution,
    NoiseModelDistribution,
    add_noise,
    correlate,
)
from data.store import DeviceImageStore, ImageStore
from utils.filters import gaussian_kernel1d
from utils.seeding import Randomness

P_REAL = 320 / 1120  # 320 pairs of SIDD-Medium among 1120 items, drawn with replacement
P_SIDD_CLEAN = 0.2  # a synthetic item's patch comes from a blurred SIDD clean image
BLUR = 21, 3.5  # size and sigma of the Gaussian that takes the last noise off SIDD's clean images


@dataclass(frozen=True)
class Triplet:
    """clean, its own noisy1, noisy2: another place under the same kind of noise. (B, 3, P, P).

    noisy2, the reference, has P of its own where its items were asked for another size.
    """

    clean: Tensor
    noisy1: Tensor
    noisy2: Tensor


def uniform_index(count: Tensor, generator: torch.Generator) -> Tensor:
    """An index in [0, count) for each element of `count` (any shape, int64)."""
    u = torch.rand(count.shape, generator=generator, dtype=torch.float64)
    return (u * count).long()


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return images.float().div_(255)


@functools.cache
def blur_matrix(patch: int, device: torch.device) -> Tensor:
    """K (P, P + 2 radius) with K x K^T = x (..., P + 2 radius, P + 2 radius) blurred, border off.

    Two products with a band matrix take a third of the time of the convolutions on a CPU.
    """
    size, sigma = BLUR
    band = torch.zeros(patch, patch + size - 1)
    for tap, weight in enumerate(gaussian_kernel1d(size, sigma)):
        band.diagonal(tap).fill_(weight)
    return band.to(device)


class PatchSource:
    """Random flipped and turned patches of an image store, on the training device.

    store: uint8 images; patch: P, pixels a side.
    """

    def __init__(
        self, store: ImageStore | DeviceImageStore, patch: int, device: torch.device
    ) -> None:
        self.store, self.patch, self.device = store, patch, device

    def __len__(self) -> int:
        return len(self.store)

    def of_size(self, patch: int) -> "PatchSource":
        """Patches of the same images, of another size."""
        return PatchSource(self.store, patch, self.device)

    def place(self, index: Tensor, rng: Randomness) -> tuple[Tensor, Tensor]:
        """A uniformly drawn top left corner in each image `index` (B,)."""
        room = self.store.sizes[index] - self.patch + 1  # (B, 2)
        return uniform_index(room, rng.choices).unbind(1)

    def read(self, index: Tensor, top: Tensor, left: Tensor, margin: int = 0) -> Tensor:
        """(B, 3, P + 2 margin, P + 2 margin) uint8 on the device, contiguous."""
        crops = self.store.crop(index, top, left, self.patch, margin)
        if self.device.type == "cuda" and not crops.is_cuda:
            crops = crops.pin_memory()  # the copy is asynchronous from there alone
        return crops.to(self.device, non_blocking=True).contiguous()

    def patches(self, index: Tensor, rng: Randomness, blur: bool = False) -> Tensor:
        """(B, 3, P, P) in [0, 1]: one augmented patch of each image `index`.

        blur: as the whole image would be blurred, up to its borders.
        """
        margin = BLUR[0] // 2 if blur else 0
        crops = self.read(index, *self.place(index, rng), margin)
        x = to_float(flip_turn(crops, *draw_flip_turn(len(index), rng.choices)))
        if not blur:
            return x
        band = blur_matrix(self.patch, self.device)
        return band @ x @ band.T


class RealItems:
    """Real items: two views of noise of one kind, from pairs [clean 0, noisy 0, clean 1, ...].

    kinds: a label a pair; pairs with equal labels share their noise (SIDD: the same ISO).
    white: how many of the last pairs have noise that lost its correlation (resized images);
    correlation: what is given to it, the same to both views; scenes: how their clean side varies
    under the same noise.
    """

    def __init__(
        self,
        store: ImageStore | DeviceImageStore,
        kinds: Sequence[str],
        patch: int,
        device: torch.device,
        white: int = 0,
        correlation: NoiseCorrelationDistribution | None = None,
        scenes: SceneDistribution | None = None,
    ) -> None:
        if len(store) != 2 * len(kinds):
            raise ValueError(f"{len(store)} images are not {len(kinds)} pairs")
        self.source = PatchSource(store, patch, device)
        order = sorted(range(len(kinds)), key=lambda i: kinds[i])
        sorted_kinds = [kinds[i] for i in order]
        self.members = torch.tensor(order)  # pairs, those of one kind side by side
        self.first = torch.tensor([sorted_kinds.index(k) for k in kinds])
        self.count = torch.tensor([sorted_kinds.count(k) for k in kinds])
        self.first_white = len(kinds) - white
        self.correlation, self.scenes = correlation, scenes

    def __len__(self) -> int:
        return len(self.members)

    def same_kind(self, pair: Tensor, rng: Randomness) -> Tensor:
        """A random pair of the same kind for each pair (B,), itself included."""
        return self.members[self.first[pair] + uniform_index(self.count[pair], rng.choices)]

    def augmented_pair(self, pair: Tensor, rng: Randomness, patch: int | None = None) -> Tensor:
        """(B, 6, P, P) uint8: an aligned patch, clean and noisy in channels, flipped and turned."""
        source = self.source.of_size(patch or self.source.patch)
        top, left = source.place(2 * pair, rng)
        both = source.read(
            torch.cat([2 * pair, 2 * pair + 1]), torch.cat([top, top]), torch.cat([left, left])
        )
        both = torch.cat(both.chunk(2), dim=1)
        return flip_turn(both, *draw_flip_turn(len(pair), rng.choices))

    def view(
        self,
        pair: Tensor,
        alpha: Tensor,
        rng: Randomness,
        patch: int | None = None,
        correlation: NoiseCorrelation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One augmented view (clean, noisy) of each pair (B,); alpha (B,) scales its noise.

        correlation: of the B images, applied to the white ones' noise.

        The CutMix box shows the same region of a second augmented patch of the pair: whole and
        properly turned, whatever the box's shape.
        """
        both = self.augmented_pair(pair, rng, patch)
        box = cutmix_mask(len(pair), both.shape[-1], rng.choices)
        mixed = box.any(dim=(1, 2, 3)).nonzero().squeeze(1)
        if len(mixed):
            second = self.augmented_pair(pair[mixed], rng, patch)
            first = both.index_select(0, mixed.to(both.device))
            inside = box[mixed].to(both.device, torch.uint8)
            # second where inside, else first: exact modulo 256, faster than torch.where
            both = replace_rows(both, mixed, (second - first).mul_(inside).add_(first))
        clean, noisy = to_float(both).chunk(2, dim=1)
        noisy = torch.lerp(clean, noisy, alpha.to(both.device)[:, None, None, None])  # Eq. 4.13
        noisy = dequantise(clean, noisy, rng.pixels)
        white = pair >= self.first_white
        if correlation is None or not white.any():
            return clean, noisy
        scene = clean
        if self.scenes is not None:
            scene = self.scenes.apply(clean, rng.choices, dim=False)
        own = correlate(noisy - clean + scene, scene, correlation)
        white = white.to(clean.device)[:, None, None, None]
        return torch.where(white, scene, clean), torch.where(white, own, noisy)

    def triplets(self, n: int, rng: Randomness, reference_size: int | None = None) -> Triplet:
        pair = torch.randint(len(self), (n,), generator=rng.choices)
        scaled = torch.rand(n, generator=rng.choices) < 0.5
        alpha = torch.where(scaled, 0.8 + 0.2 * torch.rand(n, generator=rng.choices), 1.0)
        same = None if self.correlation is None else self.correlation.draw(n, rng.choices)
        clean, noisy1 = self.view(pair, alpha, rng, None, same)
        _, noisy2 = self.view(self.same_kind(pair, rng), alpha, rng, reference_size, same)
        return Triplet(clean, noisy1, noisy2)


class SyntheticItems:
    """Synthetic items: two independent clean patches under fresh noise of one drawn model.

    photos: clean photographs (DIV2K); real: its clean images, blurred, give P_SIDD_CLEAN of the
    patches where there are any. correlation: of the noise, the same in both views; scenes: how the
    clean patches vary.
    """

    def __init__(
        self,
        photos: PatchSource,
        real: RealItems | None = None,
        noise: NoiseModelDistribution = GENERATOR_NOISE,
        correlation: NoiseCorrelationDistribution | None = None,
        scenes: SceneDistribution | None = None,
    ) -> None:
        self.photos, self.real, self.noise = photos, real, noise
        self.correlation, self.scenes = correlation, scenes

    def clean_patches(self, n: int, rng: Randomness, patch: int | None = None) -> Tensor:
        """(n, 3, P, P) in [0, 1]."""
        patch = patch or self.photos.patch
        p_real = 0.0 if self.real is None else P_SIDD_CLEAN
        is_real = torch.rand(n, generator=rng.choices) < p_real
        n_real = int(is_real.sum())
        index = torch.randint(len(self.photos), (n - n_real,), generator=rng.choices)
        patches = self.photos.of_size(patch).patches(index, rng)
        if not n_real:
            return self._varied(patches, rng)
        pair = torch.randint(len(self.real), (n_real,), generator=rng.choices)
        blurred = self.real.source.of_size(patch).patches(2 * pair, rng, blur=True)
        back = is_real.long().argsort(stable=True).argsort()  # from photos first to as drawn
        patches = torch.cat([patches, blurred]).index_select(0, back.to(patches.device))
        return self._varied(patches, rng)

    def _varied(self, patches: Tensor, rng: Randomness) -> Tensor:
        return patches if self.scenes is None else self.scenes.apply(patches, rng.choices)

    def triplets(self, n: int, rng: Randomness, reference_size: int | None = None) -> Triplet:
        model = self.noise.draw(n, rng.choices)
        clean, other = self.clean_patches(n, rng), self.clean_patches(n, rng, reference_size)
        noisy1, noisy2 = (add_noise(x, model, rng.pixels) for x in (clean, other))
        if self.correlation is not None:
            same = self.correlation.draw(n, rng.choices)
            noisy1, noisy2 = correlate(noisy1, clean, same), correlate(noisy2, other, same)
        return Triplet(clean, noisy1, noisy2)


class GeneratorItems:
    """Items of `train_noiseTransfer.py`: real with probability p_real, else synthetic.

    reference_sizes: sizes of noisy2, one drawn a batch; none: as the other patches (paper).
    """

    def __init__(
        self,
        synthetic: SyntheticItems | None,
        real: RealItems | None,
        p_real: float = P_REAL,
        reference_sizes: Sequence[int] = (),
    ) -> None:
        if synthetic is None and real is None:
            raise ValueError("neither photos nor pairs")
        self.synthetic, self.real = synthetic, real
        self.p_real = 0.0 if real is None else 1.0 if synthetic is None else p_real
        self.reference_sizes = tuple(reference_sizes)

    def triplets(self, n: int, rng: Randomness) -> Triplet:
        n_real = int((torch.rand(n, generator=rng.choices) < self.p_real).sum())
        size = None
        if self.reference_sizes:
            drawn = torch.randint(len(self.reference_sizes), (), generator=rng.choices)
            size = self.reference_sizes[drawn]
        parts = []
        if n_real:
            parts.append(self.real.triplets(n_real, rng, size))
        if n_real < n:
            parts.append(self.synthetic.triplets(n - n_real, rng, size))
        return Triplet(
            torch.cat([p.clean for p in parts]),
            torch.cat([p.noisy1 for p in parts]),
            torch.cat([p.noisy2 for p in parts]),
        )
