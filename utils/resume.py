"""A run survives anything short of losing the disk: checkpoints that cannot tear, one process per
run folder, signals that end a run after its step, settings that a resumed run may not contradict.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import re
import signal
import socket
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from utils.checkpoint import read_torch_file
from utils.errors import UserError
from utils.files import write_atomically

NAME = re.compile(r"(?P<kind>checkpoint|best)-(?P<step>\d+)-(?P<digest>[0-9a-f]{16})\.pt")

STOPPING = [signal.SIGTERM, signal.SIGINT]
if hasattr(signal, "SIGUSR1"):  # SLURM's --signal; not on Windows
    STOPPING.append(signal.SIGUSR1)


class Checkpoints:
    """checkpoint-<step>-<sha256>.pt in a run folder: the newest `keep` and best-<step>-<sha256>.pt.

    A file's name holds the beginning of its own checksum, so that a damaged one is recognised. It
    is written under another name and renamed when it is safe on the disk.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, content: dict[str, Any], best: bool = False) -> None:
        """content: as `TrainingState.content`; best: also keep it as the run's best.

        UserError, with all earlier checkpoints intact, if it cannot be written.
        """
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getbuffer()
        suffix = f"{content['step']:08d}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
        path = self.folder / f"checkpoint-{suffix}"
        write_atomically(data, path)
        if best:
            target = self.folder / f"best-{suffix}"
            link(path, target)
            self._remove(p for p in self.files("best") if p != target)
        others = [p for p in self.files("checkpoint") if p != path]
        # Those of later steps are damaged, or the run would have gone on from them.
        older = [p for p in others if step_of(p) < content["step"]]
        self._remove([*(p for p in others if p not in older), *older[self.keep - 1 :]])

    def load_newest(self) -> dict[str, Any] | None:
        """The content of the newest intact checkpoint; None in a folder without any.

        A damaged one is named on stderr and the one before is taken. UserError: all are damaged.
        """
        files = self.files("checkpoint")
        for path in [*files, *self.files("best")]:
            try:
                data = path.read_bytes()
            except OSError as error:
                reason = f"cannot be read ({error.strerror})"
            else:
                if hashlib.sha256(data).hexdigest()[:16] == NAME.fullmatch(path.name)["digest"]:
                    return read_torch_file(path)
                reason = "is damaged (its checksum is not the one in its name)"
            print(f"WARNING: {path} {reason}: going on from the one before", file=sys.stderr)
        if files:
            raise UserError(
                f"{self.folder}: no intact checkpoint among {len(files)}; restore one from a copy, "
                "or start anew in another --run-dir"
            )
        return None

    def files(self, kind: str) -> list[Path]:
        """Newest first."""
        if not self.folder.is_dir():
            return []
        found = [(NAME.fullmatch(p.name), p) for p in self.folder.iterdir()]
        named = [p for match, p in found if match and match["kind"] == kind]
        return sorted(named, key=lambda p: (step_of(p), p.stat().st_mtime_ns), reverse=True)

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)


def step_of(path: Path) -> int:
    return int(NAME.fullmatch(path.name)["step"])


def link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has no hard links."""
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        write_atomically(source.read_bytes(), target)


class RunLock:
    """Held while a run trains in `folder`. UserError if another process holds it.

    The system lets go of it however the process ends, so no stale lock is ever left.
    """

    def __init__(self, folder: Path) -> None:
        holder = folder / ".lock.holder"  # on Windows a locked file cannot be read
        self.lock = FileLock(folder / ".lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(blocking=False)
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        except Timeout:
            name = holder.read_text() if holder.is_file() else "another process"
            raise UserError(
                f"{folder}: {name} is training in this folder; wait for it, or choose another "
                "--run-dir"
            ) from None
        except OSError as error:
            raise UserError(
                f"{folder}: no folder to write a run into ({error.strerror}); choose another "
                "--run-dir"
            ) from error

    def release(self) -> None:
        self.lock.release()


class StopSignals:
    """SIGTERM, SIGINT and SIGUSR1 ask for an end after the step; a second one ends at once.

    `received`: the first that came since the block was entered.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._receive) for s in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        tqdm.write(f"{self.received.name}: saving after this step (again: stop at once)")


def saved_settings(folder: Path) -> dict[str, Any] | None:
    """`settings_of` the run in `folder`; None where there is no run. Nothing is printed."""
    with contextlib.redirect_stderr(io.StringIO()):  # damage is told when the run is resumed
        content = Checkpoints(folder).load_newest()
    return None if content is None else content["settings"]


def settings_of(config: Any) -> dict[str, Any]:
    """The fields of a Config as plain values that a checkpoint can hold."""
    return {name: plain(value) for name, value in dataclasses.asdict(config).items()}


def plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
