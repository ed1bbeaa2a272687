"""Segments of a bundle: their codes and colours, from the metadata's "medseg" key or from MONAI's channel names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, cast

import numpy as np

from medseg.bundle.bundle import MOST_LESIONS, Code, Segment
from medseg.bundle.schema import Reader
from medseg.errors import InvalidBundle

TISSUE: Final = Code("SCT", "85756007", "Tissue")
CODE: Final = re.compile(r"[A-Za-z0-9_]{2,16}:[A-Za-z0-9.\-_]{1,16}")


def read_lesions(own: Reader) -> int:
    """How many lesions of a segment are measured one by one. own: the `"medseg"` part of the metadata."""
    most = own.integer("lesions", MOST_LESIONS)
    if not 0 <= most <= 255:
        raise own.wrong("lesions", f"expected 0 to 255, found {most}")
    return most


def segments_from_metadata(reader: Reader, *, exclusive: bool, out_channels: int) -> tuple[Segment, ...]:
    """Segments as the "medseg" key's list gives them. Raises InvalidBundle naming the entry."""
    most = out_channels - 1 if exclusive else out_channels
    segments = tuple(_segment(entry, most) for entry in reader.readers("segments"))
    numbers = [segment.number for segment in segments]
    if sorted(set(numbers)) != numbers:
        raise InvalidBundle(reader.bundle, f"{reader.key}::segments", f"numbers must rise, found {numbers}")
    if not exclusive and numbers != list(range(1, most + 1)):
        why = f"overlapping segments need one entry per output channel, 1 to {most}, found {numbers}"
        raise InvalidBundle(reader.bundle, f"{reader.key}::segments", why)
    return segments


def segments_from_channels(names: dict[int, str], *, exclusive: bool, out_channels: int) -> tuple[Segment, ...]:
    """One segment per output channel, the background left out, named as in `channel_def`, coded as tissue.

    names: channel to name; a channel without one is called "Label n".
    """
    shift = 0 if exclusive else 1
    numbers = range(1, out_channels + shift)
    colors = palette(len(numbers))
    return tuple(
        Segment(
            number=number,
            label=names.get(number - shift) or f"Label {number}",
            category=TISSUE,
            type=TISSUE,
            region=None,
            laterality=None,
            color=colors[number - 1],
            volume_ml=None,
        )
        for number in numbers
    )


def _segment(entry: Reader, most: int) -> Segment:
    number = entry.integer("number")
    if not 1 <= number <= most:
        raise entry.wrong("number", f"the network gives labels 1 to {most}, found {number}")
    label = entry.text("label")
    color = entry.integers("color", 3, default=palette(most)[number - 1])
    if not all(0 <= part <= 255 for part in color):
        raise entry.wrong("color", f"expected red, green, blue from 0 to 255, found {list(color)}")
    segment = Segment(
        number=number,
        label=label,
        category=_code(entry, "category", TISSUE),
        type=_code(entry, "type", TISSUE),
        region=_maybe_code(entry, "region"),
        laterality=_maybe_code(entry, "laterality"),
        color=(color[0], color[1], color[2]),
        volume_ml=entry.range("volume_ml"),
        one_piece=entry.flag("one_piece", False),
        beside_middle=entry.flag("beside_middle", False),
    )
    if segment.beside_middle and segment.side is None:
        raise entry.wrong("beside_middle", "goes with a laterality of SCT:7771000 (left) or SCT:24028007 (right)")
    entry.done()
    return segment


def _maybe_code(entry: Reader, name: str) -> Code | None:
    text = entry.maybe_text(name)
    return None if text is None else code_from_text(entry, name, text)


def _code(entry: Reader, name: str, default: Code) -> Code:
    return _maybe_code(entry, name) or default


def code_from_text(entry: Reader, name: str, text: str) -> Code:
    """From "SCT:10200004", or "SCT:10200004:Liver" with a meaning of the bundle's own (PS3.3 8.8; 64 characters)."""
    scheme, _, rest = text.partition(":")
    value, _, meaning = rest.partition(":")
    if CODE.fullmatch(f"{scheme}:{value}") is None or len(meaning) > 64:
        raise entry.wrong(name, f"expected SCHEME:VALUE such as SCT:85756007, found {text!r}")
    return Code(scheme, value, meaning.strip() or meaning_of(scheme, value) or value)


def meaning_of(scheme: str, value: str) -> str | None:
    """What pydicom's dictionaries (PS3.16 context groups) call a code, else None."""
    return _meanings().get((scheme.upper(), value))


@cache
def _meanings() -> dict[tuple[str, str], str]:
    # The tables behind pydicom.sr.codedict, which only looks up the other way, from meaning to code.
    from pydicom.sr._concepts_dict import concepts

    tables = cast(Mapping[str, Mapping[str, Mapping[str, tuple[str, list[int]]]]], concepts)
    meanings: dict[tuple[str, str], tuple[bool, str]] = {}
    for scheme, by_name in tables.items():
        for entries in by_name.values():
            for value, (meaning, groups) in entries.items():
                # A name that a context group uses is the one DICOM means: "Liver", not "Liver structure (body ...)".
                key, named = (scheme.upper(), value), (bool(groups), meaning)
                if key not in meanings or (named[0], -len(meaning)) > (meanings[key][0], -len(meanings[key][1])):
                    meanings[key] = named
    return {key: meaning for key, (_, meaning) in meanings.items()}


@cache
def palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` sRGB colours, each as far as possible from those before it and from black, white and grey.

    Chosen one by one from a fixed grid by distance in CIELAB (CIE 15), so a longer palette begins as a shorter one.
    """
    levels = np.arange(0, 256, 15)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = to_lab(grid)
    usable = (lab[:, 0] > 40) & (lab[:, 0] < 92) & (np.hypot(lab[:, 1], lab[:, 2]) > 25)
    grid, lab = grid[usable], lab[usable]
    taken = [int(np.argmin(np.abs(grid - (225, 60, 60)).sum(axis=1)))]
    nearest = np.linalg.norm(lab - lab[taken[0]], axis=1)
    while len(taken) < count:
        taken.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[taken[-1]], axis=1))
    return tuple((int(r), int(g), int(b)) for r, g, b in grid[taken[:count]])


def to_lab(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """sRGB 0-255 to CIELAB, D65 (IEC 61966-2-1, CIE 15)."""
    share = rgb / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = root[:, 0], root[:, 1], root[:, 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
