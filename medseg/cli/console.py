"""What a person sees: progress and messages on stderr, results on stdout."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from medseg.cli.hints import with_hint
from medseg.errors import Interrupted, MedsegError
from medseg.progress import Cancelled, Progress, Report, Stage
from medseg.texts import to_json, valid

if TYPE_CHECKING:
    from medseg.dicom.candidates import Skipped

_NAMED = 10

messages = Console(stderr=True, highlight=False, soft_wrap=True)
results = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """A message, on stderr."""
    messages.print(valid(text), markup=False)


def tell_skipped(skipped: Sequence[Skipped], *, by_name: bool = True) -> None:
    """Files that were left out: the first few by name, the others counted by their reason; or all by their kind."""
    if not by_name:
        for code, count in Counter(one.code for one in skipped).items():
            say(f"skipped {count}: {code}")
        return
    for one in skipped[:_NAMED]:
        say(f"skipped {one.name}: {one.why}")
    for why, count in Counter(one.why for one in skipped[_NAMED:]).items():
        say(f"skipped {count} more: {why}")


def warn(text: str) -> None:
    """A warning, on stderr."""
    messages.print(f"warning: {valid(text)}", style="yellow", markup=False)


def fail(error: BaseException) -> None:
    """An error as one sentence, on stderr."""
    messages.print(f"error: {valid(sentence(error))}", style="red", markup=False)


def sentence(error: BaseException) -> str:
    """What an error says to a person."""
    if isinstance(error, KeyboardInterrupt):
        return str(Interrupted())
    if isinstance(error, MemoryError):
        return "out of memory: close other programs, or choose a bundle with a smaller window"
    if isinstance(error, OSError) and not isinstance(error, MedsegError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return with_hint(str(error) or type(error).__name__, error.code if isinstance(error, MedsegError) else "")


def show(text: str) -> None:
    """A result, on stdout."""
    results.print(valid(text), markup=False)


def show_json(record: Mapping[str, Any]) -> None:
    """A result as one line of JSON, on stdout."""
    sys.stdout.flush()
    sys.stdout.buffer.write(to_json(record))
    sys.stdout.buffer.flush()


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """Bars on a terminal; elsewhere a plain line when a stage begins and ends."""
    if messages.is_terminal:
        with _bars(title) as report:
            yield report
    else:
        yield _lines(title)


@contextmanager
def _bars(title: str) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=messages, transient=True) as bars:
        tasks = {stage: bars.add_task(f"{title} {stage}", total=None, visible=False) for stage in Stage}

        def report(event: Progress) -> None:
            bars.update(tasks[event.stage], completed=event.done, total=event.total, visible=True)

        yield report


def _lines(title: str) -> Report:
    finished: set[Stage] = set()

    def report(event: Progress) -> None:
        if event.total and event.done >= event.total and event.stage not in finished:
            finished.add(event.stage)
            say(f"{title}: {event.stage} {event.done}/{event.total}")

    return report


@contextmanager
def interruptible() -> Iterator[Cancelled]:
    """The first Ctrl-C or SIGTERM asks long work to stop cleanly; a second one stops at once."""
    asked = Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say("stopping; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
