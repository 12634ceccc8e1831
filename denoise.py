"""Run a trained denoiser over images.

    python denoise.py --input noisy_photos --output denoised --gpu 0
    python denoise.py --input photo.jpg --output out --checkpoint ckpts/synthetic/dncnn_g.pt

Input: one image, or a folder with all its sub-folders, of any size from 1x1. 16-bit images are
taken at full range, grey ones become colour, alpha is dropped, and the orientation tag of a camera
is ignored. Output: 8-bit RGB PNG of the same size at the same place below --output. Files of an
earlier run are overwritten, inputs never: an --output that would do so is refused, as are two
inputs that would become the same file (a.jpg and a.png). An --output inside --input is left out of
the input.

Each image goes through the network whole: at width 64 ridnet and unet take about 1.9 kB a pixel,
23 GB for 12 megapixels, dncnn half of it; at width 16 a third. One that needs more memory than is
free is skipped. So is a damaged one; the end of the run lists both.
Exit status: 0 all written, 1 some skipped, 2 stopped for the reason that the message gives.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from models.denoisers import DnCNN, RIDNet, UNet, denoiser_from_checkpoint
from utils.config import choose_device, parse
from utils.errors import UserError, exit_on_user_error
from utils.folder_jobs import load, plan, report
from utils.images import float_to_uint8, write_image


@dataclass(frozen=True)
class Config:
    """Run a trained denoiser over images."""

    input: Path
    """A noisy image, or a folder of them; sub-folders are kept."""
    output: Path
    """Folder for the denoised images (PNG); made if missing."""
    checkpoint: Path = Path("ckpts/sidd/ridnet_g.pt")
    """Weights of a denoiser (ridnet, dncnn or unet), or a folder that holds one <name>_g.pt."""
    gpu: str = "0"
    """CUDA device number (of a list such as 0,1 the first is used), or cpu."""


# Feature maps of full size and width that live at once at the peak, measured.
PEAK_MAPS = {RIDNet: 7, DnCNN: 3, UNet: 6}


def main(argv: list[str] | None = None) -> int:
    c = parse(Config, argv)
    tasks = plan(c.input, c.output)
    device = choose_device(c.gpu)
    denoiser = denoiser_from_checkpoint(find_weights(c.checkpoint), device)
    width = next(denoiser.parameters()).shape[0]
    cost = PEAK_MAPS[type(denoiser)] * width + 24

    written, skipped = 0, []
    for task in tqdm(tasks, unit="img"):
        try:
            noisy = load(task.source, device, cost)
        except UserError as error:
            skipped.append(str(error))
            continue
        try:
            with torch.inference_mode():
                denoised = denoiser(noisy)[0]
        except torch.OutOfMemoryError:
            skipped.append(f"{task.source}: out of GPU memory; crop it or try --gpu cpu")
            continue
        write_image(task.targets[0], float_to_uint8(denoised))
        written += 1
    return report(c.input, c.output, written, skipped)


def find_weights(checkpoint: Path) -> Path:
    """The file itself, or the only `*_g.pt` of a folder; UserError for none or several."""
    if not checkpoint.is_dir():
        return checkpoint
    files = sorted(checkpoint.glob("*_g.pt"))
    if not files:
        raise UserError(
            f"{checkpoint}: holds no denoiser (*_g.pt); train one, or name another --checkpoint"
        )
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{checkpoint}: holds {names}; name the file to use as --checkpoint")
    return files[0]


if __name__ == "__main__":
    exit_on_user_error(lambda: sys.exit(main()))
