"""Machinery that the three training loops share; what an ablation would change is in the loops."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.metrics import Average
from torch import Tensor, nn
from tqdm import tqdm

from utils.checkpoint import save_atomically
from utils.distributed import any_process, is_first
from utils.errors import UserError


class TrainingState(nn.Module):
    """All that a run carries from step to step, saved and loaded as one file.

    Networks and queues are sub-modules; `optimisers` and `step` come beside them. Random numbers
    need no state: they are derived from (seed, rank, step), see utils/seeding.py.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step, self.skipped = 0, 0
        self.optimisers: dict[str, torch.optim.Optimizer] = {}

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds. UserError where a weight is not finite any more."""
        networks = self.state_dict()
        lost = [k for k, v in networks.items() if v.is_floating_point() and not v.isfinite().all()]
        if lost:
            raise UserError(
                f"not saved: {lost[0]} is not finite at step {self.step}; lower --lr, and run "
                "again: it goes on from the last epoch's checkpoint"
            )
        optimisers = {name: o.state_dict() for name, o in self.optimisers.items()}
        for group in (g for o in optimisers.values() for g in o["param_groups"]):
            group |= {"lr": float(group["lr"]), "capturable": False}  # see put_lr_on
        return {"networks": networks, "optimisers": optimisers, "step": self.step}

    def restore(self, content: Mapping[str, Any], folder: Path) -> None:
        """UserError for a checkpoint of a run with other networks."""
        try:
            self.load_state_dict(content["networks"])
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(content["optimisers"][name])
            self.step = content["step"]
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{folder}: holds a run with other networks ({reason}); choose another --run-dir"
            ) from error

    def set_lr(self, lr: float) -> None:
        for group in self._groups():
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def put_lr_on(self, device: torch.device) -> None:
        """Keep the optimisers' rates on `device`, where a captured step (utils/graph.py) finds
        the one of the day. After `restore`."""
        for group in self._groups():
            group |= {"lr": torch.tensor(float(group["lr"]), device=device), "capturable": True}

    def _groups(self) -> list[dict[str, Any]]:
        return [group for o in self.optimisers.values() for group in o.param_groups]

    def skips(self, grads: Sequence[Tensor], limit: int) -> bool:
        """Whether this step is left out: a gradient is not finite, in any process.

        UserError when that comes `limit` + 1 times in a row.
        """
        norm = torch.stack(torch._foreach_norm(grads)).sum()
        if not any_process(not norm.isfinite()):
            self.skipped = 0
            return False
        self.skipped += 1
        if self.skipped > limit:
            raise UserError(
                f"step {self.step}: gradients not finite for the {self.skipped}th time in a row; "
                "lower --lr, and run again: it goes on from the last checkpoint"
            )
        tqdm.write(f"step {self.step} left out: its gradients are not finite")
        return True


class GradientMean:
    """Means of gradients and logged values over the equal parts of a batch."""

    def __init__(self, parts: int) -> None:
        self.parts, self.grads, self.values = parts, None, {}

    def add(self, grads: Sequence[Sequence[Tensor]], values: Mapping[str, Tensor]) -> None:
        """grads: for each network, one a parameter, or none at all. values: scalars."""
        if self.grads is None:
            self.grads, self.values = grads, dict(values)
            return
        for total, new in zip(self.grads, grads, strict=True):
            if total:  # of a network that is not updated now, there are none
                torch._foreach_add_(total, new)
        self.values = {name: self.values[name] + value for name, value in values.items()}

    def result(self) -> tuple[Sequence[Sequence[Tensor]], dict[str, Tensor]]:
        if self.parts > 1:
            for grads in filter(None, self.grads):
                torch._foreach_div_(grads, self.parts)
            self.values = {name: value / self.parts for name, value in self.values.items()}
        return self.grads, self.values


def warm_up_cosine(step: int, total: int, warm_up: int) -> float:
    """Factor on the learning rate: a linear rise over `warm_up` steps, then half a cosine to 0."""
    rise = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * step / total))


def apply_gradients(
    optimiser: torch.optim.Optimizer, parameters: Iterable[Tensor], grads: Sequence[Tensor]
) -> None:
    """One step of `optimiser` with these gradients of these parameters; its others stay.

    Each gradient gets its parameter's layout first. autograd.grad does not see to that, as backward
    does, and fused Adam takes it for granted: on a CPU it would pair weights with the gradients of
    others without a word, on CUDA it stops.
    """
    for parameter, grad in zip(parameters, grads, strict=True):
        alike = grad.stride() == parameter.stride()
        parameter.grad = grad if alike else torch.empty_like(parameter).copy_(grad)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


@torch.no_grad()
def average_weights(ema: nn.Module, network: nn.Module, decay: float) -> None:
    """theta_ema <- decay theta_ema + (1 - decay) theta; buffers (norm statistics) are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - decay)
    buffers = list(ema.buffers()), list(network.buffers())
    if buffers[0]:
        torch._foreach_copy_(*buffers)


class Means:
    """Means of named scalars since the last `read`, kept on the device until then.

    A value that is not finite is a UserError, raised one step late: by then it has come over from
    the device, which nobody has waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.average, self.names = Average(device=device), []
        self.newest: tuple[int, LaterOnHost] | None = None

    def update(self, values: Mapping[str, Tensor], step: int) -> None:
        """values: of this `step`, scalars; the same names at every step."""
        row = torch.stack([v.detach().float() for v in values.values()])
        before, self.newest = self.newest, (step, LaterOnHost(row))
        # Asked for once this step's copy is queued: the GPU has work while the CPU waits for the
        # step before.
        self._require_finite(before)
        self.names = list(values)
        self.average.update(row[None])

    def read(self) -> dict[str, float]:
        self._require_finite(self.newest)
        self.newest = None
        values = dict(zip(self.names, self.average.compute().tolist(), strict=True))
        self.average.reset()
        return values

    def _require_finite(self, newest: "tuple[int, LaterOnHost] | None") -> None:
        if newest is None:
            return
        step, row = newest[0], newest[1].get()
        if row.isfinite().all():
            return
        values = dict(zip(self.names, row.tolist(), strict=True))
        bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        raise UserError(
            f"step {step}: {bad} not finite ({values}); lower --lr or try --skip-nonfinite 10, and "
            "run again: it goes on from the last epoch's checkpoint"
        )


class LaterOnHost:
    """A copy of `x` on the host, queued behind what the device has to do and not waited for."""

    def __init__(self, x: Tensor) -> None:
        self.host, self.done = x, None
        if x.is_cuda:
            self.host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self.host.copy_(x, non_blocking=True)
            self.done = torch.cuda.Event()
            self.done.record(torch.cuda.current_stream(x.device))

    def get(self) -> Tensor:
        """Waits for this copy alone, not for what was queued after it."""
        if self.done is not None:
            self.done.synchronize()
        return self.host


def progress_bar(total: int, step: int) -> tqdm:
    """Rate and time left, in the first process."""
    return tqdm(total=total, initial=step, unit="step", smoothing=0.05, disable=not is_first())


def save_weights(network: nn.Module, path: Path) -> None:
    """A plain state dict on the CPU, as published checkpoints are."""
    save_atomically({key: value.cpu() for key, value in network.state_dict().items()}, path)
