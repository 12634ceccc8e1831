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
    cutmix_mask,
    dequantise,
    draw_flip_turn,
    flip_turn,
    replace_rows,
    some_flat,
)
from data.noise import NoiseCorrelation, add_noise, correlate
from data.recipe import Recipe
from data.store import DeviceImageStore, ImageStore
from utils.filters import gaussian_kernel1d
from utils.seeding import Randomness


@dataclass(frozen=True)
class Triplet:
    """clean, its own noisy1, noisy2: another place under the same kind of noise. (B, 3, P, P).

    noisy2, the reference, has P of its own where its items were asked for another size.
    """

    clean: Tensor
    noisy1: Tensor
    noisy2: Tensor

    def dealt(self, hands: int) -> list["Triplet"]:
        """Every hands-th item each: as many of the real ones, which come first, for all."""
        each = [[x[i::hands].contiguous() for x in vars(self).values()] for i in range(hands)]
        return [Triplet(*tensors) for tensors in each]


def uniform_index(count: Tensor, generator: torch.Generator) -> Tensor:
    """An index in [0, count) for each element of `count` (any shape, int64)."""
    u = torch.rand(count.shape, generator=generator, dtype=torch.float64)
    return (u * count).long()


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return images.float().div_(255)


@functools.cache
def blur_matrix(patch: int, size: int, sigma: float, device: torch.device) -> Tensor:
    """K (P, P + 2 radius) with K x K^T = x (..., P + 2 radius, P + 2 radius) blurred, border off.

    size: taps of the Gaussian, 2 radius + 1.

    Two products with a band matrix take a third of the time of the convolutions on a CPU.
    """
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

    def patches(
        self, index: Tensor, rng: Randomness, blur: tuple[int, float] | None = None
    ) -> Tensor:
        """(B, 3, P, P) in [0, 1]: one augmented patch of each image `index`.

        blur: size and sigma of a Gaussian; as the whole image would be blurred, up to its borders.
        """
        margin = blur[0] // 2 if blur else 0
        crops = self.read(index, *self.place(index, rng), margin)
        x = to_float(flip_turn(crops, *draw_flip_turn(len(index), rng.choices)))
        if not blur:
            return x
        band = blur_matrix(self.patch, *blur, self.device)
        return band @ x @ band.T


class RealItems:
    """Real items: two views of noise of one kind, from pairs [clean 0, noisy 0, clean 1, ...].

    kinds: one label per pair; pairs with equal labels share their noise (SIDD: the same ISO).
    white: how many of the last pairs have noise that lost its correlation (resized images): the
    recipe's is given to it, the same in both views, and their clean side varies under it.
    """

    def __init__(
        self,
        store: ImageStore | DeviceImageStore,
        kinds: Sequence[str],
        patch: int,
        device: torch.device,
        recipe: Recipe,
        white: int = 0,
    ) -> None:
        if len(store) != 2 * len(kinds):
            raise ValueError(f"{len(store)} images are not {len(kinds)} pairs")
        self.source, self.recipe = PatchSource(store, patch, device), recipe
        order = sorted(range(len(kinds)), key=lambda i: kinds[i])
        sorted_kinds = [kinds[i] for i in order]
        self.members = torch.tensor(order)  # pairs, those of one kind side by side
        self.first = torch.tensor([sorted_kinds.index(k) for k in kinds])
        self.count = torch.tensor([sorted_kinds.count(k) for k in kinds])
        self.white, self.first_white = white, len(kinds) - white

    @property
    def stores(self) -> list[ImageStore | DeviceImageStore]:
        return [self.source.store]

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
        r = self.recipe
        box = cutmix_mask(len(pair), both.shape[-1], rng.choices, r.p_cutmix, r.cutmix_sides)
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
        if r.scenes is not None:
            scene = r.scenes.apply(clean, rng.choices, dim=False)
        own = correlate(noisy - clean + scene, scene, correlation)
        white = white.to(clean.device)[:, None, None, None]
        return torch.where(white, scene, clean), torch.where(white, own, noisy)

    def triplets(self, n: int, rng: Randomness, reference_size: int | None = None) -> Triplet:
        pair = torch.randint(len(self), (n,), generator=rng.choices)
        scaled = torch.rand(n, generator=rng.choices) < self.recipe.p_alpha
        low, high = self.recipe.alpha
        alpha = low + (high - low) * torch.rand(n, generator=rng.choices)
        alpha = torch.where(scaled, alpha, 1.0)
        same = self.recipe.lost_correlation.draw(n, rng.choices) if self.white else None
        clean, noisy1 = self.view(pair, alpha, rng, None, same)
        _, noisy2 = self.view(self.same_kind(pair, rng), alpha, rng, reference_size, same)
        return Triplet(clean, noisy1, noisy2)


class SyntheticItems:
    """Synthetic items: two independent clean patches under fresh noise of one drawn model.

    photos: clean photographs (DIV2K); real: its clean images, blurred, give the recipe's share of
    the patches.
    """

    def __init__(self, photos: PatchSource, recipe: Recipe, real: RealItems | None = None) -> None:
        self.photos, self.recipe, self.real = photos, recipe, real

    @property
    def stores(self) -> list[ImageStore | DeviceImageStore]:
        return [self.photos.store, *(self.real.stores if self.real else ())]

    def clean_patches(self, n: int, rng: Randomness, patch: int | None = None) -> Tensor:
        """(n, 3, P, P) in [0, 1]."""
        patch = patch or self.photos.patch
        p_real = 0.0 if self.real is None else self.recipe.p_real_clean
        is_real = torch.rand(n, generator=rng.choices) < p_real
        n_real = int(is_real.sum())
        index = torch.randint(len(self.photos), (n - n_real,), generator=rng.choices)
        patches = self.photos.of_size(patch).patches(index, rng)
        if not n_real:
            return self._varied(patches, rng)
        pair = torch.randint(len(self.real), (n_real,), generator=rng.choices)
        blurred = self.real.source.of_size(patch).patches(2 * pair, rng, self.recipe.blur)
        back = is_real.long().argsort(stable=True).argsort()  # from photos first to as drawn
        patches = torch.cat([patches, blurred]).index_select(0, back.to(patches.device))
        return self._varied(patches, rng)

    def _varied(self, patches: Tensor, rng: Randomness) -> Tensor:
        r = self.recipe
        if r.scenes is not None:
            patches = r.scenes.apply(patches, rng.choices)
        return some_flat(patches, r.p_flat, rng.choices) if r.p_flat else patches

    def triplets(self, n: int, rng: Randomness, reference_size: int | None = None) -> Triplet:
        model, correlation = self.recipe.noise.draw(n, rng.choices), self.recipe.correlation
        clean, other = self.clean_patches(n, rng), self.clean_patches(n, rng, reference_size)
        noisy1, noisy2 = (add_noise(x, model, rng.pixels) for x in (clean, other))
        if correlation is not None:
            same = correlation.draw(n, rng.choices)
            noisy1, noisy2 = correlate(noisy1, clean, same), correlate(noisy2, other, same)
        return Triplet(clean, noisy1, noisy2)


class GeneratorItems:
    """Items of `train_noiseTransfer.py`: real with probability p_real, else synthetic.

    reference_sizes: sizes of noisy2, one drawn per batch; none: as the other patches (paper).
    """

    def __init__(
        self,
        synthetic: SyntheticItems | None,
        real: RealItems | None,
        p_real: float,
        reference_sizes: Sequence[int] = (),
    ) -> None:
        if synthetic is None and real is None:
            raise ValueError("neither photos nor pairs")
        self.synthetic, self.real = synthetic, real
        self.p_real = 0.0 if real is None else 1.0 if synthetic is None else p_real
        self.reference_sizes = tuple(reference_sizes)

    @property
    def stores(self) -> list[ImageStore | DeviceImageStore]:
        return (self.synthetic or self.real).stores  # the real ones are the synthetic ones' too

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
