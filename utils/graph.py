"""A training step as one CUDA graph: its thousands of kernels are launched by a single call.

At the sizes trained here, a GPU is done with a kernel before the CPU has launched the next one.
(PyTorch, "CUDA semantics: CUDA Graphs".)
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor

Values = dict[str, Tensor]
WARM_UP = 3  # libraries load, caches and the optimisers' state are filled, at the first steps


def captures(c: Any, device: torch.device) -> bool:
    """Whether a run of these settings may: nothing in its step needs the CPU."""
    single = device.type == "cuda" and idist.get_world_size() == 1
    return single and c.graph and not (c.compile or c.skip_nonfinite)


class GraphedStep:
    """step(*tensors) -> values; captured at the fourth call of a `key` and shapes, then replayed.

    step: reads the tensors and what stays in place on the device: no random numbers, nothing that
    waits for the device or comes from the CPU. What it does besides in Python happens at the first
    four calls of a key alone, so it should leave no trace. The values, scalars, hold until the
    next call.
    """

    def __init__(self, step: Callable[..., Values], device: torch.device) -> None:
        self._step, self._stream, self._pool = step, torch.cuda.Stream(device), None
        self._captured: dict[Hashable, _Captured] = {}

    def __call__(self, key: Hashable, tensors: Sequence[Tensor]) -> Values:
        key = key, tuple(tensor.shape for tensor in tensors)
        one = self._captured.setdefault(key, _Captured())
        one.calls += 1
        if one.calls <= WARM_UP:
            return self._run(lambda: self._step(*tensors))
        if one.calls == WARM_UP + 1:
            one.inputs = [torch.empty_like(tensor) for tensor in tensors]
            one.values = self._run(lambda: self._capture(one))
            self._pool = self._pool or one.graph.pool()
        torch._foreach_copy_(one.inputs, list(tensors))
        one.graph.replay()
        return one.values

    def _run(self, function: Callable[[], Values]) -> Values:
        """On the stream that captures, where autograd is to find everything."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            values = function()
        current.wait_stream(self._stream)
        return values

    def _capture(self, one: "_Captured") -> Values:
        one.graph = torch.cuda.CUDAGraph()
        # Another thread may draw the next batch meanwhile: only this one's calls are restricted.
        mode = dict(pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        with torch.cuda.graph(one.graph, **mode):
            return self._step(*one.inputs)


class _Captured:
    """The graph of one kind of step, where it reads its tensors, and where it leaves the values."""

    def __init__(self) -> None:
        self.calls, self.inputs, self.values = 0, [], {}
        self.graph: torch.cuda.CUDAGraph | None = None
