"""Whether a result may take the place of another, and which it names."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.work.coverage import Sources, lacks, replaced
from medseg.dicom.geometry import classify
from medseg.dicom.phantom import make_series
from tests.medseg.dicom.made import series_of


def stack(objects: str, heights_mm: Sequence[float] | None = None, normal: tuple[float, ...] = (0, 0, 1)) -> Sources:
    """A letter for each object; heights of 0, 1, 2, ... mm unless they are given."""
    return Sources("P", frozenset(objects), normal, tuple(heights_mm or map(float, range(len(objects)))))


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ([stack("abcd")], [stack("abcd")], ""),
        ([stack("abcd")], [stack("abcdef")], ""),
        ([stack("abcd")], [stack("abc")], "1 of the 4 slices"),
        ([stack("abcd")], [stack("ab"), stack("cd", [2, 3])], "pieces of 2 and 2"),
        ([stack("abcd")], [stack("abcd"), stack("efgh")], ""),
        ([stack("abcd"), stack("efgh")], [stack("abcd")], "4 of the 4 slices"),
        ([stack("abcd"), stack("efgh")], [stack("abcdefgh")], ""),
        # phases that ran into each other come apart, each at all the places
        ([stack("abgh")], [stack("abcd"), stack("efgh")], ""),
        ([stack("abgh")], [stack("abcd", normal=(0, 1, 0)), stack("efgh", normal=(0, 1, 0))], "pieces of 2 and 2"),
        ([stack("abgh", [0, 0.01, 0.02, 0.03])], [stack("abcd"), stack("efgh")], "pieces of 2 and 2"),
        ([stack("abcd", [9, 9, 9, 9])], [stack("abcd")], ""),
    ],
    ids=[
        "the same", "more", "fewer", "in pieces", "a stack beside", "a phase is gone", "one of two", "sorted out anew",
        "another orientation", "another scale", "all corrected",
    ],
)  # fmt: skip
def test_only_what_is_as_complete_may_replace(before: list[Sources], now: list[Sources], said: str) -> None:
    found = lacks(before, now)
    assert said in found and bool(found) == bool(said)


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        ([stack("abcd")], [stack("abcd")], [[0]]),
        ([stack("abcd")], [stack("xyz"), stack("abcd")], [[], [0]]),
        ([stack("ab"), stack("cd")], [stack("abcd")], [[0, 1]]),
        ([stack("abcd")], [stack("ab"), stack("cd")], [[0], [0]]),
        ([stack("abcd")], [stack("wxyz")], [[0]]),
        ([stack("abcd"), stack("efgh")], [stack("efgh"), stack("wxyz")], [[0, 1], [0]]),
    ],
    ids=["the same", "numbered anew", "two of which one is made", "split", "other objects", "one without a successor"],
)
def test_what_is_replaced_is_named(before: list[Sources], now: list[Sources], named: list[list[int]]) -> None:
    assert replaced(before, now) == named


SETS = st.lists(st.frozensets(st.sampled_from("abcdefgh"), min_size=1), min_size=1, max_size=4)


@given(SETS, SETS)
def test_each_result_before_has_a_successor(before: list[frozenset[str]], now: list[frozenset[str]]) -> None:
    old, new = ([stack("".join(sorted(one))) for one in some] for some in (before, now))
    named = replaced(old, new)
    assert {n for some in named for n in some} == set(range(len(old)))
    if not lacks(old, new):
        assert frozenset().union(*before) <= frozenset().union(*now)


def test_it_stays_the_same_in_the_ledger() -> None:
    (found,) = classify(series_of(make_series(shape=(5, 16, 16), spacing_mm=(3.0, 2.0, 2.0)))).stacks
    one = Sources.of(found, "P")
    again = Sources.from_record(json.loads(json.dumps(one.record())))
    assert again.objects == one.objects and len(again.heights_mm) == 5 and not lacks([again], [one])
