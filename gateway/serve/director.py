"""The director: a series is complete, a rule matches, a job is made; all in one commit, or not at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection

from gateway.complete.decision import CapReached, Complete, Settled, decide, known_whole
from gateway.complete.observe import Came, Watch
from gateway.decide import facts, rules, settle
from gateway.decide.facts import ImageFacts
from gateway.decide.jobs import ask_why, begun_for, job_for, study_job_for
from gateway.decide.rules import SeriesFacts
from gateway.decide.selection import Candidate, candidate, select
from gateway.decide.several import SeveralChannels
from gateway.ledger import events, gatherings, instances, jobs, patients, replays
from gateway.ledger import series as series_rows
from gateway.ledger.jobs import NewJob
from gateway.ledger.ledger import Ledger
from gateway.ledger.study_jobs import NewStudyJob
from gateway.settings.model import AtCap, GatewaySettings, Rule
from medseg.dicom.instance import Instance

logger = logging.getLogger(__name__)

LATE = "came later than late_s after the last decision"
TWO_PATIENTS = "the images of its study name two patients (medseg studies)"
RESTORED = "what had been lost was sent again"
LACKING = "{} of its images were deleted by retention ([retain] inputs_s) before this came: send the whole series again"


@dataclass(frozen=True)
class _Verdict:
    """What is to be made of a series now. rule: None where there is nothing to do. why: for people."""

    series_uid: str
    by: str
    rule: Rule | None
    why: str = ""


class Director:
    """Watches what arrives, and makes jobs of it. One in all processes."""

    def __init__(self, ledger: Ledger, spool: Path) -> None:
        self._ledger = ledger
        self._settings = GatewaySettings()  # until the first step
        self._watch = Watch(spool, self._describe)
        self._known: dict[tuple[str, str], tuple[Sequence[ImageFacts], SeriesFacts | None]] = {}
        self._held: dict[tuple[str, str], int] = {}
        self._begun: dict[tuple[str, str], tuple[NewJob, ...]] = {}
        self._stopped: set[str] = set()  # studies with images of two patients
        self._several = SeveralChannels()

    def step(self, settings: GatewaySettings, now_s: float, wall_s: float) -> None:
        """Look at what is new, and carry out what is due, by these settings.

        now_s and wall_s: the same moment by the monotonic clock and in seconds since 1970.
        """
        if self._settings is not settings:
            self._settings = settings
            self._watch.describe_anew()  # other rules may ask for something else
            self._several = SeveralChannels()
            self._known.clear()
        with self._ledger.read() as db:
            self._watch.update(db, now_s, wall_s)
            stopped = {row.study_uid: patients.whose(db, row.study_uid) for row in patients.open_conflicts(db)}
        self._tell_patients(stopped, wall_s)
        for study_uid, series_uid in self._watch.restored:
            revision = self._watch.revisions[study_uid, series_uid]
            whole = study_uid, series_uid, revision, RESTORED, wall_s
            self._ledger.write(series_rows.complete_series, *whole)
        for study_uid, undecided in list(self._watch.undecided()):
            for verdict in list(self._verdicts(study_uid, undecided, now_s)):
                self._carry_out(study_uid, verdict, now_s, wall_s)
        for study_uid, undecided in list(self._watch.undecided()):
            for series_uid in undecided:
                self._begin(study_uid, series_uid, wall_s)
        self._ask_again(now_s, wall_s)
        self._watch.forget(now_s)
        self._held = {key: revision for key, revision in self._held.items() if key in self._watch.revisions}
        self._begun = {key: rule for key, rule in self._begun.items() if key in self._watch.revisions}
        self._known = {key: known for key, known in self._known.items() if key in self._watch.revisions}

    def _ask_again(self, now_s: float, wall_s: float) -> None:
        """Ask the rules of now about series that were sent again, once nothing more of them comes."""
        with self._ledger.read() as db:
            again = replays.sent_again(db, wall_s - self._settings.complete.quiet_s)
            for row in again:
                self._watch.recall(db, row.study_uid, now_s, wall_s)
        for row in again:
            rule = self._rule(row.study_uid, row.series_uid)
            alone, together = self._several.parted(rule)
            new: tuple[NewJob | NewStudyJob, ...] = (
                *(job_for(one, row.study_uid, row.series_uid, row.revision, wall_s) for one in alone),
                *(study_job_for(one, row.study_uid, (), wall_s) for one in together),
            )
            if self._ledger.write(replays.decide_again, row, new, wall_s):
                extra = {"event": "series.asked_anew", "study": row.study_uid, "series": row.series_uid}
                logger.info("series sent again: the rules of now are asked", extra=extra)

    def _begin(self, study_uid: str, series_uid: str, wall_s: float) -> None:
        """A job for a series of which the first slices have come: a worker may follow it.

        Where what has come since calls for something else, that job is dropped, and the next is made of the whole.
        """
        key = study_uid, series_uid
        series = self._watch.arrivals.studies[study_uid].series[series_uid]
        known = self._facts(study_uid, series_uid)
        if series.decided_s is not None or known is None:
            return
        rule = rules.choose_early(known, self._settings.rules) if known.slices else None
        new = begun_for(self._several.parted(rule)[0], known, wall_s)
        same = tuple(replace(one, due=0.0) for one in new)
        before = self._begun.get(key, ())
        self._begun[key] = same
        if same == before:
            return

        def commit(db: Connection) -> list[int]:
            if before:
                jobs.cancel_jobs(db, study_uid, series_uid, wall_s, begun=True)
            return jobs.begin_jobs(db, new, wall_s)

        for job_id in self._ledger.write(commit):
            extra = {"event": "job.begun", "job": job_id, "study": study_uid, "series": series_uid}
            logger.info("job %d begun on the first slices", job_id, extra=extra)

    def _verdicts(self, study_uid: str, undecided: list[str], now_s: float) -> Iterator[_Verdict]:
        whole: dict[str, tuple[Rule, str]] = {}
        for series_uid in undecided:
            rule = self._rule(study_uid, series_uid)
            among = rule is not None and rule.takes_one and bool(self._several.parted(rule)[0])
            decision = decide(
                self._watch.arrivals, study_uid, None if among else series_uid, now_s, self._settings.complete
            )
            if isinstance(decision, CapReached) and not (rule and rule.at_cap is AtCap.INFER):
                self._hold(study_uid, series_uid, f"cap_s reached: {decision.why}", rule)
                continue
            if isinstance(decision, Settled):
                yield _Verdict(series_uid, LATE, None, LATE)
            elif isinstance(decision, Complete | CapReached):
                by = decision.reason.value if isinstance(decision, Complete) else f"cap: {decision.why}"
                if rule is not None and among:
                    whole[series_uid] = rule, by
                else:
                    yield _Verdict(series_uid, by, rule, "" if rule else self._why(study_uid, series_uid))
        for series_uid, (rule, by) in whole.items():
            chosen = select(self._candidates(study_uid, rule), rule)
            passed_over = chosen.passed_over.get(series_uid, "")
            yield _Verdict(series_uid, by, None if passed_over else rule, passed_over)

    def _rule(self, study_uid: str, series_uid: str) -> Rule | None:
        known = self._facts(study_uid, series_uid)
        return None if known is None else rules.choose(known, self._settings.rules)

    def _why(self, study_uid: str, series_uid: str) -> str:
        """Why no rule wants a series."""
        known = self._facts(study_uid, series_uid)
        if known is None:
            return "none of its headers can be read"
        return "; ".join(rules.explain(known, self._settings.rules).lines())

    def _describe(self, came: Came, instance: Instance | None) -> ImageFacts:
        return facts.image_facts(
            instance,
            came.sop_class_uid,
            self._settings.rules,
            calling_ae=came.calling_ae,
            called_ae=came.called_ae or self._settings.gateway.ae_title,
            here=came.here,
        )

    def _facts(self, study_uid: str, series_uid: str) -> SeriesFacts | None:
        """What rules may ask; None where no header can be read."""
        images = self._watch.described(study_uid, series_uid)
        known = self._known.get((study_uid, series_uid))
        if known is None or known[0] is not images:
            known = self._known[study_uid, series_uid] = images, facts.series_facts(images)
        return known[1]

    def _candidates(self, study_uid: str, rule: Rule) -> list[Candidate]:
        candidates = []
        for series_uid in self._watch.arrivals.studies[study_uid].series:
            known = self._facts(study_uid, series_uid)
            if known is not None and rules.choose(known, self._settings.rules) == rule:
                candidates.append(candidate(known))
        return candidates

    def _hold(self, study_uid: str, series_uid: str, why: str, rule: Rule | None = None) -> None:
        """Wait for what is to come, or for a person; said once for each revision. rule: that wants it; None where there
        is none, or its study is stopped."""
        key, wall_s = (study_uid, series_uid), time.time()
        revision = self._watch.revisions[key]
        if self._held.get(key) == revision:
            return

        def commit(db: Connection) -> bool:
            held = series_rows.hold_series(db, study_uid, series_uid, revision)
            if held:
                detail = {"why": why, "rule": rule.name if rule else None}
                if rule is not None:
                    ask_why(db, study_uid, rule)
                events.record(db, events.HELD, wall_s, detail, study_uid=study_uid, series_uid=series_uid)
            return held

        if self._ledger.write(commit):
            extra = {"event": "series.held", "study": study_uid, "series": series_uid}
            logger.warning("series held: %s", why, extra=extra)
        self._held[key] = revision

    def _lacks_images(self, study_uid: str, series_uid: str, rule: Rule) -> bool:
        """Whether retention has deleted images of a series to which others came: those alone would be a part of it."""
        with self._ledger.read() as db:
            gone = instances.deleted_instances(db, study_uid, series_uid)
        if gone:
            self._hold(study_uid, series_uid, LACKING.format(gone), rule)
        return gone > 0

    def _tell_patients(self, stopped: dict[str, list[str]], wall_s: float) -> None:
        """Say once that a study has images of two patients, and let go on those whose images all say the same again.

        stopped: studies, with whom their images name.
        """
        for study_uid in stopped.keys() - self._stopped:
            extra = {"event": "patient.conflict", "study": study_uid}
            logger.error("study %s has images of two patients: nothing is made of it", study_uid, extra=extra)
        alike = {study_uid for study_uid, said in stopped.items() if len(patients.groups(said)) <= 1}
        for study_uid in alike:
            self._ledger.write(settle.close, study_uid, wall_s)
        self._stopped = stopped.keys() - alike

    def _carry_out(self, study_uid: str, verdict: _Verdict, now_s: float, wall_s: float) -> None:
        """Unless something came meanwhile: then the next look sees it."""
        series_uid = verdict.series_uid
        if verdict.rule is not None and study_uid in self._stopped:
            self._hold(study_uid, series_uid, TWO_PATIENTS)
            return
        if verdict.rule is not None and self._lacks_images(study_uid, series_uid, verdict.rule):
            return
        revision = self._watch.revisions[study_uid, series_uid]
        passed_by = facts.passed_by(self._watch.described(study_uid, series_uid))
        alone, together = self._several.parted(verdict.rule)
        whole = known_whole(self._watch.arrivals, study_uid)

        def commit(db: Connection) -> bool:
            if not series_rows.complete_series(db, study_uid, series_uid, revision, verdict.by, wall_s, passed_by):
                return False
            if verdict.rule is None:
                jobs.cancel_jobs(db, study_uid, series_uid, wall_s, begun=verdict.by == LATE)
                detail = {"why": verdict.why}
                events.record(db, events.PASSED_OVER, wall_s, detail, study_uid=study_uid, series_uid=series_uid)
            elif alone:
                jobs.make_jobs(db, [job_for(one, study_uid, series_uid, revision, wall_s) for one in alone], wall_s)
            else:
                jobs.cancel_jobs(db, study_uid, series_uid, wall_s)
            if verdict.by != LATE:
                bundles = [one.bundle or "" for one in together]
                gatherings.came(db, study_uid, bundles, wall_s, whole=whole)
            return True

        if self._ledger.write(commit):
            self._watch.mark_decided(study_uid, series_uid, now_s)
            self._held.pop((study_uid, series_uid), None)
            self._begun.pop((study_uid, series_uid), None)
            what = f"rule {verdict.rule.name}" if verdict.rule else "no job"  # why not, the ledger and the page say
            extra = {"event": "series.complete", "study": study_uid, "series": series_uid, "by": verdict.by}
            logger.info("series complete (%s): %s", verdict.by, what, extra=extra)
