"""Logs: one JSON object a line on stderr, lines for people where stderr is a terminal; and counts of what was logged.

A log tells UIDs, numbers and our own words, whoever writes it. Three things keep patients out of it:

- of an exception that is not ours only its type and place are told, since its message may quote a data set;
- of what another library logs or warns of only the place, unless it never sees a data set (`TALKERS`);
- of a record's `extra` only the facts named in `FACTS`.
"""

from __future__ import annotations

import json
import logging
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from medseg.errors import MedsegError

#: Whose messages are told. The loggers of all other packages tell only that, and where, they said something.
TALKERS = ("gateway", "medseg", "uvicorn", "alembic")
#: From which level on other packages are heard. What became of a connection we say ourselves.
LEVELS = {
    "alembic": logging.WARNING,
    "highdicom": logging.WARNING,
    "pydicom": logging.ERROR,
    "pynetdicom": logging.ERROR,
    "pynetdicom.acse": logging.CRITICAL,
    "pynetdicom.dul": logging.CRITICAL,
    "pynetdicom.transport": logging.CRITICAL,
    "uvicorn": logging.WARNING,
    "uvicorn.error": logging.ERROR,  # what is no request we say ourselves (`gateway.web.protocol`)
}
#: What may stand in `extra`: UIDs, ids and numbers of ours, names from the settings, AE titles and addresses of peers.
FACTS = (
    "study", "series", "sop_instance", "association", "job", "attempt", "delivery", "destination", "calling_ae",
    "called_ae", "host", "status", "why", "by", "current", "key",
)  # fmt: skip
OURS = ("gateway", "medseg")
FRAMES = 12  # of a stack, the innermost
PACKAGES = Path(__file__).parent.parent


def configure(process: str) -> None:
    """Log to stderr from now on, warnings and uncaught errors of threads included, and count in `COUNTS`."""
    shown = logging.StreamHandler()
    shown.setFormatter(Lines(process) if shown.stream.isatty() else JsonLines(process))
    logging.basicConfig(handlers=[shown, COUNTS], level=logging.INFO, force=True)
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    warnings.showwarning = _warned
    threading.excepthook = _thread_died


class EventCounts(logging.Handler):
    """Counts records by event and level. Events are words of the program: there are few."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._counts: Counter[tuple[str, str]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self._counts[_event(record), record.levelname.lower()] += 1

    def take(self) -> Counter[tuple[str, str]]:
        """What came since this was asked last."""
        with self.lock or threading.RLock():
            taken, self._counts = self._counts, Counter()
        return taken

    def give_back(self, taken: Counter[tuple[str, str]]) -> None:
        """What could not be written down: it is taken again next time."""
        with self.lock or threading.RLock():
            self._counts += taken


COUNTS = EventCounts()


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "event": _event(record),
            "message": message(record),
        }
        told |= _facts(record)
        if record.exc_info and record.exc_info[1]:
            chain = _chain(record.exc_info[1])
            told["error"] = [{"error": said(error), "stack": list(_stack(error))} for error in chain]
        return json.dumps(told, default=str)


class Lines(logging.Formatter):
    """A record as a line for people, and a stack below it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        facts = "".join(f" {name}={fact}" for name, fact in _facts(record).items())
        line = printable(f"{at} {self._process} {record.levelname}: {message(record)}{facts}")
        errors = _chain(record.exc_info[1]) if record.exc_info and record.exc_info[1] else ()
        for error in errors:
            line += "".join(f"\n    {part}" for part in (printable(said(error)), *_stack(error)))
        return line


def said(error: BaseException) -> str:
    """What may be told of an error: the words of ours and of the operating system, of others the type and the place."""
    if isinstance(error, MedsegError) or type(error).__module__.partition(".")[0] in OURS:
        return str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    place = list(_stack(error))[-1:]
    return " ".join((type(error).__name__, *(f"at {one}" for one in place)))


def message(record: logging.LogRecord) -> str:
    """What a record says, as far as it may be told."""
    if not _is_of(record.name, TALKERS):
        return f"{record.name} said something at {_short(record.pathname)}:{record.lineno}"
    if isinstance(record.args, tuple) and record.args:
        given = tuple(said(value) if isinstance(value, BaseException) else value for value in record.args)
        return str(record.msg) % given
    return record.getMessage()


def _event(record: logging.LogRecord) -> str:
    return str(getattr(record, "event", "other" if _is_of(record.name, OURS) else "library"))


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in FACTS if getattr(record, name, None) is not None}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _stack(error: BaseException) -> Iterator[str]:
    for frame in traceback.extract_tb(error.__traceback__)[-FRAMES:]:
        yield f"{_short(frame.filename)}:{frame.lineno} in {frame.name}"


def _short(path: str) -> str:
    """A file of ours from its package on, another by its name and folder."""
    file = Path(path)
    return file.relative_to(PACKAGES).as_posix() if file.is_relative_to(PACKAGES) else "/".join(file.parts[-2:])


def _package(path: str) -> str:
    """The installed package that a file is of; the root logger's name for another."""
    _, installed, rest = path.rpartition("site-packages/")
    return rest.partition("/")[0] if installed else ""


def _is_of(name: str, packages: tuple[str, ...]) -> bool:
    return name.partition(".")[0] in packages


def printable(text: str) -> str:
    """One line, whatever a peer called itself."""
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text)


def _warned(
    message: Warning | str,  # noqa: ARG001 - as `warnings.showwarning` is called; the message may quote a data set
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    if logging.getLogger(_package(filename)).getEffectiveLevel() > logging.WARNING:
        return
    logging.getLogger(__name__).warning(
        "%s at %s:%d", category.__name__, _short(filename), lineno, extra={"event": "library"}
    )


def _thread_died(what: threading.ExceptHookArgs) -> None:
    if what.exc_value is not None:
        info: tuple[type[BaseException], BaseException, TracebackType | None]
        info = what.exc_type, what.exc_value, what.exc_traceback
        logging.getLogger(__name__).error("a thread died", exc_info=info, extra={"event": "thread.died"})
