"""Settings that are allowed, and cannot work or do not do what they look like: said before the first study fails.

    rules --cases--> what each asks for, without `any` and lists --> never matches; always hidden by an earlier rule
    bundles          not here, do not load, expect nothing of what the rule takes
    peers            that are this gateway itself

Decisions are made from the settings and the bundles alone. What is doubted can be relied on; what is not is no proof.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword

from gateway.settings.model import Gateway, GatewaySettings, Mode, Peer, Rule
from gateway.settings.when import CALLED_AE, CALLING_AE
from medseg.allowed import shown
from medseg.bundle.bundle import Bundle
from medseg.bundle.catalog import find_bundle, installed
from medseg.bundle.channels import Channels
from medseg.conditions.clock import Ages, Moments
from medseg.conditions.patterns import ContrastPattern, Exactly, Glob, Pattern, PlanePattern, Range
from medseg.conditions.subjects import BODY_PART, SLICES, SUBJECTS
from medseg.conditions.terms import Condition, Either, Not, Term, conditions
from medseg.dicom.classes import IMAGES
from medseg.errors import BundleError

#: The bundles that a rule may take; raises BundleError where the one that it names cannot be used.
BundlesOf: TypeAlias = Callable[[Rule], Sequence[Bundle]]
Case: TypeAlias = tuple[Term, ...]

MOST_CASES: Final = 256
#: What is asked for and is no DICOM attribute has one value.
OWN: Final = {*SUBJECTS, CALLED_AE, CALLING_AE}
#: Modalities (PS3.3 C.7.3.1.1.1) of objects that are made of images and are none.
_NO_IMAGES = {"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "DOC", "REG", "FID", "AU", "ECG", "HD", "PLAN"}
_LONGEST = {"CS": 16, "SH": 16, "LO": 64}
_COMPARES = re.compile(r"\s*(?:[<>]=?|[=!]=?)\s*[\d.\"']|\s*!")
_OTHER_LANGUAGE = re.compile(r"\||\.\*|^\^|\$$|^/.*/$")


@dataclass(frozen=True)
class Doubt:
    """about: "rule ct" or "peer web". broken: it cannot work as it is; else somebody should look at it."""

    about: str
    found: str
    advice: str
    broken: bool = True

    def __str__(self) -> str:
        return f"{self.about}: {self.found}: {self.advice}"


def doubts(settings: GatewaySettings, bundles_of: BundlesOf) -> Iterator[Doubt]:
    """Everything that is to be doubted, in the order of the settings."""
    for peer in settings.peers:
        yield from of_peer(peer, settings.gateway)
    for number, rule in enumerate(settings.rules):
        yield from of_rule(rule, settings.rules[:number], settings, bundles_of)
    yield from _of_words(settings, bundles_of)


def loading() -> BundlesOf:
    """The bundles as they are now, each loaded once."""

    @cache
    def load(name: str | None) -> Sequence[Bundle]:
        return (find_bundle(name),) if name else installed()

    return lambda rule: load(rule.bundle)


def called(rule: Rule) -> str:
    """A rule as people speak of it; one without a name is named by its number."""
    return rule.name if rule.name.startswith("rule ") else f"rule {rule.name}"


def of_peer(peer: Peer, gateway: Gateway) -> Iterator[Doubt]:
    about = f"peer {peer.name}"
    places = {"127.0.0.1", "::1", "localhost", gateway.host}
    if peer.dicomweb is not None:
        web = urlsplit(peer.dicomweb)
        if web.port == gateway.http_port and web.hostname in places:
            yield Doubt(about, f"{peer.dicomweb} is this gateway itself", "name the address of the peer")
        return
    if peer.port == gateway.port and peer.host in places and {gateway.host} & (places | {"0.0.0.0", "::"}):
        yield Doubt(about, f"{peer.host}:{peer.port} is this gateway itself", "name the host and port of the peer")


def of_rule(rule: Rule, earlier: Sequence[Rule], settings: GatewaySettings, bundles_of: BundlesOf) -> Iterator[Doubt]:
    about = called(rule)
    cases = list(_cases(rule.when))
    possible = [case for case in cases if not _impossible(case, settings.gateway)]
    wrong = list(_of_conditions(rule, settings.gateway))
    yield from wrong
    if not possible:
        if not any(doubt.broken for doubt in wrong):
            yield Doubt(about, "no series can match it: its conditions rule each other out", "change one of them")
        return
    hiding = [next((one for one in earlier if _holds(case, one.when)), None) for case in possible]
    if None not in hiding:
        names = ", ".join(dict.fromkeys(one.name for one in hiding if one))
        yield Doubt(about, f"never asked: {names} takes every series that matches it", "put it before that rule")
    if rule.mode is Mode.OFF:
        return
    for one in rule.each:
        yield from _of_bundles(one, possible, bundles_of)
    if rule.mode is not Mode.SHADOW:
        yield from _of_destinations(rule, possible, settings)


def _of_conditions(rule: Rule, gateway: Gateway) -> Iterator[Doubt]:
    for condition in conditions(rule.when):
        for pattern in condition.wanted:
            about, what = called(rule), f"{condition.key} = {shown(getattr(pattern, 'text', ''))}"
            if why := _never(condition.subject, pattern, gateway):
                yield Doubt(about, f"{what} can never hold: {why}", f"change {condition.key}")
            elif why := _odd(condition.subject, pattern):
                yield Doubt(about, f"{what} {why}", f"see whether {condition.key} is what you mean", broken=False)


def _of_bundles(rule: Rule, cases: Iterable[Case], bundles_of: BundlesOf) -> Iterator[Doubt]:
    about = called(rule)
    try:
        bundles = [one for one in bundles_of(rule) if rule.bundle or one.channels is None]
    except (BundleError, OSError) as error:
        yield Doubt(about, str(error), "install or mend the bundle, or name another: `medseg bundles list`")
        return
    if not bundles:
        yield Doubt(about, "no bundle is installed", "name one, or put bundles into a folder of MEDSEG_BUNDLES")
        return
    yield from _of_channels(rule, bundles)
    reasons = [[_misfit(case, bundle) for bundle in bundles] for case in cases]
    misfits = [dict.fromkeys(filter(None, whys)) for whys in reasons if all(whys)]
    none_fits = len(misfits) == len(reasons)
    for why in dict.fromkeys("; ".join(whys) for whys in misfits):
        found = f"no result{'' if none_fits else ' for some series'}: {why}"
        yield Doubt(about, found, "name another bundle, or change the conditions", none_fits)


def _misfit(case: Case, bundle: Bundle) -> str:
    """Why no series of a case fits a bundle; empty where one may. What a series does not say counts as fitting."""
    if bundle.channels is not None:
        return _misfit_of_channels(case, bundle.name, bundle.channels)
    expects = bundle.expects
    for subject, expected in (("Modality", expects.modality), (BODY_PART, expects.body_part)):
        asked = [one for one in _of_subject(case, subject) if not any(pattern.admits("") for pattern in one.wanted)]
        ways = [(*case, Condition(subject, subject, (Glob(value),))) for value in expected]
        if ways and (asked or subject == "Modality") and all(map(_contradicts, ways)):
            wanted = " and ".join(f"{one.key} = {' or '.join(map(str, one.wanted))}" for one in asked) or subject
            return f"{wanted}, and bundle {bundle.name} expects {' or '.join(expected)}"
    for condition in _of_subject(case, SLICES):
        most = max((one.high for one in condition.wanted if isinstance(one, Range)), default=0)
        if most < expects.min_slices:
            return f"at most {most:g} slices, and bundle {bundle.name} expects {expects.min_slices} or more"
    return ""


def _misfit_of_channels(case: Case, name: str, channels: Channels) -> str:
    """Why no series of a case is any channel of a bundle; empty where one may be."""
    expected = {modality for one in channels.each for modality in one.modality}
    ways = [(*case, Condition("Modality", "Modality", (Glob(value),))) for value in sorted(expected)]
    if ways and all(one.modality for one in channels.each) and all(map(_contradicts, ways)):
        wanted = " and ".join(
            f"{one.key} = {' or '.join(map(str, one.wanted))}" for one in _of_subject(case, "Modality")
        )
        return f"{wanted or 'Modality'}, and the channels of bundle {name} are {' or '.join(sorted(expected))}"
    return ""


def _of_channels(rule: Rule, bundles: Sequence[Bundle]) -> Iterator[Doubt]:
    """What a rule says that goes with bundles of one channel, or of several."""
    several = rule.bundle is not None and any(bundle.channels is not None for bundle in bundles)
    if several and rule.takes_one:
        how = f"prefer = {shown(rule.prefer)}" if rule.prefer else f"select = {shown(rule.select)}"
        found = f"{how} does not choose among the channels of bundle {bundles[0].name}"
        yield Doubt(called(rule), found, "leave it out: the bundle's `prefer` does", broken=False)


def _of_words(settings: GatewaySettings, bundles_of: BundlesOf) -> Iterator[Doubt]:
    """Words of a site's own for channels that no bundle of a rule has."""
    known: dict[str, Channels | None] = {}
    for rule in (one for several in settings.rules for one in several.each):
        with suppress(BundleError, OSError):
            known |= {bundle.name: bundle.channels for bundle in bundles_of(rule) if rule.bundle}
    for name, channels in settings.channels.items():
        has = known.get(name)
        for channel in channels:
            about = f"channels.{name}.{channel}"
            if has is None:
                yield Doubt(about, "no rule names a bundle of several channels of that name", "change it", broken=False)
            elif channel not in has.names:
                yield Doubt(about, f"bundle {name} has no such channel", f"its channels are {', '.join(has.names)}")


def _of_destinations(rule: Rule, cases: Iterable[Case], settings: GatewaySettings) -> Iterator[Doubt]:
    about = called(rule)
    if rule.send_to == ():
        yield Doubt(about, "its results are sent to nobody", "name peers in send_to", broken=False)
    if rule.send_to is None:
        callers = _callers(cases, settings.gateway)
        known = {peer.ae_title for peer in settings.peers if peer.ae_title}
        if not known or (callers is not None and not callers & known):
            whom = f"no peer is called {' or '.join(sorted(callers))}" if callers and known else "there is no peer"
            advice = "name the peer in send_to, or add a [[peer]] with the caller's AE title"
            yield Doubt(about, f"results stay here: {whom}", advice, broken=False)


def _callers(cases: Iterable[Case], gateway: Gateway) -> set[str] | None:
    """The AE titles that may send what a rule takes; None where anybody may."""
    everybody = None if gateway.allow_any_caller else {caller.ae_title for caller in gateway.allow_callers}
    found: set[str] = set()
    for case in cases:
        asked = [pattern.text for condition in _of_subject(case, CALLING_AE) for pattern in condition.wanted]
        if not asked and everybody is None:
            return None
        found |= set(asked) or everybody or set()
    return found


# ---- one condition


def _never(subject: str, pattern: Pattern, gateway: Gateway) -> str:
    """Why no series can have what a pattern wants; empty where one may."""
    match pattern:
        case Glob(text=text) if text != text.strip():
            return "values have no blanks at their ends"
        case Glob(text=text) if "\\" in text:
            return "a backslash parts values, which are looked at each by itself"
        case Glob(text=text) if subject == "Modality" and text.upper() in _NO_IMAGES:
            return "objects of this modality are no images"
        case Glob(text=text) if _COMPARES.match(text) or (_vr(subject) == "CS" and re.search(r"[|,;()$^]", text)):
            return "texts do not compare, only * stands for anything: several are a list, others than some are a `not`"
        case Exactly(text=text) if subject == "SOPClassUID" and text not in IMAGES:
            return "instances of this class are no images to segment"
        case Exactly(text=text) if _vr(subject) == "UI" and not re.fullmatch(r"[0-9.]{1,64}", text):
            return "a UID has digits and dots, at most 64"
        case Exactly(text=text) if subject == CALLING_AE and not gateway.allow_any_caller:
            allowed = any(caller.ae_title == text for caller in gateway.allow_callers)
            return "" if allowed else "allow_callers does not let it in"
        case Range(high=high) if subject == SLICES and (high < 1 or (pattern.open and high <= 1)):
            return "there is no such number of slices"
        case Range(high=high) if subject == "SliceThickness" and (high < 0 or (pattern.open and high <= 0)):
            return "no slice is so thin"
    return ""


def _odd(subject: str, pattern: Pattern) -> str:
    """Why a pattern may not be what was meant; empty where nothing is to be said."""
    if not isinstance(pattern, Glob):
        return ""
    if pattern.text and not pattern.text.strip("*"):
        return "compares nothing: it holds for every series"
    longest = _LONGEST.get(_vr(subject))
    if longest and len(pattern.text.replace("*", "")) > longest:
        return f"is longer than the {longest} characters that a value may have"
    if _OTHER_LANGUAGE.search(pattern.text):
        return "is compared as a text in which only * stands for anything"
    return ""


def _vr(subject: str) -> str:
    if subject in OWN:
        return "CS" if subject == BODY_PART else ""
    tag = tag_for_keyword(subject)
    return "" if tag is None else dictionary_VR(tag)


# ---- what follows from what


def _cases(terms: Iterable[Term]) -> Iterator[Case]:
    """The terms without `any` and without lists: one case for each way to meet them. Not parted where they are many."""
    choices = [_choices(term) for term in terms]
    size = 1
    for choice in choices:
        size *= len(choice)
    if size > MOST_CASES:
        yield tuple(terms)
        return
    for chosen in product(*choices):
        yield tuple(term for part in chosen for term in part)


def _choices(term: Term) -> list[Case]:
    match term:
        case Condition():
            return [(Condition(term.key, term.subject, (pattern,)),) for pattern in term.wanted]
        case Either():
            return [case for way in term.ways for case in _cases(way)]
    return [(term,)]


def _holds(case: Case, terms: Iterable[Term]) -> bool:
    """Whether all terms hold for certain where all of a case does."""
    return all(_follows(case, term) for term in terms)


def _follows(case: Case, term: Term) -> bool:
    match term:
        case Condition():
            return _compares_nothing(term) or any(
                all(any(wide.covers(narrow) for wide in term.wanted) for narrow in known.wanted)
                for known in _of_subject(case, term.subject)
            )
        case Either():
            return any(_holds(case, way) for way in term.ways)
    negated = (known for known in case if isinstance(known, Not))
    return any(_holds(term.terms, known.terms) for known in negated) or any(
        _exclude(known, inner)
        for inner in term.terms
        if isinstance(inner, Condition)
        for known in _of_subject(case, inner.subject)
    )


def _impossible(case: Case, gateway: Gateway) -> bool:
    """Whether not all of a case can hold."""
    known = [term for term in case if isinstance(term, Condition)]
    return any(all(_never(one.subject, pattern, gateway) for pattern in one.wanted) for one in known) or _contradicts(
        case
    )


def _contradicts(case: Case) -> bool:
    """Whether a part of a case rules out another."""
    known = [term for term in case if isinstance(term, Condition)]
    return any(_exclude(one, other) for one in known for other in known) or any(
        _holds(case, term.terms) for term in case if isinstance(term, Not)
    )


def _exclude(one: Condition, other: Condition) -> bool:
    """Whether two conditions on a single value cannot both hold."""
    tag = tag_for_keyword(one.subject)
    single = one.subject in OWN or (tag is not None and dictionary_VM(tag) == "1")
    if one.subject != other.subject or not single:
        return False
    return all(_disjoint(first, second) for first in one.wanted for second in other.wanted)


def _disjoint(one: Pattern, other: Pattern) -> bool:
    for narrow, wide in ((one, other), (other, one)):
        literal = isinstance(narrow, Exactly) or (isinstance(narrow, Glob) and "*" not in narrow.text)
        if literal:
            return wide.admits(narrow.text) is False
    if isinstance(one, PlanePattern) and isinstance(other, PlanePattern):
        return one.excludes(other)
    if isinstance(one, ContrastPattern):
        return one != other
    if isinstance(one, Range) and isinstance(other, Range):
        return one.high < other.low or other.high < one.low
    if isinstance(one, Moments) and isinstance(other, Moments):
        return one.high < other.low or other.high < one.low
    if isinstance(one, Ages) and isinstance(other, Ages) and one.unit == other.unit:
        return one.high < other.low or other.high < one.low
    return False


def _compares_nothing(condition: Condition) -> bool:
    return any(isinstance(one, Glob) and one.text != "" and not one.text.strip("*") for one in condition.wanted)


def _of_subject(case: Iterable[Term], subject: str) -> list[Condition]:
    return [term for term in case if isinstance(term, Condition) and term.subject == subject]
