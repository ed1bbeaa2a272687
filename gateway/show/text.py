"""Studies in words, line by line, for a terminal; and how times are written there and on the pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from gateway.ledger.states import ConflictState
from gateway.logs import printable
from gateway.settings.model import Mode
from gateway.show.objects import Delivery
from gateway.show.reasons import ReasonView
from gateway.show.studies import Conflict, Gathering, JobView, ResultView, SeriesView, StudyView


def moment(at: float) -> str:
    """A time as people read it, UTC. at: seconds since 1970."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def seconds(lasted: float | None) -> str:
    """A duration as people read it."""
    if lasted is None:
        return "-"
    if lasted < 100:
        return f"{lasted:.1f} s"
    minutes, rest = divmod(round(lasted), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(things: Mapping[str, int]) -> str:
    """How many there are of what."""
    return "; ".join(f"{number} {what}" for what, number in things.items())


def lines(study: StudyView) -> Iterator[str]:
    """A study with its series, jobs, results and deliveries."""
    yield printable(f"study {study.study_uid}: {study.received} instances, the last at {moment(study.last_at)} UTC")
    if study.conflict is not None:
        yield from map(printable, _indented(_conflict(study.conflict)))
    for one in study.gatherings:
        yield from map(printable, _indented(_gathering(one)))
    for reason in study.reasons:
        yield from map(printable, _indented(_reason(reason)))
    for job in study.jobs:
        yield from map(printable, _indented(_job(job)))
    for series in study.series:
        yield from map(printable, _indented(_series(series)))


def _conflict(conflict: Conflict) -> Iterator[str]:
    """Whose the images of a study say they are: by letters, never by names."""
    how = {
        ConflictState.OPEN: "work on it is stopped",
        ConflictState.MERGED: f"merged to patient {conflict.merged_to}",
        ConflictState.SPLIT: "split",
    }
    yield f"images of {len(conflict.patients)} patients since {moment(conflict.since_at)} UTC: {how[conflict.state]}"
    for one in conflict.patients:
        sent = f"first sent by {one.calling_ae or 'unknown'} at {moment(one.first_at)} UTC"
        yield f"  patient {one.letter}: {one.instances} images that count, {sent}"
    yield from _next(conflict.next_step)


def _gathering(gathering: Gathering) -> Iterator[str]:
    """What is missing for a bundle of several channels."""
    waits = "" if gathering.until is None else f" waits until {moment(gathering.until)} UTC"
    yield f"bundle {gathering.bundle}{waits}: {gathering.why}"


def _reason(reason: ReasonView) -> Iterator[str]:
    """Why nothing was segmented, and who is told."""
    replaced = "" if reason.current else ", replaced by a later result"
    yield f"told at {moment(reason.created_at)} UTC, by rule {reason.rule}{replaced}:"
    yield from (f"  {sentence}" for sentence in (*reason.why, *reason.expected))
    for one in reason.objects:
        yield f"  {one.kind} {one.sop_instance_uid}"
    for delivery in reason.deliveries:
        yield from _indented(_delivery(delivery))


def _series(series: SeriesView) -> Iterator[str]:
    of = "" if series.expected is None else f" of {series.expected}"
    by = f" ({series.complete_by}) {seconds(series.wait_complete_s)} after the last image" if series.complete_by else ""
    to_seg = (
        "" if series.last_image_to_seg_s is None else f", SEG stored {seconds(series.last_image_to_seg_s)} after it"
    )
    yield f"series {series.series_uid}: {series.received}{of} received, {series.state}{by}{to_seg}"
    if series.passed_over is not None:
        yield f"  passed over: {series.passed_over}"
    if series.passed_by:
        yield f"  passed by: {counted(series.passed_by)}"
    yield from (f"  channel {one.name} of job {one.job}" for one in series.channel_of)
    yield from _next(series.next_step)
    for job in series.jobs:
        yield from _indented(_job(job))


def _job(job: JobView) -> Iterator[str]:
    done = job.result
    bundle = f"{done.bundle} {done.bundle_version}" if done else job.bundle or "the bundle that fits"
    times = f"queue {seconds(job.queue_s)}, infer {seconds(job.infer_s)}"
    mode = "" if job.mode is Mode.ON else f" ({job.mode})"
    yield f"job {job.id} {job.state}: {bundle}, rule {job.rule}{mode}, attempt {job.attempt}, {times}"
    for one in job.channels:
        volume = f", volume {one.volume}" if one.volume > 1 else ""
        yield f"  channel {one.name}: series {one.series_uid}{volume}"
    if job.error:
        yield f"  {job.error}"
    yield from _next(job.next_step)
    if done:
        yield from _indented(_result(done))


def _result(result: ResultView) -> Iterator[str]:
    steps = ", ".join(f"{step} {seconds(lasted)}" for step, lasted in result.timings_s.items())
    if result.withdrawn is not None:
        what = f"result, withdrawn at {moment(result.withdrawn.at)} UTC: it must not be used"
    else:
        what = "result" if result.current else "result, replaced by a later one"
    yield f"{what}{f': {steps}' if steps else ''}"
    for flag in result.flags:
        yield f"  flag: {flag}"
    for one in result.objects:
        yield f"  {one.kind} {one.sop_instance_uid}"
    for delivery in (*result.deliveries, *(result.withdrawn.deliveries if result.withdrawn else ())):
        yield from _indented(_delivery(delivery))


def _delivery(delivery: Delivery) -> Iterator[str]:
    stored = "" if delivery.deliver_s is None else f" after {seconds(delivery.deliver_s)}"
    confirmed = "" if delivery.confirm_s is None else f", confirmed {seconds(delivery.confirm_s)} later"
    yield f"{delivery.kind} to {delivery.destination}: {delivery.state}{stored}{confirmed}"
    if delivery.error:
        yield f"  {delivery.error} ({delivery.failures} failed)"
    yield from _next(delivery.next_step)


def _next(step: str) -> Iterator[str]:
    if step:
        yield f"  next step: {step}"


def _indented(some: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in some)
