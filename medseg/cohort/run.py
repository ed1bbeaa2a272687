"""All items of a cohort to their end: workers, what they are given, and what becomes of it.

An item is handed out once nobody else has it (`claims`). A worker that dies takes its item along as a failure that the
next run tries again; what it had been given beyond goes to another. Nothing is lost when this process dies: what was
done stands in `finished`, and a run that comes after does the rest.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Final

from medseg.cohort.claims import Claims
from medseg.cohort.finished import Failure, Finished, Output
from medseg.cohort.items import CohortItem
from medseg.cohort.study import Task
from medseg.cohort.worker import Done, Message, Ready, Stopped, work
from medseg.errors import Interrupted, ResourceError
from medseg.job import exits
from medseg.progress import Cancelled

_AT_ONCE: Final = 2  # items that a worker has: one that it works on, and the next, whose headers it reads
_LOOK_S: Final = 0.5
_OTHERS_S: Final = 1.0  # how often what another run has is asked for
_STOP_S: Final = 20.0
_GIB: Final = 1 << 30
_WORKER_BYTES: Final = 2 * _GIB  # what a worker may take: libraries, weights, windows on their way


@dataclass
class Totals:
    """How far a cohort is. kept: of those done, how many were so before. began: `time.monotonic` of the first item."""

    total: int
    done: int = 0
    failed: int = 0
    kept: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def per_hour(self) -> float | None:
        """Studies an hour, of those that were worked on; None before the first."""
        worked = self.done - self.kept
        return worked * 3600.0 / max(time.monotonic() - self.began, 1e-3) if worked else None

    @property
    def left_s(self) -> float | None:
        """Seconds to the end at this pace."""
        return (self.total - self.done) * 3600.0 / self.per_hour if self.per_hour else None


def workers_for(items: int, jobs: int | None, devices: Sequence[str]) -> list[tuple[str, int]]:
    """A worker's device and threads, for each. jobs: how many are asked for.

    On a CPU small networks keep cores busy best when each core has a study of its own; on GPUs each has one worker.
    """
    cores = len(os.sched_getaffinity(0))
    if devices:
        count = min(jobs or len(devices), max(items, 1))
        return [(devices[number % len(devices)], max(cores // count, 1)) for number in range(count)]
    count = min(jobs or max(min(cores, _available() // _WORKER_BYTES), 1), max(items, 1))
    return [("cpu", max(cores // count, 1))] * count


def _available() -> int:
    """Bytes of memory that can be had."""
    with suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    return _WORKER_BYTES


class CohortRun:
    """One run over items. on_done: what became of each, as it comes; on_look: called a few times a second."""

    def __init__(
        self,
        output: Output,
        task: Task,
        items: Sequence[CohortItem],
        places: Sequence[tuple[str, int]],
        *,
        on_ready: Callable[[Ready], None],
        on_done: Callable[[CohortItem, Done], None],
        on_look: Callable[[Totals], None],
        cancelled: Cancelled,
    ) -> None:
        self._output, self._task, self._cancelled = output, task, cancelled
        self._pending, self._elsewhere = deque(items), deque[CohortItem]()
        self._places, self._workers = places, list[_Worker]()
        self._on_ready, self._on_done, self._on_look = on_ready, on_done, on_look
        self.totals = Totals(len(items))
        self._asked = time.monotonic()

    def run(self) -> None:
        """Raises Interrupted, and CohortStopped where no worker can begin."""
        with Claims(self._output.claims) as self._claims, self._ending():
            self._workers += [_Worker(self._task, device, threads) for device, threads in self._places]
            while self._pending or self._elsewhere or any(worker.items for worker in self._workers):
                if self._cancelled():
                    raise Interrupted
                self._hand_out()
                for worker in _heard(self._workers):
                    self._hear(worker)
                self._on_look(self.totals)

    def _hand_out(self) -> None:
        """Give each worker what it has room for: those with less first."""
        if self._elsewhere and time.monotonic() - self._asked > _OTHERS_S:
            self._asked = time.monotonic()
            self._pending, self._elsewhere = self._pending + self._elsewhere, deque()
        for room in range(_AT_ONCE):
            for worker in self._workers:
                while self._pending and len(worker.items) <= room and worker.ready:
                    item = self._pending.popleft()
                    if self._claims.take(item.name):
                        worker.give(item)
                    else:
                        self._elsewhere.append(item)

    def _hear(self, worker: _Worker) -> None:
        """One message of a worker, or its end."""
        try:
            message: Message = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        match message:
            case Ready():
                worker.ready = True
                self._on_ready(message)
            case Done():
                self._end(worker.items.popleft(), message)
            case Stopped(failure):
                if failure is not None:
                    raise CohortStopped(failure)

    def _end(self, item: CohortItem, done: Done) -> None:
        self._claims.release(item.name)
        self.totals.done += 1
        self.totals.kept += done.kept
        self.totals.failed += bool(done.item.failures)
        self._on_done(item, done)

    def _replace(self, worker: _Worker) -> None:
        """Another in the place of a worker that has died."""
        how = worker.end()
        self._workers.remove(worker)
        if not worker.ready:
            failure = Failure("", "", "", "failed", "worker_died", f"a worker {how} before it began", exits.RESOURCES)
            raise CohortStopped(failure)
        if worker.items:
            item = worker.items.popleft()
            finished = _of_dead(self._task, item, how)
            self._output.finish(finished)
            self._end(item, Done(finished, kept=False))
        for item in reversed(worker.items):
            self._claims.release(item.name)
            self._pending.appendleft(item)
        self._workers.append(_Worker(self._task, worker.device, worker.threads))

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Every worker ends with the run: in good order, else at once."""
        try:
            yield
        except BaseException:
            for worker in self._workers:
                worker.process.terminate()
            raise
        finally:
            for worker in self._workers:
                worker.dismiss()
            until = time.monotonic() + _STOP_S
            for worker in self._workers:
                worker.process.join(max(until - time.monotonic(), 0.1))
                worker.end()


class CohortStopped(ResourceError):
    """No worker can begin; `failure` says why."""

    code = "cohort_stopped"

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Worker:
    """A process, and the items it has, in order."""

    def __init__(self, task: Task, device: str, threads: int) -> None:
        self.device, self.threads = device, threads
        self.items: deque[CohortItem] = deque()
        self.ready = False
        context = get_context("spawn")
        self.connection, other = context.Pipe()
        settings = replace(task.settings, device=device)
        with _environment(OMP_NUM_THREADS=str(threads)):
            self.process: SpawnProcess = context.Process(
                target=work, args=(other, replace(task, settings=settings)), name="medseg cohort worker", daemon=True
            )
            self.process.start()
        other.close()

    def give(self, item: CohortItem) -> None:
        self.items.append(item)
        with suppress(BrokenPipeError):  # it has died: found out when it is heard
            self.connection.send(item)

    def dismiss(self) -> None:
        """Say that there is nothing more."""
        with suppress(OSError):
            self.connection.send(None)

    def end(self) -> str:
        """See the process to its end; how it ended."""
        self.process.join(1.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"ended with {code}"
        why = ", as when memory does not suffice" if -code == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{why}"


def _heard(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those that have said something, or died; waits a little for the first."""
    heard = wait([worker.connection for worker in workers], _LOOK_S)
    return [worker for worker in workers if worker.connection in heard]


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables that a process which is started meanwhile sees."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _of_dead(task: Task, item: CohortItem, how: str) -> Finished:
    """The failure of the item that a worker died with."""
    what = f"study {task.uid(item)}" if item.study_uid else task.source(item)
    message = f"{what}: the process that worked on it {how}: run it again by itself to see why"
    failure = Failure(task.uid(item), "", item.bundle or "", "failed", "worker_died", message, exits.RESOURCES)
    return Finished(item.name, task.source(item), task.stamp(item), "", failures=(failure,), lasting=False)
