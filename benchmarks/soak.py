"""A long run of many resumes in one process: memory, open files and threads must stay flat.

    python -m benchmarks.soak --steps 2000 --every 100

A tiny run of train_noiseTransfer.py on the bundled sample, with validation and a checkpoint every
`every` steps, left and resumed there. The first two parts warm up (allocator, caches). Exit status
1 if the last part holds over 5% more memory than the third, or more files or threads.
"""

import contextlib
import gc
import io
import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import train_noiseTransfer
from benchmarks.timing import Row, print_machine, print_table, resident, write_json
from utils.config import parse
from utils.errors import exit_on_user_error, require

WARM_UP = 2


@dataclass(frozen=True)
class Config:
    """Train, leave and resume, again and again."""

    steps: int = 2000
    every: int = 100
    gpu: str = "cpu"
    json: Path | None = None


def part(folder: Path, c: Config, k: int) -> Row:
    """Train part k, from the checkpoint of the part before; what the process holds afterwards."""
    flags = ["--debug", "--gpu", c.gpu, "--run-dir", str(folder / "run"), "--log-every", "50"]
    flags += ["--cache", str(folder / "cache"), "--train-images", str(folder / "none")]
    flags += ["--test-images", str(folder / "none"), "--steps-per-epoch", str(c.every)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_noiseTransfer.main([*flags, "--epochs", str(k + 1)])
    gc.collect()
    return {
        "steps": (k + 1) * c.every,
        "rss_mb": resident("VmRSS"),
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "run_folder_mb": sum(p.stat().st_size for p in (folder / "run").rglob("*.pt")) / 1e6,
    }


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    parts = c.steps // c.every
    require(c.every >= 1 and parts > WARM_UP, f"--steps {c.steps}: at least {WARM_UP + 1} parts")
    require(Path("/proc/self/fd").is_dir(), "open files are counted in /proc: needs Linux")
    print_machine()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [part(Path(scratch), c, k) for k in tqdm(range(parts), unit="resume")]
    title = f"{c.steps} steps, resumed every {c.every}, in one process"
    print_table(title, rows)
    write_json(c.json, {title: rows})
    first, last = rows[WARM_UP], rows[-1]
    flat = last["rss_mb"] <= 1.05 * first["rss_mb"] and all(
        last[name] <= first[name] for name in ("open_files", "threads")
    )
    print("flat" if flat else "GROWING")
    sys.exit(0 if flat else 1)


if __name__ == "__main__":
    exit_on_user_error(main)
