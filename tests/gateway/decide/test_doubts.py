"""Doubts about settings: each of its kind, none about settings that work, and true of whatever series may come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.decide.doubts import Doubt, doubts, loading
from gateway.decide.rules import SeriesFacts
from gateway.settings.model import GatewaySettings, Rule
from gateway.settings.read import read_settings
from medseg.bundle.channels import Channel, Channels
from medseg.bundle.load import load_bundle
from medseg.conditions import findings as conditions
from medseg.conditions.findings import ConditionVerdict
from medseg.conditions.terms import Condition, Either, Not, Term, form_of
from tests.medseg.bundle.zoo import spleen_like

PACS = '[[peer]]\nname = "pacs"\nae_title = "PACS"\nhost = "10.0.0.1"\nport = 104\n'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that expects CT."""
    return spleen_like(tmp_path_factory.mktemp("bundles") / "spleen_test")


def settings(text: str) -> GatewaySettings:
    return read_settings(text, Path("/etc/medseg"))


def found(text: str) -> list[Doubt]:
    return list(doubts(settings(text), loading()))


def rule(when: str, bundle: str | Path = "hippocampus_t1_unet3d", more: str = 'send_to = ["pacs"]') -> str:
    return f'[[rule]]\nwhen = {{ {when} }}\nbundle = "{bundle}"\n{more}\n'


def test_settings_that_work_are_not_doubted(bundle: Path) -> None:
    text = (
        '[gateway]\nallow_callers = ["CT01", "PACS"]\n'
        + PACS
        + rule('modality = "mr", body_part = ["HEAD", "BRAIN"], StudyDate = ">=20260101", calling_ae = "PACS"')
        + rule('modality = "MR", slices = ">=20", not = { series_description = "*scout*" }')
        + rule('modality = "MR"')
        + rule('modality = "CT", any = [{ plane = "axial" }, { slices = ">=40" }]', bundle)
        + rule('SOPClassUID = "1.2.840.10008.5.1.4.1.1.2", series_description = "<MPR Collection>"', bundle)
        + '[[rule]]\nwhen = { PatientID = "QA*" }\nmode = "off"\n'
    )
    assert found(text) == []


def test_a_bundle_that_is_not_there_or_does_not_load(bundle: Path, tmp_path: Path) -> None:
    (missing,) = found(PACS + rule('modality = "CT"', "liver_ct"))
    assert missing.broken and "liver_ct" in missing.found and "medseg bundles list" in missing.advice
    (away,) = found(PACS + rule('modality = "CT"', tmp_path / "nowhere"))
    assert away.broken and str(tmp_path / "nowhere") in away.found
    (tmp_path / "empty").mkdir()
    (empty,) = found(PACS + rule('modality = "CT"', tmp_path / "empty"))
    assert empty.broken and "no such file" in empty.found
    assert not found(PACS + rule('modality = "CT"', "liver_ct", 'mode = "off"'))  # nobody looks for it


@pytest.mark.parametrize(
    ("when", "words", "broken"),
    [
        ('modality = "CT"', ['modality = "CT"', "expects MR"], True),
        ('modality = ["CT", "MR"]', ["for some series", 'modality = "CT"'], False),
        ('not = { modality = "M*" }', ["expects MR"], True),
        ('any = [{ modality = "CT" }, { modality = "PT" }]', ["expects MR"], True),
        ('modality = "MR", body_part = "ABDOMEN"', ['body_part = "ABDOMEN"', "HEAD or BRAIN"], True),
        ('modality = "MR", slices = "<10"', ["at most 10 slices", "16 or more"], True),
    ],
)
def test_what_no_bundle_of_the_rule_expects(when: str, words: list[str], broken: bool) -> None:
    doubt = found(PACS + rule(when))[0]
    assert doubt.broken is broken and "no result" in doubt.found
    assert all(word in doubt.found for word in words)


def test_a_default_bundle_is_looked_for_among_all(bundle: Path) -> None:
    text = PACS + '[[rule]]\nwhen = { modality = "US" }\nsend_to = ["pacs"]\n'
    (doubt,) = found(text)
    assert "hippocampus_t1_unet3d expects MR" in doubt.found
    assert not found(text.replace("US", "MR"))


@pytest.mark.parametrize(
    ("text", "broken", "words"),
    [
        (rule('modality = "US"', "two"), True, "the channels of bundle spleen_like are CT or PT"),
        (rule('modality = "PT"', "two", 'select = "thinnest"'), False, "does not choose among the channels"),
        (
            rule('modality = "PT"', "two") + "[channels.spleen_like.MR]\n",
            True,
            "bundle spleen_like has no such channel",
        ),
        (rule('modality = "PT"', "two") + "[channels.brats.MR]\n", False, "no rule names a bundle of several"),
        (rule('modality = "PT"', "two") + "[channels.spleen_like.CT]\n", None, ""),
    ],
)
def test_a_bundle_of_several_channels(text: str, broken: bool | None, words: str, bundle: Path) -> None:
    channels = Channels((Channel("CT", ("CT",)), Channel("PET", ("PT",))), "CT")
    two = replace(load_bundle(bundle), name="spleen_like", channels=channels)
    doubted = list(doubts(settings(PACS + text), lambda _: (two,)))
    assert [one.broken for one in doubted] == ([] if broken is None else [broken])
    assert all(words in str(one) for one in doubted)


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ('modality = "CT|MR"', ["can never hold", "several are a list"]),
        ('modality = "!MR"', ["`not`"]),
        ('series_description = ">=5"', ["texts do not compare"]),
        ('series_description = "!scout"', ["`not`"]),
        ('series_description = " T1"', ["no blanks at their ends"]),
        (r'ImageType = "ORIGINAL\\PRIMARY"', ["backslash parts values"]),
        ('modality = "SEG"', ["no images"]),
        ('SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"', ["no images"]),
        ('SOPClassUID = "CT Image Storage"', ["no images"]),
        ('FrameOfReferenceUID = "1.2.x"', ["digits and dots"]),
        ('slices = "<1"', ["no such number of slices"]),
        ('slices = "<=0"', ["no such number of slices"]),
        ('slice_thickness_mm = "<0"', ["no slice is so thin"]),
        ('calling_ae = "CT02"', ["allow_callers"]),
        ('modality = "MR", any = [{ modality = "CT" }]', ["rule each other out"]),
        ('modality = "MR", not = { modality = "M*" }', ["rule each other out"]),
        ('slices = ">=20", any = [{ slices = "<9" }]', ["rule each other out"]),
        ('StudyDate = ">=2026", any = [{ StudyDate = "<2025" }]', ["rule each other out"]),
        ('plane = "axial", any = [{ plane = "coronal" }]', ["rule each other out"]),
    ],
)
def test_conditions_that_can_never_hold(when: str, words: list[str]) -> None:
    (doubt,) = found('[gateway]\nallow_callers = ["CT01"]\n' + PACS + rule(when))
    assert doubt.broken and all(word in doubt.found for word in words)


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ('modality = "MR", series_description = "*"', "holds for every series"),
        ('modality = "MR", protocol = "head|neck"', "compared as a text"),
        ('modality = "MR", protocol = "^t1.*"', "compared as a text"),
        ('modality = "MR", StationName = "THE_NAME_OF_A_STATION"', "16 characters"),
    ],
)
def test_conditions_that_may_not_be_meant_so(when: str, words: str) -> None:
    (doubt,) = found(PACS + rule(when))
    assert not doubt.broken and words in doubt.found


@pytest.mark.parametrize(
    ("first", "second", "hidden"),
    [
        ("", 'modality = "MR"', True),
        ('modality = "MR"', 'modality = "MR"', True),
        ('modality = "M*"', 'modality = "MR", slices = ">=20"', True),
        ('modality = ["MR", "CT"]', 'modality = "MR"', True),
        ('modality = "MR"', 'modality = ["MR", "CT"]', False),
        ('modality = "MR", slices = ">=20"', 'modality = "MR"', False),
        ('slices = ">=20"', 'slices = ">=40", modality = "MR"', True),
        ('slices = ">=20"', 'slices = "19..40", modality = "MR"', False),
        ('StudyDate = ">=2026"', 'StudyDate = "20260101-20261231", modality = "MR"', True),
        ('PatientAge = ">=18"', 'PatientAge = ">=65", modality = "MR"', True),
        ('PatientAge = ">=18"', 'PatientAge = ">=12", modality = "MR"', False),
        ('any = [{ modality = "MR" }, { modality = "CT" }]', 'modality = "MR"', True),
        ('modality = "MR"', 'any = [{ modality = "MR", slices = 20 }, { modality = "MR", plane = "axial" }]', True),
        ('not = { modality = "CT" }', 'modality = "MR"', True),
        ('not = { modality = "CT" }', 'not = { modality = "C*" }, modality = "MR"', True),
        ('not = { series_description = "*scout*" }', 'modality = "MR"', False),
        ('not = { series_description = "*scout*" }', 'modality = "MR", series_description = "scout"', False),
        ('not = { ImageType = "DERIVED" }', 'ImageType = "ORIGINAL", modality = "MR"', False),  # of several values
        ('series_description = "*"', 'modality = "MR"', True),
        ('calling_ae = "CT01"', 'calling_ae = "CT02", modality = "MR"', False),
    ],
)
def test_a_rule_that_an_earlier_one_hides(first: str, second: str, hidden: bool) -> None:
    told = found(PACS + rule(first) + rule(second))
    assert any("rule 2: never asked: rule 1 takes" in str(doubt) for doubt in told) is hidden


def test_several_rules_hide_one_together() -> None:
    told = found(
        PACS + rule('modality = "MR"') + rule('slices = ">=20"') + rule('any = [{ modality = "MR" }, { slices = 30 }]')
    )
    assert "rule 3: never asked: rule 1, rule 2 takes every series" in "\n".join(map(str, told))


def test_a_peer_that_is_this_gateway_itself() -> None:
    own = PACS.replace("10.0.0.1", "localhost").replace("104", "11112") + rule('modality = "MR"')
    assert "this gateway itself" in found(own)[0].found


def test_results_that_stay_here() -> None:
    mr = '[[rule]]\nwhen = { modality = "MR" }\nbundle = "hippocampus_t1_unet3d"\n'
    (nobody,) = found(mr)
    assert not nobody.broken and "there is no peer" in nobody.found
    assert not found(PACS + mr)  # anybody may call: the PACS, too
    (other,) = found('[gateway]\nallow_callers = ["CT01"]\n' + PACS + mr)
    assert "no peer is called CT01" in other.found
    assert not found('[gateway]\nallow_callers = ["CT01", "PACS"]\n' + PACS + mr)
    assert not found(mr + 'mode = "shadow"\n')
    (empty,) = found(PACS + mr + "send_to = []\n")
    assert "sent to nobody" in empty.found


# Whatever is said of rules is true of every series.

WANTED: dict[str, list[Any]] = {
    "modality": ["MR", "M*", "CT", "*", ["MR", "CT"]],
    "slices": [">=20", "<20", 30, "10..25"],
    "StudyDate": [">=2026", "<2026", "20260101-20260630"],
    "ImageType": ["ORIGINAL", "DERIVED"],
}
leaf = st.sampled_from(sorted(WANTED)).flatmap(
    lambda key: st.sampled_from(WANTED[key]).map(lambda value: _condition(key, value))
)


def _condition(key: str, value: Any) -> Condition:
    form, items = form_of(key), value if isinstance(value, list) else [value]
    assert form is not None
    return Condition(key, {"modality": "Modality"}.get(key, key), tuple(form.read(item) for item in items))


def several(terms: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(terms, min_size=1, max_size=2).map(tuple)


terms: st.SearchStrategy[Term] = st.recursive(
    leaf, lambda inner: several(inner).map(Not) | several(several(inner)).map(Either), max_leaves=4
)
SERIES = [
    SeriesFacts("1", "2", "", {"Modality": modality, "StudyDate": day, "ImageType": kind}, "CT01", "MEDSEG", slices)
    for modality in (("MR",), ("CT",), ("US",), ())
    for slices in (5, 15, 20, 30)
    for day in (("20251231",), ("20260301",), ("20261201",), ())
    for kind in (("ORIGINAL",), ("DERIVED",), ("ORIGINAL", "DERIVED"), ())
]


def matches(rule: Rule, facts: SeriesFacts) -> bool:
    return conditions.together(conditions.findings_of(rule.when, facts)) is ConditionVerdict.HOLDS


@hypothesis_settings(deadline=None, max_examples=150)
@given(several(terms), several(terms))
def test_what_is_said_to_be_hidden_or_impossible_is_so(first: tuple[Term, ...], second: tuple[Term, ...]) -> None:
    one, two = Rule("one", when=first, send_to=()), Rule("two", when=second, send_to=())
    told = "\n".join(map(str, doubts(GatewaySettings(rules=(one, two)), lambda _: ())))
    for facts in SERIES:
        if "rule two: never asked" in told and matches(two, facts):
            assert matches(one, facts)
        for name, rule in (("one", one), ("two", two)):
            if f"rule {name}: no series can match" in told:
                assert not matches(rule, facts)
