"""What the headers of a data set's images say, without decoding them."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.checks import Finding
from data.survey import DataSet


@dataclass(frozen=True)
class Header:
    size: tuple[int, int]  # H, W
    mode: str  # Pillow's
    format: str


def read_header(path: Path) -> Header | None:
    """None where Pillow cannot tell; decoding then says what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of very large images
            with Image.open(path) as image:
                return Header((image.height, image.width), image.mode, image.format or "")
    except Exception:
        return None


def header_findings(data_set: DataSet) -> Iterator[Finding]:
    """Sizes of partners; grey, 16-bit and transparent images; names that belie the format."""
    headers = {path: read_header(path) for path in data_set.files}
    for pair in data_set.pairs:
        clean, noisy = headers[pair.clean], headers[pair.noisy]
        if clean and noisy and clean.size != noisy.size:
            sizes = ["{1}x{0}".format(*side.size) for side in (noisy, clean)]
            message = f"{sizes[0]} pixels, its clean partner {pair.clean.name} has {sizes[1]}"
            yield Finding("error", "size", pair.noisy, message, "fetch both again or remove them")
    gray = [
        path for path, h in headers.items() if h and h.mode in ("1", "L", "LA", "I", "I;16", "F")
    ]
    if len(gray) > len(headers) / 2 and len(gray) > 1:
        message = f"{len(gray)} of {len(headers)} images are grey"
        action = "the networks are made for colour"
        yield Finding("warning", "grey", data_set.root, message, action)
    else:
        for path in gray:
            message = "a grey image in a set of colour images"
            yield Finding("warning", "grey", path, message, "fetch the colour image or remove it")
    for what, modes in (("16-bit", ("I;16", "I")), ("with transparency", ("RGBA", "LA", "PA"))):
        if found := [path for path, h in headers.items() if h and h.mode in modes]:
            action = "rounded to 8 bits when read" if what == "16-bit" else "alpha is dropped"
            message = f"{len(found)} images {what}, such as {found[0].name}"
            yield Finding("note", "depth", data_set.root, message, action)
    for path, header in headers.items():
        belied = {"PNG": ".png", "JPEG": ".jpg"}.get(header.format if header else "")
        suffix = path.suffix.lower().replace("jpeg", "jpg")
        if belied and suffix != belied:
            message = f"is a {header.format} file by its contents"
            yield Finding("note", "suffix", path, message, "rename it")
