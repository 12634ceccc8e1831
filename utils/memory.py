"""How much memory this process may still have, and how it is kept and run out of."""

import ctypes
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    import torch

# Of files in memory that the kernel gives up first, in `memory.stat` of either version.
_CACHE = r"^(?:total_)?inactive_file (\d+)$"


def free_memory(device: "torch.device") -> float:
    """Bytes; infinite for a CPU where the system does not say (it does on Linux).

    On the CPU the least of what the machine has available, what the control groups (containers,
    batch systems) leave, and what `ulimit -v` and `-d` leave.
    """
    if device.type == "cuda":
        import torch

        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(Path("/proc/meminfo")), re.M)
    available = 1024 * int(found[1]) if found else math.inf
    return max(0, min(available, _free_in_groups(), _free_below_limits()))


def _free_in_groups(proc: Path = Path("/proc"), mount: Path = Path("/sys/fs/cgroup")) -> float:
    """Of the process's control group and of all that it lies in, of version 1 or 2."""
    free = math.inf
    for line in _read(proc / "self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root, names = (
            (mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"))
            if kinds
            else (mount, ("memory.max", "memory.current"))
        )
        # Inside a container the path may be the host's: the root is then the container's own.
        inner = PurePosixPath(path.lstrip("/"))
        for group in (root / inner, *(root / parent for parent in inner.parents), root):
            limit, used = (_read(group / name).strip() for name in names)
            if limit.isdigit() and used.isdigit():
                cache = re.search(_CACHE, _read(group / "memory.stat"), re.M)
                free = min(free, int(limit) - int(used) + (int(cache[1]) if cache else 0))
    return free


def _free_below_limits() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    status = _read(Path("/proc/self/status"))
    free = math.inf
    for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        used = re.search(rf"^{name}:\s*(\d+) kB", status, re.M)
        if most != resource.RLIM_INFINITY and used:
            free = min(free, most - 1024 * int(used[1]))
    return free


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def keep_pages() -> None:
    """Let malloc reuse what is freed instead of giving it back to the system (glibc only).

    A network's feature maps come and go by the megabyte. Given back and fetched anew, every page
    is zeroed by the kernel: half of the time on the CPU, measured, and nothing gained, since the
    next layer needs as much. What a process holds at its peak stays the same.
    """
    mallopt = _of_malloc("mallopt")
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def give_pages_back() -> None:
    """What malloc holds and nobody uses, holes between blocks included (glibc only).

    Between two tiles: the blocks of one leave holes that those of the next, of other sizes, do not
    fill, and a process would grow to several times of what it ever uses at once.
    """
    malloc_trim = _of_malloc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_malloc(name: str) -> Callable[..., int] | None:
    """A function of glibc's own; musl and other systems have none."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU or of the CPU, raised by torch, numpy, OpenCV or Pillow.

    On the CPU torch knows no class for it: its allocator raises a RuntimeError, as does oneDNN.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error).lower()
        for words in ("not enough memory", "t allocate memory", "bad_alloc", "could not create")
    )


@contextmanager
def memory_named(device: "torch.device", doing: str = "", advice: str = "") -> Iterator[None]:
    """A UserError that names what was being done where `device` is out of memory in the block."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = advice or "end what else uses that GPU, name another with --gpu, or --gpu cpu"
        raise UserError(f"{device}: out of GPU memory{doing and ', '}{doing}; {advice}") from error
