"""Codes and colours."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydicom.sr.codedict import codes

from medseg.bundle.segments import meaning_of, palette


@pytest.mark.parametrize("group", ["cid7150", "cid7151", "cid7153", "cid7159", "cid244"])
def test_meanings_are_those_of_the_context_groups(group: str) -> None:
    """For each code a name that pydicom gives it, and none with a SNOMED tag such as "(body structure)"."""
    collection: Any = getattr(codes, group)
    assert collection.concepts
    for code in collection.concepts.values():
        meaning = meaning_of(code.scheme_designator, code.value)
        assert meaning is not None
        assert "structure)" not in meaning


def test_some_meanings() -> None:
    assert meaning_of("SCT", "10200004") == "Liver"
    assert meaning_of("sct", "85756007") == "Tissue"
    assert meaning_of("SCT", "0") is None


def test_a_hundred_colours_can_be_told_apart() -> None:
    colours = palette(104)
    assert palette(7) == colours[:7]
    assert all(0 <= part <= 255 for colour in colours for part in colour)
    for one, other in itertools.combinations(colours, 2):
        assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) > 20**2
    for one, other in itertools.combinations(colours[:12], 2):
        assert sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) > 60**2
