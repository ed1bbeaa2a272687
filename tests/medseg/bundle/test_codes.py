"""Doubts about the codes of segments, each with what mends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medseg.bundle.bundle import Code, Segment
from medseg.bundle.catalog import installed
from medseg.bundle.codes import doubts

LEFT, RIGHT = Code("SCT", "7771000", "Left"), Code("SCT", "24028007", "Right")
STRUCTURE, KIDNEY = Code("SCT", "91723000", "Anatomical Structure"), Code("SCT", "64033007", "Kidney")
KIDNEYS = (
    Segment(1, "Left kidney", STRUCTURE, KIDNEY, None, LEFT, (220, 60, 60), None),
    Segment(2, "Right kidney", STRUCTURE, KIDNEY, None, RIGHT, (60, 180, 90), None),
)


def test_good_codes_raise_no_doubt() -> None:
    assert doubts(KIDNEYS) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category": Code("SCT", "123037004", "Anatomical Structure")}, "none of CID 7150: use SCT:91723000"),
        ({"category": KIDNEY}, "none of CID 7150: expected one of SCT:91723000"),
        ({"type": Code("SCT", "302509004", "Entire heart")}, "take the code of its structure"),
        ({"type": Code("SCT", "64033007", "Spleen")}, "PS3.16 calls SCT:64033007 'Kidney'"),
        ({"type": Code("SCT", "9999999", "Kidney")}, "in no context group of PS3.16"),
        ({"region": Code("SCT", "10200004", "Brain")}, "region SCT:10200004 (Brain): PS3.16 calls"),
        ({"laterality": KIDNEY}, "none of CID 244"),
        ({"laterality": None}, "its label says left, its laterality nothing: set laterality to SCT:7771000"),
        ({"laterality": RIGHT}, "its label says left, its laterality right"),
        ({"laterality": RIGHT}, "segments 1 (Left kidney) and 2 (Right kidney) have the same codes"),
        ({"color": (62, 178, 92)}, "nearly the same colour"),
    ],
)
def test_a_doubt_says_what_mends_it(change: dict[str, object], said: str) -> None:
    found = doubts((replace(KIDNEYS[0], **change), KIDNEYS[1]))
    assert any(said in one for one in found), found


def test_what_ships_is_known_for_what_it_is() -> None:
    """Both parts of the hippocampus have its code: PS3.16 has none for its head."""
    (bundle,) = [one for one in installed() if one.name == "hippocampus_t1_unet3d"]
    (doubt,) = doubts(bundle.segments)
    assert "have the same codes" in doubt
