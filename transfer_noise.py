"""Put the noise of one noisy photo on clean images (paper, Sec. 3: transfer).

    python transfer_noise.py --reference noisy.png --input photos --output noisy_photos --gpu 0
    python transfer_noise.py --reference noisy.png --input photo.jpg --output out --copies 5

Input: one image, or a folder with all its sub-folders, of any size from 1x1. 16-bit images are
taken at full range, grey ones become colour, alpha is dropped, and the orientation tag of a camera
is ignored. Output: 8-bit RGB PNG of the same size at the same place below --output, `name.png`, or
`name_000.png`, `name_001.png`, ... with --copies. Files of an earlier run are overwritten, inputs
never: an --output that would do so is refused, as are two inputs that would become the same file
(a.jpg and a.png). An --output inside --input is left out of the input.

An image's noise depends on --seed, on its path relative to --input and on the copy, not on which
other images are there, nor (up to rounding) on the device.

Each image goes through the network whole: at width 64 about 2.5 kB a pixel, 30 GB for 12
megapixels, at width 16 a third of it; the reference half as much, or nearly nothing if it is
embedded in patches. One that needs more memory than is free is skipped (the reference: refused).
So is a damaged one; the end of the run lists both.
Exit status: 0 all written, 1 some skipped, 2 stopped for the reason that the message gives.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch
from tqdm import tqdm

from models.generator import per_image_noise
from models.noise_transfer import MIN_REFERENCE, NoiseTransfer
from utils.config import choose_device, parse
from utils.errors import UserError, exit_on_user_error
from utils.folder_jobs import load, plan, report
from utils.images import float_to_uint8, write_image
from utils.seeding import derived_seed


@dataclass(frozen=True)
class Config:
    """Put the noise of one noisy photo on clean images."""

    reference: Path
    """The noisy photo, at least 16x16, or a piece of it. Its clean partner is not needed."""
    input: Path
    """A clean image, or a folder of them; sub-folders are kept."""
    output: Path
    """Folder for the noisy images (PNG); made if missing."""
    copies: int = 1
    """Noisy versions of each image, each with noise of its own."""
    seed: int = 0
    """Another seed, other noise; the same seed, the same files."""
    checkpoint: Path = Path("ckpts/NT")
    """Folder of VUNet.pt and encoder_k.pt."""
    reference_patch: int | None = None
    """Embed the reference in patches of so many pixels, or whole (0, as the paper does); by default
    as transfer.json in --checkpoint says, whole if it is not there."""
    gpu: str = "0"
    """CUDA device number (of a list such as 0,1 the first is used), or cpu."""


def main(argv: list[str] | None = None) -> int:
    c = parse(Config, argv)
    if c.copies < 1 or c.seed < 0:
        raise UserError(f"--copies {c.copies} --seed {c.seed}: expected at least 1 and at least 0")
    tasks = plan(c.input, c.output, c.copies, protected=[c.reference])
    device = choose_device(c.gpu)
    network = NoiseTransfer.from_checkpoint(c.checkpoint, device, c.reference_patch)
    # Peak memory, measured: feature maps at full size, then what does not grow with the width.
    reference_cost = 20 if network.reference_patch else 5 * network.key_encoder.width + 20
    clean_cost = 9 * network.generator.width + 60

    reference = load(c.reference, device, reference_cost)
    height, width = reference.shape[-2:]
    if min(height, width) < MIN_REFERENCE:
        raise UserError(
            f"{c.reference}: {width}x{height} pixels, expected at least {MIN_REFERENCE} a side; "
            "give a larger piece of the noisy photo"
        )
    z = network.embed(reference)

    written, skipped = 0, []
    with tqdm(total=len(tasks) * c.copies, unit="img") as bar:
        for task in tasks:
            try:
                clean = load(task.source, device, clean_cost)
            except UserError as error:
                skipped.append(str(error))
                bar.update(c.copies)
                continue
            try:
                for copy, target in enumerate(task.targets):
                    seed = derived_seed(c.seed, crc32(task.name.encode()), copy)
                    noisy = network.generate(clean, z, per_image_noise([seed]))
                    write_image(target, float_to_uint8(noisy[0]))
                    written += 1
                    bar.update()
            except torch.OutOfMemoryError:
                skipped.append(f"{task.source}: out of GPU memory; crop it or try --gpu cpu")
    return report(c.input, c.output, written, skipped)


if __name__ == "__main__":
    exit_on_user_error(lambda: sys.exit(main()))
