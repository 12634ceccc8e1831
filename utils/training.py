"""Machinery that the three training loops share; what an ablation would change is in the loops."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.metrics import Average
from torch import Tensor, nn

from utils.checkpoint import read_torch_file, save_atomically
from utils.distributed import any_process
from utils.errors import UserError


class TrainingState(nn.Module):
    """All that a run carries from step to step, saved and loaded as one file.

    Networks and queues are sub-modules; `optimisers` and `step` come beside them. Random numbers
    need no state: they are derived from (seed, rank, step), see utils/seeding.py.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.optimisers: dict[str, torch.optim.Optimizer] = {}

    def save(self, path: Path) -> None:
        """UserError, and the file left as it is, where a weight is not finite any more."""
        networks = self.state_dict()
        lost = [k for k, v in networks.items() if v.is_floating_point() and not v.isfinite().all()]
        if lost:
            raise UserError(
                f"{path}: not written, {lost[0]} is not finite at step {self.step}; lower --lr, "
                "and run again: it goes on from the last epoch's checkpoint"
            )
        optimisers = {name: o.state_dict() for name, o in self.optimisers.items()}
        content = {"networks": networks, "optimisers": optimisers, "step": self.step}
        save_atomically(content, path)

    def load(self, path: Path) -> None:
        """UserError for a damaged file and for one of a run with other networks."""
        content = read_torch_file(path)
        try:
            self.load_state_dict(content["networks"])
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(content["optimisers"][name])
            self.step = content["step"]
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: is of a run with other networks ({reason}); give that run's settings "
                "again, or choose another --run-dir folder"
            ) from error

    def set_lr(self, lr: float) -> None:
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = lr


def warm_up_cosine(step: int, total: int, warm_up: int) -> float:
    """Factor on the learning rate: a linear rise over `warm_up` steps, then half a cosine to 0."""
    rise = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * step / total))


def apply_gradients(
    optimiser: torch.optim.Optimizer, network: nn.Module, grads: Sequence[Tensor]
) -> None:
    """One step of `optimiser` with these gradients of the network's parameters, in their order."""
    for parameter, grad in zip(network.parameters(), grads, strict=True):
        parameter.grad = grad
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


@torch.no_grad()
def average_weights(ema: nn.Module, network: nn.Module, decay: float) -> None:
    """theta_ema <- decay theta_ema + (1 - decay) theta; buffers (norm statistics) are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - decay)
    for average, value in zip(ema.buffers(), network.buffers(), strict=True):
        average.copy_(value)


class Means:
    """Means of named scalars since the last `read`, kept on the device until then."""

    def __init__(self, device: torch.device) -> None:
        self.average, self.names = Average(device=device), []

    def update(self, values: Mapping[str, Tensor]) -> None:
        self.names = list(values)
        self.average.update(torch.stack([v.detach().float() for v in values.values()])[None])

    def read(self, step: int) -> dict[str, float]:
        """UserError if one is not finite: the run is lost from there on and has to say so."""
        values = dict(zip(self.names, self.average.compute().tolist(), strict=True))
        self.average.reset()
        if not all(map(math.isfinite, values.values())):
            raise UserError(
                f"not finite by step {step}: {values}; lower --lr, and run again: the last "
                "epoch's checkpoint is intact"
            )
        return values


class StopWatch:
    """Whether `--max-minutes` have passed since it was made; None never passes.

    All processes get one answer, which they ask for at the same steps. With several it costs them
    a wait for their devices, hence only every tenth time.
    """

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.asked = 0

    def is_over(self) -> bool:
        if self.end is None:
            return False
        self.asked += 1
        if idist.get_world_size() > 1 and self.asked % 10:
            return False
        return any_process(time.monotonic() > self.end)


def save_weights(network: nn.Module, path: Path) -> None:
    """A plain state dict on the CPU, as published checkpoints are."""
    save_atomically({key: value.cpu() for key, value in network.state_dict().items()}, path)
