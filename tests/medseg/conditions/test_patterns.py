"""Globs and ranges: what a condition of a rule admits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from medseg.conditions.patterns import Glob, Range


@pytest.mark.parametrize(
    ("pattern", "text", "admitted"),
    [
        ("*T1*", "Ax t1 MPRAGE", True),
        ("t1", "T1", True),
        ("T1", "T1 post", False),
        ("T1 [Gd]*", "t1 [gd] ax", True),  # only * is special
        ("a?c", "abc", False),
        ("*", "", True),
        ("", "", True),
        ("", "x", False),
        ("STRASSE*", "straße 5", True),
        ("a*b", "a\nb", True),
    ],
)
def test_globs(pattern: str, text: str, admitted: bool) -> None:
    assert Glob(pattern).admits(text) is admitted


@hypothesis_settings(deadline=None)
@given(st.lists(st.text(alphabet="aB*.[ ", max_size=4), max_size=4), st.text(alphabet="aBx", max_size=3))
def test_a_glob_admits_what_it_was_made_from(parts: list[str], filling: str) -> None:
    pattern = "*".join(parts)
    assert Glob(pattern).admits(pattern.replace("*", filling))


@pytest.mark.parametrize(
    ("form", "inside", "outside"),
    [
        ("5", ["5", "5.0", " 5 "], ["4.9", "", "x"]),
        (">=20", ["20", "1e3"], ["19"]),
        (">20", ["21"], ["20"]),
        ("<= 1.5", ["1.5", "-3"], ["1.6", "nan"]),
        ("<3", ["2.9"], ["3"]),
        ("1..1.5", ["1", "1.5"], ["0.9", "1.6"]),
        (7, ["7"], ["8"]),
        (2.5, ["2.50"], ["2"]),
    ],
)
def test_ranges(form: Any, inside: list[str], outside: list[str]) -> None:
    given_form = Range.read(form)
    assert all(given_form.admits(text) for text in inside)
    assert not any(given_form.admits(text) for text in outside)


@pytest.mark.parametrize("form", ["", ">", "2..1", "1..", "abc", ">=1..2", True, None, "=5"])
def test_what_is_no_range(form: Any) -> None:
    with pytest.raises(ValueError):
        Range.read(form)
