"""What is needed next, made by threads a few items ahead, in order."""

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

S, T = TypeVar("S"), TypeVar("T")


def look_ahead(
    function: Callable[[S], T],
    items: Iterable[S],
    threads: int,
    ahead: int | None = None,
    first: Callable[[], None] | None = None,
) -> Iterator[T]:
    """function(item) for each item, in order, computed by threads while earlier results are used.

    ahead: items early, at most; by default two more than there are threads. first: what each thread
    does before. Closing or dropping the generator ends the threads after the items that they are
    at.
    """
    ahead = threads + 2 if ahead is None else ahead
    pool, pending = ThreadPoolExecutor(threads, "prefetch", first), deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # They never block on us: each has its call to do and is idle then, and the executor lets
        # them go when the interpreter leaves.
        pool.shutdown(cancel_futures=True)


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
        self._stream = None
        if ahead and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # a store's upload
        steps, one = range(start, stop), functools.partial(_run, make, self._stream)
        first = None
        if self._stream is not None:
            # A thread starts on GPU 0, whatever GPU is ours, and leaving a stream goes back there:
            # every process would hold some hundred MB of memory on GPU 0.
            first = functools.partial(torch.cuda.set_device, self._stream.device)
        if ahead:
            self._made = look_ahead(one, steps, 1, ahead, first)
        else:
            self._made = (one(step) for step in steps)

    @property
    def waiting_share(self) -> float:
        """Share of the time since the start, in [0, 1], that the loop has stood still for data."""
        return self.waited_s / (time.perf_counter() - self._began)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        began = time.perf_counter()
        try:
            item, ready = next(self._made)
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
        self._made.close()

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Not a method: the thread must not keep the Prefetcher alive.
def _run(
    make: Callable[[int], T], stream: torch.cuda.Stream | None, step: int
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
