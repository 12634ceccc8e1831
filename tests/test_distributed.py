"""Two processes with halves of a batch are one process with all of it; launchers; resume."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import train_denoiser as DENOISER
import train_noiseTransfer as NT
from data.items import Triplet
from models import NoiseEncoder, NoiseGenerator, NoiseTransfer
from tests.golden import recipe
from tests.plain_adam import LR, assert_same_weights, plain
from utils import distributed
from utils.distributed import gather_rows, is_first, launch, local_batch
from utils.errors import UserError
from utils.training import Means

ROOT = Path(__file__).parent.parent
BATCH, STEPS = 4, 5


@dataclass(frozen=True)
class Job:
    out: Path


def part(x: Tensor) -> Tensor:
    """This process's rows of a batch."""
    n = local_batch(len(x))
    first = n * distributed.idist.get_rank()
    return x[first : first + n]


def images(seed: int) -> Tensor:
    return torch.from_numpy(recipe.image(seed, (BATCH, 3, 16, 16)))


def shared_noise(seed: int) -> Callable:
    """The whole batch's maps, of which each process takes its rows."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape, device: part(torch.randn((BATCH, *shape[1:]), generator=generator))


def plain_descent(s: torch.nn.Module) -> dict[str, torch.optim.Optimizer]:
    """In place of Adam, whose steps do not shrink where a gradient is nothing but rounding."""
    return {
        name: torch.optim.SGD(optimiser.param_groups[0]["params"], lr=1e-3)
        for name, optimiser in s.optimisers.items()
    }


def train_generator(job: Job, device: torch.device, **changes: object) -> None:
    c = NT.Config(**dict(width=4, embed_dim=8, queue_size=12, batch=BATCH) | changes)
    s, means = NT.State(c, device), Means(device)
    s.optimisers = plain_descent(s)
    logged = []
    for step in range(STEPS):
        batch = Triplet(*(part(images(3 * step + i)) for i in range(3)))
        means.update(NT.train_step(s, c, batch, shared_noise(step)), step)
        logged.append(means.read())
    if is_first():
        torch.save({"logged": logged, "state": s.state_dict()}, job.out)


def train_in_phases(job: Job, device: torch.device) -> None:
    """The encoder alone by noise statistics, then the generator alone by moments."""
    phases = dict(encoder_steps=2, freeze_encoder=True)
    train_generator(job, device, **NT.OUR_TERMS, **NT.NO_ADVERSARY, **phases)


def train_denoiser(job: Job, device: torch.device) -> None:
    c = DENOISER.Config(width=4, border=2, batch=BATCH)
    torch.manual_seed(3)
    transfer = NoiseTransfer(NoiseEncoder(4, 8), NoiseGenerator(4, 8))
    s, means = DENOISER.State(c, device), Means(device)
    s.optimisers = plain_descent(s)
    logged = []
    for step in range(STEPS):
        clean, reference = part(images(2 * step)), part(images(2 * step + 1))
        values = DENOISER.train_step(s, c, transfer, clean, reference, shared_noise(step))
        means.update(values, step)
        logged.append(means.read())
    if is_first():
        torch.save({"logged": logged, "state": s.state_dict()}, job.out)


def train_as_plain_adam(job: Job, device: torch.device) -> None:
    """Fused Adam gets the gradients that the processes have averaged: in which layout?"""
    states = []
    for use in (None, plain):
        c = NT.Config(width=4, embed_dim=8, lr=LR, batch=4, queue_size=12)
        s = NT.State(c, device)
        if use:
            use(s)
        for step in range(3):
            batch = Triplet(*(part(images(3 * step + i)) for i in range(3)))
            NT.train_step(s, c, batch, shared_noise(step))
        states.append(s)
    assert_same_weights(*states)
    if is_first():
        job.out.touch()


TRAININGS = train_generator, train_in_phases, train_denoiser


def train_all(job: Job, device: torch.device) -> None:
    """To start the processes, seconds each, once for all."""
    for train in (*TRAININGS, train_as_plain_adam):
        train(Job(job.out / train.__name__), device)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    for gpu, name in (("cpu", "one"), ("cpu,cpu", "two")):
        (folder / name).mkdir()
        launch(train_all, Job(folder / name), gpu)
    return folder


@pytest.mark.parametrize("train", TRAININGS)
def test_two_processes_equal_one_with_the_same_batch(train: Callable, trained: Path) -> None:
    one, two = (
        torch.load(trained / name / train.__name__, weights_only=True) for name in ("one", "two")
    )
    for a, b in zip(one["logged"], two["logged"], strict=True):
        # float32, summed in another order
        assert b == pytest.approx(a, rel=1e-4, abs=1e-5)
    assert one["state"].keys() == two["state"].keys()
    for key, a in one["state"].items():
        torch.testing.assert_close(
            two["state"][key], a, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )
    if train is not train_denoiser:
        assert two["state"]["keys.pointer"] == BATCH * STEPS % 12


def test_two_processes_update_as_plain_adam(trained: Path) -> None:
    assert (trained / "two/train_as_plain_adam").exists()


def one_fails(job: Job, device: torch.device) -> None:
    print("hello")
    if not is_first():
        raise UserError("data.png: broken; fetch it again")
    gather_rows(torch.zeros(1))  # waits for the other


def test_a_failing_process_ends_all(tmp_path: Path) -> None:
    result = launched_as_a_script("one_fails", tmp_path)
    assert result.returncode == 2
    assert "error: data.png: broken; fetch it again" in result.stderr
    assert result.stdout.split() == ["hello"]  # of the first process alone


def one_is_killed(job: Job, device: torch.device) -> None:
    gather_rows(torch.zeros(1))
    if not is_first():
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(1000):
        gather_rows(torch.zeros(1))


def test_killing_one_process_ends_the_other_with_a_message(tmp_path: Path) -> None:
    result = launched_as_a_script("one_is_killed", tmp_path)
    assert result.returncode in (2, 128 + signal.SIGKILL)  # whichever is noticed first
    assert re.search("lost the connection to another process|ended by SIGKILL", result.stderr)


def launched_as_a_script(worker: str, folder: Path) -> subprocess.CompletedProcess:
    """What two CPU processes of a worker of this module leave behind, started from a script."""
    (folder / "run.py").write_text(
        "from tests.test_distributed import *\n"
        f"if __name__ == '__main__':\n    launch({worker}, Job(Path('x')), 'cpu,cpu')\n"
    )
    return run([folder / "run.py"], timeout=120)


def run(words: list, timeout: float = 300) -> subprocess.CompletedProcess:
    """A Python command at the repository's root."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment,
    )  # fmt: skip


def test_torchrun_and_resume_with_another_number_of_processes(tmp_path: Path) -> None:
    none = tmp_path / "none"
    flags = ["--debug", "--gpu", "cpu", "--train-images", none, "--test-images", none]
    flags += ["--run-dir", tmp_path / "run", "--cache", tmp_path / "cache"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = ROOT / "train_noiseTransfer.py"
    result = run([*torchrun, script, *flags])
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("finished after step 4") == 1  # one of the two prints
    result = run([script, *flags, "--epochs", "3"])
    assert result.returncode == 0, result.stderr[-3000:]
    assert "after step 4" in result.stdout
    assert "finished after step 6" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["group"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_batch_that_does_not_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.idist, "get_world_size", lambda: 3)
    assert local_batch(12) == 4
    with pytest.raises(UserError, match="--batch 32: must divide by the 3 processes"):
        local_batch(32)


@pytest.mark.parametrize(
    ("gpu", "count", "device"),
    [("0", 2, "cuda:1"), ("0", 0, "cpu"), ("cpu", 2, "cpu"), ("0", 1, "cuda:0")],
    ids=["its own", "no GPU", "CPU wanted", "each process sees one GPU"],
)
@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_device_of_a_launched_process(monkeypatch, by, gpu: str, count: int, device: str) -> None:
    """The second process: of `srun --gpus-per-task=1` too, and ignite is told the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    names = {
        "torchrun": {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        "srun": {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1"},
    }[by]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
        if name in names:
            monkeypatch.setenv(name, names[name])
    given = []
    monkeypatch.setattr(distributed, "_work", lambda worker, config, device: given.append(device))
    launch(train_generator, Job(Path("x")), gpu)
    assert given == [torch.device(device)]
    if given[0].type == "cuda":
        local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))
        assert given[0].index == int(local)


def test_processes_on_the_cpu_of_a_gpu_machine_touch_no_gpu(monkeypatch) -> None:
    """ignite makes a GPU the current one wherever it sees one: it must see none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = []
    monkeypatch.setattr(
        distributed.idist, "initialize",
        lambda *_, **__: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]),
    )  # fmt: skip
    monkeypatch.setattr(distributed.idist, "finalize", lambda: None)
    distributed._work(lambda config, device: seen.append(device), None, torch.device("cpu"))
    assert seen == ["", torch.device("cpu")]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[Rank 1] Watchdog caught collective operation timeout: NCCL timeout", "lost the conn"),
        ("NCCL error: remote process exited or there was a network error", "lost the connection"),
        ("Connection closed by peer [127.0.0.1]:4", "lost the connection to another process"),
        ("NCCL error in: x.cpp:51, invalid usage, Duplicate GPU detected : rank 0 and rank 1",
         "NCCL, which the GPUs talk through, failed .*Duplicate GPU detected"),
    ],
)  # fmt: skip
def test_failures_between_processes_are_named(monkeypatch, said: str, told: str) -> None:
    def fail(config: object, device: torch.device) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(distributed.idist, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(distributed.idist, "finalize", lambda: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=told):
        distributed._work(fail, None, torch.device("cpu"))


def test_a_start_without_memory_says_so(monkeypatch) -> None:
    def fail(config: object, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"cpu: out of GPU memory; end what else uses that GPU"):
        launch(fail, None, "cpu")


@pytest.mark.parametrize(
    ("environment", "outside"),
    [
        ({}, False),
        ({"RANK": "0", "WORLD_SIZE": "1"}, True),  # torchrun with one process
        ({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4"}, False),  # a shell of salloc
        ({"SLURM_JOB_ID": "5", "SLURM_STEP_NUM_TASKS": "1"}, False),  # srun, one task: spawn
        ({"SLURM_JOB_ID": "5", "SLURM_STEP_NUM_TASKS": "4"}, True),
    ],
)
def test_who_started_us(monkeypatch, environment, outside) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed._launched_from_outside() == outside
