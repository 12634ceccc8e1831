"""Train and tabulate a set of ablations: rows of ABLATIONS in train_noiseTransfer.py.

    python ablate.py                                     # all of them, --preset lite
    python ablate.py --rows none no-contrastive --train="--preset lite --epochs 4"
    python ablate.py --rows none --seeds 0 1 2           # what chance alone changes

The runs differ in their row and seed alone. Those that were interrupted go on, finished ones are
only measured. Without test images, all are measured on the bundled sample.
"""

import dataclasses
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Literal

from utils.config import parse
from utils.errors import UserError, exit_on_user_error, require


@dataclasses.dataclass(frozen=True)
class Config:
    """Train and tabulate ablations."""

    rows: tuple[str, ...] = ()
    """Which of ABLATIONS in train_noiseTransfer.py; none: all."""
    train: str = "--preset lite"
    """Flags of train_noiseTransfer.py for every row, in one string: --train="--preset lite". None
    that a row sets itself."""
    seeds: tuple[int, ...] = (0,)
    """Each row is trained once with each: differences smaller than theirs mean nothing."""
    gpu: str = "0"
    test_images: Path = Path("test_images")
    limit: int | None = None
    """Measure only the first so many images of each test set."""
    runs: Path = Path("runs/ablations")
    """Run folders go here: ROW/seed0 and so on."""
    out: Path = Path("supp/tbl")
    """ablations.txt, .md, .tex and .csv go here."""
    cache: Path = Path("cache")


if __name__ == "__main__":  # --help and mistyped flags do not wait for torch: seconds
    exit_on_user_error(partial(parse, Config))

import train_noiseTransfer
from data.sample import write_sample
from data.test_sets import PairedTestSet, find_test_sets
from evaluation.batches import How
from evaluation.measure import evaluate_transfer
from evaluation.protocols import has_cross_references
from evaluation.tables import Column, Table
from models.noise_transfer import NoiseTransfer
from train_noiseTransfer import ABLATIONS
from utils.config import choose_device, provenance

COLUMNS = (
    Column("test_set", "test set"),
    Column("images", "images", "d"),
    Column("ablation", "ablation"),
    Column("seed", "seed", "d"),
    Column("akld", "AKLD", ".3f", interval=True),
    Column("akld_unpaired", "unpaired", ".3f"),
    Column("akld_cross", "cross", ".3f"),
    Column("corr_generated", "corr.", ".3f"),
    Column("corr_real", "real corr.", ".3f"),
    Column("std_ratio", "std ratio", ".3f"),
    Column("acf", "ACF dist.", ".3f"),
    Column("ks", "KS", ".4f"),
)


def train(c: Config, row: str, seed: int) -> Path:
    """The folder of the finished run; UserError if it does not finish."""
    folder = c.runs / row / f"seed{seed}"
    flags = ["--ablation", row, "--seed", str(seed), "--run-dir", str(folder)]
    flags += ["--gpu", c.gpu, "--cache", str(c.cache)]
    command = [sys.executable, train_noiseTransfer.__file__, *shlex.split(c.train), *flags]
    print(f"\n{shlex.join(['python', 'train_noiseTransfer.py', *command[2:]])}", flush=True)
    status = subprocess.run(command, check=False).returncode
    require(status == 0, f"{folder}: its training ended with status {status}, see above")
    return folder


def measure(c: Config, row: str, seed: int, sets: list[PairedTestSet], table: Table) -> None:
    """The rows of one run, trained first if it is not finished."""
    folder = train(c, row, seed)
    device = choose_device(c.gpu)
    transfer = NoiseTransfer.from_checkpoint(folder, device)
    for test_set in sets:
        how = How(limit=c.limit, device=device)
        figures = evaluate_transfer(transfer, test_set, **how)
        for reference in other_references(test_set):
            other = evaluate_transfer(transfer, test_set, reference=reference, **how)
            figures[f"akld_{reference}"] = other["akld"]
        figures.setdefault("akld_cross", figures["akld"] + float("nan"))
        table.add(test_set, {"ablation": row, "seed": seed}, figures)


def other_references(test_set: PairedTestSet) -> list[Literal["unpaired", "cross"]]:
    return ["unpaired", "cross"] if has_cross_references(test_set) else ["unpaired"]


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    rows = c.rows or tuple(ABLATIONS)
    unknown = [row for row in rows if row not in ABLATIONS]
    require(not unknown, f"--rows {unknown}: expected some of {list(ABLATIONS)}")
    require(bool(c.seeds), "--seeds: expected at least one number")
    given = [word.partition("=")[0] for word in shlex.split(c.train) if word.startswith("--")]
    for row in rows:  # what is given explicitly would win over the row, unseen
        both = [flag for flag in given if _field(flag) in ABLATIONS[row]]
        require(not both, f"--train {' '.join(both)}: the row {row} sets it; leave out one of both")
    sets = [s for s in find_test_sets(c.test_images) if isinstance(s, PairedTestSet)]
    if not sets:
        sample = write_sample(c.cache / "sample") / "test_images"
        sets = [s for s in find_test_sets(sample) if isinstance(s, PairedTestSet)]
    if not sets:
        raise UserError(f"{c.test_images}: no pairs to measure on")
    table = Table("ablations", f"Ablations of {c.train}; means and 95% intervals", COLUMNS)
    record = provenance()
    for row in rows:
        for seed in c.seeds:
            measure(c, row, seed, sets, table)
            table.write(c.out, [f"command: {record['command']}", f"commit: {record['commit']}"])
    print(f"\n{table.text()}\n-> {c.out / table.name}.txt, .md, .tex, .csv, _images.csv")


def _field(flag: str) -> str:
    return flag.removeprefix("--").removeprefix("no-").replace("-", "_")


if __name__ == "__main__":
    exit_on_user_error(main)
