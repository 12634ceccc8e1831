"""What a process may still have: against numbers written by hand, and against the system."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import memory
from utils.memory import free_memory, is_out_of_memory

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def write(root: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def test_what_this_machine_could_have(device):
    free = free_memory(device)
    assert free > 1e7
    if device.type == "cuda":
        assert free <= torch.cuda.get_device_properties(device).total_memory


def test_control_groups_of_version_2(tmp_path):
    """The least of the own and the enclosing ones; files in memory can be dropped."""
    write(tmp_path, {
        "proc/self/cgroup": "0::/user/job",
        "cg/user/job/memory.max": "max", "cg/user/job/memory.current": 700,
        "cg/user/memory.max": 2000, "cg/user/memory.current": 1500,
        "cg/user/memory.stat": "anon 1200\ninactive_file 250",
    })  # fmt: skip
    assert memory._free_in_groups(tmp_path / "proc", tmp_path / "cg") == 750
    # In a container: the host's path is not there, the mount is the container's own.
    write(tmp_path, {"box/memory.max": 900, "box/memory.current": 300})
    assert memory._free_in_groups(tmp_path / "proc", tmp_path / "box") == 600


def test_control_groups_of_version_1(tmp_path):
    write(tmp_path, {
        "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/1\n1:name=systemd:/x",
        "cg/memory/docker/1/memory.limit_in_bytes": 5000,
        "cg/memory/docker/1/memory.usage_in_bytes": 4000,
        "cg/memory/docker/1/memory.stat": "total_inactive_file 100",
    })  # fmt: skip
    assert memory._free_in_groups(tmp_path / "proc", tmp_path / "cg") == 1100


def test_no_control_groups(tmp_path):
    assert memory._free_in_groups(tmp_path, tmp_path) == float("inf")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ulimit_counts(monkeypatch):
    size = 10**9 + 1024 * int(
        next(
            x for x in Path("/proc/self/status").read_text().splitlines() if "VmSize" in x
        ).split()[1]
    )
    limits = {resource.RLIMIT_AS: size}
    monkeypatch.setattr(resource, "getrlimit", lambda n: (limits.get(n, resource.RLIM_INFINITY), 0))
    assert free_memory(CPU) == pytest.approx(1e9, rel=0.2)


def test_out_of_memory_by_each_library():
    for allocate in (lambda: torch.empty(2**60), lambda: np.empty(2**59), lambda: bytearray(2**62)):
        with pytest.raises((RuntimeError, MemoryError)) as error:
            allocate()
        assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_used_again():
    code = """if True:
        import resource, torch
        from utils.memory import keep_pages
        def faults():
            for _ in range(5): x = torch.ones(2**24); del x
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        plain = faults(), faults()
        keep_pages()
        faults()
        kept = faults(), faults()
        print(plain[1] - plain[0], kept[1] - kept[0])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    plain, kept = map(int, done.stdout.split())
    assert kept < 0.1 * plain


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_holes_are_given_back():
    """200 MB freed below blocks that stay: kept until asked for, then gone but for what stays."""
    code = """if True:
        import re, torch
        from utils.memory import give_pages_back, keep_pages
        def resident():
            return int(re.search(r"VmRSS:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1e3
        keep_pages()
        first = resident()
        blocks = [torch.ones(n) for _ in range(100) for n in (500_000, 2_000)]
        del blocks[::2]
        holes = resident() - first
        give_pages_back()
        print(holes, resident() - first)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    holes, left = map(float, done.stdout.split())
    assert holes > 180
    assert left < 20
