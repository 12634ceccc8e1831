"""The README's picture: noise of four references (top row) on three clean photos (left column).

    python figs/make_transfer.py            # writes figs/transfer.png

Photos and references are crops of the bundled sample; see data/sample.py.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.folders import find_test_sets
from data.noise import NoiseModel, add_noise
from data.sample import write_sample
from models import NoiseTransfer
from utils.errors import exit_on_user_error
from utils.evaluation import per_image_noise
from utils.images import float_to_uint8, write_image

SIZE, GAP = 176, 4
CLEAN = 1, 2, 0  # of sample_camera: cat, coffee, astronaut
CAMERA = 7, 8  # of sample_camera, as references: ISO 3200 and 800
SYNTHETIC = NoiseModel(sigma=torch.tensor([50 / 255, 0.0]), chi=torch.tensor([torch.inf, 10.0]))


def main() -> None:
    sets = {s.name: s for s in find_test_sets(write_sample(Path("cache/sample")) / "test_images")}
    pairs, photos = sets["sample_camera"], sets["sample_photos"]
    clean = torch.stack([pairs[i][0][:, -SIZE:, :SIZE] for i in CLEAN])
    references = [pairs[i][1][None] for i in CAMERA]
    two = torch.stack([photos[5], photos[5]])  # under Gaussian and under Poisson noise
    references += add_noise(two, SYNTHETIC, torch.Generator().manual_seed(0)).split(1)

    transfer = NoiseTransfer.from_checkpoint("ckpts/NT")
    rows = [[torch.ones(3, SIZE, SIZE), *(r[0, :, :SIZE, :SIZE] for r in references)]]
    generated = [
        transfer.transfer(clean, r, per_image_noise(range(len(clean)))) for r in references
    ]
    rows += [[clean[i], *(g[i] for g in generated)] for i in range(len(clean))]

    step = SIZE + GAP
    grid = torch.ones(3, len(rows) * step - GAP, len(rows[0]) * step - GAP)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            grid[:, y * step : y * step + SIZE, x * step : x * step + SIZE] = image
    write_image(Path(__file__).with_name("transfer.png"), float_to_uint8(grid))


if __name__ == "__main__":
    exit_on_user_error(main)
