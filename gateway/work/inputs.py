"""What a job is done on: its series, or those of its channels, planned; and whether that holds when it is filed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sqlalchemy import Connection

from gateway.ledger import patients, study_jobs
from gateway.ledger.patients import Basis
from gateway.ledger.records import JobChannelRow, JobRow
from gateway.settings.model import Rule
from gateway.work.beside import Beside
from medseg.bundle.bundle import Bundle
from medseg.dicom.instance import Instance
from medseg.dicom.series import Series, SliceSource, Stack
from medseg.dicom.sources import instance_digest
from medseg.errors import InputError, MedsegError
from medseg.inference.arriving.shared import Share, SharedSource
from medseg.inference.settings import Settings
from medseg.job.channels import volumes_of
from medseg.job.follow import Followed, follow
from medseg.job.plan import plan
from medseg.job.together import shared
from medseg.progress import Cancelled


class ArrivingSource(SliceSource, Protocol):
    """A series that is still arriving. revision: in the ledger, once all has come."""

    @property
    def revision(self) -> int: ...


class SeriesParts(Protocol):
    """A series by whose it is. series: with the key of the patient. basis: on which that holds."""

    @property
    def series(self) -> tuple[tuple[str, Series], ...]: ...

    @property
    def basis(self) -> Basis: ...

    def digest(self, instance: Instance) -> str: ...


class Images(Protocol):
    """Who is asked for the images of a job."""

    def read(self, job: JobRow, cancelled: Cancelled) -> Series | None:
        """The series of a job; None where it is not any more what the job was made for."""
        ...

    def read_channel(self, channel: JobChannelRow, cancelled: Cancelled) -> Series | None:
        """The series of a channel; None where it is not any more what the job was made for."""
        ...

    def channels(self, job: JobRow) -> tuple[Sequence[JobChannelRow], bool]:
        """The channels of a job of a study, and whether a person said that they lie to each other as they say."""
        ...

    def parted(self, series: Series, cancelled: Cancelled) -> SeriesParts | None:
        """A series by whose it is; None where its study has images of two patients and nobody has settled that."""
        ...

    def follow(self, job: JobRow, cancelled: Cancelled) -> ArrivingSource:
        """The series of a job as it arrives."""
        ...


@dataclass(frozen=True, eq=False)
class Inputs:
    """done: what is planned, and what was segmented meanwhile. series: with whose each is.

    holds: whether the images are still what they were when they were read, and whose.
    """

    done: Followed
    series: tuple[tuple[str, Series], ...]
    holds: Callable[[Connection, JobRow], bool]

    def patient_of(self, stack: Stack) -> str:
        first = stack.slices[0].instance
        return next(patient for patient, one in self.series if any(some is first for some in one.instances))


def of_series(
    job: JobRow,
    images: Images,
    bundles: Sequence[Bundle],
    rule: Rule,
    settings: Settings,
    put_off: Callable[[MedsegError], None],
    cancelled: Cancelled,
    beside: Beside,
    share: Share | None,
) -> Inputs | None:
    """A series, whole or as it arrives; None where it has changed, or its study is stopped.

    share: in the planes that other jobs on it look at, too; what was read of it for one of them is `beside`.
    """
    explicit, followed = bool(job.bundle), None
    if job.revision:
        series, revision = beside.series(job.revision) or images.read(job, cancelled), job.revision
    else:
        source = images.follow(job, cancelled)
        slices = source if share is None else SharedSource(source, share)
        followed = follow(slices, bundles, put_off, explicit=explicit, settings=settings, cancelled=cancelled)
        series, revision = source.series, source.revision
    parts = None if series is None else images.parted(series, cancelled)
    if parts is None:
        return None
    if followed is not None and [part for _, part in parts.series] == [series]:
        done = followed
    else:
        assume, parted = rule.assume_frame_of_reference, [part for _, part in parts.series]
        whole = plan(parted, bundles, explicit=explicit, assume_frame_of_reference=assume)
        done = Followed(whole, None, parts.digest)
    if share is not None and series is not None:
        beside.keep(revision, series)
        done = replace(done, plan=replace(done.plan, jobs=tuple(shared(one, share) for one in done.plan.jobs)))

    def holds(db: Connection, now: JobRow) -> bool:
        same = patients.basis(db, job.study_uid, job.series_uid) == parts.basis
        return same and now.revision == revision

    return Inputs(done, parts.series, holds)


def of_study(job: JobRow, images: Images, bundle: Bundle, rule: Rule, cancelled: Cancelled) -> Inputs | None:
    """The channels of a study, those that the job was made for; None where one has changed, or the study is stopped."""
    channels, assume_registered = images.channels(job)
    parts: dict[str, SeriesParts] = {}
    for channel in channels:
        if channel.series_uid not in parts:
            series = images.read_channel(channel, cancelled)
            parted = None if series is None else images.parted(series, cancelled)
            if parted is None:
                return None
            parts[channel.series_uid] = parted
    whose = tuple(one for some in parts.values() for one in some.series)
    if len(whose) > len(parts):
        raise InputError(f"study {job.study_uid}: it was split, and bundles of several channels are for one patient")
    assume = rule.assume_frame_of_reference
    volumes = {one.series_uid: volumes_of(one, assume_frame_of_reference=assume)[0] for _, one in whose}
    whole = plan(
        [one for _, one in whose],
        [bundle],
        explicit=True,
        assume_frame_of_reference=assume,
        channels={one.name: volumes[one.series_uid][one.volume - 1 : one.volume] for one in channels},
        assume_registered=assume_registered,
    )
    digest = _digests(parts.values())

    def holds(db: Connection, now: JobRow) -> bool:
        same = (patients.basis(db, job.study_uid, uid) == some.basis for uid, some in parts.items())
        return not study_jobs.has_changed(db, now.id) and all(same)

    return Inputs(Followed(whole, None, digest), whose, holds)


def _digests(parts: Iterable[SeriesParts]) -> Callable[[Instance], str]:
    """Of an instance, as its series says it."""
    said: Mapping[int, SeriesParts] = {
        id(instance): some for some in parts for _, series in some.series for instance in series.instances
    }
    return lambda instance: said[id(instance)].digest(instance) if id(instance) in said else instance_digest(instance)
