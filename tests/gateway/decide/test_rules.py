"""Rules: which one decides, why, and where results go; on made headers and on what medseg itself writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from gateway.decide.rules import Explanation, SeriesFacts, choose, destinations, due_s, explain, keywords, series_facts
from gateway.settings.model import GatewaySettings, Peer, Priority, Rule
from gateway.settings.read import read_settings
from medseg.conditions.findings import ConditionVerdict
from medseg.dicom.classes import IMAGES, OUR_MANUFACTURER

FOLDER = Path("/etc/medseg")


def settings(text: str) -> GatewaySettings:
    return read_settings(text, FOLDER)


def rules(*whens: str) -> tuple[Rule, ...]:
    """Rules a, b, c, ... of which only the conditions matter."""
    tables = (f'[[rule]]\nname = "{name}"\nwhen = {{ {when} }}\n' for name, when in zip("abcdef", whens, strict=False))
    return settings("".join(tables)).rules


def header(**tags: Any) -> Dataset:
    given_tags = {
        "SOPClassUID": MRImageStorage,
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.1",
        "Modality": "MR",
        "PatientName": "Doe^Jane",
    } | tags
    made = Dataset()
    for keyword, value in given_tags.items():
        setattr(made, keyword, value)
    return made


def facts(
    of: tuple[Rule, ...], *, calling: str = "CT01", called: str = "MEDSEG", slices: int | None = 30, **tags: Any
) -> SeriesFacts:
    return series_facts(header(**tags), of, calling_ae=calling, called_ae=called, slices=slices)


def name(of: tuple[Rule, ...], **kwargs: Any) -> str | None:
    chosen = choose(facts(of, **kwargs), of)
    return chosen.name if chosen else None


def test_the_first_rule_that_matches_decides() -> None:
    made = rules('modality = "CT"', 'modality = "MR"', "")
    assert name(made) == "b"
    assert name(made, Modality="PT", SOPClassUID=CTImageStorage) == "c"


@pytest.mark.parametrize(
    ("when", "tags", "matches"),
    [
        ('modality = "mr"', {}, True),
        ('modality = ["CT", "MR"]', {}, True),
        ('modality = ["CT", "PT"]', {}, False),
        ('series_description = "*t1*"', {"SeriesDescription": "Sag T1 MPRAGE"}, True),
        ('series_description = "*t1*"', {}, False),
        ('series_description = "*"', {}, True),
        ('series_description = ""', {}, True),
        ('study_description = "kopf*"', {"StudyDescription": "KOPF nativ"}, True),
        ('body_part = ["HEAD", "BRAIN"]', {"BodyPartExamined": "BRAIN"}, True),
        ('protocol = "t1*"', {"ProtocolName": "T1w"}, True),
        ('called_ae = "MEDSEG"', {}, True),
        ('called_ae = "medseg"', {}, False),  # AE titles are exact
        ('called_ae = "MED*"', {}, False),  # and no globs
        ('calling_ae = ["PACS", "CT01"]', {}, True),
        ('ImageType = "LOCALIZER"', {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, True),
        ('ImageType = "LOCALIZER"', {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, False),
        ('slices = ">=20"', {}, True),
        ('slices = "<20"', {}, False),
        ('slice_thickness_mm = "<=1.5"', {"SliceThickness": "1.25"}, True),
        ('slice_thickness_mm = "<=1.5"', {"SliceThickness": "5"}, False),
        ('slice_thickness_mm = "<=1.5"', {}, False),
        ('MagneticFieldStrength = "2.5..3.5"', {"MagneticFieldStrength": "3"}, True),
        ("EchoTime = 30", {"EchoTime": "30.0"}, True),
        ('SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"', {}, True),
        ('SOPClassUID = "1.2.840.10008.5.1.4.1.1"', {}, False),
        ('modality = "MR", calling_ae = "CT02"', {}, False),  # all must hold
        ('InstitutionName = "Universitätsklinik*"', {"InstitutionName": "UNIVERSITÄTSKLINIK X"}, True),
    ],
)
def test_conditions(when: str, tags: dict[str, Any], matches: bool) -> None:
    assert (name(rules(when), **tags) == "a") is matches


def test_no_rule_matches() -> None:
    assert name(rules('modality = "CT"')) is None


def test_off_stops_what_it_matches() -> None:
    made = settings(
        '[[rule]]\nname = "qa"\nwhen = { PatientID = "QA*" }\nmode = "off"\n[[rule]]\nname = "rest"\n'
    ).rules
    assert name(made, PatientID="QA phantom") is None
    assert name(made, PatientID="4711") == "rest"


def test_without_rules_every_image_series_is_taken() -> None:
    made = settings("").rules
    assert name(made) == "default"
    (default,) = made
    assert (default.bundle, default.send_to) == (None, None)


# What is not known yet.


def test_a_series_still_arriving_is_chosen_for_provisionally() -> None:
    made = rules('slices = ">=20"', "")
    arriving = explain(facts(made, slices=None), made)
    assert arriving.chosen is not None
    assert (arriving.chosen.rule.name, arriving.chosen.verdict) == ("a", ConditionVerdict.OPEN)
    assert name(made, slices=19) == "b"
    assert name(made, slices=20) == "a"


def test_a_failed_condition_outweighs_an_unknown_one() -> None:
    made = rules('slices = ">=20", modality = "CT"', "")
    assert name(made, slices=None) == "b"


def test_a_series_that_came_by_stow_has_no_ae_title() -> None:
    made = rules('calling_ae = "CT01"', "")
    assert name(made, calling="") == "b"


# Our own results never loop back.


@pytest.mark.parametrize(
    "tags",
    [
        {"Manufacturer": "medseg", "ManufacturerModelName": "medseg"},
        {"Manufacturer": "MEDSEG "},
        {"SOPClassUID": SegmentationStorage, "Modality": "SEG"},
        {"SOPClassUID": ComprehensiveSRStorage, "Modality": "SR"},
        {"SOPClassUID": KeyObjectSelectionDocumentStorage},
        {"SOPClassUID": EncapsulatedPDFStorage},
        {"SOPClassUID": SecondaryCaptureImageStorage},
        {"SOPClassUID": "1.2.3.4"},
        {"SOPClassUID": ""},
    ],
)
def test_what_is_never_segmented(tags: dict[str, Any]) -> None:
    made = rules("")
    told = explain(facts(made, **tags), made)
    assert told.barred and told.chosen is None
    assert name(made, **tags) is None


def test_an_image_that_medseg_had_a_part_in_is_not_segmented() -> None:
    scanner, ours = Dataset(), Dataset()
    scanner.Manufacturer, ours.Manufacturer = "SIEMENS", "medseg"
    made = rules("")
    assert name(made, ContributingEquipmentSequence=[scanner]) == "a"
    assert name(made, ContributingEquipmentSequence=[scanner, ours]) is None


def test_the_mark_is_the_one_that_results_carry() -> None:
    modules = pytest.importorskip("medseg.results.provenance")
    assert modules.MANUFACTURER.casefold() == OUR_MANUFACTURER


def test_image_classes_are_what_the_standard_calls_images() -> None:
    for uid in IMAGES:
        assert "Image Storage" in uid.name
        assert uid.type == "SOP Class"
        assert not uid.is_private


# Reasons.


def lines(made: tuple[Rule, ...], **kwargs: Any) -> list[str]:
    return list(explain(facts(made, **kwargs), made).lines())


def test_each_condition_is_explained() -> None:
    made = rules('modality = "CT", series_description = ["*T1*", "*MPRAGE*"]', 'modality = "MR", slices = ">=5"', "")
    assert lines(made, SeriesDescription="Ax T2") == [
        "a: does not match",
        '  modality: MR is not "CT"',
        '  series_description: Ax T2 is not "*T1*" or "*MPRAGE*"',
        "b: chosen, mode on",
        '  modality: MR is "MR"',
        "  slices: 30 is >=5",
        "c: would match, but an earlier rule does",
    ]
    assert "  slices: what is not known yet may become >=5" in lines(made, slices=None)
    assert "b: chosen as far as is known yet, mode on" in lines(made, slices=None)
    assert "  series_description: nothing is not" in lines(made)[2]


def test_a_barred_series_is_explained() -> None:
    made = rules('modality = "SEG"', "")
    told = lines(made, SOPClassUID=SegmentationStorage, Modality="SEG")
    assert told[0] == "series 1.2.1 has no images to segment: its SOP class is Segmentation Storage"
    assert told[1] == "a: would match"


@pytest.mark.parametrize(
    "keyword", ["PatientName", "PatientID", "ReferringPhysicianName", "PatientBirthDate", "OperatorsName"]
)
def test_no_explanation_tells_who_the_patient_is(keyword: str) -> None:
    dated = keyword.endswith("Date")
    made = rules(f'{keyword} = "{"1970" if dated else "QA*"}"')
    for told in ("19700101", "19710102") if dated else ("Mustermann", "QA1"):
        text = "\n".join(lines(made, **{keyword: told}))
        assert told not in text
        assert f"{keyword}: the value is" in text


# Facts from headers.


def test_only_what_rules_ask_for_is_read() -> None:
    made = rules('modality = "MR"', 'EchoTime = "<30", called_ae = "X", slices = 4')
    assert keywords(made) == {"Modality", "EchoTime"}
    assert set(facts(made).tags) == {"Modality", "EchoTime"}


def test_malformed_headers_are_read_leniently() -> None:
    made = rules('slice_thickness_mm = "<=2"', "")
    odd = header()
    odd.add_new("SliceThickness", "DS", "1.0")
    odd["SliceThickness"]._value = "abc"
    assert choose(series_facts(odd, made), made) == made[1]
    assert explain(series_facts(Dataset(), made), made).barred


def test_the_file_meta_can_be_asked_for() -> None:
    made = rules('TransferSyntaxUID = "1.2.840.10008.1.2.1"')
    one = header()
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    assert choose(series_facts(one, made), made) == made[0]


def test_real_headers(shared_data: Path) -> None:
    made = rules('modality = "CT"', 'modality = "MR", slice_thickness_mm = "<=4"')
    (first, *_) = sorted((shared_data / "dicom" / "mr_siemens_hfs_t1_sag").iterdir())
    mr = pydicom.dcmread(first, stop_before_pixels=True)
    assert choose(series_facts(mr, made), made) == made[1]
    seg = shared_data / "dicom" / "dcmqi" / "segmentations" / "liver.dcm"
    found = seg if seg.exists() else next((shared_data / "dicom" / "dcmqi").rglob("liver.dcm"))
    assert explain(series_facts(pydicom.dcmread(found, stop_before_pixels=True), made), made).barred


# Properties.

conditions = st.sampled_from(
    ['modality = "MR"', 'modality = "CT"', 'series_description = "*T1*"', 'slices = ">=10"', 'called_ae = "MEDSEG"']
)


@hypothesis_settings(deadline=None)
@given(
    st.lists(st.lists(conditions, max_size=3, unique_by=lambda one: one.split(" ")[0]), min_size=1, max_size=6),
    st.sampled_from(["T1", "T2", ""]),
    st.sampled_from([None, 5, 15]),
)
def test_exactly_the_first_rule_without_a_failed_condition_is_chosen(
    whens: list[list[str]], description: str, slices: int | None
) -> None:
    made = rules(*(", ".join(when) for when in whens))
    told: Explanation = explain(facts(made, SeriesDescription=description, slices=slices), made)
    alone = [
        explain(facts(made, SeriesDescription=description, slices=slices), (rule,)).chosen is not None for rule in made
    ]
    expected = made[alone.index(True)] if any(alone) else None
    assert (told.chosen.rule if told.chosen else None) == expected
    assert sum(decision.chosen for decision in told.decisions) <= 1
    assert [len(decision.findings) for decision in told.decisions] == [len(rule.when) for rule in made]


# Where to, and when.

PEERS = (
    Peer("pacs", "PACS", "10.0.0.1", 104),
    Peer("ws", "WS", "10.0.0.2", 104),
    Peer("pacs2", "PACS", "10.0.0.3", 104),
)


def to(rule: Rule, calling: str | None) -> list[str]:
    return list(destinations(rule, calling, PEERS))


def test_destinations() -> None:
    assert to(Rule(send_to=("ws", "pacs", "ws")), "CT01") == ["ws", "pacs"]
    assert to(Rule(send_to=()), "PACS") == []
    assert to(Rule(), "PACS") == ["pacs"]  # the caller, where it is a known peer
    assert to(Rule(), "CT01") == []
    assert to(Rule(), None) == to(Rule(), "") == []


def test_more_urgent_work_goes_first_and_routine_work_ages() -> None:
    now_s = 1e9
    assert due_s(now_s, Priority.STAT) < due_s(now_s, Priority.ROUTINE) < due_s(now_s, Priority.LOW)
    assert due_s(now_s, Priority.STAT) < due_s(now_s - 2999, Priority.ROUTINE)
    assert due_s(now_s, Priority.STAT) > due_s(now_s - 3001, Priority.ROUTINE)


@hypothesis_settings(deadline=None)
@given(st.lists(st.sampled_from(list(Priority)), min_size=1, max_size=30))
def test_nothing_is_starved(stream: list[Priority]) -> None:
    """Low work goes before whatever comes an hour later, however urgent."""
    waiting = due_s(0.0, Priority.LOW)
    assert all(due_s(3601.0 + number, priority) > waiting for number, priority in enumerate(stream))
