"""Which back-end computes a network's windows fastest on this machine, among those that agree with torch in fp32.

    torch in fp32 on a real window      what the others are held against, and how long a job would take
    each other one that is worth it     made, run, compared; then all in turns, medians

The answer is kept (`kept`), so the same machine takes the same one from then on.
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
_LONG_S: Final = 0.5  # a call that takes so long is timed fewer times
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

    wanted: one of `ENGINES`. With "auto" a race is run where the job, and those before it on this machine, would take
    longer than the race; until then torch is taken, and from then on the winner. What fails or disagrees is warned of,
    and torch taken. waiting: called all the while; may raise to stop.
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
        begin = time.perf_counter()
        scores = eager(case)(windows)
        _wait(case)
        window_s, raced = (time.perf_counter() - begin) / len(windows), {TORCH}
    else:
        return Chosen(TORCH, eager(case))
    entrants = worth(here, expected, window_s)
    if any(one.name not in raced for one in entrants):
        verdict = race(AUTO, case, windows, labels, entrants, waiting)
        for entry in verdict.entries:
            if entry.why is not None:
                warn(f"engine {entry.engine} is not used: {entry.why}")
    return Chosen(TORCH, eager(case), scores) if verdict is None else _load(kept, AUTO, case, verdict, warn)


def candidates(case: Case) -> list[BackEnd]:
    """All that can run here besides torch."""
    able = (one for one in BACKENDS.values() if one.missing(case.device, case.precision) is None)
    return [one for one in able if one.name != TORCH]


def worth(here: Iterable[BackEnd], expected: int, window_s: float) -> list[BackEnd]:
    """Those that so many windows have time for: theirs is longer than what the engines cost, one after the other."""
    spent, taken = 0.0, []
    for one in here:
        spent += one.cost_s + 3 * window_s
        if expected * window_s > spent:
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
    kept = EngineCache(case)
    windows = windows[torch.arange(max(len(windows), case.batch)) % len(windows)]
    begin = time.perf_counter()
    reference: Any = eager(case, "fp32")(windows)
    _wait(case)
    if not isinstance(reference, Tensor):  # not one tensor: what is wrong is said where torch's answer is checked
        return RaceResult(TORCH, (Entry(TORCH),))
    if case.device.type == "cpu" and time.perf_counter() - begin > _LONG_S:
        windows, reference = windows[:2], reference[:2]  # torch is slower with one alone
    runs: dict[str, Run] = {TORCH: eager(case)}
    entries = {TORCH: _compared(Entry(TORCH, 0.0), runs[TORCH](windows), reference, labels, "")}
    for one in entrants:
        entries[one.name], run = _tried(one, case, kept, windows, reference, labels, waiting)
        if run is not None:
            runs[one.name] = run
    for name, seconds in _times(case, runs, windows, waiting).items():
        entries[name] = replace(entries[name], window_s=seconds)
    chosen = next((name for name in runs if name == question), None) or _fastest(entries, runs)
    for name, entry in entries.items():
        if name != chosen and entry.folder is not None:
            kept.drop(entry.folder)
            entries[name] = replace(entry, folder=None, files=None)
    verdict = RaceResult(chosen, tuple(entries.values()))
    kept.write(question, asdict(verdict))
    told = {f"{name}_s": entry.window_s for name, entry in entries.items()}
    logger.info("engines raced", extra={"event": "engine.raced", "bundle": case.digest, "chosen": chosen, **told})
    return verdict


def _fastest(entries: dict[str, Entry], runs: Iterable[str]) -> str:
    seconds = {name: entries[name].window_s or 0.0 for name in runs}
    best = min(seconds, key=lambda name: seconds[name])
    return best if seconds[best] < FASTER * seconds[TORCH] else TORCH


def _tried(
    backend: BackEnd,
    case: Case,
    kept: EngineCache,
    windows: Tensor,
    reference: Tensor,
    labels: Labels,
    waiting: Callable[[], None],
) -> tuple[Entry, Run | None]:
    """A back-end made and compared; what runs it, where it agrees."""
    folder = None
    try:
        room = folder = kept.room(backend.name)
        begin = time.perf_counter()
        run = _meanwhile(lambda: made(case, backend, room), waiting)
        entry = Entry(backend.name, round(time.perf_counter() - begin, 3), folder=folder.name, files=digests(folder))
        entry = _compared(entry, run(windows), reference, labels, case.precision)
    except FAILURES as error:
        logger.info("engine %s failed", backend.name, exc_info=True)
        entry, run = Entry(backend.name, why=f"it failed ({type(error).__name__})"), None
    if entry.why is None:
        return entry, run
    if folder is not None:
        kept.drop(folder.name)
    return replace(entry, folder=None, files=None), None


def _compared(entry: Entry, scores: Tensor, reference: Tensor, labels: Labels, precision: str) -> Entry:
    """The entry with how near its scores come. precision: what they must then fulfil; "": nothing."""
    if scores.shape != reference.shape:
        return replace(entry, why=f"it gives {tuple(scores.shape)}, expected {tuple(reference.shape)}")
    scores = scores.float()
    scale = float(reference.abs().max())
    difference = float((scores - reference).abs().max()) / max(scale, torch.finfo(torch.float32).tiny)
    agreement = float((labels(scores) == labels(reference)).double().mean())
    why = None
    if precision == "fp32" and not difference <= CLOSE:  # NaN is not either
        why = f"its scores are {difference:.1e} of their scale away from torch's, at most {CLOSE:.0e} is allowed"
    elif precision and not agreement >= SAME_LABELS:
        why = f"{agreement:.4%} of its labels are those of torch in fp32, at least {SAME_LABELS:.1%} is asked"
    return replace(entry, difference=difference, agreement=agreement, why=why)


def _times(case: Case, runs: dict[str, Run], windows: Tensor, waiting: Callable[[], None]) -> dict[str, float]:
    """Median seconds a window of each, in turns; each has run before."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(5):
        for name, run in runs.items():
            waiting()
            begin = time.perf_counter()
            run(windows)
            _wait(case)
            seconds[name].append((time.perf_counter() - begin) / len(windows))
        if turn and max(map(max, seconds.values())) * len(windows) > _LONG_S:
            break
    return {name: statistics.median(taken) for name, taken in seconds.items()}


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
