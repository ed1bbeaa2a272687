"""Which of a study's matching series are segmented."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.decide.selection import Candidate, select
from gateway.settings.model import Rule, Select

THICK = Candidate("1.3", slices=60, thickness_mm=5.0, number=3)
THIN = Candidate("1.2", slices=300, thickness_mm=1.0, number=4)
THIN_SHORT = Candidate("1.1", slices=40, thickness_mm=1.0, number=2)
UNKNOWN = Candidate("1.9", slices=400, number=None)


@pytest.mark.parametrize(
    ("candidates", "how", "chosen"),
    [
        ([THICK, THIN, THIN_SHORT, UNKNOWN], Select.EVERY, ["1.1", "1.3", "1.2", "1.9"]),  # by number
        ([THICK, THIN, THIN_SHORT, UNKNOWN], Select.THINNEST, ["1.2"]),  # of two as thin, the longer
        ([THICK, THIN, THIN_SHORT, UNKNOWN], Select.MOST_SLICES, ["1.9"]),
        ([THICK, UNKNOWN], Select.THINNEST, ["1.3"]),  # unknown thickness comes last
        ([UNKNOWN], Select.THINNEST, ["1.9"]),
        ([Candidate("2", 9, 1.0, 7), Candidate("1", 9, 1.0, 8)], Select.THINNEST, ["2"]),  # lower number
        ([Candidate("2", 9, 1.0), Candidate("1", 9, 1.0)], Select.MOST_SLICES, ["1"]),  # lower UID
        ([Candidate("1", 9, 5.0), Candidate("2", 9, 1.0)], Select.MOST_SLICES, ["2"]),  # as many: the thinner
        ([], Select.EVERY, []),
        ([], Select.THINNEST, []),
    ],
)
def test_selection(candidates: list[Candidate], how: Select, chosen: list[str]) -> None:
    assert list(select(candidates, Rule(select=how)).chosen) == chosen


def test_what_is_passed_over_is_told_why() -> None:
    assert select([THICK, THIN], Rule(select=Select.THINNEST)).passed_over == {
        "1.3": "select = thinnest: 60 slices of 5 mm, and series 1.2 has 300 slices of 1 mm"
    }
    assert "unknown thickness" in select([UNKNOWN, THIN], Rule(select=Select.THINNEST)).passed_over["1.9"]


candidates = st.builds(
    Candidate,
    st.uuids().map(str),
    st.integers(1, 3),
    st.one_of(st.none(), st.sampled_from([1.0, 2.0])),
    st.one_of(st.none(), st.integers(1, 2)),
)


@hypothesis_settings(deadline=None)
@given(st.lists(candidates, max_size=8, unique_by=lambda one: one.series_uid), st.sampled_from(Select), st.randoms())
def test_the_order_of_series_does_not_matter_and_none_gets_lost(
    found: list[Candidate], how: Select, order: object
) -> None:
    shuffled = list(found)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = select(found, Rule(select=how)), select(shuffled, Rule(select=how))
    assert one == other
    assert sorted([*one.chosen, *one.passed_over]) == sorted(candidate.series_uid for candidate in found)


ORIGINAL = {"ImageType": ("ORIGINAL", "PRIMARY")}


@pytest.mark.parametrize(
    ("prefer", "chosen"),
    [
        (("thinnest",), "1.1"),  # of two as thin, the lower number
        (("thinnest", "most_slices"), "1.2"),
        (("ImageType:ORIGINAL", "thinnest"), "1.7"),
        (("ImageType:SECONDARY", "latest"), "1.8"),  # which none is: passed over
    ],
)
def test_what_goes_before_what(prefer: tuple[str, ...], chosen: str) -> None:
    first = Candidate("1.7", 20, 4.0, 7, "20260101 10", ORIGINAL)
    later = Candidate("1.8", 20, 5.0, 8, "20260101 11", ORIGINAL)
    found = select([THICK, THIN, THIN_SHORT, later, first], Rule(prefer=prefer))
    assert found.chosen == (chosen,)
    assert len(found.passed_over) == 4
    assert not any("2026" in why for why in found.passed_over.values())
