"""What the tables are made from, found and opened before anything is measured.

What is not there leaves its tables out and is named in a line, unless it was asked for.
"""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from data.sample import write_sample
from data.sidd import VALIDATION_SETS
from data.test_sets import CleanTestSet, PairedTestSet, find_test_sets
from models.denoisers import denoiser_from_checkpoint
from models.noise_transfer import GAINS, HEAD, NoiseTransfer
from utils.errors import UserError


def open_generator(
    folder: Path,
    device: torch.device,
    reference_patch: int | None = None,
    *,
    asked_for: bool = False,
) -> NoiseTransfer | None:
    """The generator in `folder` (--nt), for the tables of noise; UserError where it was asked for
    and is not there."""
    for file in generator_files(folder):
        if not file.is_file():
            tables = "noise, cross_scene and known tables"
            _leave_out("nt", tables, file, "train_noiseTransfer.py", asked_for)
            return None
    return NoiseTransfer.from_checkpoint(folder, device, reference_patch)


def generator_files(folder: Path) -> list[Path]:
    """The two that must be there, and those that may be."""
    extra = [file for name in (HEAD, GAINS) if (file := folder / name).is_file()]
    return [folder / "VUNet.pt", folder / "encoder_k.pt", *extra]


def open_denoisers(
    folder: Path, device: torch.device, *, of: str = "sidd", asked_for: bool = False
) -> dict[Path, nn.Module]:
    """The denoisers in `folder` by their files; of: "sidd", of real, or "synthetic" noise.

    UserError where they were asked for and there are none.
    """
    files = sorted(folder.glob("*_g.pt"))
    if not files:
        table, script = {
            "sidd": ("denoising table", "train_denoiser.py"),
            "synthetic": ("synthetic table", "train_denoiser_synthetic.py"),
        }[of]
        _leave_out(of, table, folder / "ridnet_g.pt", script, asked_for)
    return {file: denoiser_from_checkpoint(file, device) for file in files}


def _leave_out(flag: str, tables: str, file: Path, script: str, asked_for: bool) -> None:
    if asked_for:
        raise UserError(
            f"--{flag} {file.parent}: no {file}; train it with `python {script}`, or leave "
            f"out the {tables} with --tables"
        )
    print(
        f"{tables} left out: no {file}; train it with `python {script}`, or name its folder with "
        f"--{flag}"
    )


def open_test_sets(
    folder: Path, cache: Path, tables: Collection[str]
) -> tuple[list[PairedTestSet], list[CleanTestSet]]:
    """(pairs, clean images) in `folder`, else of the bundled sample, which is written to `cache`.

    A line for each published set that `tables` would have liked to find.
    """
    if set(tables) == {"cross_scene"}:  # it has its own images
        return [], []
    sets = find_test_sets(folder)
    present = {test_set.name.lower() for test_set in sets}
    for which in VALIDATION_SETS:
        if which.name not in present and {"noise", "denoising"} & set(tables):
            print(
                f"{which.title} is not there: put {which.clean}.mat and {which.noisy}.mat from "
                f"{which.source} into {folder / which.name}"
            )
    if "bsds500" not in present and "synthetic" in tables:
        print(
            "BSDS500 is not there: put its images (BSR_bsds500.tgz, from https://www2.eecs.berkeley."
            "edu/Research/Projects/CS/vision/grouping/resources.html) into "
            f"{folder / 'BSDS500/data/images'}"
        )
    if not sets:
        sample = write_sample(cache / "sample", seed=0)
        print(f"No test images in {folder}: measuring the bundled sample, {sample}")
        sets = find_test_sets(sample / "test_images")
    pairs = [s for s in sets if isinstance(s, PairedTestSet)]
    return pairs, [s for s in sets if not isinstance(s, PairedTestSet)]
