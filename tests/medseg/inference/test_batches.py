"""Which windows run together: a table of rows of windows, one letter each."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.inference.windows.batches import Batch, batches, next_size

PLACES = [(0, 0, i) for i in range(26)]


def told(batch: Batch, row: str) -> str:
    """Its windows' letters; "!" where it is filled up, "=7" where all have these bits."""
    letters = "".join(row[place[2]] for place in batch.places)
    return letters + "!" * batch.filled + ("" if batch.bits is None else f"={batch.bits}")


@pytest.mark.parametrize(
    ("row", "blank", "most", "exact", "alone", "expected"),
    [
        ("", {}, 4, False, "", []),
        ("abcd", {}, 4, False, "", ["abcd"]),
        ("abcdef", {}, 4, False, "", ["abcd", "ef"]),  # in pairs
        ("abcdef", {}, 5, False, "", ["abc", "def"]),  # as even as can be
        ("abcde", {}, 1, False, "", ["a", "b", "c", "d", "e"]),
        ("abcdef", {}, 4, True, "", ["abcd!", "ef!"]),  # MONAI's last batch has the bits of a full one
        ("abcde", {}, 4, True, "e", ["abcd!", "e"]),  # but for one alone
        ("abcde", {}, 4, True, "a", ["a", "bcde!"]),  # which comes first where slices are counted from the end
        ("abcdefgh", {"c": 0, "d": 0, "f": 7}, 3, False, "", ["ab", "cd=0", "egh", "f=7"]),
        ("abcdef", {"a": 0, "c": 7, "e": 0}, 4, False, "", ["a=0", "bdf", "c=7", "e=0"]),
        ("abcdef", {"a": 0, "d": 0}, 2, False, "", ["ad=0", "bc", "ef"]),
        ("abc", {"a": 0, "b": 0, "c": 0}, 2, False, "", ["abc=0"]),
        ("abcde", {"a": 5, "c": 5}, 4, True, "e", ["ac!=5", "bd!", "e"]),
        ("abc", {"b": 5, "c": 5}, 2, True, "c", ["a!", "b!=5", "c"]),  # the one alone runs, though it is blank
    ],
)
def test_windows_that_run_together(
    row: str, blank: dict[str, int], most: int, exact: bool, alone: str, expected: list[str]
) -> None:
    place = dict(zip(row, PLACES, strict=False))
    bits = {place[letter]: value for letter, value in blank.items()}
    size = partial(next_size, most=most, exact=exact)
    found = batches(list(place.values()), bits, size, exact=exact, alone=place.get(alone))
    assert [told(batch, row) for batch in found] == expected


@given(st.lists(st.sampled_from([None, 0, 7]), max_size=26), st.integers(1, 9), st.booleans())
def test_each_window_is_in_one_batch_when_its_turn_comes(blank: list[int | None], most: int, exact: bool) -> None:
    places = PLACES[: len(blank)]
    bits = {place: value for place, value in zip(places, blank, strict=True) if value is not None}
    found = list(batches(places, bits, partial(next_size, most=most, exact=exact), exact=exact))
    assert sorted(place for batch in found for place in batch.places) == places
    assert [batch.places[0] for batch in found] == sorted(batch.places[0] for batch in found)
    assert all(bits.get(place) == batch.bits for batch in found for place in batch.places)
    assert all(batch.bits is not None or len(batch.places) <= most for batch in found)


def test_the_size_is_asked_for_batch_by_batch() -> None:
    """A network tells with its first batch that it goes on by itself; from then on windows come one by one."""
    sizes = iter([3, 1, 1])
    found = batches(PLACES[:5], {}, lambda left: next(sizes))
    assert [len(batch.places) for batch in found] == [3, 1, 1]
