"""The items of `train_noiseTransfer.py` (method 4) made plainly, for benchmarks.data to beat."""

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.folders import PairFile
from train_noiseTransfer import RECIPE, Config

P_REAL = Config().p_real


class PlainItems:
    """One item at a time with PIL, numpy and OpenCV, then stacked.

    Each image is decoded when an item asks for it, as a plain data set does; with `in_memory` all
    of them once, before the first item.
    """

    def __init__(
        self, pairs: Sequence[PairFile], photos: Sequence[Path], patch: int, in_memory: bool
    ) -> None:
        self.decode = functools.cache(decode) if in_memory else decode
        self.pairs, self.photos = pairs, photos
        if in_memory:
            for file in [*photos, *(side for p in pairs for side in (p.clean, p.noisy))]:
                self.decode(file)
        self.same_kind = [[j for j, q in enumerate(pairs) if p.kind == q.kind] for p in pairs]
        self.patch = patch

    def batch(self, n: int, seed: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng(seed)
        items = [self.real(rng) if rng.random() < P_REAL else self.synthetic(rng) for _ in range(n)]
        return tuple(
            torch.stack(
                [torch.from_numpy(np.ascontiguousarray(v.transpose(2, 0, 1))) for v in role]
            )
            for role in zip(*items, strict=True)
        )

    def crop(self, rng: np.random.Generator, *files: Path) -> list[np.ndarray]:
        """The same random patch of each image, flipped and turned; float32 in [0, 1]."""
        images = [self.decode(file) for file in files]
        top, left = (rng.integers(n - self.patch + 1) for n in images[0].shape[:2])
        flip, turns = rng.random() < 0.5, rng.integers(4)
        patches = []
        for image in images:
            x = image[top : top + self.patch, left : left + self.patch].astype(np.float32) / 255
            patches.append(np.rot90(x[:, ::-1] if flip else x, turns))
        return patches

    def clean(self, rng: np.random.Generator) -> np.ndarray:
        if rng.random() < RECIPE.p_real_clean:
            (patch,) = self.crop(rng, self.pairs[rng.integers(len(self.pairs))].clean)
            return cv2.GaussianBlur(patch, (21, 21), 3.5)
        return self.crop(rng, self.photos[rng.integers(len(self.photos))])[0]

    def synthetic(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        kind = rng.choice(3, p=(0.2, 0.2, 0.6))
        sigma, chi = rng.uniform(0, 70) / 255, rng.uniform(5, 100)

        def noisy(x: np.ndarray) -> np.ndarray:
            if kind != 0:
                x = rng.poisson(x * chi) / chi
            if kind != 1:
                x = x + rng.normal(0, sigma, x.shape)
            return np.clip(x, 0, 1).astype(np.float32)

        clean, other = self.clean(rng), self.clean(rng)
        return clean, noisy(clean), noisy(other)

    def view(self, i: int, alpha: float, rng: np.random.Generator) -> list[np.ndarray]:
        sides = self.pairs[i].clean, self.pairs[i].noisy
        views = self.crop(rng, *sides)
        if rng.random() < 0.5:
            others = self.crop(rng, *sides)
            height, width = rng.integers(self.patch // 4, 3 * self.patch // 4, 2)
            top, left = (rng.integers(self.patch - side + 1) for side in (height, width))
            box = np.s_[top : top + height, left : left + width]
            views = [view.copy() for view in views]
            for view, other in zip(views, others, strict=True):
                view[box] = other[box]
        clean, noisy = views
        noisy = alpha * noisy + (1 - alpha) * clean
        has_noise = np.abs(noisy - clean).sum(axis=2, keepdims=True) > 1e-3
        noisy = np.clip(noisy + has_noise * (rng.random(noisy.shape) - 0.5) / 255, 0, 1)
        return [clean, noisy.astype(np.float32)]

    def real(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        i = rng.integers(len(self.pairs))
        alpha = rng.uniform(0.8, 1) if rng.random() < 0.5 else 1.0
        clean, noisy1 = self.view(i, alpha, rng)
        return clean, noisy1, self.view(rng.choice(self.same_kind[i]), alpha, rng)[1]


def decode(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
