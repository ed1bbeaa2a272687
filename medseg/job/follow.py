"""The jobs of a series that is still arriving, and what its slices were segmented to meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import across
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Instance, Slice
from medseg.dicom.series import Level, Series, SliceSource, SourceOf, Stack
from medseg.dicom.sources import instance_digest
from medseg.errors import InputError, MedsegError, RegionNotFound
from medseg.inference.labels import Flag, SegmentationResult
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from medseg.job.plan import StudyPlan, match, plan
from medseg.progress import Cancelled, Report, check, never, silent

_AGAIN = 1.25  # more slices than at the last look at the first of them
_PARALLEL = 0.9999


@dataclass(frozen=True, eq=False)
class Segmented:
    """What a stack was segmented to."""

    result: SegmentationResult
    labels: LabelSpool


Digest: TypeAlias = Callable[[Instance], str]
"""`medseg.dicom.sources.instance_digest`, or what it said before."""


@dataclass(frozen=True, eq=False)
class Followed:
    """A series that has come to its end. found: for its only job, where what was begun on its first slices holds."""

    plan: StudyPlan
    found: Segmented | None
    digest: Digest


def follow(
    source: SliceSource,
    bundles: Sequence[Bundle],
    on_no_bundle: Callable[[MedsegError], None] = lambda _: None,
    *,
    explicit: bool = False,
    settings: Settings,
    on_progress: Report = silent,
    cancelled: Cancelled = never,
) -> Followed:
    """Segment a series while it arrives, with the bundle that its first slices call for.

    What is to be done is planned when all have come, by `plan`; where that is something else, what was found is dropped
    and the jobs are still to be run. No window is computed once it is known that the bundle does not fit: from the
    first slices, from how far they reach, or from the plan. on_no_bundle: called with the reason where the first slices
    call for no bundle, so that the others need not be waited for; it may raise. Raises what `plan` and `segment` raise,
    but for refusals, which are in the plan.
    """
    assume = settings.assume_frame_of_reference
    planning = partial(plan, bundles=bundles, explicit=explicit, assume_frame_of_reference=assume)
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as pool:
        probed = ProbedSource(source, pool, planning, cancelled)
        try:
            bundle = probed.bundle(bundles, explicit=explicit, assume=assume)
            labels, result, nowhere = LabelSpool(), None, None
            if bundle is not None:
                try:
                    result = segment(
                        probed, bundle, labels, settings=settings, on_progress=on_progress, cancelled=cancelled
                    )
                except RegionNotFound as error:
                    nowhere = error
                except InputError:  # what is wrong with the series as a whole, the plan says
                    pass
            elif probed.no_bundle is not None:
                on_no_bundle(probed.no_bundle)
            planned = probed.plan()
            if nowhere is not None and [job.bundle for job in planned.jobs] == [bundle]:
                raise nowhere  # which looking again would not change
            found = None
            if result is not None and bundle is not None and _is_only_job(planned, result.stack, bundle):
                found = Segmented(_told_of(result, planned.jobs[0].stack), labels)
            return Followed(planned, found, probed.digest)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Void(InputError):
    """What was begun on the first slices is not what is to be done with them all."""

    code = "void"


class ProbedSource(SourceOf):
    """A source whose first slices were looked at, and whose instances are digested as they come.

    planning: what is to be done with the series, once all of it has come. ended: it has. no_bundle: why the first
    slices of an arriving series call for no bundle.
    Iterating raises _Void as soon as the bundle that was begun with is known not to be the one.
    """

    def __init__(
        self,
        source: SliceSource,
        pool: ThreadPoolExecutor,
        planning: Callable[[Iterable[Series]], StudyPlan],
        cancelled: Cancelled,
    ) -> None:
        super().__init__(source)
        self._pool, self._planning, self._cancelled = pool, planning, cancelled
        self._rest = iter(source)
        self._first: list[Slice] = []
        self._digests: dict[int, tuple[Instance, Future[str]]] = {}
        self._bundle: Bundle | None = None
        self._reach: _Reach | None = None
        self._plan: StudyPlan | None = None
        self.ended = False
        self.no_bundle: MedsegError | None = None

    def __iter__(self) -> Iterator[Slice | None]:
        while self._first:
            yield self._first.pop(0)
        while not self.ended:
            one = self._next()
            if one is not None and self._reach is not None and self._reach.exceeded_by(one):
                raise _Void("slices reach farther than the bundle was made for")
            if not self.ended:
                yield one
        if self._bundle is not None and [job.bundle for job in self.plan().jobs] != [self._bundle]:
            raise _Void("all slices together call for something else than the first of them")

    def plan(self) -> StudyPlan:
        """What is to be done, by all slices: waits for them."""
        while not self.ended:
            check(self._cancelled)
            self._next()
        if self._plan is None:
            self._plan = self._planning([self.series])
        return self._plan

    def bundle(self, bundles: Sequence[Bundle], *, explicit: bool, assume: bool) -> Bundle | None:
        """The bundle for what the slices that are here show; None where they show none. Of an arriving series, what
        only all can show is left out."""
        enough = 3.0
        while not self.ended:
            self._take_what_is_here()
            if self.ended or len(self._first) < enough:
                continue
            enough = _AGAIN * len(self._first)
            verdict = classify(self.series, self._first, assume_frame_of_reference=assume)
            if verdict.stacks:
                stack = verdict.stacks[0]
                matched = match([stack], bundles, explicit=explicit, whole=False)
                for job in matched.jobs:
                    self._begin_with(job.bundle, stack)
                for refused in matched.refused:
                    self.no_bundle = refused.error
                return self._bundle
        jobs = self.plan().jobs
        if len(jobs) == 1:
            self._begin_with(jobs[0].bundle, jobs[0].stack)
        return self._bundle

    def _begin_with(self, bundle: Bundle, stack: Stack) -> None:
        self._bundle, self._reach = bundle, _Reach.of(stack, bundle)

    def _take_what_is_here(self) -> None:
        """At least one slice, or that nothing new is there."""
        while (one := self._next()) is not None:
            check(self._cancelled)
            self._first.append(one)
        check(self._cancelled)

    def _next(self) -> Slice | None:
        """None where there is nothing new, or nothing more (`ended`)."""
        try:
            return self._noted(next(self._rest))
        except StopIteration:
            self.ended = True
            return None

    def digest(self, instance: Instance) -> str:
        """What was said of these very bytes."""
        known = self._digests.get(id(instance))
        return instance_digest(instance) if known is None else known[1].result()

    def _noted(self, one: Slice | None) -> Slice | None:
        if one is not None and one.instance is not None and id(one.instance) not in self._digests:
            self._digests[id(one.instance)] = one.instance, self._pool.submit(instance_digest, one.instance)
        return one


class _Reach:
    """How far slices like those of a stack reach along their normal, and how far a bundle lets them."""

    def __init__(self, stack: Stack, most_mm: float) -> None:
        first = stack.slices[0].plane
        self._normal, self._size, self._most_mm = first.normal, (first.rows, first.columns), most_mm
        heights = [float(one.plane.position_mm @ self._normal) for one in stack.slices]
        self._low, self._high = min(heights), max(heights)

    @classmethod
    def of(cls, stack: Stack, bundle: Bundle) -> _Reach | None:
        fov_mm = bundle.expects.fov_mm
        return None if fov_mm is None else cls(stack, fov_mm[across(stack)][1])

    def exceeded_by(self, one: Slice) -> bool:
        """Whether they reach too far with this slice, too."""
        plane = one.plane
        if (plane.rows, plane.columns) == self._size and float(plane.normal @ self._normal) > _PARALLEL:
            height = float(plane.position_mm @ self._normal)
            self._low, self._high = min(self._low, height), max(self._high, height)
        return self._high - self._low > self._most_mm


def _is_only_job(planned: StudyPlan, stack: Stack, bundle: Bundle) -> bool:
    """Whether the plan is to do with that bundle just the slices of that stack."""
    if len(planned.jobs) != 1 or planned.jobs[0].bundle is not bundle:
        return False
    mine, its = ([(one.instance, one.frame) for one in s.slices] for s in (stack, planned.jobs[0].stack))
    return len(mine) == len(its) and all(a is b and m == n for (a, m), (b, n) in zip(mine, its, strict=True))


def _told_of(result: SegmentationResult, stack: Stack) -> SegmentationResult:
    """A result as one of the stack of the plan, which knows what the whole series left out."""
    news = [one for one in stack.findings if one.level is Level.WARNING and one not in result.stack.findings]
    return replace(
        result,
        stack=stack,
        flags=(*(Flag(one.code, one.detail) for one in news), *result.flags),
        warnings=(*(one.detail for one in news), *result.warnings),
    )
