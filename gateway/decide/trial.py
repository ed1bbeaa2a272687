"""What the rules would make of series that lie somewhere: `medseg rules test`. Nothing is filed, run or sent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gateway.decide import rules
from gateway.decide.facts import image_facts, series_facts
from gateway.decide.rules import Explanation, SeriesFacts
from gateway.decide.selection import candidate, select
from gateway.settings.model import GatewaySettings, Mode, Rule
from medseg.bundle.catalog import find_bundle, installed
from medseg.dicom.series import Series
from medseg.errors import BundleError
from medseg.job.plan import plan


@dataclass(frozen=True, eq=False)
class Trial:
    """What would become of a series.

    rule: that decides; None where nothing is done. passed_over: why not this series, but another of its study.
    bundles: what would segment it, a name for each of its volumes. refused: why it, or a part of it, would not be.
    destinations: names of peers.
    """

    series: Series
    facts: SeriesFacts
    explanation: Explanation
    rule: Rule | None
    passed_over: str = ""
    bundles: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()


def try_rules(
    series: Iterable[Series], settings: GatewaySettings, calling_ae: str | None = None, called_ae: str | None = None
) -> list[Trial]:
    """Ask the rules about each series. calling_ae, called_ae: as if it came so; None where nobody has said."""
    trials = [_explained(one, settings, calling_ae, called_ae) for one in series]
    passed_over = _passed_over(trials)
    return [
        replace(trial, rule=None, passed_over=passed_over[trial.series.series_uid])
        if trial.series.series_uid in passed_over
        else _planned(trial, settings, calling_ae)
        for trial in trials
    ]


def _explained(series: Series, settings: GatewaySettings, calling_ae: str | None, called_ae: str | None) -> Trial:
    look = partial(image_facts, rules_=settings.rules, calling_ae=calling_ae, called_ae=called_ae)
    known = series_facts([look(one, one.sop_class_uid) for one in series.instances])
    assert known is not None  # all were read
    explanation = rules.explain(known, settings.rules)
    chosen = explanation.chosen
    return Trial(series, known, explanation, chosen.rule if chosen and chosen.rule.mode is not Mode.OFF else None)


def _passed_over(trials: Sequence[Trial]) -> dict[str, str]:
    """Where a rule takes one series of a study: the others, with the reason."""
    rivals: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.rule is not None and trial.rule.takes_one:
            rivals[trial.series.study_uid, trial.rule.name].append(trial)
    found: dict[str, str] = {}
    for group in rivals.values():
        rule = group[0].rule
        assert rule is not None
        found |= select([candidate(trial.facts) for trial in group], rule).passed_over
    return found


def _planned(trial: Trial, settings: GatewaySettings, calling_ae: str | None) -> Trial:
    rule = trial.rule
    if rule is None:
        return trial
    try:
        bundles = (find_bundle(rule.bundle),) if rule.bundle else tuple(installed())
    except BundleError as error:
        return replace(trial, refused=(str(error),))
    planned = plan(
        [trial.series],
        bundles,
        explicit=rule.bundle is not None,
        assume_frame_of_reference=rule.assume_frame_of_reference,
    )
    return replace(
        trial,
        bundles=tuple(job.bundle.name for job in planned.jobs),
        refused=tuple(str(one.error) for one in planned.refused),
        destinations=rules.destinations(rule, calling_ae, settings.peers) if rule.mode is not Mode.SHADOW else (),
    )
