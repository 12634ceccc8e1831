"""A picture to look at when a batch is done: crops side by side, pixel for pixel."""

import base64
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from utils.files import write_atomically
from utils.images import uint16_to_uint8
from utils.photos import Tags, encode

SIDE, ROWS, LABEL, GAP = 320, 3, 18, 4  # pixels; images

PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<title>{0}</title>
<img alt="{0}" style="image-rendering: pixelated" src="data:image/png;base64,{1}">
"""


class Strip:
    """Rows of centre crops, such as clean | reference | generated, of the first ROWS images."""

    def __init__(self, *titles: str) -> None:
        self.titles, self.rows = titles, []

    def add(self, *images: np.ndarray) -> None:
        """A row of (H, W, 3) uint8 or uint16, one a title; only the crops are kept."""
        if len(self.rows) < ROWS:
            self.rows.append([crop(image) for image in images])

    def write(self, path: Path) -> None:
        """A page that holds the picture; nothing without rows. UserError."""
        if not self.rows:
            return
        step = SIDE + GAP
        size = step * len(self.titles) - GAP, LABEL + step * len(self.rows) - GAP
        canvas = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(canvas)
        for x, title in enumerate(self.titles):
            draw.text((x * step + 2, 2), title, fill="black")
            for y, row in enumerate(self.rows):
                canvas.paste(Image.fromarray(row[x]), (x * step, LABEL + y * step))
        data = base64.b64encode(encode(".png", np.asarray(canvas), Tags())).decode()
        write_atomically(PAGE.format(" | ".join(self.titles), data).encode(), path, durable=False)


def crop(image: np.ndarray) -> np.ndarray:
    """The middle of (H, W, 3) uint8 or uint16, SIDE pixels a side or what there is, as uint8."""
    y, x = (max(n - SIDE, 0) // 2 for n in image.shape[:2])
    part = image[y : y + SIDE, x : x + SIDE]
    return uint16_to_uint8(part) if part.dtype == np.uint16 else part.copy()
