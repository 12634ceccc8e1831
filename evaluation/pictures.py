"""Pictures in the report: crops side by side, pixel for pixel; what denoisers make."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from evaluation.denoising_tables import TRAINED_ON, denoiser_of
from evaluation.image_sets import ImagePairs, middle
from utils.images import float_to_uint8

CROP = 128  # noise does not compress: a crop of 128 takes 60 kB of the page
DENOISED = 3  # images of a test set that are shown denoised


def strip(name: str, pictures: Mapping[str, Tensor]) -> str:
    """A row of the centres of pictures (3, H, W) in [0, 1], by what they are."""
    shown = "".join(
        f'<figure><img src="{_png(image)}" alt="{escape(f"{name}, {what}")}" width="{w}" '
        f'height="{h}"><figcaption>{escape(what)}</figcaption></figure>'
        for what, image in pictures.items()
        for h, w in [_centre(image).shape[-2:]]
    )
    return f'<h4>{escape(name)}</h4>\n<div class="strip">{shown}</div>'


def _centre(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    top, left = max(0, (height - CROP) // 2), max(0, (width - CROP) // 2)
    return image[..., top : top + CROP, left : left + CROP]


def _png(image: Tensor) -> str:
    """Data URI of the centre of (3, H, W); black where it is not a number."""
    pixels = cv2.cvtColor(float_to_uint8(_centre(image).nan_to_num()), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return "data:image/png;base64," + base64.b64encode(data).decode()


@dataclass(frozen=True)
class DenoisedSection:
    """Images of one test set, by name: what is shown -> (3, H, W) on the CPU, in [0, 1]."""

    title: str
    samples: Mapping[str, Mapping[str, Tensor]]

    def html(self) -> str:
        return "\n".join(strip(name, pictures) for name, pictures in self.samples.items())


def denoised_section(
    denoisers: Mapping[Path, nn.Module],
    test_set: ImagePairs,
    *,
    limit: int | None = None,
    device: torch.device | str = "cpu",
) -> DenoisedSection:
    """Middles of a few images, noisy, by every denoiser, and clean."""
    count = len(test_set) if limit is None else min(limit, len(test_set))
    samples = {}
    for i in np.unique(np.linspace(0, count - 1, DENOISED).round().astype(int)).tolist():
        clean, noisy = (middle(x, 256) for x in test_set[i])
        pictures = {"noisy": noisy}
        for file, denoiser in denoisers.items():
            name, noise = denoiser_of(file)
            with torch.no_grad():
                denoised = denoiser(noisy[None].to(device))[0].clamp(0, 1).cpu()
            pictures[f"{name}, trained on {TRAINED_ON.get(noise, noise)}"] = denoised
        samples[test_set.image_name(i)] = pictures | {"clean": clean}
    return DenoisedSection(test_set.title, samples)
