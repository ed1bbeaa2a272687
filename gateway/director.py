"""The director: a series is complete, a rule matches, a job is made; all in one commit, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from gateway import moves
from gateway.decide import rules
from gateway.decide.jobs import job_for
from gateway.decide.rules import SeriesFacts
from gateway.decide.selection import Candidate, select
from gateway.ledger import Ledger
from gateway.receive.completion import CapReached, Complete, Settled, decide
from gateway.receive.watch import Watch
from gateway.settings import AtCap, GatewaySettings, Rule, Select
from medseg.dicom.headers import look

logger = logging.getLogger(__name__)

LATE = "came later than late_s after the last decision"


@dataclass(frozen=True)
class _Verdict:
    """What is to be made of a series now. rule: None where there is nothing to do. why: for people."""

    series_uid: str
    by: str
    rule: Rule | None
    why: str = ""


class Director:
    """Watches what arrives, and makes jobs of it. One in all processes."""

    def __init__(self, ledger: Ledger, spool: Path, settings: GatewaySettings) -> None:
        self._ledger, self._settings = ledger, settings
        self._watch = Watch(spool)

    def step(self, now_s: float, wall_s: float) -> None:
        """Look at what is new, and carry out what is due.

        now_s and wall_s: the same moment by the monotonic clock and in seconds since 1970.
        """
        with self._ledger.read() as db:
            self._watch.look(db, now_s, wall_s)
        for study_uid, fresh in list(self._watch.fresh()):
            for verdict in list(self._verdicts(study_uid, fresh, now_s)):
                self._carry_out(study_uid, verdict, now_s, wall_s)
        self._watch.forget(now_s)

    def _verdicts(self, study_uid: str, fresh: list[str], now_s: float) -> Iterator[_Verdict]:
        whole: dict[str, tuple[Rule, str]] = {}
        for series_uid in fresh:
            rule = self._rule(study_uid, series_uid)
            among = rule is not None and rule.select is not Select.EVERY
            decision = decide(
                self._watch.arrivals, study_uid, None if among else series_uid, now_s, self._settings.complete
            )
            if isinstance(decision, CapReached) and not (rule and rule.at_cap is AtCap.INFER):
                self._hold(study_uid, series_uid)
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
        return None if facts is None else rules.choose(facts, self._settings.rules)

    def _why(self, study_uid: str, series_uid: str) -> str:
        """Why no rule wants a series."""
        facts = self._facts(study_uid, series_uid)
        if facts is None:
            return "none of its headers can be read"
        return "; ".join(rules.explain(facts, self._settings.rules).lines())

    def _facts(self, study_uid: str, series_uid: str) -> SeriesFacts | None:
        """What rules may ask; None where no header can be read."""
        if (study_uid, series_uid) not in self._watch.headers:
            return None
        header, calling_ae, called_ae = self._watch.headers[study_uid, series_uid]
        return rules.series_facts(
            header,
            self._settings.rules,
            calling_ae=calling_ae,
            called_ae=called_ae or self._settings.gateway.ae_title,
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

    def _hold(self, study_uid: str, series_uid: str) -> None:
        revision = self._watch.revisions[study_uid, series_uid]
        self._ledger.write(lambda db: moves.hold_series(db, study_uid, series_uid, revision))

    def _carry_out(self, study_uid: str, verdict: _Verdict, now_s: float, wall_s: float) -> None:
        """Unless something came meanwhile: then the next look sees it."""
        series_uid = verdict.series_uid
        revision = self._watch.revisions[study_uid, series_uid]

        def commit(db: Connection) -> bool:
            if not moves.complete_series(db, study_uid, series_uid, revision, verdict.by, wall_s):
                return False
            if verdict.rule is None:
                moves.tell(db, "series.passed_over", wall_s, study_uid, series_uid, {"why": verdict.why})
            else:
                moves.make_job(db, job_for(verdict.rule, study_uid, series_uid, revision, wall_s), wall_s)
            return True

        if self._ledger.write(commit):
            self._watch.take(study_uid, series_uid, now_s)
            what = f"rule {verdict.rule.name}" if verdict.rule else verdict.why
            facts = {"event": "series.complete", "series": series_uid, "by": verdict.by}
            logger.info("series complete (%s): %s", verdict.by, what, extra=facts)
