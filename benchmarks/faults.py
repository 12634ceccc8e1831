"""Kill a training run at random moments and resume it: must end as if it had never been killed.

    python -m benchmarks.faults --kills 30 --terminations 10

A tiny run of train_noiseTransfer.py on the bundled sample. Half of the kills (SIGKILL) come at a
random time, half inside a save, when its temporary file is there. Compared are networks, optimisers
and queue of the last checkpoint, bit by bit. A SIGTERM has to end the run with 128 + 15, its steps
all saved. Exit status 1 if anything differs.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from tqdm import tqdm

from data.sample import write_sample
from utils.config import parse
from utils.errors import exit_on_user_error
from utils.resume import Checkpoints

STEPS, STEPS_PER_EPOCH = 12, 2


@dataclass(frozen=True)
class Config:
    """Kill and resume a tiny training run."""

    kills: int = 30
    terminations: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Result:
    killed: bool  # False: it had finished before
    status: int  # of the first process
    last_step: int  # logged by the first process
    resumed_at: int | None  # its checkpoint's step
    identical: bool  # to the uninterrupted run


class Faults:
    """Runs below `folder`; the uninterrupted one, to compare with, is made first."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.count = folder, random.Random(seed), 0
        # Processes are forked from one that has imported everything and computed nothing.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["train_noiseTransfer", __name__])
        write_sample(folder / "cache" / "sample")
        self.finish(self.new_run())  # decodes the images, which the others find decoded
        whole, began = self.new_run(), time.monotonic()
        self.finish(whole)
        self.duration = time.monotonic() - began
        self.expected = last(whole)

    def new_run(self) -> Path:
        self.count += 1
        return self.folder / f"run{self.count}"

    def start(self, run: Path) -> BaseProcess:
        process = self.context.Process(target=train, args=(self.folder, run))
        process.start()
        return process

    def finish(self, run: Path) -> None:
        process = self.start(run)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a run that nobody disturbed ended with {process.exitcode}")

    def kill_and_resume(self, during_save: bool) -> Result:
        run = self.new_run()
        process = self.start(run)
        if during_save:
            saves = self.rng.randrange(STEPS // STEPS_PER_EPOCH)
            wait_for(process, lambda: steps_logged(run) >= saves * STEPS_PER_EPOCH)
            wait_for(process, lambda: any(run.glob(".*.part")))
        else:
            process.join(self.rng.uniform(0, self.duration))
        return self.end_and_resume(process, run, signal.SIGKILL)

    def terminate_and_resume(self, number: signal.Signals) -> Result:
        run = self.new_run()
        process, steps = self.start(run), self.rng.randrange(1, STEPS - 2)
        wait_for(process, lambda: steps_logged(run) >= steps)
        return self.end_and_resume(process, run, number)

    def end_and_resume(self, process: BaseProcess, run: Path, number: signal.Signals) -> Result:
        alive = process.is_alive()
        if alive:
            os.kill(process.pid, number)
        process.join()
        last_step, found = steps_logged(run), Checkpoints(run).load_newest()
        self.finish(run)
        return Result(
            killed=alive and process.exitcode != 0,
            status=process.exitcode,
            last_step=last_step,
            resumed_at=None if found is None else found["step"],
            identical=same(last(run), self.expected),
        )


def train(folder: Path, run: Path) -> None:
    import train_noiseTransfer

    torch.set_num_threads(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    (folder / "none").mkdir(exist_ok=True)
    flags = f"""--debug --gpu cpu --width 2 --embed-dim 8 --batch 2 --patch 16 --epochs
        {STEPS // STEPS_PER_EPOCH} --steps-per-epoch {STEPS_PER_EPOCH} --cache {folder / "cache"}
        --train-images {folder / "absent"} --test-images {folder / "none"} --run-dir {run}"""
    train_noiseTransfer.main(flags.split())


def wait_for(process: BaseProcess, condition: object) -> None:
    while process.is_alive() and not condition():
        time.sleep(0.0005)


def steps_logged(run: Path) -> int:
    path = run / "stats.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line), default=0)


def last(run: Path) -> dict:
    return Checkpoints(run).load_newest()


def same(a: object, b: object) -> bool:
    """Of nested dicts and lists of tensors and numbers, bit by bit; settings aside."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        keys = a.keys() - {"settings"}
        return keys == b.keys() - {"settings"} and all(same(a[k], b[k]) for k in keys)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder), c.seed)
        kills = [
            faults.kill_and_resume(during_save=bool(i % 2)) for i in tqdm(range(c.kills), "kills")
        ]
        terminations = [
            faults.terminate_and_resume(signal.SIGTERM)
            for _ in tqdm(range(c.terminations), "terminations")
        ]
    identical = sum(r.identical for r in kills)
    clean = sum(
        r.identical and r.status == 128 + signal.SIGTERM and r.resumed_at == r.last_step
        for r in terminations
    )
    from_step = sorted(r.resumed_at or 0 for r in kills)
    print(f"SIGKILL: {sum(r.killed for r in kills)} of {c.kills} killed before the end, resumed "
          f"from steps {from_step}; {identical} of {c.kills} end bit-identical")  # fmt: skip
    print(f"SIGTERM: {clean} of {c.terminations} left with status 143, no step lost, identical")
    if identical < c.kills or clean < c.terminations:
        sys.exit(1)


if __name__ == "__main__":
    exit_on_user_error(main)
