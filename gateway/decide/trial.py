"""What the rules would make of series that lie somewhere: `medseg rules test`. Nothing is filed, run or sent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gateway.decide import rules
from gateway.decide.facts import image_facts, series_facts
from gateway.decide.gather import Look, Said, look, with_site_words
from gateway.decide.rules import Explanation, SeriesFacts
from gateway.decide.selection import candidate, select
from gateway.decide.several import SeveralChannels
from gateway.settings.model import GatewaySettings, Mode, Rule
from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import find_bundle, installed
from medseg.dicom.series import Series
from medseg.errors import BundleError
from medseg.job.plan import plan


@dataclass(frozen=True, eq=False)
class Trial:
    """What would become of a series.

    rule: that decides; None where nothing is done. passed_over: why not this series, but another of its study.
    bundles: what would segment it, a name for each of its volumes. refused: why it, or a part of it, would not be.
    destinations: names of peers. alone, of_study: the rule once for each of its bundles of one channel, and of several
    (`try_studies`).
    """

    series: Series
    facts: SeriesFacts
    explanation: Explanation
    rule: Rule | None
    passed_over: str = ""
    bundles: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    alone: tuple[Rule, ...] = ()
    of_study: tuple[Rule, ...] = ()


@dataclass(frozen=True, eq=False)
class StudyTrial:
    """What would become of a study by a rule whose bundle is of several channels.

    look: what was found for each; None where the bundle cannot be used. refused: why no job is made; empty where one
    is.
    """

    study_uid: str
    rule: Rule
    bundle: Bundle | None
    look: Look | None
    refused: str = ""
    destinations: tuple[str, ...] = ()


def try_studies(trials: Sequence[Trial], settings: GatewaySettings, calling_ae: str | None = None) -> list[StudyTrial]:
    """What comes of the series that rules of several channels take, study by study."""
    wanted = dict.fromkeys((one.series.study_uid, rule) for one in trials if one.rule for rule in one.of_study)
    return [_study(study_uid, rule, trials, settings, calling_ae) for study_uid, rule in wanted]


def _study(
    study_uid: str, rule: Rule, trials: Sequence[Trial], settings: GatewaySettings, calling_ae: str | None
) -> StudyTrial:
    try:
        bundle = with_site_words(find_bundle(rule.bundle or ""), settings.channels)
    except BundleError as error:
        return StudyTrial(study_uid, rule, None, None, str(error))
    of_study = [one for one in trials if one.series.study_uid == study_uid]
    taken = [one.series for one in of_study if rules.takes(one.explanation, rule)]
    found = look(study_uid, taken, {one.series_uid: 1 for one in taken}, bundle, rule, Said())
    to = rules.destinations(rule, calling_ae, settings.peers) if rule.mode is not Mode.SHADOW else ()
    return StudyTrial(study_uid, rule, bundle, found, "" if found.missing is None else str(found.missing), to)


def try_rules(
    series: Iterable[Series], settings: GatewaySettings, calling_ae: str | None = None, called_ae: str | None = None
) -> list[Trial]:
    """Ask the rules about each series. calling_ae, called_ae: as if it came so; None where nobody has said."""
    several = SeveralChannels()
    trials = [_explained(one, settings, calling_ae, called_ae) for one in series]
    parted = [several.parted(one.rule) for one in trials]
    trials = [replace(one, alone=a, of_study=b) for one, (a, b) in zip(trials, parted, strict=True)]
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
        if trial.rule is not None and trial.rule.takes_one and trial.alone:
            rivals[trial.series.study_uid, trial.rule.name].append(trial)
    found: dict[str, str] = {}
    for group in rivals.values():
        rule = group[0].rule
        assert rule is not None
        found |= select([candidate(trial.facts) for trial in group], rule).passed_over
    return found


def _planned(trial: Trial, settings: GatewaySettings, calling_ae: str | None) -> Trial:
    rule = trial.rule
    if rule is None or not trial.alone:
        return trial
    bundles: list[str] = []
    refused: list[str] = []
    for one in trial.alone:
        try:
            found = (find_bundle(one.bundle),) if one.bundle else tuple(installed())
        except BundleError as error:
            refused.append(str(error))
            continue
        assume, explicit = one.assume_frame_of_reference, one.bundle is not None
        planned = plan([trial.series], found, explicit=explicit, assume_frame_of_reference=assume)
        bundles += [job.bundle.name for job in planned.jobs]
        refused += [str(some.error) for some in planned.refused]
    return replace(
        trial,
        bundles=tuple(bundles),
        refused=tuple(dict.fromkeys(refused)),
        destinations=rules.destinations(rule, calling_ae, settings.peers) if rule.mode is not Mode.SHADOW else (),
    )
