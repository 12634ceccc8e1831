"""Batches made a few steps ahead of the training loop, in order, by one background thread."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Iterates over make(step) for step in range(start, stop), made while earlier steps train.

    make: called in order, for one step at a time, on another thread. It draws its randomness from
    the step, so that its results are the same with and without prefetching; what it raises is
    raised here, at that step. It returns tensors in any nest of tuples, lists, dicts and
    dataclasses.
    device: of those tensors. On CUDA, make's kernels and copies run on a stream of their own, and
    the stream that is current at `next` waits for them.
    ahead: steps made early, at most; 0: no thread, each is made when it is asked for. The default
    is 2 on CUDA, and 0 on the CPU, where the training step itself keeps all cores busy.

    `waited_s`: seconds that the loop has stood still in `next`. Leaving the `with` block, or
    dropping the object, ends the thread after the step that it is at.
    """

    def __init__(
        self,
        make: Callable[[int], T],
        start: int,
        stop: int,
        device: torch.device,
        ahead: int | None = None,
    ) -> None:
        if ahead is None:
            ahead = 2 if device.type == "cuda" else 0
        self.waited_s, self._began = 0.0, time.perf_counter()
        self._make, self._steps, self._ahead = make, iter(range(start, stop)), ahead
        self._pending: deque[Future] = deque()
        # Non-daemon, and it never blocks on us: it has at most ahead + 1 calls to do and is idle
        # then, and the executor lets it go when it is dropped or the interpreter leaves.
        self._pool = ThreadPoolExecutor(1, "prefetch") if ahead else None
        self._stream = None
        if ahead and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # a store's upload

    @property
    def waiting_share(self) -> float:
        """Share of the time since the start, in [0, 1], that the loop has stood still for data."""
        return self.waited_s / (time.perf_counter() - self._began)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        began = time.perf_counter()
        try:
            if self._pool is None:
                return self._make(next(self._steps))
            for step in islice(self._steps, self._ahead + 1 - len(self._pending)):
                self._pending.append(self._pool.submit(_run, self._make, step, self._stream))
            if not self._pending:
                raise StopIteration
            item, ready = self._pending.popleft().result()
        except BaseException:  # the end, make's own, or Ctrl-C while waiting
            self.close()
            raise
        finally:
            self.waited_s += time.perf_counter() - began
        if ready is not None:
            stream = torch.cuda.current_stream(self._stream.device)
            stream.wait_event(ready)
            for tensor in _tensors(item):  # their memory belongs to the other stream's pool
                tensor.record_stream(stream)
        return item

    def close(self) -> None:
        """End the thread; waits for the step that it is at. Nothing more can be iterated."""
        self._steps = iter(())
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


# Not a method: the thread must not keep the Prefetcher alive.
def _run(
    make: Callable[[int], T], step: int, stream: torch.cuda.Stream | None
) -> tuple[T, torch.cuda.Event | None]:
    if stream is None:
        return make(step), None
    with torch.cuda.stream(stream):
        item = make(step)
        return item, stream.record_event()


def _tensors(item: Any) -> Iterator[Tensor]:
    """The CUDA tensors in a nest of containers; other leaves are passed over."""
    if isinstance(item, Tensor):
        if item.is_cuda:
            yield item
        return
    if dataclasses.is_dataclass(item):
        item = vars(item)
    if isinstance(item, dict):
        item = item.values()
    elif not isinstance(item, (tuple, list)):
        return
    for part in item:
        yield from _tensors(part)
