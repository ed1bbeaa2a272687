"""How long work tells of itself: events out, a wish to stop in, and a clock per stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from medseg.errors import Interrupted


class Stage(StrEnum):
    """The stages of one segmentation, in order; also the keys of `timings_s`."""

    READ = "read"
    PREPARE = "prepare"
    INFER = "infer"
    RESTORE = "restore"
    ENCODE = "encode"


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units (slices, windows, planes) of a stage; `total` is None while unknown."""

    stage: Stage
    done: int
    total: int | None


Report = Callable[[Progress], None]
Cancelled = Callable[[], bool]


def silent(_: Progress) -> None:
    """A report that nobody reads."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def check(cancelled: Cancelled) -> None:
    """Raise `Interrupted` once somebody has asked to stop."""
    if cancelled():
        raise Interrupted


@dataclass
class StageClock:
    """Seconds spent in each stage by one thread, and what is added; a stage within another stops that one's clock."""

    seconds: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(Stage, 0.0))
    started: float = field(default_factory=time.perf_counter)
    _within: list[Stage] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def time(self, stage: Stage) -> Iterator[None]:
        self._tick()
        self._within.append(stage)
        try:
            yield
        finally:
            self._tick()
            self._within.pop()

    def add(self, stage: Stage, seconds: float) -> None:
        """Seconds that another thread spent in a stage."""
        self.seconds[stage] += seconds

    def _tick(self) -> None:
        now = time.perf_counter()
        if self._within:
            self.seconds[self._within[-1]] += now - self._since
        self._since = now

    def timings_s(self) -> dict[str, float]:
        """Seconds by stage, and `total` since the clock was made."""
        rounded = {str(stage): round(seconds, 4) for stage, seconds in self.seconds.items()}
        return rounded | {"total": round(time.perf_counter() - self.started, 4)}
