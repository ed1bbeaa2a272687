"""Conditions: dates, times, ages, planes, `not` and `any`, and what is not known; beside Python's dates and logic."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage

from gateway.decide.rules import SeriesFacts, choose, explain, keywords, series_facts
from gateway.settings.model import Rule
from gateway.settings.read import InvalidSettings, read_settings
from medseg.conditions.findings import ConditionVerdict, findings_of
from medseg.conditions.patterns import AGES, DATE_TIMES, DATES, TIMES
from medseg.conditions.terms import Either, Not, Term, conditions
from tests.medseg.dicom.test_planes import turned

HOLDS, FAILS, UNKNOWN, OPEN = (
    ConditionVerdict.HOLDS,
    ConditionVerdict.FAILS,
    ConditionVerdict.UNKNOWN,
    ConditionVerdict.OPEN,
)


def rules(when: str) -> tuple[Rule, ...]:
    return read_settings(f'[[rule]]\nname = "a"\nwhen = {{ {when} }}\n', Path("/etc")).rules


def facts(of: tuple[Rule, ...], slices: int | None = 30, **tags: Any) -> SeriesFacts:
    made = Dataset()
    for keyword, value in (
        {"SOPClassUID": CTImageStorage, "Modality": "CT", "SeriesInstanceUID": "1.2"} | tags
    ).items():
        setattr(made, keyword, value)
    return series_facts(made, of, calling_ae="CT01", called_ae="MEDSEG", slices=slices)


def verdict(when: str, slices: int | None = 30, **tags: Any) -> ConditionVerdict:
    made = rules(when)
    return explain(facts(made, slices, **tags), made).decisions[0].verdict


def lines(when: str, **tags: Any) -> list[str]:
    made = rules(when)
    return list(explain(facts(made, **tags), made).lines())


# Dates and times.


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        ("20260131", ["20260131", "2026.01.31"], ["20260130", "20260201"]),
        ("2026", ["20260101", "20261231"], ["20251231", "20270101"]),
        ("2026*", ["20260615"], ["20250615"]),
        ("202602", ["20260201", "20260228"], ["20260131", "20260301"]),
        ("202402", ["20240229"], ["20240301"]),  # a leap year
        (">=20260101", ["20260101", "20991231"], ["20251231"]),
        (">20260101", ["20260102"], ["20260101"]),
        ("> 2026", ["20270101"], ["20261231"]),
        ("<=20260101", ["20260101", "18950101"], ["20260102"]),
        ("<20260101", ["20251231"], ["20260101"]),
        ("20260101-20261231", ["20260101", "20261231"], ["20251231", "20270101"]),
        ("20260101-", ["20260101", "20300101"], ["20251231"]),
        ("-20261231", ["20261231"], ["20270101"]),
        ("2025-2026", ["20250101", "20261231"], ["20241231"]),
    ],
)
def test_dates(wanted: str, inside: list[str], outside: list[str]) -> None:
    pattern = DATES.read(wanted)
    assert all(pattern.admits(value) is True for value in inside)
    assert all(pattern.admits(value) is False for value in outside)
    assert all(pattern.admits(value) is None for value in ("", "20261301", "20260230", "UNKNOWN", "0", "today"))


@pytest.mark.parametrize(
    "wrong",
    [
        ">=", "", "*", "-", "2026-01-01", "20261301", "20260230", ">=abc", "20261231-20260101", "=20260101", "== 2026",
        ">=20260101-20261231", ">=2026*", "between 2025 and 2026", "20260101..20261231", "26", 20260101, True, None,
        "20260101-20260201-20260301", "9999999999",
    ],
)  # fmt: skip
def test_what_is_no_date(wrong: Any) -> None:
    with pytest.raises(ValueError):
        DATES.read(wrong)


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        ("07", ["07", "0700", "075959.999999", "07:30:00"], ["065959", "080000"]),
        ("0730", ["073000", "073059.5"], ["073100"]),
        (">=1900", ["190000", "235960"], ["185959.999999"]),
        ("<0700", ["065959", "000000.0001"], ["070000"]),
        ("0700-1859", ["070000", "185959.9"], ["190000", "065959"]),
        ("101500.25", ["101500.25"], ["101500.26", "101500"]),
    ],
)
def test_times(wanted: str, inside: list[str], outside: list[str]) -> None:
    pattern = TIMES.read(wanted)
    assert all(pattern.admits(value) is True for value in inside)
    assert all(pattern.admits(value) is False for value in outside)
    assert all(pattern.admits(value) is None for value in ("", "250000", "1", "noon", "106000"))


def test_times_over_midnight_are_two_ranges() -> None:
    with pytest.raises(ValueError):
        TIMES.read("2200-0600")
    night = 'StudyTime = [">=22", "<06"]'
    assert [verdict(night, StudyTime=time) for time in ("2330", "0559", "0600", "2159")] == [HOLDS, HOLDS, FAILS, FAILS]


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        ("20260131", ["20260131", "202601312359", "20260131235959.999999+0100"], ["20260201", "202601"]),
        (">=202601311030", ["20260131103000-0500"], ["20260131102959.999"]),
        ("20260101-20261231", ["20261231235959"], ["20270101000000"]),
    ],
)
def test_dates_with_times(wanted: str, inside: list[str], outside: list[str]) -> None:
    pattern = DATE_TIMES.read(wanted)
    assert all(pattern.admits(value) is True for value in inside)
    assert all(pattern.admits(value) is False for value in outside)


days = st.dates(date(1900, 1, 1), date(2199, 12, 31))


@hypothesis_settings(deadline=None)
@given(days, days, st.sampled_from(["<", "<=", ">", ">=", ""]))
def test_dates_compare_as_dates(value: date, bound: date, sign: str) -> None:
    answers = {"<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound, "": value == bound}
    assert DATES.read(f"{sign}{bound:%Y%m%d}").admits(f"{value:%Y%m%d}") is answers[sign]
    assert DATE_TIMES.read(f"{sign}{bound:%Y%m%d}").admits(f"{value:%Y%m%d}") is answers[sign]


# Ages.


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        (">=18", ["018Y", "216M", "099Y"], ["017Y", "215M", "012M", "001D"]),
        ("<18", ["017Y", "000D", "215M"], ["018Y"]),
        (">18", ["019Y"], ["018Y", "227M"]),
        ("<=17", ["017Y", "215M"], ["018Y"]),
        ("1", ["012M", "023M", "001Y"], ["024M", "011M"]),
        (18, ["018Y"], ["017Y", "019Y"]),
        ("018Y", ["018Y"], ["017Y"]),
        ("<6M", ["005M", "020W", "179D"], ["006M", "001Y"]),
        (">=2W", ["002W", "014D", "001M"], ["013D", "001W"]),
        ("2..17", ["002Y", "017Y", "024M"], ["001Y", "023M", "018Y"]),
        ("6M..2Y", ["006M", "002Y", "035M"], ["005M", "003Y"]),
    ],
)
def test_ages(wanted: Any, inside: list[str], outside: list[str]) -> None:
    pattern = AGES.read(wanted)
    assert all(pattern.admits(value) is True for value in inside)
    assert all(pattern.admits(value) is False for value in outside)
    assert all(pattern.admits(value) is None for value in ("", "18", "ADULT", "18 years", "20260101-19990101", "-"))


@pytest.mark.parametrize(
    "wrong", ["", ">=", "adult", ">=18.5", 18.5, True, None, "17..2", "0*Y", "<0", "1W..2Y", "-5", "1000Y", [18]]
)
def test_what_is_no_age(wrong: Any) -> None:
    with pytest.raises(ValueError):
        AGES.read(wrong)


@hypothesis_settings(deadline=None)
@given(days, st.integers(0, 40_000), st.integers(0, 110), st.sampled_from(["<", "<=", ">", ">=", ""]))
def test_the_age_at_the_study_is_what_birthdays_say(born: date, lived: int, years: int, sign: str) -> None:
    then = born + timedelta(days=lived)
    birthdays = sum((then.month, then.day) >= (born.month, born.day) if year == then.year else True
                    for year in range(born.year + 1, then.year + 1))  # fmt: skip
    answers = {"<": birthdays < years, "<=": birthdays <= years, ">": birthdays > years, ">=": birthdays >= years}
    wanted = f"{sign}{years}"
    if wanted == "<0":
        return
    found = verdict(f'PatientAge = "{wanted}"', PatientBirthDate=f"{born:%Y%m%d}", StudyDate=f"{then:%Y%m%d}")
    assert found is (HOLDS if answers.get(sign, birthdays == years) else FAILS)


def test_a_stated_age_goes_before_the_dates() -> None:
    dates = {"PatientBirthDate": "20000101", "StudyDate": "20260101"}
    assert verdict('PatientAge = ">=18"', **dates) is HOLDS
    assert verdict('PatientAge = ">=18"', PatientAge="017Y", **dates) is FAILS
    assert verdict('PatientAge = ">=18"', PatientAge="", **dates) is HOLDS
    assert verdict('PatientAge = ">=18"', PatientBirthDate="20000101") is UNKNOWN
    assert verdict('PatientAge = ">=18"', PatientBirthDate="20270101", StudyDate="20260101") is UNKNOWN
    made = rules('PatientAge = ">=18"')
    assert keywords(made) == {"PatientAge", "PatientBirthDate", "StudyDate"}


@pytest.mark.parametrize("tags", [{"PatientAge": "017Y"}, {"PatientBirthDate": "20111213", "StudyDate": "20260203"}])
def test_no_explanation_tells_an_age_or_a_date(tags: dict[str, str]) -> None:
    told = "\n".join(lines('PatientAge = ">=18", StudyDate = "<2026"', **tags))
    assert "PatientAge: the value is not >=18" in told
    assert not any(value in told for value in tags.values())


# Planes.


def test_planes_as_conditions() -> None:
    axial, upright = {"ImageOrientationPatient": turned(0)}, {"ImageOrientationPatient": turned(90)}
    assert verdict('plane = "axial"', **axial) is HOLDS
    assert verdict('plane = ["sagittal", "coronal"]', **axial) is FAILS
    assert verdict('plane = ["sagittal", "coronal"]', **upright) is HOLDS
    assert verdict('plane = "axial"') is verdict('not = { plane = "axial" }') is UNKNOWN
    assert lines('plane = "axial"', **upright) == ["a: does not match", '  plane: coronal is not "axial"']
    assert lines('plane = "axial"')[1] == '  plane: there is nothing to compare with "axial"'


def test_multi_frame_images_are_asked_by_their_first_frame() -> None:
    measures, orientation, frame, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.SliceThickness = "1.5"
    orientation.ImageOrientationPatient = turned(0, start="sagittal")
    shared.PixelMeasuresSequence = [measures]
    frame.PlaneOrientationSequence = [orientation]
    made = rules('plane = "sagittal", slice_thickness_mm = "<2"')
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.SOPClassUID, header.SeriesInstanceUID = EnhancedMRImageStorage, "1.2"
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = [shared], [frame, frame]
    assert choose(series_facts(header, made, slices=1), made) == made[0]
    header.SharedFunctionalGroupsSequence = []
    assert choose(series_facts(header, made, slices=1), made) is None


def test_planes_within_some_degrees() -> None:
    turned_20 = {"ImageOrientationPatient": turned(20)}
    found = {wanted: verdict(f'plane = "{wanted}"', **turned_20) for wanted in ("axial", "axial 10", "oblique 10")}
    assert found == {"axial": HOLDS, "axial 10": FAILS, "oblique 10": HOLDS}
    assert lines('plane = "axial 10"', **turned_20)[1] == '  plane: axial, 20 degrees out of axial, is not "axial 10"'


@pytest.mark.parametrize(
    ("tags", "given", "none", "not_known"),
    [
        ({"ContrastBolusAgent": "Gadovist"}, HOLDS, FAILS, FAILS),
        ({"ContrastBolusAgent": "none"}, FAILS, HOLDS, FAILS),
        ({"ContrastBolusAgent": ""}, UNKNOWN, UNKNOWN, HOLDS),
        ({}, UNKNOWN, UNKNOWN, HOLDS),
        ({"ContrastBolusVolume": "0"}, UNKNOWN, UNKNOWN, HOLDS),
        ({"ContrastBolusVolume": "80.5"}, HOLDS, FAILS, FAILS),
    ],
)
def test_contrast(
    tags: dict[str, str], given: ConditionVerdict, none: ConditionVerdict, not_known: ConditionVerdict
) -> None:
    found = [verdict(f'contrast = "{wanted}"', **tags) for wanted in ("given", "none", "not known")]
    assert found == [given, none, not_known]


def region(value: str, scheme: str = "SCT", meaning: str = "") -> list[Dataset]:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return [code]


@pytest.mark.parametrize(
    ("wanted", "tags", "expected"),
    [
        ('"HEAD"', {"BodyPartExamined": "HEAD"}, HOLDS),
        ('"SCT:69536005"', {"BodyPartExamined": "HEAD"}, HOLDS),
        ('"SCT:69536005"', {"AnatomicRegionSequence": region("T-D1100", "SRT")}, HOLDS),
        ('"HEAD"', {"AnatomicRegionSequence": region("69536005")}, HOLDS),
        ('"*tail*"', {"AnatomicRegionSequence": region("1", "99X", "Tail of it")}, HOLDS),
        ('["NECK", "SCT:818981001"]', {"BodyPartExamined": "HEAD"}, FAILS),
        ('"SCT:69536005"', {"BodyPartExamined": "somewhere"}, UNKNOWN),  # a text of no known code
        ('"SCT:69536005"', {}, UNKNOWN),
        ('"HEAD"', {}, FAILS),  # an absent text is an empty one
    ],
)
def test_body_parts_by_text_or_code(wanted: str, tags: dict[str, Any], expected: ConditionVerdict) -> None:
    assert verdict(f"body_part = {wanted}", **tags) is expected


def test_neither_a_date_nor_what_it_is_compared_with_is_told() -> None:
    assert lines('StudyDate = "20260131"', StudyDate="20260131")[1] == "  StudyDate: the value is what is asked for"


def test_real_planes(shared_data: Path) -> None:
    (first, *_) = sorted((shared_data / "dicom" / "mr_siemens_hfs_t1_sag").iterdir())
    made = rules('plane = "sagittal"')
    assert choose(series_facts(pydicom.dcmread(first, stop_before_pixels=True), made), made) == made[0]


# Not, any, and what is not known.


@pytest.mark.parametrize(
    ("when", "tags", "expected"),
    [
        ('modality = "CT", not = { series_description = "*scout*" }', {"SeriesDescription": "Scout 1"}, FAILS),
        ('modality = "CT", not = { series_description = "*scout*" }', {"SeriesDescription": "Abdomen"}, HOLDS),
        ('modality = "CT", not = { series_description = "*scout*" }', {}, HOLDS),  # an absent text is an empty one
        ('not = { series_description = "" }', {}, FAILS),
        ('not = { modality = "CT", slices = "<20" }', {}, HOLDS),  # not both
        ('not = { not = { modality = "CT" } }', {}, HOLDS),
        ('any = [{ body_part = "HEAD" }, { series_description = "*brain*" }]', {"SeriesDescription": "Brain"}, HOLDS),
        ('any = [{ body_part = "HEAD" }, { series_description = "*brain*" }]', {}, FAILS),
        ('any = [{ modality = "CT", slices = "<9" }, { slices = 30 }]', {}, HOLDS),
        ('any = [{ modality = "CT", slices = "<9" }, { slices = 31 }]', {}, FAILS),
        ('not = { any = [{ modality = "CT" }, { modality = "PT" }] }', {}, FAILS),
        ('EchoTime = "<30"', {}, UNKNOWN),
        ('not = { EchoTime = "<30" }', {}, UNKNOWN),
        ('any = [{ EchoTime = "<30" }, { modality = "CT" }]', {}, HOLDS),
        ('any = [{ EchoTime = "<30" }, { modality = "MR" }]', {}, UNKNOWN),
        ('EchoTime = "<30", modality = "MR"', {}, FAILS),
        ('not = { EchoTime = "<30", modality = "MR" }', {}, HOLDS),
        ('StudyDate = ">=2026"', {"StudyDate": "20260102"}, HOLDS),
        ('not = { StudyDate = ">=2026" }', {"StudyDate": "2O260102"}, UNKNOWN),
    ],
)
def test_not_and_any(when: str, tags: dict[str, Any], expected: ConditionVerdict) -> None:
    assert verdict(when, **tags) is expected
    made = rules(when)
    assert (choose(facts(made, **tags), made) is not None) is (expected is HOLDS)


def test_what_is_inside_is_explained() -> None:
    when = 'not = { series_description = "*scout*" }, any = [{ EchoTime = "<9" }, { modality = "CT", slices = ">9" }]'
    assert lines(when) == [
        "a: chosen, mode on",
        "  not: holds",
        '    series_description: nothing is not "*scout*"',
        "  any: holds",
        "    EchoTime: there is nothing to compare with <9",
        "    all: holds",
        '      modality: CT is "CT"',
        "      slices: 30 is >9",
    ]


def test_what_is_not_known_yet_may_still_turn_either_way() -> None:
    for when in ('slices = ">9"', 'not = { slices = ">9" }', 'any = [{ slices = 1 }, { modality = "MR" }]'):
        assert verdict(when, slices=None) is OPEN
    assert verdict('any = [{ slices = ">9" }, { modality = "CT" }]', slices=None) is HOLDS


LEAVES = ('slices = ">9"', 'EchoTime = "<9"', 'modality = "CT"', 'body_part = "HEAD"')
leaves = st.sampled_from(LEAVES)
words = st.sampled_from(["not", "any", "all"])
trees = st.recursive(leaves, lambda inner: st.tuples(words, st.lists(inner, min_size=1, max_size=3)), max_leaves=8)


def term(tree: Any) -> Term:
    """A tree of conditions as it is read. All of several are one way of an `any`."""
    if isinstance(tree, str):
        return rules(tree)[0].when[0]
    word, inner = tree
    terms = tuple(map(term, inner))
    return Not(terms) if word == "not" else Either(tuple((one,) for one in terms) if word == "any" else (terms,))


def worth(tree: Any, slices: bool, echo: bool) -> bool:
    """The tree with what is not known taken for true or false."""
    if isinstance(tree, str):
        return dict(zip(LEAVES, (slices, echo, True, False), strict=True))[tree]
    word, inner = tree
    answers = [worth(one, slices, echo) for one in inner]
    return any(answers) if word == "any" else all(answers) if word == "all" else not all(answers)


@hypothesis_settings(deadline=None, max_examples=200)
@given(trees)
def test_what_holds_or_fails_does_so_whatever_is_not_known(tree: Any) -> None:
    wanted = term(tree)
    (finding,) = findings_of([wanted], facts(rules(", ".join(LEAVES)), slices=None))
    worlds = {worth(tree, slices, echo) for slices, echo in product((True, False), repeat=2)}
    if finding.verdict in (HOLDS, FAILS):
        assert worlds == {finding.verdict is HOLDS}
    else:
        unknown = "slices" if finding.verdict is OPEN else "EchoTime"
        assert unknown in {condition.key for condition in conditions([wanted])}


# Wrong forms are refused with line, key and what is allowed.


@pytest.mark.parametrize(
    ("when", "key", "words"),
    [
        ('StudyDate = ">="', "StudyDate", ["a date such as", '">=20260131"']),
        ('StudyDate = "2026-01-01"', "StudyDate", ["20260101-20261231"]),
        ("StudyDate = 2026-01-01", "StudyDate", ["a date such as"]),
        ('StudyTime = "7:30"', "StudyTime", ["a time of day"]),
        ('AcquisitionDateTime = "soon"', "AcquisitionDateTime", ["a date and time"]),
        ('PatientAge = ">=18.5"', "PatientAge", ["completed years"]),
        ('plane = "transversal"', "plane", ['"axial", "sagittal", "coronal", "oblique"']),
        ('not = "CT"', "not", ["a table of conditions"]),
        ("not = {}", "not", ["a table of conditions"]),
        ('any = { modality = "CT" }', "any", ["a list of tables"]),
        ("any = []", "any", ["a list of tables"]),
        ("any = [{}]", "any", ["a list of tables"]),
        ('any = ["CT"]', "any", ["a list of tables"]),
        ('not = { any = [{ modalty = "CT" }] }', "not.any.modalty", ["did you mean modality?"]),
        ('StudyDat = ">=2026"', "StudyDat", ["did you mean StudyDate?"]),
        ('SeriesDescriptoin = "x"', "SeriesDescriptoin", ["did you mean SeriesDescription?"]),
        ('calling_ae = "SEVENTEEN_LETTERS"', "calling_ae", ["an AE title"]),
        (f"{'not = { ' * 9}modality = 'CT'{' }' * 9}", "not", ["at most 8"]),
    ],
)
def test_wrong_conditions_are_refused(when: str, key: str, words: list[str]) -> None:
    with pytest.raises(InvalidSettings) as caught:
        rules(when)
    (problem,) = caught.value.problems
    assert problem.line == 3 and problem.key.startswith(f"rule.when.{key}")
    assert all(word in problem.message for word in words)


def test_tables_over_several_lines_have_their_own_lines() -> None:
    text = '[[rule]]\n[rule.when]\nmodality = "CT"\n[rule.when.not]\nStudyDate = "x"\n[[rule.when.any]]\nslices = "y"\n'
    with pytest.raises(InvalidSettings) as caught:
        read_settings(text, Path("/etc"))
    found = [(problem.line, problem.key) for problem in caught.value.problems]
    assert found == [(5, "rule.when.not.StudyDate"), (7, "rule.when.any.slices")]
