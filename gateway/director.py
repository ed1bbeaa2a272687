"""The director: a series is complete, a rule matches, a job is made; all in one commit, or not at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from gateway import moves
from gateway.decide import rules
from gateway.decide.jobs import begun_for, job_for
from gateway.decide.rules import SeriesFacts
from gateway.decide.selection import Candidate, select
from gateway.ledger import Ledger
from gateway.receive.completion import CapReached, Complete, Settled, decide
from gateway.receive.watch import Watch
from gateway.settings import AtCap, GatewaySettings, Rule, Select
from medseg.dicom.headers import look

logger = logging.getLogger(__name__)

LATE = "came later than late_s after the last decision"
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
    """Watches what arrives, and makes jobs of it. One in all processes.

    settings: may be replaced between two steps.
    """

    def __init__(self, ledger: Ledger, spool: Path, settings: GatewaySettings) -> None:
        self._ledger, self.settings = ledger, settings
        self._watch = Watch(spool)
        self._held: dict[tuple[str, str], int] = {}
        self._begun: set[tuple[str, str]] = set()

    def step(self, now_s: float, wall_s: float) -> None:
        """Look at what is new, and carry out what is due.

        now_s and wall_s: the same moment by the monotonic clock and in seconds since 1970.
        """
        with self._ledger.read() as db:
            self._watch.look(db, now_s, wall_s)
        for study_uid, series_uid in self._watch.restored:
            revision = self._watch.revisions[study_uid, series_uid]
            facts = study_uid, series_uid, revision, RESTORED, wall_s
            self._ledger.write(lambda db, facts=facts: moves.complete_series(db, *facts))  # type: ignore[misc]
        for study_uid, fresh in list(self._watch.fresh()):
            for verdict in list(self._verdicts(study_uid, fresh, now_s)):
                self._carry_out(study_uid, verdict, now_s, wall_s)
        for study_uid, fresh in list(self._watch.fresh()):
            for series_uid in fresh:
                self._begin(study_uid, series_uid, wall_s)
        self._watch.forget(now_s)
        self._held = {key: revision for key, revision in self._held.items() if key in self._watch.revisions}
        self._begun &= self._watch.revisions.keys()

    def _begin(self, study_uid: str, series_uid: str, wall_s: float) -> None:
        """A job for a series of which the first slices have come: a worker may follow it."""
        key = study_uid, series_uid
        series = self._watch.arrivals.studies[study_uid].series[series_uid]
        if key in self._begun or series.taken_s is not None:
            return
        facts = self._facts(study_uid, series_uid)
        rule = None if facts is None else rules.choose_early(facts, self.settings.rules)
        new = None if facts is None or rule is None else begun_for(rule, facts, wall_s)
        if new is not None:
            job_id = self._ledger.write(lambda db: moves.begin_job(db, new, wall_s))
            if job_id is not None:
                told = {"event": "job.begun", "job": job_id, "study": study_uid, "series": series_uid}
                logger.info("job %d begun on the first slices", job_id, extra=told)
        if facts is not None:
            self._begun.add(key)

    def _verdicts(self, study_uid: str, fresh: list[str], now_s: float) -> Iterator[_Verdict]:
        whole: dict[str, tuple[Rule, str]] = {}
        for series_uid in fresh:
            rule = self._rule(study_uid, series_uid)
            among = rule is not None and rule.select is not Select.EVERY
            decision = decide(
                self._watch.arrivals, study_uid, None if among else series_uid, now_s, self.settings.complete
            )
            if isinstance(decision, CapReached) and not (rule and rule.at_cap is AtCap.INFER):
                self._hold(study_uid, series_uid, f"cap_s reached: {decision.why}")
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
            chosen = select(self._candidates(study_uid, rule), rule.select)
            passed_over = chosen.passed_over.get(series_uid, "")
            yield _Verdict(series_uid, by, None if passed_over else rule, passed_over)

    def _rule(self, study_uid: str, series_uid: str) -> Rule | None:
        facts = self._facts(study_uid, series_uid)
        return None if facts is None else rules.choose(facts, self.settings.rules)

    def _why(self, study_uid: str, series_uid: str) -> str:
        """Why no rule wants a series."""
        facts = self._facts(study_uid, series_uid)
        if facts is None:
            return "none of its headers can be read"
        return "; ".join(rules.explain(facts, self.settings.rules).lines())

    def _facts(self, study_uid: str, series_uid: str) -> SeriesFacts | None:
        """What rules may ask; None where no header can be read."""
        if (study_uid, series_uid) not in self._watch.headers:
            return None
        header, calling_ae, called_ae = self._watch.headers[study_uid, series_uid]
        return rules.series_facts(
            header,
            self.settings.rules,
            calling_ae=calling_ae,
            called_ae=called_ae or self.settings.gateway.ae_title,
            slices=len(self._watch.arrivals.studies[study_uid].series[series_uid].images),
        )

    def _candidates(self, study_uid: str, rule: Rule) -> list[Candidate]:
        found = []
        for series_uid, series in self._watch.arrivals.studies[study_uid].series.items():
            if self._rule(study_uid, series_uid) == rule:
                seen = look(self._watch.headers[study_uid, series_uid][0])
                number = seen.number("SeriesNumber")
                thickness_mm = seen.number("SliceThickness")
                found.append(
                    Candidate(series_uid, len(series.images), thickness_mm, None if number is None else int(number))
                )
        return found

    def _hold(self, study_uid: str, series_uid: str, why: str) -> None:
        """Wait for what is to come, or for a person; said once for each revision."""
        key, wall_s = (study_uid, series_uid), time.time()
        revision = self._watch.revisions[key]
        if self._held.get(key) == revision:
            return

        def commit(db: Connection) -> bool:
            held = moves.hold_series(db, study_uid, series_uid, revision)
            if held:
                moves.tell(db, "series.held", wall_s, study_uid, series_uid, {"why": why})
            return held

        if self._ledger.write(commit):
            told = {"event": "series.held", "study": study_uid, "series": series_uid}
            logger.warning("series held: %s", why, extra=told)
        self._held[key] = revision

    def _lacks_images(self, study_uid: str, series_uid: str) -> bool:
        """Whether retention has deleted images of a series to which others came: those alone would be a part of it."""
        with self._ledger.read() as db:
            gone = moves.deleted_instances(db, study_uid, series_uid)
        if gone:
            self._hold(study_uid, series_uid, LACKING.format(gone))
        return gone > 0

    def _carry_out(self, study_uid: str, verdict: _Verdict, now_s: float, wall_s: float) -> None:
        """Unless something came meanwhile: then the next look sees it."""
        series_uid = verdict.series_uid
        if verdict.rule is not None and self._lacks_images(study_uid, series_uid):
            return
        revision = self._watch.revisions[study_uid, series_uid]

        def commit(db: Connection) -> bool:
            if not moves.complete_series(db, study_uid, series_uid, revision, verdict.by, wall_s):
                return False
            if verdict.rule is None:
                moves.cancel_jobs(db, study_uid, series_uid, wall_s, begun=verdict.by == LATE)
                moves.tell(db, "series.passed_over", wall_s, study_uid, series_uid, {"why": verdict.why})
            else:
                moves.make_job(db, job_for(verdict.rule, study_uid, series_uid, revision, wall_s), wall_s)
            return True

        if self._ledger.write(commit):
            self._watch.take(study_uid, series_uid, now_s)
            self._held.pop((study_uid, series_uid), None)
            self._begun.discard((study_uid, series_uid))
            what = f"rule {verdict.rule.name}" if verdict.rule else "no job"  # why not, the ledger and the page say
            facts = {"event": "series.complete", "study": study_uid, "series": series_uid, "by": verdict.by}
            logger.info("series complete (%s): %s", verdict.by, what, extra=facts)
