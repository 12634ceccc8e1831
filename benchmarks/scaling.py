"""The generator step in one process and in several, with the same global batch.

    python -m benchmarks.scaling                                 # one and two CPU processes (gloo)
    python -m benchmarks.scaling --gpus 0 0,1 0,1,2,3 --batch 128

Several processes share the threads of one. Speed-up is over the first of `--gpus`; `communication`
is the time of the step's two collective calls alone, of tensors of the step's sizes.
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import torch

from benchmarks.timing import print_machine, print_table, write_json
from data.items import Triplet
from models.generator import normal_noise
from train_noiseTransfer import Config as TrainConfig
from train_noiseTransfer import State, train_step
from utils.config import Precision, choose_devices, parse
from utils.distributed import average_gradients, gather_rows, is_first, launch, local_batch
from utils.errors import exit_on_user_error
from utils.precision import set_float32_precision


@dataclass(frozen=True)
class Config:
    """Time a training step against the number of processes."""

    gpus: tuple[str, ...] = ("cpu", "cpu,cpu")
    """What --gpu of the training script would be, in turn."""
    width: int = 64
    batch: int = 4
    """Of all processes together."""
    patch: int = 96
    precision: Precision = "auto"
    repeats: int = 5
    rounds: int = 2
    """Each number of processes is started so often, in turn."""
    json: Path | None = None
    """Write all samples here."""


@dataclass(frozen=True)
class Job:
    config: Config
    out: Path
    threads: int


def worker(job: Job, device: torch.device) -> None:
    c = job.config
    if device.type == "cpu":
        torch.set_num_threads(max(1, job.threads // idist.get_world_size()))
    set_float32_precision(c.precision)
    settings = TrainConfig(width=c.width, precision=c.precision)
    state = State(settings, device)
    rng = torch.Generator().manual_seed(idist.get_rank())
    shape = (local_batch(c.batch), 3, c.patch, c.patch)
    batch = Triplet(*(torch.rand(shape, generator=rng).to(device) for _ in range(3)))
    noise = normal_noise(torch.Generator(device).manual_seed(0))
    networks = (state.encoder_q, state.generator)
    grads = [[torch.zeros_like(p) for p in network.parameters()] for network in networks]

    def communicate() -> None:
        gather_rows(torch.zeros(shape[0], settings.embed_dim, device=device))
        for each in grads:
            average_gradients(each)

    samples: dict[str, list[float]] = {"step": [], "communication": []}
    for i in range(c.repeats + 1):
        for name, run in (
            ("step", lambda: train_step(state, settings, batch, noise)),
            ("communication", communicate),
        ):
            idist.barrier()
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if i:  # the first warms up
                samples[name].append(time.perf_counter() - began)
    if is_first():
        job.out.write_text(json.dumps(samples))


def main(argv: list[str] | None = None) -> None:
    c = parse(Config, argv)
    samples: dict[str, dict[str, list[float]]] = {gpu: {} for gpu in c.gpus}
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(c.rounds):
            for gpu in c.gpus:
                out = Path(folder) / "samples.json"
                launch(worker, Job(c, out, threads), gpu)
                for name, values in json.loads(out.read_text()).items():
                    samples[gpu].setdefault(name, []).extend(values)
    rows = []
    for gpu, values in samples.items():
        median = {name: statistics.median(v) for name, v in values.items()}
        rows.append(
            {
                "gpu": gpu,
                "processes": len(choose_devices(gpu)),
                "step_ms": 1e3 * median["step"],
                "communication_ms": 1e3 * median["communication"],
                "speedup": statistics.median(samples[c.gpus[0]]["step"]) / median["step"],
                "samples_ms": [1e3 * s for s in values["step"]],
            }
        )
    print_machine()
    print_table(f"generator step, global batch {c.batch}, {c.patch}x{c.patch}", rows)
    write_json(c.json, {"scaling": rows})


if __name__ == "__main__":
    exit_on_user_error(main)
