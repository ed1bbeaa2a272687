"""Of a study's series that fit a bundle, the one that is meant, where the bundle says which goes before others."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from medseg.conditions.prefer import preferred
from medseg.errors import DoesNotFit
from medseg.job.channels import candidates
from medseg.job.plan import Job, Refused, StudyPlan


def with_preferred(planned: StudyPlan) -> StudyPlan:
    """A study's plan without the jobs on series that others go before; several that are alike all stay."""
    by_bundle: dict[str, list[Job]] = defaultdict(list)
    for job in planned.jobs:
        if job.bundle.expects.prefer:
            by_bundle[job.bundle.name].append(job)
    refused = [one for jobs in by_bundle.values() for one in _passed_over(jobs)]
    dropped = {id(one.series) for one in refused}
    jobs = (job for job in planned.jobs if not (job.bundle.expects.prefer and id(job.stack.series) in dropped))
    return replace(planned, jobs=tuple(jobs), refused=(*planned.refused, *refused))


def _passed_over(jobs: list[Job]) -> list[Refused]:
    """The series of a bundle's jobs of which no volume is preferred."""
    prefer, name = jobs[0].bundle.expects.prefer, jobs[0].bundle.name
    volumes = [candidates([job.stack])[0] for job in jobs]
    kept = list(dict.fromkeys(one.series_uid for one in preferred(volumes, prefer)))
    others = {job.stack.series.series_uid: job.stack for job in jobs if job.stack.series.series_uid not in kept}
    why = f"by {', then '.join(prefer)} series {' and '.join(kept)} of its study goes before it"
    return [Refused(stack.series, name, DoesNotFit(uid, name, [why]), stack.left_out) for uid, stack in others.items()]
