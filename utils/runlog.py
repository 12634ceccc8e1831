"""The record of a run: config.json, append-only stats.jsonl, TensorBoard curves and pictures."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from utils.config import provenance
from utils.distributed import is_first
from utils.files import write_atomically


class RunLog:
    """Writes below `folder`; appends where the run goes on from a checkpoint.

    config.json holds the settings and versions of the newest start, stats.jsonl one JSON object a
    line with its step and seconds since the start, tensorboard/ the same as curves. Of several
    processes only the first writes.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        self.writes = is_first()
        if not self.writes:
            return
        self.start = time.monotonic()
        record = {"config": dataclasses.asdict(config), **provenance()}
        text = json.dumps(record, indent=2, default=str) + "\n"
        write_atomically(text.encode(), folder / "config.json")
        self.stats = open(folder / "stats.jsonl", "a", buffering=1)  # noqa: SIM115 - closed below
        self.board = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """One line of stats.jsonl and one point a curve; group is "train" or "val/<test set>"."""
        if not self.writes:
            return
        seconds = round(time.monotonic() - self.start, 1)
        line = {"step": step, "group": group, "seconds": seconds}
        # JSON has no NaN.
        line |= {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in values.items()}
        self.stats.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, step)

    def pictures(self, name: str, columns: list[Tensor], step: int) -> None:
        """Columns of (B, 3, H, W) images in [0, 1] side by side, a row per sample."""
        if not self.writes:
            return
        rows = [image for sample in zip(*columns, strict=True) for image in sample]
        grid = make_grid([r.detach().float().clamp(0, 1).cpu() for r in rows], nrow=len(columns))
        self.board.add_image(name, grid, step)

    def close(self) -> None:
        if not self.writes:
            return
        self.stats.close()
        self.board.close()
