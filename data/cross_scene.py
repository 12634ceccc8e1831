"""What a user of the generator has: a noisy photo of one scene, and clean photos of others.

Reference and target show different photographs of the bundled sample, at different brightness, with
simulated noise (data/camera.py) of one phone, ISO and white balance.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from data.camera import camera_pair, exposed, noise_level
from data.sample import Area, draw_gains, sample_photos
from utils.images import integer_to_float

DIM = 0.35  # of two exposures, the lower one; the other is 1


class ScenePair(NamedTuple):
    phone: str
    iso: int
    reference: Area
    exposure: float  # of the reference: a factor on its pixel values, 1 or DIM
    target: Area  # exposed the other way

    @property
    def target_exposure(self) -> float:
        return DIM if self.exposure == 1 else 1.0


ASTRONAUT, ASTRONAUT_2 = Area("astronaut", 256, 0), Area("astronaut", 256, 256)
CHELSEA, COFFEE, ROCKET = Area("chelsea", 22, 0), Area("coffee", 72, 344), Area("rocket", 171, 384)
TISSUE, TISSUE_2 = (Area("immunohistochemistry", 256, left) for left in (0, 256))
RETINA, RETINA_2 = Area("retina", 456, 720), Area("retina", 712, 976)

# All areas are test areas of data/sample.py. Weak and strong noise, bright and dark references in
# turn, so that the first few are varied, too.
PAIRS = (
    ScenePair("GP", 100, CHELSEA, 1, TISSUE),
    ScenePair("S6", 3200, TISSUE, DIM, ASTRONAUT),
    ScenePair("N6", 800, COFFEE, 1, RETINA),
    ScenePair("IP", 400, ASTRONAUT_2, DIM, CHELSEA),
    ScenePair("G4", 400, TISSUE_2, 1, COFFEE),
    ScenePair("GP", 3200, RETINA, DIM, COFFEE),
    ScenePair("N6", 3200, TISSUE_2, 1, CHELSEA),
    ScenePair("S6", 100, ASTRONAUT, DIM, TISSUE),
    ScenePair("IP", 1600, RETINA_2, 1, ASTRONAUT_2),
    ScenePair("GP", 800, COFFEE, DIM, RETINA_2),
    ScenePair("S6", 1600, CHELSEA, 1, ROCKET),
    ScenePair("G4", 800, ROCKET, DIM, TISSUE_2),
)


class CrossSceneTestSet:
    """A test set of pairs, 256x256: N targets, N more shots of them, N references.

    Image i < N is pair i's target, image N + i another shot of it, with noise of its own, and image
    2 N + i its reference. Everything depends on `seed` alone.
    """

    name = title = "sample_scenes"

    def __init__(self, seed: int = 0) -> None:
        self.pairs = PAIRS
        self.images: list[tuple[Tensor, Tensor]] = []
        photos = sample_photos()
        for shot in range(3):
            for i, pair in enumerate(self.pairs):
                gains = draw_gains(np.random.default_rng([seed, 5, i]))
                rng = np.random.default_rng([seed, 6, i, shot])
                area, exposure = (
                    (pair.reference, pair.exposure)
                    if shot == 2
                    else (pair.target, pair.target_exposure)
                )
                photo = exposed(area.cut(photos), exposure)
                sides = camera_pair(photo, noise_level(pair.phone, pair.iso), rng, gains)
                clean, noisy = (integer_to_float(side) for side in sides)
                self.images.append((clean, noisy))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.images[i]

    @property
    def references(self) -> range:
        """Of each target, the index of its reference."""
        return range(2 * len(self.pairs), len(self))

    def kind(self, i: int) -> str:
        pair = self.pairs[i % len(self.pairs)]
        return f"{pair.phone} {pair.iso}"

    def second_shot(self, i: int) -> int | None:
        return i + len(self.pairs) if i < len(self.pairs) else None

    def size(self, i: int) -> tuple[int, int]:
        height, width = self.images[i][0].shape[1:]
        return height, width

    def image_name(self, i: int) -> str:
        """Of a target: 01_GP_00100_chelsea_1_to_immunohistochemistry_0.35."""
        pair = self.pairs[i % len(self.pairs)]
        scenes = (
            f"{pair.reference.photo}_{pair.exposure:g}_to_"
            f"{pair.target.photo}_{pair.target_exposure:g}"
        )
        return f"{i + 1:02d}_{pair.phone}_{pair.iso:05d}_{scenes}"
