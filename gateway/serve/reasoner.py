"""Tells why nothing of a study was segmented: a report, made once nothing more is to come of it.

    ripe (`gateway.ledger.unanswered`) ── failures ── images, by patient ── frozen reports ── one commit: the reason

It runs in a thread of the worker's process, beside the gatherer: reports are written by what segments. A look that is
cut off leaves its row, and is made again; what was written by then is written anew, before anything of it is sent.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from gateway.decide import rules
from gateway.decide.jobs import rule_of_terms
from gateway.decide.reasons import Failure, failures
from gateway.files import RESULTS
from gateway.ledger import instances, patients, reasons, unanswered
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.object_kind import ObjectKind
from gateway.ledger.reasons import NewReason
from gateway.ledger.records import ResultRow, UnansweredRow
from gateway.ledger.results import NewObject
from gateway.receive.parts import PatientParts, parted
from gateway.receive.source import read_image
from gateway.serve.looking import look_until
from gateway.settings.current import Live
from gateway.settings.model import Completion, GatewaySettings, OnFailure, ResultForm
from gateway.work.freeze import frozen, sync_all, sync_places
from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import find_bundle, installed
from medseg.bundle.wanted import wanted
from medseg.dicom.instance import Instance
from medseg.dicom.reason import Reason
from medseg.dicom.series import Series
from medseg.dicom.sources import to_series
from medseg.errors import BundleError, InputError, MedsegError, boundary
from medseg.results.identity import ResultKey
from medseg.results.report import RESEARCH
from medseg.results.statement import STATEMENT_CLASS, Statement, write_statement

logger = logging.getLogger(__name__)

LOOK_S = 0.5
AGAIN_S = 60.0  # after a look that failed for a reason that nobody foresaw
MOST_TOLD = 20  # failures, in one report
SCHEMA = "1"  # raised whenever the same failures would give another report


@dataclass(frozen=True, eq=False)
class _Part:
    """What failed of one patient's part of a study. patient: a key. series: with the digest of each image."""

    patient: str
    series: tuple[Series, ...]
    digests: tuple[str, ...]


class Reasoner:
    """Makes reasons. One in all processes."""

    def __init__(self, ledger: Ledger, spool: Path) -> None:
        self._ledger, self._spool = ledger, spool
        self._later: dict[tuple[str, str], float] = {}  # looks that failed, and when they are made again
        self._bundles: dict[str, tuple[Bundle, ...]] = {}

    def run(self, live: Live, stop: threading.Event) -> None:
        """Look until told to stop; never raises."""
        look_until(stop, self.step, live, every_s=LOOK_S, event="study.unreasoned")

    def step(self, settings: GatewaySettings, now: float) -> None:
        """Look at each study of which nothing more is to come."""
        with self._ledger.read() as db:
            ripe = unanswered.ripe(db, now, longest_quiet_s(settings.complete))
        for row in ripe:
            key = row.study_uid, row.rule
            if self._later.get(key, 0.0) > now:
                continue
            self._later.pop(key, None)
            try:
                with boundary(f"study {row.study_uid}"):
                    self._look(row, settings, now)
            except LedgerUnavailable:
                raise
            except (MedsegError, OSError, MemoryError) as error:  # others are looked at meanwhile
                self._later[key] = now + AGAIN_S
                extra = {"event": "study.unreasoned", "study": row.study_uid}
                logger.error("study %s: no reason could be told yet: %s", row.study_uid, error, extra=extra)

    def _look(self, row: UnansweredRow, settings: GatewaySettings, now: float) -> None:
        with self._ledger.read() as db:
            failed = failures(db, row)
            before = reasons.last_reason(db, row.study_uid, row.rule)
            destinations = _destinations(db, row, failed, settings)
        new = self._told(row, failed, before, to_send=bool(destinations))
        quiet_s = longest_quiet_s(settings.complete)

        def commit(db: Connection) -> bool:
            if not unanswered.is_ripe(db, row, now, quiet_s) or failures(db, row) != failed:
                return False  # the next look sees it
            unanswered.drop(db, row)
            if new is not None:
                reasons.file_reason(db, new, destinations, now)
            return new is not None

        filed = self._ledger.write(commit)
        for made in new.objects if new is not None and not filed else ():  # its study may have been purged
            shutil.rmtree((self._spool / made.path).parent, ignore_errors=True)
        if filed:
            extra = {"event": "study.unsegmented", "study": row.study_uid}
            logger.warning("study %s: nothing was segmented by rule %s", row.study_uid, row.rule, extra=extra)

    def _told(
        self, row: UnansweredRow, failed: Sequence[Failure], before: ResultRow | None, *, to_send: bool
    ) -> NewReason | None:
        """The reason, its reports frozen; None where there is none, or it was told already. before: what was last."""
        read = self._read(row.study_uid, failed)
        meant = [one for one in failed if self._is_meant(one, read)]
        if not meant:
            return None
        uids = sorted({uid for one in meant for uid in one.series})
        parts = _by_patient([read[uid] for uid in uids if uid in read])
        sends = to_send and unanswered.on_failure(row.terms) is OnFailure.REPORT
        why, expected = _sentences(meant), self._expected(json.loads(row.bundles))
        images = [[part.patient, *sorted(part.digests)] for part in parts]
        content = _digest([SCHEMA, row.study_uid, row.rule, why, expected, sends, images])
        if before is not None and before.replaced_at is None and json.loads(before.facts)["content"] == content:
            return None
        key = _digest([content, "" if before is None else before.result_key])
        keys = [key if number == 0 else _digest([key, number]) for number in range(len(parts))] if sends else []
        texts = (*why, *expected, RESEARCH)
        objects = [
            self._frozen(ObjectKind.of(ResultForm.SR, number), row.study_uid, part, one, texts, before)
            for number, (part, one) in enumerate(zip(parts, keys, strict=False), 1)
        ]
        if objects:
            sync_places(self._spool)
        facts: dict[str, Any] = {"why": why, "expected": expected, "content": content, "series": uids}
        facts |= {"terms": row.terms, "bundles": json.loads(row.bundles)}
        sources = [{"patient": part.patient, "result_key": one} for part, one in zip(parts, keys, strict=False)]
        return NewReason(key, row.study_uid, row.rule, facts, sources, tuple(objects))

    def _is_meant(self, one: Failure, read: Mapping[str, PatientParts]) -> bool:
        """Whether a series was to be segmented: where no bundle is named, one that forms no volume was if any bundle
        that is installed is for its modality."""
        if one.bundle or one.code not in set(map(str, Reason)):
            return True
        modalities = {series.modality.upper() for uid in one.series if uid in read for _, series in read[uid].series}
        expected = [bundle.expects.modality for bundle in self._bundles_of("")]
        return any(not some or modalities & set(some) for some in expected)

    def _expected(self, bundles: Sequence[str]) -> list[str]:
        """What was expected, a sentence for each bundle."""
        texts = (text for name in bundles for text in self._wanted(name))
        return [f"Expected: {text}." for text in dict.fromkeys(texts)]

    def _wanted(self, name: str) -> Iterator[str]:
        try:
            yield from (f"{wanted(bundle)} (bundle {bundle.name})" for bundle in self._bundles_of(name))
        except BundleError as error:
            yield f"a bundle that can be used ({error})"

    def _bundles_of(self, name: str) -> tuple[Bundle, ...]:
        """The bundle of that name or folder; all of one channel that are installed for an empty one."""
        if name not in self._bundles:
            alone = (one for one in installed() if one.channels is None)
            self._bundles[name] = (find_bundle(name),) if name else tuple(alone)
        return self._bundles[name]

    def _read(self, study_uid: str, failed: Sequence[Failure]) -> dict[str, PatientParts]:
        """The images that count of each series, complete or not, and whose they are. A series whose files cannot be
        read is left out."""
        read: dict[str, PatientParts] = {}
        for uid in dict.fromkeys(uid for one in failed for uid in one.series):
            try:
                with self._ledger.read() as db:
                    rows = instances.counting_instances(db, study_uid, uid)
                images = [image for row in rows if (image := read_image(self._spool, row)) is not None]
                parts = parted(self._ledger, self._spool, to_series(images)) if images else None
            except InputError as error:
                extra = {"event": "study.unread", "study": study_uid, "series": uid}
                logger.warning("not referred to where it is told: %s", error, extra=extra)
                continue
            if parts is not None:
                read[uid] = parts
        return read

    def _frozen(
        self, kind: ObjectKind, study_uid: str, part: _Part, key: str, texts: tuple[str, ...], before: ResultRow | None
    ) -> NewObject:
        """The report on a patient's part, in the folder named for its key."""
        folder = self._spool / RESULTS / key
        shutil.rmtree(folder, ignore_errors=True)  # of a look that was cut off
        said = Statement(
            key=ResultKey(key),
            study_uid=study_uid,
            header=part.series[0].instances[0].header,
            made_at=datetime.now(),
            texts=texts,
            images={one.series_uid: [_uids(image) for image in one.instances] for one in part.series},
            description="AI not segmented (research use)",
            predecessors={} if before is None else dict(_documents(before, part.patient)),
        )
        file = folder / f"{ResultForm.SR}.dcm"
        write_statement(file, said)
        sync_all(folder)
        return frozen(kind, file, self._spool)


def longest_quiet_s(settings: Completion) -> float:
    """How long a study must be quiet before it is taken for whole."""
    quiet = settings.quiet_s, settings.quiet_gap_s, settings.quiet_open_s, settings.quiet_abort_s, settings.quiet_late_s
    return max(quiet)


def _destinations(
    db: Connection, row: UnansweredRow, failed: Sequence[Failure], settings: GatewaySettings
) -> tuple[str, ...]:
    """Where the results of a rule would have gone."""
    first = next((uid for one in failed for uid in one.series), None)
    caller = None if first is None else instances.calling_ae(db, row.study_uid, first)
    return rules.destinations(rule_of_terms(row.rule, row.terms), caller, settings.peers)


def _by_patient(read: Sequence[PatientParts]) -> list[_Part]:
    """What was read, by whose it is; what names nobody is of who is named, where that is one patient."""
    each = [(key, series, parts) for parts in read for key, series in parts.series]
    named = patients.groups(key for key, _, _ in each)
    made = []
    for group in named or ((),):
        mine = [one for one in each if one[0] in group or len(named) <= 1]
        patient = patients.fullest(group or ("",))
        mine.sort(key=lambda one: one[0] != patient)
        digests = tuple(parts.digest(image) for _, series, parts in mine for image in series.instances)
        made.append(_Part(patient, tuple(series for _, series, _ in mine), digests))
    return [part for part in made if part.series]


def _sentences(failed: Sequence[Failure]) -> list[str]:
    """Why each was not segmented, a sentence each."""
    each = list(dict.fromkeys(f"Not segmented: {one.why.rstrip('.')}." for one in failed))
    more = [f"Not segmented, and not told here: {len(each) - MOST_TOLD} more."] if len(each) > MOST_TOLD else []
    return each[:MOST_TOLD] + more


def _documents(before: ResultRow, patient: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The reports that a later one on the same patient takes the place of, by their series."""
    for source in json.loads(before.sources):
        if len(patients.groups((source["patient"], patient))) <= 1:
            key = ResultKey(source["result_key"])
            yield key.uid("sr.series"), [(STATEMENT_CLASS, key.uid("sr"))]


def _uids(image: Instance) -> tuple[str, str]:
    return image.sop_class_uid, image.sop_instance_uid


def _digest(facts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
