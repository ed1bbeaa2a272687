"""Codes of body parts, beside pydicom's dictionaries of the standard's context groups and of SNOMED RT."""

from __future__ import annotations

from pydicom.sr._concepts_dict import concepts
from pydicom.sr._snomed_dict import mapping

from medseg.conditions.body_parts import CODES, canonical, code_of, term_of

#: Codes that the standard has replaced: thorax, abdomen and pelvis were those of their structures.
RETIRED = {"51185008", "113345001", "12921003"}


def test_codes_are_those_of_the_standard() -> None:
    known = {code for entry in concepts["SCT"].values() for code in entry}
    assert {codes[0] for codes in CODES.values()} <= known
    for term, (first, *others) in CODES.items():
        assert {code for code in others if not code.startswith("SRT:")} <= RETIRED
        for code in (one.removeprefix("SRT:") for one in others if one.startswith("SRT:")):
            assert mapping["SRT"].get(code, first) in {first, *RETIRED}, term


def test_one_body_part_has_one_code() -> None:
    assert canonical("srt:t-d1100") == canonical("SNM3:T-D1100") == canonical("SCT:69536005") == "SCT:69536005"
    assert canonical("SCT:113345001") == code_of("Abdomen") == "SCT:818981001"
    assert term_of("SNM3:T-D3000") == "CHEST"
    assert (term_of("99X:1"), code_of("left toe"), canonical("99X:1")) == ("", "", "99X:1")
