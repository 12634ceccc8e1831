"""Check data sets before a day of training is spent on them.

    python -m data.doctor                                # train_images/ and test_images/
    python -m data.doctor --quick                        # names, counts, headers: a second
    python -m data.doctor --sidd PATH --div2k PATH --test PATH --json findings.json

Exit status: 0 nothing but notes, 1 warnings or errors, 2 unusable arguments.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from utils.config import parse
from utils.errors import exit_on_user_error, require

TRAIN, TEST = Path("train_images"), Path("test_images")


@dataclass(frozen=True)
class Config:
    """Check data sets: layout, counts, pairs, noise, duplicates; by default all that are there."""

    sidd: Path | None = None
    """SIDD-Medium or SIDD-Small."""
    div2k: Path | None = None
    """DIV2K's training images."""
    pairs: tuple[Path, ...] = ()
    """Other folders of noisy/clean training pairs."""
    photos: tuple[Path, ...] = ()
    """Other folders of clean training photographs."""
    test: Path | None = None
    """Test sets."""
    quick: bool = False
    """Names, counts, headers and a few files of each set; a second or two."""
    json: Path | None = None
    """Write data sets, statistics and findings there as well."""


if __name__ == "__main__":  # --help and mistyped flags do not wait for torch: seconds
    parse(Config)

import torch

from data.doctor.examine import examine
from data.doctor.findings import format_report
from utils.files import write_atomically


def main(argv: list[str] | None = None) -> int:
    c = parse(Config, argv)
    training = [(path, "pairs") for path in (c.sidd, *c.pairs) if path]
    training += [(path, "photographs") for path in (c.div2k, *c.photos) if path]
    test = [c.test] if c.test else []
    if not training and not test:
        training = [(TRAIN, "")] if TRAIN.is_dir() else []
        test = [TEST] if TEST.is_dir() else []
        require(bool(training or test), f"{TRAIN}, {TEST}: neither is there; name data, see --help")
    for path in [path for path, _ in training] + test:
        require(path.is_dir(), f"{path}: no such folder; check the command line")
    published = {path: n for path, n in ((c.sidd, None), (c.div2k, 800)) if path}
    report = examine(training, test, quick=c.quick, published=published)
    print("\n".join(format_report(report)))
    if c.json:
        write_atomically(f"{json.dumps(report.as_json(), indent=1)}\n".encode(), c.json)
    return report.status


def _run() -> None:
    torch.set_num_threads(1)  # the pool's threads are as many as there are cores
    sys.exit(main())


if __name__ == "__main__":
    exit_on_user_error(_run)
