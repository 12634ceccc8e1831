"""Prefetching changes when batches are made, never what they hold, and leaves nothing behind."""

import _thread
import dataclasses
import gc
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.prefetch import Prefetcher
from utils.seeding import randomness

CPU = torch.device("cpu")


def no_thread_left() -> bool:
    gc.collect()
    end = time.monotonic() + 5
    while any(t.name.startswith("prefetch") for t in threading.enumerate()):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@dataclasses.dataclass(frozen=True)
class Batch:
    image: Tensor
    others: tuple[Tensor, dict[str, Tensor]]


def random_batch(step: int, device: torch.device) -> Batch:
    rng = randomness(0, 0, step, device=device)
    shift = torch.rand(1, generator=rng.choices).to(device)
    image = torch.randn(16, 3, 48, 48, device=device, generator=rng.pixels) + shift
    return Batch(image, (image.mean(dim=0), {"shift": shift}))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_results_are_those_without_prefetching(device: torch.device, ahead: int) -> None:
    """On CUDA the consumer's own work reuses memory all the time, as a training step does."""
    with Prefetcher(lambda step: random_batch(step, device), 5, 25, device, ahead) as batches:
        for step, batch in zip(range(5, 25), batches, strict=True):
            noise = torch.randn(16, 3, 48, 48, device=device).mul_(2)
            expected = random_batch(step, device)
            assert torch.equal(batch.image, expected.image)
            assert torch.equal(batch.others[0], expected.others[0])
            assert torch.equal(batch.others[1]["shift"], expected.others[1]["shift"])
            del noise, batch
    assert no_thread_left()


def test_one_thread_makes_the_steps_in_order_and_no_further_than_ahead() -> None:
    made, threads = [], set()

    def make(step: int) -> int:
        made.append(step)
        threads.add(threading.current_thread().name)
        return step

    with Prefetcher(make, 3, 20, CPU, ahead=2) as numbers:
        assert made == []
        for i, number in enumerate(numbers, start=3):
            assert number == i
            end = time.monotonic() + 5
            while len(made) < min(i + 2, 19) - 2 and time.monotonic() < end:
                time.sleep(0.001)  # until both steps ahead are there
            time.sleep(0.002)
            assert made == list(range(3, min(i + 3, 20)))
    assert len(threads) == 1
    assert threading.current_thread().name not in threads


@pytest.mark.parametrize(("ahead", "own_thread"), [(None, False), (0, False), (1, True)])
def test_on_the_cpu_there_is_no_thread_unless_asked_for(ahead: int | None, own_thread: bool):
    with Prefetcher(lambda _: threading.get_ident(), 0, 3, CPU, ahead) as threads:
        assert (set(threads) != {threading.get_ident()}) == own_thread


def fails_at_3(step: int) -> int:
    if step == 3:
        raise ValueError("step 3 is broken")
    return step


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_error_arrives_at_its_step_with_its_traceback(ahead: int) -> None:
    batches, got = Prefetcher(fails_at_3, 0, 10, CPU, ahead), []
    with pytest.raises(ValueError, match="step 3 is broken") as caught:  # noqa: PT012
        for number in batches:
            got.append(number)
    assert got == [0, 1, 2]
    assert "fails_at_3" in [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
    assert list(batches) == []  # and it is over
    assert no_thread_left()


def test_leaving_early_ends_the_thread() -> None:
    made = []

    def make(step: int) -> int:
        made.append(step)
        time.sleep(0.01)
        return step

    for _ in Prefetcher(make, 0, 10**9, CPU, ahead=4):  # not closed, only dropped
        break
    assert no_thread_left()

    batches = Prefetcher(make, 0, 10**9, CPU, ahead=4)
    with pytest.raises(RuntimeError, match="the step failed"), batches:  # noqa: PT012
        next(batches)
        raise RuntimeError("the step failed")
    count = len(made)
    assert list(batches) == []
    assert no_thread_left()
    time.sleep(0.05)
    assert len(made) == count  # what was queued is not made any more

    never_used = Prefetcher(make, 0, 3, CPU, ahead=4)
    never_used.close()
    never_used.close()
    assert list(never_used) == []


def test_keyboard_interrupt_while_waiting() -> None:
    # A shell's background job ignores SIGINT, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def make(step: int) -> int:
        if step:
            _thread.interrupt_main()
            time.sleep(0.2)
        return step

    batches = Prefetcher(make, 0, 10, CPU, ahead=1)
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in batches:
                pass
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(batches) == []
    assert no_thread_left()


def test_the_interpreter_leaves_with_a_prefetcher_alive() -> None:
    """An uncaught error's traceback keeps the loop's frame, and with it the Prefetcher."""
    code = """if True:
        import torch
        from data.prefetch import Prefetcher
        for step in Prefetcher(lambda s: s, 0, 10**9, torch.device("cpu"), ahead=3):
            1 / (step - 2)
    """
    root = Path(__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_the_thread_is_on_the_gpu_that_it_makes_batches_for(monkeypatch) -> None:
    """A new thread's current GPU is 0; leaving a stream makes it so again, and takes memory there.

    GPUs as PyTorch keeps them: the current one is a thread's own.
    """
    current, touched = threading.local(), []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def wait_stream(self, other: object) -> None:
            pass

        record_event = wait_event = lambda *_: None

    class stream:
        def __init__(self, other: Stream) -> None:
            self.other = other

        def __enter__(self) -> None:
            self.before = getattr(current, "gpu", 0)
            touched.append(self.other.device.index)

        def __exit__(self, *_: object) -> None:
            touched.append(self.before)

    monkeypatch.setattr(torch.cuda, "set_device", lambda d: setattr(current, "gpu", d.index))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    with Prefetcher(lambda step: step, 0, 4, torch.device("cuda", 1)) as batches:
        assert list(batches) == [0, 1, 2, 3]
    assert set(touched) == {1}


def test_waiting_is_counted() -> None:
    """0.03 s to make and 0.06 s to use: all of it is waited for without a thread, then only the
    first. The bounds leave 0.06 s for a busy machine."""

    def make(step: int) -> int:
        time.sleep(0.03)
        return step

    waited = {}
    for ahead in (0, 2):
        with Prefetcher(make, 0, 6, CPU, ahead) as batches:
            for _ in batches:
                time.sleep(0.06)
        waited[ahead] = batches.waited_s
    assert waited[0] >= 0.18
    assert waited[2] >= 0.025
    assert waited[2] <= 0.09
