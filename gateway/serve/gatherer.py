"""Looks at studies for bundles of several channels: whenever a series of one is complete, and when its time is over.

    due ── series that are complete ── rule ── Look ── one commit: waits │ a job, to be done or held │ passed over

It runs in a thread of the worker's process, which has the bundles anyway: headers are read beside a running job, and
the director loads no bundle. What is to be looked at stands in the ledger (`gateway.ledger.gatherings`), so a look that
is cut off is made again, and what it comes to is one commit or nothing.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.decide import facts, gather, gathered, rules
from gateway.decide.gather import Look, Said
from gateway.decide.gathered import Candidates
from gateway.decide.rules import Explanation
from gateway.ledger import associations, gatherings, instances, study_jobs
from gateway.ledger import series as series_rows
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.records import GatheringRow, InstanceRow, SeriesRow
from gateway.ledger.states import SeriesState
from gateway.receive.source import read_series
from gateway.serve.looking import look_until
from gateway.settings.current import Live
from gateway.settings.model import GatewaySettings
from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import find_bundle
from medseg.dicom.series import Series
from medseg.errors import BundleError, InputError, MedsegError, UsageError, boundary

logger = logging.getLogger(__name__)

LOOK_S = 0.2
MOST_UNFIT = 5000  # series that are remembered
AGAIN_S = 60.0  # after a look that failed for a reason that nobody foresaw


@dataclass(frozen=True)
class _Unfit:
    """A series that fits no channel, as it was at a revision: its headers need not be read again. why: it is none."""

    revision: int
    explanation: Explanation
    why: str


class Gatherer:
    """Makes jobs of several series of a study. One in all processes."""

    def __init__(self, ledger: Ledger, spool: Path) -> None:
        self._ledger, self._spool = ledger, spool
        self._bundles: dict[str, Bundle] = {}
        self._settings: GatewaySettings | None = None
        self._unfit: dict[tuple[str, str, str], _Unfit] = {}  # by bundle, study and series

    def run(self, live: Live, stop: threading.Event) -> None:
        """Look until told to stop; never raises."""
        look_until(stop, self.step, live, every_s=LOOK_S, event="study.unlooked")

    def step(self, settings: GatewaySettings, now: float) -> None:
        """Look at each study that is due."""
        if self._settings is not settings or len(self._unfit) > MOST_UNFIT:
            self._settings, self._unfit = settings, {}
        with self._ledger.read() as db:
            due = gatherings.due(db, now)
        for row in due:
            try:
                with boundary(f"study {row.study_uid}"):
                    self._look(row, settings, now)
            except LedgerUnavailable:
                raise
            except (MedsegError, OSError, MemoryError) as error:  # others are looked at meanwhile
                self._ledger.write(gatherings.looked, row, now + AGAIN_S, "error", str(error))
                facts_ = {"event": "study.unlooked", "study": row.study_uid}
                logger.error("study %s is looked at again: %s", row.study_uid, error, extra=facts_)

    def _look(self, row: GatheringRow, settings: GatewaySettings, now: float) -> None:
        with self._ledger.read() as db:
            last = study_jobs.latest_job(db, row.study_uid, row.bundle)
            arriving = last is not None and study_jobs.is_undecided(db, last.id)
        if arriving:  # its completion asks again
            self._ledger.write(gatherings.looked, row, None, row.code, row.why)
            return
        said = Said.of(json.loads(row.said))
        candidates = self._candidates(row, settings, said)
        if candidates is None:
            self._ledger.write(gathered.let_go, row, now, wanted=_is_wanted(row, settings, said))
            return
        try:
            bundle = gather.with_site_words(self._bundle(row.bundle), settings.channels)
            found = gather.look(row.study_uid, candidates.series, candidates.revisions, bundle, candidates.rule, said)
            found = self._remember(row, candidates, found)
        except (BundleError, UsageError) as error:
            found = Look((), error, (), {}, fits=True)
        job_id = self._ledger.write(gathered.carry_out, row, candidates, found, said, now)
        if job_id is not None:
            facts_ = {"event": "study.gathered", "job": job_id, "study": row.study_uid}
            logger.info("job %d has the channels of its study", job_id, extra=facts_)

    def _bundle(self, name: str) -> Bundle:
        if name not in self._bundles:
            self._bundles[name] = find_bundle(name)
        return self._bundles[name]

    def _candidates(self, row: GatheringRow, settings: GatewaySettings, said: Said) -> Candidates | None:
        """None where no rule of now takes a series of the study for the bundle."""
        asked = self._explained(row, settings, said)
        rule = gathered.rule_of(row.bundle, [explanation for _, explanation, _ in asked], settings.rules, said)
        if rule is None:
            return None
        taken = [
            (one, explanation, revision)
            for one, explanation, revision in asked
            if one is not None and (not explanation.barred if said.rule is not None else rules.takes(explanation, rule))
        ]
        revisions = {one.series_uid: revision for one, _, revision in taken}
        explained = {one.series_uid: explanation for one, explanation, _ in taken}
        return Candidates(rule, tuple(one for one, _, _ in taken), revisions, explained)

    def _explained(
        self, of: GatheringRow, settings: GatewaySettings, said: Said
    ) -> Sequence[tuple[Series | None, Explanation, int]]:
        """The complete series of a study whose images are here, and what rules say to each; none where it is known to
        be no channel."""
        with self._ledger.read() as db:
            rows = [row for row in series_rows.series_of(db, of.study_uid) if row.state is SeriesState.COMPLETE]
            here = [row for row in rows if not instances.deleted_instances(db, of.study_uid, row.series_uid)]
        asked: list[tuple[Series | None, Explanation, int]] = []
        for row in here:
            known = None if said.channels else self._unfit.get((of.bundle, of.study_uid, row.series_uid))
            if known is not None and known.revision == row.revision:
                asked.append((None, known.explanation, row.revision))
            elif (series := self._read(row)) is not None:
                asked.append((series, self._explain(series, settings), row.revision))
        return asked

    def _remember(self, row: GatheringRow, candidates: Candidates, found: Look) -> Look:
        """What was found, with what is known of the series that were not read again."""
        for series_uid in found.unfit & candidates.revisions.keys():
            known = _Unfit(
                candidates.revisions[series_uid],
                candidates.explanations[series_uid],
                found.no_channel.get(series_uid, ""),
            )
            self._unfit[row.bundle, row.study_uid, series_uid] = known
        before = {
            series_uid: one.why
            for (bundle, study_uid, series_uid), one in self._unfit.items()
            if (bundle, study_uid) == (row.bundle, row.study_uid) and one.why
        }
        return replace(found, no_channel=before | dict(found.no_channel))

    def _read(self, row: SeriesRow) -> Series | None:
        """None where none of its images can be read, or more has come."""
        try:
            return read_series(self._ledger, self._spool, row.study_uid, row.series_uid, row.revision)
        except InputError:
            return None

    def _explain(self, series: Series, settings: GatewaySettings) -> Explanation:
        with self._ledger.read() as db:
            rows = instances.counting_instances(db, series.study_uid, series.series_uid)
            named = {row.association_id for row in rows if row.association_id}
            called = {row.id: row.called_ae for row in associations.associations(db, named)} if named else {}
        by_uid: dict[str, InstanceRow] = {row.sop_instance_uid: row for row in rows}
        images = []
        for instance in series.instances:
            row = by_uid.get(instance.sop_instance_uid)
            called_ae = called.get(row.association_id or "") if row else None
            images.append(
                facts.image_facts(
                    instance,
                    instance.sop_class_uid,
                    settings.rules,
                    calling_ae=row.calling_ae if row else None,
                    called_ae=called_ae or settings.gateway.ae_title,
                )
            )
        known = facts.series_facts(images)
        return rules.explain(known, settings.rules) if known is not None else Explanation(())


def _is_wanted(row: GatheringRow, settings: GatewaySettings, said: Said) -> bool:
    return said.rule is not None or any(one.bundle == row.bundle for rule in settings.rules for one in rule.each)
