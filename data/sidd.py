"""SIDD as published (Abdelhamed et al., CVPR 2018): scene folders, and validation blocks in .mat.

SIDD-Medium and SIDD-Small: one folder a scene, named after its capture settings, with one or two
pairs `*GT_SRGB_*.PNG`, `*NOISY_SRGB_*.PNG`. The validation sets of SIDD and SIDD+ (Abdelhamed et
al., CVPRW 2020) are two .mat files each, of uint8 blocks 256x256x3.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.mat import MatBlocks
from utils.errors import UserError
from utils.images import folder_files, read_image_size, subfolders, walk_files

SCENE_PATTERN = re.compile(r"(\d{4})_(\d{3})_([A-Z][A-Z0-9])_(\d{5})_(\d{5})_(\d{4})_([LNH])")
IMAGE_PATTERN = re.compile(r"(?:(.*)_)?(GT|NOISY)_SRGB_(.+)")


@dataclass(frozen=True)
class PairFile:
    """One clean image and its noisy partner, of equal size.

    kind: pairs of the same kind share their noise (SIDD: the same ISO, "iso_00100"); a pair of
    which that is not known has a kind of its own.
    """

    clean: Path
    noisy: Path
    kind: str


def require_same_size(clean: Path, noisy: Path) -> None:
    """UserError if the two images of a pair differ in size; reads only their headers."""
    (h1, w1), (h2, w2) = read_image_size(clean), read_image_size(noisy)
    if (h1, w1) != (h2, w2):
        raise UserError(
            f"{noisy}: {w2}x{h2} pixels, but its clean partner {clean} has {w1}x{h1}; "
            "the two must show the same pixels: fetch both again or remove the pair"
        )


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


def is_scene(folder: Path) -> bool:
    """Whether `folder` is a scene by its name, or by the names of the images in it."""
    return SCENE_PATTERN.fullmatch(folder.name) is not None or any(
        IMAGE_PATTERN.fullmatch(path.stem) for path in folder_files(folder)
    )


def scene_pairs(folder: Path) -> list[PairFile]:
    """The pairs of one scene folder, matched by file name; UserError if one lacks its partner."""
    try:
        iso = parse_scene(folder.name).iso
    except UserError as error:
        raise UserError(f"{folder}: holds SIDD images, but {error}") from error
    sides: dict[str, dict[tuple, Path]] = {"GT": {}, "NOISY": {}}
    for path in folder_files(folder):
        if match := IMAGE_PATTERN.fullmatch(path.stem):
            instance, side, shot = match.groups()
            sides[side][instance, shot] = path
    gt, noisy = sides["GT"], sides["NOISY"]
    if not gt and not noisy:
        raise UserError(
            f"{folder}: a SIDD scene without *GT_SRGB_* and *NOISY_SRGB_* images; "
            "unpack it again or remove it"
        )
    for key in gt.keys() ^ noisy.keys():
        path = gt.get(key) or noisy[key]
        found, lacking = ("GT", "NOISY") if key in gt else ("NOISY", "GT")
        partner = path.name.replace(f"{found}_SRGB_", f"{lacking}_SRGB_")
        raise UserError(f"{path}: its partner {partner} is missing; unpack the scene again")
    for key in gt:
        require_same_size(gt[key], noisy[key])
    return [PairFile(gt[key], noisy[key], f"iso_{iso:05d}") for key in gt]


def find_scenes(root: Path) -> Iterator[Path]:
    """`root`, if it is a scene, or all scenes below it."""
    if is_scene(root):
        yield root
    else:
        for folder in subfolders(root):
            yield from find_scenes(folder)


def sidd_pairs(root: Path) -> list[PairFile]:
    """The pairs of all scenes below `root`, at any depth, in the order of their names.

    kind is the scene's ISO. UserError: no scene, a malformed name, a missing partner, pairs of
    differing size.
    """
    scenes = list(find_scenes(Path(root)))
    if not scenes:
        raise UserError(
            f"{root}: no SIDD scenes; put SIDD-Medium (sRGB) there as published: "
            "SIDD_Medium_Srgb/Data/0001_001_S6_00100_00060_3200_L/0001_GT_SRGB_010.PNG ..."
        )
    return [pair for scene in scenes for pair in scene_pairs(scene)]


@dataclass(frozen=True)
class BlockFiles:
    """A published validation set: the stems of its two .mat files are the variables' names."""

    name: str
    title: str
    clean: str
    noisy: str
    source: str


VALIDATION_SETS = (
    BlockFiles(
        "sidd",
        "SIDD validation",
        "ValidationGtBlocksSrgb",
        "ValidationNoisyBlocksSrgb",
        "https://www.eecs.yorku.ca/~kamel/sidd/benchmark.php",
    ),
    BlockFiles(
        "siddplus",
        "SIDD+ validation",
        "siddplus_valid_gt_srgb",
        "siddplus_valid_noisy_srgb",
        "https://bit.ly/siddplus_data",
    ),
)


def find_mat_blocks(folder: Path) -> list[tuple[BlockFiles, MatBlocks, MatBlocks]]:
    """The validation sets below `folder` as .mat files: (which, clean, noisy).

    UserError: a file without its partner, or differing numbers or sizes of blocks.
    """
    files = {path.name: path for path in walk_files(folder, (".mat",))}
    found = []
    for which in VALIDATION_SETS:
        names = [f"{which.clean}.mat", f"{which.noisy}.mat"]
        present = [files[name] for name in names if name in files]
        if not present:
            continue
        if len(present) == 1:
            (lacking,) = [name for name in names if name not in files]
            raise UserError(
                f"{present[0]}: its partner {lacking} is missing; put it beside it ({which.source})"
            )
        clean, noisy = (
            MatBlocks(path, stem)
            for path, stem in zip(present, (which.clean, which.noisy), strict=True)
        )
        if clean.shape != noisy.shape:
            raise UserError(
                f"{noisy.path}: an array {noisy.shape}, but {clean.path} holds {clean.shape}; "
                f"download both again ({which.source})"
            )
        found.append((which, clean, noisy))
    return found
