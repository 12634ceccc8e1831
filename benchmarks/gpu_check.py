"""What a new GPU should be asked first, in ten minutes: is it right, and how fast.

    make gpu-check                                    # on GPU 0, into benchmarks/results/gpu/
    python -m benchmarks.gpu_check --gpu cpu --quick  # goes through the same motions anywhere

The CUDA tests; the generator's and the denoiser's step against the plain oracle, in one run each;
short trainings of the bundled sample, captured and not, with the time to the first logged step and
milliseconds a step; the sample's noise tables. Each goes on whatever became of those before;
status 1 if any failed. `gpu_check.json` has it all, the rest of the output is beside it.
"""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import Row, machine, print_machine, print_table, write_json
from utils.config import choose_device, parse
from utils.errors import exit_on_user_error

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Config:
    """Check one GPU."""

    gpu: str = "0"
    """CUDA device number; cpu to try this script."""
    out: Path = ROOT / "benchmarks/results/gpu"
    quick: bool = False
    """Tiny sizes and one test file."""


@dataclass(frozen=True)
class Check:
    """A command, given so many seconds."""

    name: str
    command: list[str]
    seconds: int


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    choose_device(c.gpu)  # UserError for one that is not there
    c.out.mkdir(parents=True, exist_ok=True)
    rows = [run(check, c.out) for check in checks(c)]
    print_machine()
    print_table("checks", rows)
    steps = {p.stem: json.loads(p.read_text())["tables"] for p in sorted(c.out.glob("*_step.json"))}
    write_json(c.out / "gpu_check.json", {"machine_of": [machine()], "checks": rows} | steps)
    if any(row["status"] for row in rows):
        sys.exit(1)


def checks(c: Config) -> list[Check]:
    small = ["--width", "4", "--batch", "2", "--patch", "32", "--repeats", "1"] if c.quick else []
    tests = ["tests/test_graph.py"] if c.quick else []
    training = [
        "train_noiseTransfer.py", "--gpu", c.gpu, "--debug", "--epochs", "1", "--log-every", "1",
        "--test-images", "none", "--keep", "1",
    ]  # fmt: skip
    if not c.quick:
        training += ["--width", "64", "--batch", "32", "--patch", "96", "--queue-size", "4096"]
        training += ["--log-every", "10"]
    training += ["--steps-per-epoch", "4" if c.quick else "60"]

    def step(name: str) -> Check:
        json_file = c.out / f"{name}.json"
        return Check(name, ["-m", f"benchmarks.{name}", "--gpu", c.gpu, "--json", str(json_file),
                            *small], 150)  # fmt: skip

    def trained(name: str, *flags: str) -> Check:
        folder = c.out / "runs" / f"{name}-{time.time_ns()}"
        return Check(name, [*training, "--run-dir", str(folder), *flags], 90)

    return [
        Check("CUDA tests", ["-m", "pytest", "-q", "-m", "cuda", *tests], 240),
        step("train_step"),
        step("denoiser_step"),
        trained("training"),
        trained("training, no graph", "--no-graph"),
        Check("noise tables", [
            "supp_tbl.py", "--gpu", c.gpu, "--tables", "noise", "--no-report", "--limit", "2",
            "--out", str(c.out / "tables"),
        ], 90),
    ]  # fmt: skip


def run(check: Check, out: Path) -> Row:
    """Status, seconds and the last words of a check; all of them in a file of its name."""
    print(f"{check.name} ...", flush=True)
    began, log = time.perf_counter(), out / f"{re.sub(r'[^a-z]+', '_', check.name.lower())}.log"
    with open(log, "w") as file:
        try:
            status = subprocess.run(
                [sys.executable, *check.command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                timeout=check.seconds, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = 124
    lines = re.split(r"[\r\n]+", log.read_text(errors="replace").strip())
    row: Row = {"check": check.name, "status": status, "seconds": time.perf_counter() - began}
    return row | training_times(check) | {"last": lines[-1][:80]}


def training_times(check: Check) -> Row:
    """Seconds to the first step and milliseconds of the later half's, by the run's log."""
    if "--run-dir" not in check.command:
        return {}
    log = Path(check.command[check.command.index("--run-dir") + 1]) / "stats.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    rows = [row for row in rows if row["group"] == "train"]
    if len(rows) < 2:
        return {}
    a, b = rows[len(rows) // 2 - 1], rows[-1]
    per_step = (b["seconds"] - a["seconds"]) / (b["step"] - a["step"])
    return {"first_log_s": rows[0]["seconds"], "step_ms": 1e3 * per_step}


if __name__ == "__main__":
    exit_on_user_error(main)
