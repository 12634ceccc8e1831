"""The names of SIDD as published (Abdelhamed et al., CVPR 2018): scene folders, validation sets.

SIDD-Medium and SIDD-Small: one folder a scene, named after its capture settings, with one or two
pairs `*GT_SRGB_*.PNG`, `*NOISY_SRGB_*.PNG`. The validation sets of SIDD and SIDD+ (Abdelhamed et
al., CVPRW 2020) are two .mat files each, of uint8 blocks 256x256x3.
"""

import re
from dataclasses import dataclass

from utils.errors import UserError

SCENE_PATTERN = re.compile(r"(\d{4})_(\d{3})_([A-Z][A-Z0-9])_(\d{5})_(\d{5})_(\d{4})_([LNH])")
IMAGE_PATTERN = re.compile(r"(?:(.*)_)?(GT|NOISY)_SRGB_(.+)")


@dataclass(frozen=True)
class Scene:
    """What a scene folder's name says of its capture."""

    instance: int
    scene: int
    phone: str  # GP Google Pixel, IP iPhone 7, S6 Galaxy S6 Edge, N6 Nexus 6, G4 LG G4
    iso: int
    shutter: int  # 1/s
    temperature: int  # of the illuminant, kelvin
    brightness: str  # L low, N normal, H high


def parse_scene(name: str) -> Scene:
    """The settings in a name such as `0001_001_S6_00100_00060_3200_L`; UserError if malformed."""
    match = SCENE_PATTERN.fullmatch(name)
    if match is None:
        raise UserError(
            f"{name}: not the name of a SIDD scene folder, such as 0001_001_S6_00100_00060_3200_L "
            "(instance_scene_phone_ISO_shutter_temperature_brightness); restore the published name"
        )
    instance, scene, phone, iso, shutter, temperature, brightness = match.groups()
    return Scene(
        int(instance), int(scene), phone, int(iso), int(shutter), int(temperature), brightness
    )


@dataclass(frozen=True)
class BlockFiles:
    """A published validation set: the stems of its two .mat files are the variables' names."""

    name: str
    title: str
    clean: str
    noisy: str
    count: int  # blocks
    source: str


VALIDATION_SETS = (
    BlockFiles(
        "sidd",
        "SIDD validation",
        "ValidationGtBlocksSrgb",
        "ValidationNoisyBlocksSrgb",
        1280,
        "https://www.eecs.yorku.ca/~kamel/sidd/benchmark.php",
    ),
    BlockFiles(
        "siddplus",
        "SIDD+ validation",
        "siddplus_valid_gt_srgb",
        "siddplus_valid_noisy_srgb",
        1024,
        "https://bit.ly/siddplus_data",
    ),
)
