"""Which back-end computes a network's windows fastest on this machine, among those that agree with torch in fp32.

    torch in fp32 on the job's first windows    what the others are held against, and how long the job would take
    each other one that is worth it             made, run over the same, compared; short windows in turns, medians

The winner's scores of these windows are the job's. The answer is kept (`kept`), so the same machine takes the same one
from then on.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as futures_wait
from dataclasses import asdict, dataclass, replace
from threading import Lock, Thread
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from medseg.errors import UsageError
from medseg.inference.engines.backends import BACKENDS, made
from medseg.inference.engines.cache import EngineCache, digests
from medseg.inference.engines.case import FAILURES, TORCH, BackEnd, Case, Run, eager

logger = logging.getLogger(__name__)
T = TypeVar("T")

AUTO: Final = "auto"
VARIABLE: Final = "MEDSEG_ENGINE"
ENGINES: Final = (AUTO, *(name for name in BACKENDS if name != "torch-channels-last"))  # that one is for `auto` to find
CLOSE: Final = 1e-4  # largest difference of fp32 scores, of their scale
SAME_LABELS: Final = 0.995  # share of voxels, in lower precisions
FASTER: Final = 0.95  # of torch's time, to be taken instead of it
SAVED: Final = 0.25  # of torch's time by so many windows: more must not be spent on a race
_RUNS: Final = 2  # of the windows: one to see whether it survives, one that is compared
_LONG_S: Final = 0.5  # a call that takes so long is timed twice ...
_VERY_LONG_S: Final = 2.0  # ... and one that takes so long by its first, which is slower than others by less than that
_AT_ONCE: Final = 8  # planes of scores that are compared at once
_LOOK_S: Final = 0.2

Labels = Callable[[Tensor], Tensor]
"""Scores (B, K, *roi) -> what they say of each voxel, in any shape."""


@dataclass(frozen=True)
class Entry:
    """One back-end in a race.

    prepare_s: to make and load it. window_s: median. difference: the largest of its scores from those of torch in fp32,
    over the largest of these. agreement: share of voxels with the same label. why: it cannot be taken, else None.
    folder, files: what was made, and the SHA-256 of each file.
    """

    engine: str
    prepare_s: float | None = None
    window_s: float | None = None
    difference: float | None = None
    agreement: float | None = None
    why: str | None = None
    folder: str | None = None
    files: dict[str, str] | None = None


@dataclass(frozen=True)
class RaceResult:
    """What a race found; the first entry is torch's."""

    chosen: str
    entries: tuple[Entry, ...]

    def entry(self, engine: str) -> Entry:
        return next(one for one in self.entries if one.engine == engine)

    @staticmethod
    def of(answer: dict[str, Any] | None) -> RaceResult | None:
        """From JSON; None where that is not one."""
        try:
            assert answer is not None
            found = RaceResult(str(answer["chosen"]), tuple(Entry(**one) for one in answer["entries"]))
            taken = found.entry(found.chosen)
            assert found.entries[0].engine == TORCH and isinstance(found.entries[0].window_s, float)
            assert all(one.engine in BACKENDS for one in found.entries) and taken.why is None
        except (AssertionError, KeyError, TypeError, StopIteration):
            return None
        return found


@dataclass(frozen=True, eq=False)
class Chosen:
    """scores: of the windows that were asked with, where they were computed on the way."""

    engine: str
    run: Run
    scores: Tensor | None = None


def default_engine() -> str:
    """What is taken where nobody says: MEDSEG_ENGINE, which reaches `medseg serve` and its workers too, else "auto"."""
    return os.environ.get(VARIABLE, AUTO)


def usable(engine: str, device: torch.device, precision: str) -> None:
    """Raises UsageError for an engine of `ENGINES` that cannot run here."""
    why = None if engine == AUTO else BACKENDS[engine].missing(device, precision)
    if why is not None:
        raise UsageError(f"engine {engine} cannot be used on {device} in {precision}: {why}")


def choose(
    wanted: str,
    case: Case,
    windows: Tensor,
    labels: Labels,
    *,
    expected: int,
    warn: Callable[[str], None],
    waiting: Callable[[], None],
) -> Chosen:
    """The back-end for a job of `expected` windows, of which `windows` (B, C, *roi) are the first.

    wanted: one of `ENGINES`. With "auto" a race is run where it costs less than may be saved in the job, and those
    before it on this machine (`worth`); until then torch is taken, and from then on the winner. What fails or disagrees
    is warned of, and torch taken. waiting: called all the while; may raise to stop.
    """
    if wanted == TORCH:
        return Chosen(TORCH, eager(case))
    kept, scores = EngineCache(case), None
    verdict = RaceResult.of(kept.read(wanted))
    if wanted != AUTO:
        if verdict is None:
            verdict = race(wanted, case, windows, labels, [BACKENDS[wanted]], waiting)
        if verdict.chosen != wanted:
            warn(f"engine {wanted} is not used: {verdict.entry(wanted).why}")
        return _load(kept, wanted, case, verdict, warn)
    expected += kept.count(expected)
    here = candidates(case) if expected > len(windows) else []
    if verdict is not None:
        window_s, raced = verdict.entries[0].window_s or 0.0, {one.engine for one in verdict.entries}
    elif here:
        scores, seconds = _timed(case, eager(case), windows)
        window_s, raced = seconds / len(windows), {TORCH}
    else:
        return Chosen(TORCH, eager(case))
    entrants = worth(here, expected, window_s)
    if any(one.name not in raced for one in entrants):
        plain = None if scores is None or len(windows) < case.batch else (scores, window_s * len(windows))
        verdict, answers = _race(AUTO, case, windows, labels, entrants, waiting, plain)
        scores = answers.get(verdict.chosen) if plain else None
        for entry in verdict.entries:
            if entry.why is not None:
                warn(f"engine {entry.engine} is not used: {entry.why}")
    if verdict is None:
        return Chosen(TORCH, eager(case), scores)
    chosen = _load(kept, AUTO, case, verdict, warn)
    return replace(chosen, scores=scores if chosen.engine == verdict.chosen else None)


def candidates(case: Case) -> list[BackEnd]:
    """All that can run here besides torch."""
    able = (one for one in BACKENDS.values() if one.missing(case.device, case.precision) is None)
    return [one for one in able if one.name != TORCH]


def worth(here: Iterable[BackEnd], expected: int, window_s: float) -> list[BackEnd]:
    """Those on which no more is spent, one after the other, than so many windows may gain by them."""
    spent, taken = 0.0, []
    for one in here:
        spent += one.cost_s + _RUNS * window_s
        if SAVED * expected * window_s > spent:
            taken.append(one)
    return taken


def race(
    question: str,
    case: Case,
    windows: Tensor,
    labels: Labels,
    entrants: Sequence[BackEnd],
    waiting: Callable[[], None] = lambda: None,
) -> RaceResult:
    """Run all entrants and torch over the windows, and keep the verdict and what the winner is made of.

    windows (B, C, *roi): repeated to the case's batch where they are fewer, since some run a batch side by side.
    question: "auto", or the one entrant's name, which is then taken if it agrees, however fast it is.
    waiting: called several times a second while a back-end is made, and between runs; may raise to stop.
    """
    return _race(question, case, windows, labels, entrants, waiting)[0]


def _race(
    question: str,
    case: Case,
    windows: Tensor,
    labels: Labels,
    entrants: Sequence[BackEnd],
    waiting: Callable[[], None],
    plain: tuple[Tensor, float] | None = None,
) -> tuple[RaceResult, dict[str, Tensor]]:
    """See `race`. plain: what torch gives for the windows, and after how many seconds. With what each gives for them,
    which has not lost."""
    kept = EngineCache(case)
    windows = windows[torch.arange(max(len(windows), case.batch)) % len(windows)]
    scores, seconds = plain or _timed(case, eager(case), windows)
    reference: Any = scores if case.precision == "fp32" else eager(case, "fp32")(windows)
    if not isinstance(reference, Tensor):  # not one tensor: what is wrong is said where torch's answer is checked
        return RaceResult(TORCH, (Entry(TORCH),)), {}
    runs: dict[str, Run] = {TORCH: eager(case)}
    answers, first_s = {TORCH: scores}, {TORCH: seconds}
    entries = {TORCH: _compared(Entry(TORCH, 0.0), scores, reference, labels, "")}
    for one in entrants:
        entries[one.name], run = _made(one, case, kept, waiting)
        if run is not None:
            entries[one.name], given = _tried(entries[one.name], case, run, windows, reference, labels)
            if given is not None:
                runs[one.name] = run
                answers[one.name], first_s[one.name] = given
    for name, window_s in _times(case, runs, first_s, windows, waiting).items():
        entries[name] = replace(entries[name], window_s=window_s)
    chosen = next((name for name in runs if name == question), None) or _fastest(entries, runs)
    for name, entry in entries.items():
        if (name != chosen or entry.why is not None) and entry.folder is not None:
            kept.drop(entry.folder)
            entries[name] = replace(entry, folder=None, files=None)
    verdict = RaceResult(chosen, tuple(entries.values()))
    kept.write(question, asdict(verdict))
    told = {f"{name}_s": entry.window_s for name, entry in entries.items()}
    logger.info("engines raced", extra={"event": "engine.raced", "bundle": case.digest, "chosen": chosen, **told})
    return verdict, answers


def _fastest(entries: dict[str, Entry], runs: Iterable[str]) -> str:
    seconds = {name: entries[name].window_s or 0.0 for name in runs}
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds[best] < FASTER * seconds[TORCH] else TORCH


def _made(backend: BackEnd, case: Case, kept: EngineCache, waiting: Callable[[], None]) -> tuple[Entry, Run | None]:
    """A back-end made and loaded; what runs it, where that could be done."""
    folder = None
    try:
        room = folder = kept.room(backend.name)
        run, seconds = _meanwhile(lambda: _clocked(lambda: made(case, backend, room)), waiting)
        return Entry(backend.name, round(seconds, 3), folder=folder.name, files=digests(folder)), run
    except FAILURES as error:
        if folder is not None:
            kept.drop(folder.name)
        return _failed(Entry(backend.name), error), None


def _tried(
    entry: Entry, case: Case, run: Run, windows: Tensor, reference: Tensor, labels: Labels
) -> tuple[Entry, tuple[Tensor, float] | None]:
    """The entry of a back-end that has run; what it gave and in how many seconds, where it agrees."""
    try:
        scores, seconds = _timed(case, run, windows)
        entry = _compared(entry, scores, reference, labels, case.precision)
    except FAILURES as error:
        entry = _failed(entry, error)
    return entry, None if entry.why is not None else (scores, seconds)


def _failed(entry: Entry, error: BaseException) -> Entry:
    logger.info("engine %s failed", entry.engine, exc_info=error)
    return replace(entry, why=f"it failed ({type(error).__name__})")


def _compared(entry: Entry, scores: Tensor, reference: Tensor, labels: Labels, precision: str) -> Entry:
    """The entry with how near its scores come. precision: what they must then fulfil; "": nothing."""
    if scores.shape != reference.shape:
        return replace(entry, why=f"it gives {tuple(scores.shape)}, expected {tuple(reference.shape)}")
    axis = min(2, scores.ndim - 1)
    sizes, differences, same = [], [], []
    pieces = (torch.split(whole, _AT_ONCE, axis) for whole in (scores, reference))
    for ours, theirs in zip(*pieces, strict=True):
        ours = ours.float()
        sizes.append(theirs.abs().max())
        differences.append((ours - theirs).abs().max())
        same.append((labels(ours) == labels(theirs)).flatten())
    difference = float(torch.stack(differences).max()) / max(
        float(torch.stack(sizes).max()), torch.finfo(torch.float32).tiny
    )
    agreement = float(torch.cat(same).double().mean())
    why = None
    if precision == "fp32" and not difference <= CLOSE:  # NaN is not either
        why = f"its scores are {difference:.1e} of their scale away from torch's, at most {CLOSE:.0e} is allowed"
    elif precision and not agreement >= SAME_LABELS:
        why = f"{agreement:.4%} of its labels are those of torch in fp32, at least {SAME_LABELS:.1%} is asked"
    return replace(entry, difference=difference, agreement=agreement, why=why)


def _times(
    case: Case, runs: dict[str, Run], first_s: dict[str, float], windows: Tensor, waiting: Callable[[], None]
) -> dict[str, float]:
    """Seconds a window of each: those of its first run where that is long; else medians of others, in turns."""
    if max(first_s.values()) > _VERY_LONG_S:
        return {name: first_s[name] / len(windows) for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(5):
        for name, run in runs.items():
            waiting()
            seconds[name].append(_timed(case, run, windows)[1] / len(windows))
        if turn and max(first_s.values()) > _LONG_S:
            break
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _timed(case: Case, run: Run, windows: Tensor) -> tuple[Tensor, float]:
    """What a run gives, and after how many seconds."""

    def wait_too() -> Tensor:
        scores = run(windows)
        _wait(case)
        return scores

    return _clocked(wait_too)


def _clocked(work: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    done = work()
    return done, time.perf_counter() - begin


def _meanwhile(work: Callable[[], T], waiting: Callable[[], None]) -> T:
    """What `work` gives, done by a thread; compilers take their time and cannot be asked to stop."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - handed on to the thread that waits
            done.set_exception(error)

    Thread(target=run, name="engine", daemon=True).start()
    while not futures_wait([done], timeout=_LOOK_S).done:
        waiting()
    return done.result()


def _wait(case: Case) -> None:
    if case.device.type == "cuda":
        torch.cuda.synchronize(case.device)


class _Loaded:
    """The back-ends used last, so that a cohort or a worker loads each once. Safe to share between threads."""

    def __init__(self, keep: int = 2) -> None:
        self._keep, self._lock = keep, Lock()
        self._held: OrderedDict[tuple[object, ...], Run] = OrderedDict()

    def get(self, at: tuple[object, ...], load: Callable[[], Run]) -> Run:
        with self._lock:
            run = self._held.pop(at, None) or load()
            self._held[at] = run
            while len(self._held) > self._keep:
                self._held.popitem(last=False)
            return run


_LOADED: Final = _Loaded()


def _load(kept: EngineCache, question: str, case: Case, verdict: RaceResult, warn: Callable[[str], None]) -> Chosen:
    entry = verdict.entry(verdict.chosen)
    if entry.engine == TORCH:
        return Chosen(TORCH, eager(case))

    def load() -> Run:
        folder = kept.folder / (entry.folder or "")
        if digests(folder) != entry.files:
            raise OSError("what was kept of it is damaged")
        return BACKENDS[entry.engine].load(case, folder)

    try:
        return Chosen(entry.engine, _LOADED.get((kept.key, str(case.device), case.batch, str(entry.folder)), load))
    except FAILURES as error:
        logger.info("engine %s failed", entry.engine, exc_info=True)
        kept.forget(question)
        warn(f"engine {entry.engine} cannot be loaded ({type(error).__name__}): torch is used")
        return Chosen(TORCH, eager(case))
