"""Text that leaves is UTF-8, whatever it was made of."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from medseg.texts import shown, to_json, valid
from tests.writing import hostile


def test_bytes_that_are_no_text_are_escaped() -> None:
    assert shown(Path(os.fsdecode(b"\xe9tude/\xc3\xa9"))) == "\\xe9tude/é"
    assert valid("\udce9tude") == "\\xe9tude"
    assert valid("\udcc3\udca9") == "é"  # as a locale without letters shows it
    assert valid("\ud800") == "\\ud800"


@given(hostile)
def test_any_text_can_be_encoded_and_plain_text_is_kept(text: str) -> None:
    made = valid(text)
    made.encode("utf-8")
    assert made == text or any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


@given(st.recursive(hostile | st.floats() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(hostile, inner)))
def test_any_record_is_one_line_of_json(value: object) -> None:
    line = to_json({"value": value})
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    json.loads(line.decode("utf-8"), parse_constant=lambda word: 1 / 0)


def test_what_json_has_no_number_for_is_null() -> None:
    assert json.loads(to_json({"a": math.nan, "b": [-math.inf, 1.5]})) == {"a": None, "b": [None, 1.5]}
