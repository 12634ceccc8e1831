"""One process per device, through pytorch-ignite: launching, gathering keys, averaging gradients.

The batch size of a run is global: each of W processes takes 1/W of it. With keys gathered and
gradients averaged, losses, queue and every update equal those of one process with the whole batch.
In a single process everything here leaves its argument as it is.
"""

import contextlib
import io
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import ignite.distributed as idist
import torch
from torch import Tensor
from torch.multiprocessing import ProcessExitedException

from utils.config import choose_devices, use_device
from utils.errors import UserError, exit_on_user_error, require
from utils.memory import memory_named

C = TypeVar("C")
Worker = Callable[[C, torch.device], None]

# A terminal sends SIGINT to all of them itself; Windows has no SIGUSR1.
FORWARDED = [signal.Signals[n] for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n)]
LOST_PEER = re.compile(
    "connection (closed|reset|refused)|broken pipe|remote process exited|ncclRemoteError"
    "|NCCL.*(timeout|timed out|abort)",
    re.IGNORECASE | re.DOTALL,
)
TIMEOUT = timedelta(hours=2)  # the others wait in a collective call while the first validates


def launch(worker: Worker, config: C, gpu: str) -> None:
    """worker(config, device), once in each process.

    gpu: `0` or `cpu` runs in this process; `0,1` spawns one a GPU, `cpu,cpu` two on the CPU. Under
    torchrun, and under srun with several tasks, this is one of their processes and uses the GPU of
    its local rank, counted round the GPUs that it sees (the CPU with `cpu`, or without CUDA). All
    but the first process print nothing. UserError: a GPU that is not there, or is short of memory.
    A process that fails ends the others.
    """
    if _launched_from_outside():
        _work(worker, config, _device_of_launched(gpu))
        return
    devices = choose_devices(gpu)
    if len(devices) == 1:
        use_device(devices[0])
        with memory_named(devices[0]):
            worker(config, devices[0])
        return
    processes = torch.multiprocessing.spawn(
        _spawned, (worker, config, devices, _free_port()), nprocs=len(devices), join=False
    )
    with _forwarded(FORWARDED, processes.pids()):
        try:
            while not processes.join():
                pass
        except ProcessExitedException as error:  # it has said why, unless it was killed
            if error.exit_code < 0:
                name = signal.Signals(-error.exit_code).name
                print(f"error: process {error.error_index} was ended by {name}", file=sys.stderr)
            sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)


def is_first() -> bool:
    """Whether this process is the one that prints, logs, validates and saves."""
    return idist.get_rank() == 0


def local_batch(batch: int, grad_accum: int = 1) -> int:
    """This process's part of a global batch. UserError unless all divides."""
    world = idist.get_world_size()
    require(batch % world == 0, f"--batch {batch}: must divide by the {world} processes")
    require(
        grad_accum >= 1 and batch // world % grad_accum == 0,
        f"--grad-accum {grad_accum}: must divide the {batch // world} samples of a process",
    )
    return batch // world


def gather_rows(x: Tensor) -> Tensor:
    """(N, ...) of this process -> (W N, ...) of all, by rank. No gradient goes through it."""
    return idist.all_gather(x.detach())


def average_gradients(grads: Sequence[Tensor]) -> Sequence[Tensor]:
    """The processes' mean of each gradient, in one reduction of all of them."""
    world = idist.get_world_size()
    if world == 1:
        return grads
    total = idist.all_reduce(torch.cat([g.flatten() for g in grads]))
    parts = (total / world).split([g.numel() for g in grads])
    return [part.view_as(g) for part, g in zip(parts, grads, strict=True)]


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask at the same step."""
    return bool(idist.all_reduce(int(flag)))


@contextlib.contextmanager
def _forwarded(signals: Sequence[signal.Signals], pids: Sequence[int]) -> Iterator[None]:
    """Inside the block, hand these signals on to the processes, which end when they have saved."""

    def forward(number: int, frame: object) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.signal(number, forward) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _launched_from_outside() -> bool:
    torchrun = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    return torchrun or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def _device_of_launched(gpu: str) -> torch.device:
    """Of a process that torchrun or srun has started."""
    if gpu == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    name = "LOCAL_RANK" if "LOCAL_RANK" in os.environ else "SLURM_LOCALID"
    # With `srun --gpus-per-task=1` each process sees one GPU, its own, as number 0.
    index = int(os.environ.get(name, "0")) % torch.cuda.device_count()
    os.environ[name] = str(index)  # ignite takes its GPU from there
    return torch.device("cuda", index)


def _spawned(
    rank: int, worker: Worker, config: object, devices: list[torch.device], port: int
) -> None:
    # An environment as torchrun's, in a process that has not used CUDA yet. Inside a SLURM job
    # ignite would take rank and size from SLURM's, which describe the one task that spawned us.
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    numbers = [d.index for d in devices if d.type == "cuda"]
    chosen = [visible[i] if i < len(visible) and visible[i] else str(i) for i in numbers]
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": ",".join(chosen), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(len(devices)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    device = torch.device("cuda", rank) if numbers else torch.device("cpu")
    exit_on_user_error(lambda: _work(worker, config, device))


def _work(worker: Worker, config: object, device: torch.device) -> None:
    if device.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or ignite would use any GPU that there is
    use_device(device)
    idist.initialize("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    silence = contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(io.StringIO())
    try:
        with silence, memory_named(device):
            worker(config, device)
    except (RuntimeError, ConnectionError) as error:
        message = _named(error, idist.get_rank())
        if message is None:
            raise
        raise UserError(message) from error
    finally:
        idist.finalize()


def _named(error: Exception, rank: int) -> str | None:
    """What a failure between the processes means; None where it is something else."""
    text = str(error)
    if LOST_PEER.search(text):
        return (
            f"process {rank}: lost the connection to another process, whose message says why; the "
            "same command goes on from the last checkpoint"
        )
    if "NCCL" in text or "ncclUnhandled" in text:
        reason = " ".join(text.split())[:300]
        return (
            f"process {rank}: NCCL, which the GPUs talk through, failed ({reason}); with "
            "NCCL_DEBUG=WARN set it tells more; the same command goes on from the last checkpoint"
        )
    return None


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
