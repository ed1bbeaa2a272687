"""Several bundles on one study: their jobs one after the other, and each slice of a series decoded once for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from medseg.inference.arriving.shared import Share, SharedPlanes
from medseg.job.plan import Job, Refused, StudyPlan


def together(plans: Sequence[StudyPlan]) -> Iterator[Job]:
    """The jobs of plans of the same study, those of one series after each other.

    Where bundles share a series, its planes are kept on disk until the last of them has had its turn.
    """
    by_series: dict[tuple[str, int], list[Job]] = defaultdict(list)
    for planned in plans:
        for job in planned.jobs:
            by_series[job.stack.series.series_uid, len(job.stack.channels)].append(job)
    for jobs in by_series.values():
        if len({id(job.bundle) for job in jobs}) < 2 or jobs[0].stack.channels:
            yield from jobs
            continue
        planes = SharedPlanes()
        yield from (shared(job, planes.share()) for job in jobs)


def shared(job: Job, share: Share) -> Job:
    """A job on planes that others look at, too."""
    return replace(job, stack=share.stack(job.stack), share=share)


def refused(plans: Sequence[StudyPlan]) -> list[Refused]:
    """What is not segmented: what is wrong with a series for every bundle once, where no bundle has it."""
    told: dict[tuple[int, str], Refused] = {}
    for planned in plans:
        for one in planned.refused:
            told.setdefault((id(one.series), str(one.error)), one)
    return list(told.values())
