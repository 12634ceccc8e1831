"""The sample data that everything runs on without a download: photos bundled with scikit-image.

All seven are inside scikit-image's wheel. As its documentation says of each:
  astronaut              Eileen Collins; NASA Great Images database; public domain
  chelsea                a cat, by Stefan van der Walt; CC0
  coffee                 Pikolo Espresso Bar, by Rachel Michetti; CC0
  hubble_deep_field      Hubble eXtreme Deep Field; NASA, HubbleSite; public domain
  immunohistochemistry   colonic glands; Center for Microscopy And Molecular Imaging (CMMI);
                         no known copyright restrictions
  retina                 by Mikael Haeggstroem, DOI 10.15347/wjm/2014.008; Wikimedia Commons; CC0
  rocket                 Falcon 9 before the launch of DSCOVR; SpaceX; public domain
(stereo_motorcycle is bundled too, but no licence is stated.)

Each photo is cut into a training area and test crops, which do not overlap. Noise is a camera's, by
`data.camera`: figures measured on it are about this sample and comparable to no published table.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data

from data.camera import NOISE_LEVEL, camera_pair, noise_level
from utils.errors import UserError
from utils.files import whole_folder
from utils.images import write_image

VERSION = 2  # of the files written; raise it with any change to them
MARKER = ".sample.json"

Images = dict[str, np.ndarray]  # path inside a folder -> (H, W, 3) RGB uint8


class Area(NamedTuple):
    photo: str
    top: int
    left: int
    height: int = 256
    width: int = 256

    def cut(self, photos: Images) -> np.ndarray:
        photo = photos[self.photo]
        return photo[self.top : self.top + self.height, self.left : self.left + self.width]


TRAINING = (
    Area("astronaut", 0, 0, 256, 512),
    Area("chelsea", 0, 256, 300, 195),
    Area("coffee", 0, 0, 400, 344),
    Area("hubble_deep_field", 0, 0, 872, 488),
    Area("immunohistochemistry", 0, 0, 256, 512),
    Area("retina", 200, 120, 1000, 600),
    Area("rocket", 0, 0, 427, 384),
)
SCENE_SIDE = 384  # a training scene is a random window, this large at most, of a training area

TEST_CAMERA = (
    (Area("astronaut", 256, 0), "S6", 800),
    (Area("chelsea", 22, 0), "N6", 1600),
    (Area("coffee", 72, 344), "GP", 3200),
    (Area("hubble_deep_field", 0, 488), "G4", 100),
    (Area("hubble_deep_field", 256, 488), "GP", 1600),
    (Area("hubble_deep_field", 512, 488), "N6", 400),
    (Area("immunohistochemistry", 256, 0), "IP", 800),
    (Area("retina", 200, 720), "S6", 3200),
    (Area("retina", 456, 720), "GP", 800),
    (Area("retina", 712, 720), "S6", 1600),
    (Area("retina", 968, 720), "N6", 3200),
    (Area("rocket", 171, 384), "G4", 800),
)
TEST_PHOTOS = (
    Area("astronaut", 256, 256),
    Area("hubble_deep_field", 0, 744),
    Area("hubble_deep_field", 256, 744),
    Area("immunohistochemistry", 256, 256),
    Area("retina", 456, 976),
    Area("retina", 712, 976),
)
# Of the test crops: name, phone and ISO of a noisy photo, and a clean photo for its noise.
EXAMPLES = (
    ("Galaxy S6", "S6", 1600, Area("coffee", 72, 344), Area("astronaut", 256, 0, 256, 512)),
    ("Pixel", "GP", 1600, Area("astronaut", 256, 256), Area("retina", 456, 720, 512, 512)),
    ("Nexus 6", "N6", 1600, Area("chelsea", 22, 0), Area("coffee", 72, 344)),
)


def sample_photos() -> Images:
    """{name: (H, W, 3) RGB uint8} of the bundled colour photographs, 300x451 to 1411x1411."""
    return {name: getattr(skimage.data, name)() for name in sorted({a.photo for a in TRAINING})}


def write_sample(root: Path, seed: int = 0) -> Path:
    """Write the sample below `root`, in the layouts of the published sets, and return `root`.

    train_images/sidd_sample/Data/<scene>/NNNN_{GT,NOISY}_SRGB_010.PNG   a scene a phone and ISO
    train_images/photos/*.png                                            clean, the training areas
    test_images/sample_camera/{groundtruth,input}/*.png                  12 pairs 256x256
    test_images/sample_photos/*.png                                      6 clean crops 256x256

    Noise, white balance and the windows of the scenes depend on `seed` alone. Each of the four
    folders appears whole or not at all. One that this function wrote before is kept as it is, or
    written anew if the seed or the version is another. Raises UserError where a folder holds other
    files, or cannot be written.
    """
    root = Path(root)
    for name, make in (
        ("train_images/sidd_sample", _training_scenes),
        ("train_images/photos", _training_photos),
        ("test_images/sample_camera", _test_camera),
        ("test_images/sample_photos", _test_photos),
    ):
        folder = root / name
        try:
            _write_folder(folder, seed, make)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror or error}); choose another folder"
            ) from error
    return root


def _training_scenes(seed: int) -> Images:
    photos, images = sample_photos(), {}
    for i, (phone, iso) in enumerate(NOISE_LEVEL):
        rng = np.random.default_rng([seed, 0, i])
        scene = i % len(TRAINING)
        area = TRAINING[scene].cut(photos)
        top, left = (rng.integers(max(n - SCENE_SIDE, 0) + 1) for n in area.shape[:2])
        window = area[top : top + SCENE_SIDE, left : left + SCENE_SIDE]
        clean, noisy = camera_pair(window, noise_level(phone, iso), rng, draw_gains(rng))
        # instance, scene, phone, ISO, shutter, colour temperature, normal light
        folder = f"Data/{i + 1:04d}_{scene + 1:03d}_{phone}_{iso:05d}_00100_5500_N"
        images[f"{folder}/{i + 1:04d}_GT_SRGB_010.PNG"] = clean
        images[f"{folder}/{i + 1:04d}_NOISY_SRGB_010.PNG"] = noisy
    return images


def _training_photos(seed: int) -> Images:
    photos = sample_photos()
    return {f"{area.photo}.png": area.cut(photos) for area in TRAINING}


def _test_camera(seed: int) -> Images:
    photos, images = sample_photos(), {}
    for i, (area, phone, iso) in enumerate(TEST_CAMERA):
        rng = np.random.default_rng([seed, 1, i])
        clean, noisy = camera_pair(area.cut(photos), noise_level(phone, iso), rng, draw_gains(rng))
        name = f"{i + 1:02d}_{area.photo}_{phone}_{iso:05d}.png"
        images[f"groundtruth/{name}"] = clean
        images[f"input/{name}"] = noisy
    return images


def _test_photos(seed: int) -> Images:
    photos = sample_photos()
    return {f"{i + 1:02d}_{a.photo}.png": a.cut(photos) for i, a in enumerate(TEST_PHOTOS)}


def write_examples(folder: Path) -> list[tuple[str, Path, Path]]:
    """EXAMPLES as files in `folder`: a name, the noisy photo, a clean one of another scene."""
    photos, examples = sample_photos(), []
    for name, phone, iso, area, target in EXAMPLES:
        rng = np.random.default_rng(iso)
        _, noisy = camera_pair(area.cut(photos), noise_level(phone, iso), rng, draw_gains(rng))
        paths = folder / f"{area.photo}_{phone}_{iso}.png", folder / f"{target.photo}.png"
        for path, image in zip(paths, (noisy, target.cut(photos)), strict=True):
            write_image(path, image)
        examples.append((f"{name}, ISO {iso}", *paths))
    return examples


def draw_gains(rng: np.random.Generator) -> tuple[float, float, float]:
    return rng.uniform(1.9, 2.4), 1.0, rng.uniform(1.5, 1.9)  # daylight, warmer and cooler


def _write_folder(folder: Path, seed: int, make: Callable[[int], Images]) -> None:
    stamp = {"version": VERSION, "seed": seed}
    if _is_complete(folder, stamp):
        return
    known = {MARKER, *_read_marker(folder).get("files", ())}
    for path in folder.rglob("*"):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in known:
            raise UserError(
                f"{folder}: expected this sample's own folder or none, it holds {path.name}; "
                "choose another folder for the sample"
            )
    with whole_folder(folder, lambda: _is_complete(folder, stamp)) as temporary:
        images = make(seed)
        for name, image in images.items():
            write_image(temporary / name, image)
        marker = json.dumps({**stamp, "files": sorted(images)}, indent=1)
        (temporary / MARKER).write_text(marker, encoding="utf-8")


def _is_complete(folder: Path, stamp: dict) -> bool:
    marker = _read_marker(folder)
    files = marker.pop("files", ())
    return marker == stamp and all((folder / name).is_file() for name in files)


def _read_marker(folder: Path) -> dict:
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # none, or not ours
        return {}
