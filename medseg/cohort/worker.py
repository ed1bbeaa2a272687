"""A process that works on items: one after the other, the next one's headers read meanwhile.

It loads each bundle once. What goes wrong with an item is that item's failure; if the process dies, the item it had is.
Speaks with `medseg.cohort.run` over a pipe: items in, and of each, in their order, what became of it.
"""

from __future__ import annotations

import hashlib
import json
import queue
import signal
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeAlias

from medseg.cohort import bids
from medseg.cohort.finished import Failure, Finished, Output
from medseg.cohort.items import CohortItem
from medseg.cohort.study import Task, do_item, failure_of, try_plan
from medseg.errors import BundleError, Interrupted, MedsegError
from medseg.job.plan import StudyPlan
from medseg.job.run import key_settings


@dataclass(frozen=True)
class Ready:
    """A worker that has loaded what it needs. settings: digest of what results depend on; bundles: digest by name."""

    settings: str
    bundles: Mapping[str, str]


@dataclass(frozen=True)
class Done:
    """What became of an item. kept: it had been done before."""

    item: Finished
    kept: bool


@dataclass(frozen=True)
class Stopped:
    """The worker ends: it was asked to, or cannot go on. Errors themselves do not pass through pipes."""

    failure: Failure | None = None


Message: TypeAlias = Ready | Done | Stopped
_Next: TypeAlias = tuple[CohortItem, Future[list[StudyPlan] | MedsegError | Finished]] | None


def settings_of(task: Task, item: CohortItem | None = None) -> tuple[str, dict[str, str]]:
    """Digest of all that an item's results depend on beside its files, and that of each bundle. Raises BundleError."""
    asked = task.of(item or CohortItem(""))
    bundles = [bundle for some in asked.choices for bundle in some]
    said = {
        "bundles": {
            bundle.name: [bundle.digest, key_settings(bundle, task.settings, task.deidentify)] for bundle in bundles
        },
        "explicit": asked.explicit,
        "assumed": [task.settings.assume_frame_of_reference, task.assume_registered],
    }
    text = json.dumps(said, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest(), {bundle.name: bundle.digest for bundle in bundles}


def work(connection: Connection, task: Task) -> None:
    """The whole life of a worker; the target of its process."""
    stop = threading.Event()
    warnings.filterwarnings(
        "ignore", category=UserWarning, module="pydicom"
    )  # which quotes values: as the command does
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a whole terminal; who started us says what is to be done
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        connection.send(Ready(*settings_of(task)))
        _Worker(connection, task, stop).run()
    except Interrupted:
        connection.send(Stopped())
    except MedsegError as error:
        connection.send(Stopped(failure_of(error, "", "", None)))
    except (EOFError, BrokenPipeError):
        pass  # nobody is there any more


class _Worker:
    def __init__(self, connection: Connection, task: Task, stop: threading.Event) -> None:
        self._connection, self._task, self._stop = connection, task, stop
        self._output = Output(task.out)
        self._waiting: queue.Queue[_Next] = queue.Queue()
        self._known: dict[str | None, str] = {}

    def run(self) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="ahead") as ahead:
            threading.Thread(target=self._listen, args=(ahead,), name="listen", daemon=True).start()
            while (waiting := self._waiting.get()) is not None:
                item, future = waiting
                planned = future.result()
                if isinstance(planned, Finished):
                    self._connection.send(Done(planned, kept=True))
                    continue
                self._output.sweep(self._task.folder_of(item))
                done = do_item(self._task, item, planned, self._settings(item.bundle), self._stop.is_set)
                self._connection.send(Done(self._finish(item, done), kept=False))

    def _finish(self, item: CohortItem, done: Finished) -> Finished:
        if self._task.bids:
            before = self._output.finished(item.name)
            done = bids.placed(self._task, item, done)
            bids.take_away(self._task.out, before, done)
        self._output.finish(done)
        return done

    def _listen(self, ahead: ThreadPoolExecutor) -> None:
        """Items as they come, each planned before its turn."""
        try:
            while (item := self._connection.recv()) is not None:
                self._waiting.put((item, ahead.submit(self._look, item)))
        except (EOFError, OSError):
            self._stop.set()  # who gave us work has gone: it is somebody else's now
        self._waiting.put(None)

    def _look(self, item: CohortItem) -> list[StudyPlan] | MedsegError | Finished:
        """What was done of an item before, else what is to be done."""
        before = self._output.finished(item.name)
        if before is not None and self._is_still_so(before, item):
            return before
        return try_plan(self._task, item, self._stop.is_set)

    def _is_still_so(self, before: Finished, item: CohortItem) -> bool:
        return (
            before.lasting
            and before.settings == self._settings(item.bundle)
            and before.stamp == self._task.stamp(item)
            and self._output.holds(before)
        )

    def _settings(self, bundle: str | None) -> str:
        """`settings_of`, and what else is asked for; empty where the bundle cannot be loaded."""
        if bundle not in self._known:
            try:
                settings, _ = settings_of(self._task, CohortItem("", bundle=bundle))
            except BundleError:
                return ""
            formats = ",".join(sorted(self._task.formats or ()))
            asked = f"{' strict' if self._task.strict else ''}{' bids' if self._task.bids else ''}"
            copies = " copies" if self._task.deidentify and self._task.deidentify.copy_sources else ""
            self._known[bundle] = f"{settings} {formats}{asked}{copies}"
        return self._known[bundle]
