"""Data sets in JSON (PS3.18 Annex F), element by element: what is malformed is left out, and does no harm to the rest.

Long binary values stay where they are: `BulkDataURI` says how to ask for them.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from pydicom import DataElement, Dataset
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.tag import BaseTag, Tag

from medseg.dicom.headers import MALFORMED

Json: TypeAlias = dict[str, Any]
#: From an element, and where it is: "00420011", or "54000100/0/54001010" in an item of a sequence.
BulkAddress: TypeAlias = Callable[[str], str]

BINARY: Final = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))
LONGEST_INLINE: Final = 1024  # bytes of a binary value
SPECIFIC_CHARACTER_SET: Final = "00080005"
PIXEL_TAGS: Final = ("7FE00008", "7FE00009", "7FE00010")


def data_set_json(data_set: Dataset, address: BulkAddress | None = None, place: str = "") -> Json:
    """A data set; of its long binary values none where there is no `address` for them."""
    found: Json = {}
    for tag in sorted(data_set.keys()):
        if tag.element == 0 or tag.group == 0x0002:  # group lengths, and what is said of a file
            continue
        element = element_json(data_set, tag, address, place)
        if element is not None:
            found[name_of(tag)] = element
    if not place and SPECIFIC_CHARACTER_SET in found:
        found[SPECIFIC_CHARACTER_SET] = {"vr": "CS", "Value": ["ISO_IR 192"]}  # as JSON is
    return found


def element_json(data_set: Dataset, tag: BaseTag, address: BulkAddress | None = None, place: str = "") -> Json | None:
    """An element; None where there is none, or nobody could read it."""
    try:
        element = data_set[tag]
        if element.VR == "SQ":
            items = (
                data_set_json(item, address, f"{place}{name_of(tag)}/{number}/")
                for number, item in enumerate(element.value or ())
            )
            return _with_value("SQ", list(items))
        if element.VR in BINARY and len(element.value or b"") > LONGEST_INLINE:
            return None if address is None else {"vr": element.VR, "BulkDataURI": address(place + name_of(tag))}
        return _plain(element)
    except MALFORMED:
        return None


def _plain(element: DataElement) -> Json:
    made: Json = element.to_json_dict(None, 0) if element.VR not in BINARY else _inline(element)
    values = made.get("Value")
    if isinstance(values, list) and any(isinstance(value, float) and not math.isfinite(value) for value in values):
        made["Value"] = [str(v) if isinstance(v, float) and not math.isfinite(v) else v for v in values]
    return made


def _inline(element: DataElement) -> Json:
    value = bytes(element.value or b"")
    return {"vr": element.VR} | ({"InlineBinary": b64encode(value).decode("ascii")} if value else {})


def _with_value(vr: str, values: list[Any]) -> Json:
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def name_of(tag: BaseTag | int) -> str:
    """Eight hexadecimal digits."""
    return f"{int(tag):08X}"


def tag_of(name: str) -> BaseTag | None:
    """A tag from its keyword (PS3.6), or from eight hexadecimal digits; None for anything else."""
    if len(name) == 8 and all(letter in "0123456789abcdefABCDEF" for letter in name):
        return Tag(int(name, 16))
    number = tag_for_keyword(name)
    return None if number is None else Tag(number)


def keyword_of(name: str) -> str:
    """The keyword of a tag, for messages; its digits where it has none."""
    return keyword_for_tag(int(name, 16)) or name


def value(vr: str, *values: Any) -> Json:
    """An element of our own."""
    return _with_value(vr, [one for one in values if one not in (None, "")])


def values_of(element: Json | None) -> list[Any]:
    """The values of an element, if it has any."""
    values = (element or {}).get("Value")
    return values if isinstance(values, list) else []


def array_of(data_sets: Iterable[Json]) -> Iterator[bytes]:
    """A JSON array, data set by data set."""
    opening = b"["
    for data_set in data_sets:
        yield opening + json.dumps(data_set, separators=(",", ":")).encode()
        opening = b",\n"
    yield b"]" if opening != b"[" else b"[]"
