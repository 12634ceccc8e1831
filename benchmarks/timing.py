"""What all benchmarks share: alternating timed runs, tables, and a JSON file of everything."""

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.tables import aligned
from utils.config import provenance
from utils.errors import UserError

Row = dict[str, Any]  # a line of a table: column -> text, number, None or (in the JSON only) list


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition of one run.

    cpu_seconds: of all threads of the process, so that seconds a core are known on a busy machine.
    """

    name: str
    seconds: list[float]
    cpu_seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu_seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def row(self, baseline: "Timing | None" = None) -> Row:
        """In ms; `speedup` is the baseline's median over this one's."""
        first, third = self.quartiles
        row: Row = {
            "run": self.name,
            "median_ms": 1e3 * self.median,
            "q1_ms": 1e3 * first,
            "q3_ms": 1e3 * third,
            "cpu_ms": 1e3 * self.cpu_median,
            "samples_ms": [1e3 * s for s in self.seconds],
        }
        if baseline is not None:
            row["speedup"] = baseline.median / self.median
        return row


def compare(
    runs: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: torch.device,
    warm_up: int = 1,
) -> list[Timing]:
    """Time `runs` alternately (A, B, A, B, ...), so that a noisy machine hurts all alike.

    Each is first run `warm_up` times unmeasured. Work queued on a CUDA device is waited for.
    """
    for _ in range(warm_up):
        for run in runs.values():
            _timed(run, device)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(_timed(run, device))
    return [Timing(name, *map(list, zip(*pairs, strict=True))) for name, pairs in seconds.items()]


def _timed(run: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    _synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine() -> Row:
    """Hardware, threads, versions, commit and command; without the names of folders."""
    record = provenance()
    record["command"] = re.sub(r"(?<![^\s=])/\S*/(?=\S)", "", record["command"])
    record["cpu"] = _cpu_name()
    record["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    record["threads"] = torch.get_num_threads()
    return record


def _cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def resident(field: str) -> float | None:
    """This process's resident memory in MB (10^6), from Linux; None elsewhere."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else None


def print_machine() -> None:
    """One line: what the figures below it were measured with."""
    m = machine()
    gpu = f"{m['hardware']}, " if torch.cuda.is_available() else ""
    print(
        f"{gpu}{m['cpu']}, {m['cores']} cores, {m['threads']} threads; torch "
        f"{m['versions']['torch']}, commit {m['commit']}\n{m['command']}"
    )


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Aligned, a column a key of any row; lists are left to the JSON, None is an empty cell."""
    columns = list(dict.fromkeys(k for row in rows for k in row))
    columns = [k for k in columns if not any(isinstance(row.get(k), list) for row in rows)]
    cells = [columns] + [[_cell(row.get(column)) for column in columns] for row in rows]
    print(f"\n{title}\n{aligned(cells, [False, *(True for _ in columns[1:])])}")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):  # four significant digits, without an exponent
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def write_json(path: Path | None, tables: Mapping[str, Sequence[Row]]) -> None:
    """The machine and all rows of all tables, by title. None: nothing is written."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), "tables": tables}, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); give another file"
        ) from error
