"""Whether the codes of a bundle's segments are what readers of SEG and SR will understand (PS3.16), and what mends it.

Doubts, not errors: a result with a strange code is as right as another, but nobody finds it, or two are taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations
from typing import Final

import numpy as np

from medseg.bundle.bundle import Code, Segment
from medseg.bundle.segments import meaning_of, to_lab

_SIDES: Final = {"7771000": "left", "24028007": "right", "51440002": "bilateral", "66459002": "unilateral"}  # CID 244
_NEAR: Final = 12.0  # CIELAB distance below which colours of two outlines are hard to tell apart
_OLD: Final = {"123037004": "91723000"}  # Anatomical Structure, as PS3.16 had it before 2017 and many bundles still do


def doubts(segments: Sequence[Segment]) -> list[str]:
    """A sentence for each, with what mends it."""
    each = (f"segment {one.number} ({one.label}): {why}" for one in segments for why in _of_segment(one))
    return [*each, *_of_pairs(segments)]


def _of_segment(segment: Segment) -> Iterator[str]:
    category, kind = segment.category, segment.type
    if (category.scheme, category.value) not in _categories():
        listed = ", ".join(f"SCT:{value} ({meaning})" for (_, value), meaning in _categories().items())
        mend = f"use SCT:{_OLD[category.value]}" if category.value in _OLD else f"expected one of {listed}"
        yield f"category {_text(category)} is none of CID 7150: {mend}"
    for name, code in (("type", kind), ("region", segment.region)):
        if code is not None:
            yield from _of_code(name, code)
    yield from _of_side(segment)


def _of_code(name: str, code: Code) -> Iterator[str]:
    if re.match(r"entire\b", code.meaning, re.IGNORECASE):
        yield f"{name} {_text(code)}: an image may show a part of an organ: take the code of its structure"
    known = meaning_of(code.scheme, code.value)
    if known is None and code.scheme.upper() in ("SCT", "DCM"):
        yield f"{name} {_text(code)} is in no context group of PS3.16: see that the code is right"
    elif known is not None and not _alike(known, code.meaning):
        yield f"{name} {_text(code)}: PS3.16 calls {code.scheme}:{code.value} {known!r}: one of both is wrong"


def _of_side(segment: Segment) -> Iterator[str]:
    side = segment.laterality
    found = None if side is None else _SIDES.get(side.value) if side.scheme.upper() == "SCT" else None
    if side is not None and found is None:
        yield f"laterality {_text(side)} is none of CID 244: expected SCT:7771000 (left), SCT:24028007 (right)"
        return
    words = set(re.findall(r"[a-z]+", segment.label.lower())) & {"left", "right"}
    if len(words) == 1 and found not in words:
        (word,) = words
        code = next(value for value, name in _SIDES.items() if name == word)
        yield f"its label says {word}, its laterality {found or 'nothing'}: set laterality to SCT:{code}"


def _of_pairs(segments: Sequence[Segment]) -> Iterator[str]:
    for one, other in combinations(segments, 2):
        both = f"segments {one.number} ({one.label}) and {other.number} ({other.label})"
        if _concept(one) == _concept(other):
            yield f"{both} have the same codes: tell them apart by type, region or laterality"
        apart = float(np.linalg.norm(to_lab(np.array([one.color])) - to_lab(np.array([other.color]))))
        if apart < _NEAR:
            yield f"{both} have nearly the same colour: leave `color` out, or choose others"


def _concept(segment: Segment) -> tuple[tuple[str, str] | None, ...]:
    """What a reader that knows codes alone takes a segment for."""
    codes = (segment.type, segment.region, segment.laterality)
    return tuple(None if code is None else (code.scheme, code.value) for code in codes)


@cache
def _categories() -> dict[tuple[str, str], str]:
    from pydicom.sr.codedict import codes

    return {(code.scheme_designator, code.value): code.meaning for code in codes.cid7150.concepts.values()}


def _alike(known: str, said: str) -> bool:
    """Whether two meanings share a word: "Liver" and "Structure of liver" do."""
    words = [set(re.findall(r"[a-z]{3,}", text.lower())) - {"structure", "the"} for text in (known, said)]
    return bool(words[0] & words[1]) or not all(words)


def _text(code: Code) -> str:
    return f"{code.scheme}:{code.value} ({code.meaning})"
