"""A training run around its steps: resume, progress, log, checkpoints, and when to stop.

    with TrainingRun(c, s, device, items.stores) as run:
        for batch in run.steps(draw):
            run.record(train_step(s, c, batch))
            if run.epoch_is_over:  # in the first process
                ...  # export weights, show pictures, validate

What an ablation would change is in the scripts.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Self, TypeVar

import ignite.distributed as idist
import torch
from torch import Tensor
from tqdm import tqdm

from data.prefetch import Prefetcher
from data.store import DeviceImageStore, ImageStore, summary
from data.test_sets import CleanTestSet, PairedTestSet
from evaluation.batches import Scores
from evaluation.measure import mean_over_images
from training.settings import RunSettings
from utils.distributed import any_process, is_first
from utils.errors import UserError
from utils.resume import Checkpoints, RunLock, StopSignals, settings_of
from utils.runlog import RunLog
from utils.training import Means, TrainingState, progress_bar

T = TypeVar("T")


class TrainingRun:
    """The run in c.run_dir while it trains: its lock, checkpoints, log and progress bar.

    Making it restores `state` from the newest checkpoint, and says so. Of several processes only
    the first holds the lock, logs and saves; they stop together. Leaving the block after a signal
    ends the process with 128 + its number, as shells and schedulers expect.

    stores: the training images; a resumed run says so if they are no longer what they were.
    shown: which of the recorded values stand beside the progress bar; None: all.
    """

    def __init__(
        self,
        c: RunSettings,
        state: TrainingState,
        device: torch.device,
        stores: Sequence[ImageStore | DeviceImageStore],
        shown: Collection[str] | None = None,
    ) -> None:
        self.c, self.state, self.device, self.shown = c, state, device, shown
        self.lock = RunLock(c.run_dir) if is_first() else None
        self.checkpoints = Checkpoints(c.run_dir, c.keep)
        self.end = None if c.max_minutes is None else time.monotonic() + 60 * c.max_minutes
        self.best, self.asked, self.signals = None, 0, StopSignals()
        self.open = contextlib.ExitStack()
        self.data = summary(stores)
        content = self.checkpoints.load_newest()
        if content is not None:
            state.restore(content, c.run_dir)
            self.best = content["best"]
            print(f"Resuming {c.run_dir} after step {state.step}")
            before = content.get("data", self.data)
            if before != self.data and is_first():
                print(
                    f"WARNING: {c.run_dir} was trained on {before['images']} images until step "
                    f"{state.step}, what is there now are {self.data['images']}, others: look at "
                    "--pairs, --photos and --train-images, unless that is meant",
                    file=sys.stderr,
                )

    def __enter__(self) -> Self:
        if self.lock is not None:
            self.open.callback(self.lock.release)
        self.open.enter_context(self.signals)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, *_: object) -> None:
        self.open.close()
        if isinstance(error, torch.OutOfMemoryError):
            c = self.c
            raise UserError(
                f"out of GPU memory at step {self.state.step} with --batch {c.batch} --patch "
                f"{c.patch} --grad-accum {c.grad_accum} --precision {c.precision}: give "
                f"--grad-accum {2 * c.grad_accum} (the same result), --precision bf16, or smaller "
                "batches or patches"
            ) from error
        if error is None and self.signals.received is not None:
            sys.exit(128 + self.signals.received)

    def steps(self, draw: Callable[[int], T]) -> Iterator[T]:
        """draw(step), made ahead, for each step that is still to do, until the run must stop.

        The loop's body takes the step and calls `record`. At the end the checkpoint is saved.
        """
        c, s = self.c, self.state
        self.log = self.open.enter_context(contextlib.closing(RunLog(c.run_dir, c)))
        self.means = Means(self.device)
        self.batches = self.open.enter_context(Prefetcher(draw, s.step, c.steps, self.device))
        self.bar = self.open.enter_context(progress_bar(c.steps, s.step))
        for batch in self.batches:
            if self.must_stop():
                break
            yield batch
        self.bar.close()
        if is_first():
            self.save()
        state = "finished" if s.step >= c.steps else "stopped, the same command goes on"
        print(f"{state} after step {s.step}; weights and log in {c.run_dir}")

    def record(self, values: Mapping[str, Tensor], now: bool = False) -> None:
        """Log the scalars of the step just taken, and save at the end of an epoch.

        Means over `log_every` steps are logged; `now`: up to this step, as others follow it.
        """
        c, s = self.c, self.state
        self.means.update(values, s.step)
        self.bar.update()
        if now or s.step % c.log_every == 0:
            numbers = self.means.read()
            shown = numbers.keys() if self.shown is None else self.shown
            self.bar.set_postfix({k: f"{numbers[k]:.4f}" for k in shown if k in numbers})
            rate = next(iter(s.optimisers.values())).param_groups[0]["lr"]
            numbers |= {"lr": float(rate), "waiting": self.batches.waiting_share}
            self.log.scalars("train", numbers, s.step)
        if self.epoch_is_over:
            self.bar.write(f"Epoch {s.step // c.steps_per_epoch} of {c.epochs}")
            self.save()

    def record_validation(
        self, test_set: CleanTestSet | PairedTestSet, scores: Scores
    ) -> dict[str, float]:
        """Log and print the mean of each measure, and return them."""
        means = mean_over_images(scores)
        self.log.scalars(f"val/{test_set.name}", means, self.state.step)
        tqdm.write(f"  {test_set.title}: " + ", ".join(f"{k} {v:.4f}" for k, v in means.items()))
        return means

    @property
    def epoch_is_over(self) -> bool:
        """In the first process, which validates while the others wait; in those never."""
        return self.state.step % self.c.steps_per_epoch == 0 and is_first()

    def must_stop(self) -> bool:
        """Whether `--max-minutes` are over, or a signal came, in any process.

        All get one answer, which they ask for at the same steps. With several it costs them a wait
        for their devices, hence only every tenth time.
        """
        self.asked += 1
        if idist.get_world_size() > 1 and self.asked % 10:
            return False
        over = self.end is not None and time.monotonic() > self.end
        return any_process(over or self.signals.received is not None)

    def save(self, best: bool = False) -> None:
        own = {"settings": settings_of(self.c), "best": self.best, "data": self.data}
        self.checkpoints.save(self.state.content() | own, best)

    def save_if_best(self, scores: Sequence[float]) -> bool:
        """scores: one per validation set, higher is better; whether their mean is the run's best.

        It is then kept. Without any there is no best.
        """
        score = sum(scores) / len(scores) if scores else math.nan
        if not math.isfinite(score) or (self.best is not None and score <= self.best["score"]):
            return False
        self.best = {"score": score, "step": self.state.step}
        self.save(best=True)
        return True
