"""What vendors wrote into private elements before the standard had a place for it, where every reader takes it from.

A private element counts only under its creator (PS3.5 7.8.1). All others leave a header when it is read.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

#: (group, creator, element in its block) -> what it says, and the VR it has where the file names none (UN).
_KNOWN: Final = {
    (0x0019, "SIEMENS MR HEADER", 0x0C): ("B_value", "IS"),
    (0x0019, "SIEMENS MR HEADER", 0x0D): ("DiffusionDirectionality", "CS"),
    (0x0019, "SIEMENS MR HEADER", 0x0E): ("DiffusionGradientDirection", "FD"),
    (0x0051, "SIEMENS MR HEADER", 0x0F): ("CoilString", "LO"),
    (0x0043, "GEMS_PARM_01", 0x2F): ("GE image type", "SS"),  # magnitude, phase, real, imaginary
    (0x0043, "GEMS_PARM_01", 0x39): ("GE b-value", "IS"),
    (0x0019, "GEMS_ACQU_01", 0xBB): ("GE gradient x", "DS"),
    (0x0019, "GEMS_ACQU_01", 0xBC): ("GE gradient y", "DS"),
    (0x0019, "GEMS_ACQU_01", 0xBD): ("GE gradient z", "DS"),
    (0x2001, "Philips Imaging DD 001", 0x03): ("Diffusion B-Factor", "FL"),
    (0x2001, "Philips Imaging DD 001", 0x08): ("Phase Number", "IS"),
    (0x2005, "Philips MR Imaging DD 001", 0x11): ("Philips image type", "CS"),
    (0x2005, "Philips MR Imaging DD 001", 0xB0): ("Diffusion Direction RL", "FL"),
    (0x2005, "Philips MR Imaging DD 001", 0xB1): ("Diffusion Direction AP", "FL"),
    (0x2005, "Philips MR Imaging DD 001", 0xB2): ("Diffusion Direction FH", "FL"),
    (0x2005, "Philips MR Imaging DD 005", 0x12): ("Diffusion b-value number", "IS"),
    (0x2005, "Philips MR Imaging DD 005", 0x13): ("Diffusion gradient number", "IS"),
    (0x2005, "Philips MR Imaging DD 005", 0x29): ("Philips label type", "CS"),
}
_CREATORS: Final = {(group, creator) for group, creator, _ in _KNOWN}
_GROUPS: Final = {group for group, _ in _CREATORS}
_BINARY: Final = {"FL": "<f", "FD": "<d", "SS": "<h"}
NAMES: Final = tuple(name for name, _ in _KNOWN.values())


def kept(header: Dataset) -> set[BaseTag]:
    """The private elements that stay in a header: the known ones and their creators."""
    tags: set[BaseTag] = set()
    for creator, names in _blocks(header).items():
        tags |= {creator, *names}
    return tags


def private_traits(header: Dataset) -> dict[str, str]:
    """What the known private elements of a header say, as texts."""
    texts = {}
    for names in _blocks(header).values():
        for tag, (name, vr) in names.items():
            text = _text(header[tag].value, vr)
            if text:
                texts[name] = text
    return texts


def _blocks(header: Dataset) -> dict[BaseTag, dict[BaseTag, tuple[str, str]]]:
    """Creator elements that are known -> the elements of their blocks that are here, with name and VR."""
    blocks: dict[BaseTag, dict[BaseTag, tuple[str, str]]] = {}
    for tag in header.keys():  # noqa: SIM118 - iterating a Dataset converts values
        if tag.group in _GROUPS and 0x10 <= tag.element <= 0xFF:
            creator = _creator(header, tag)
            if (tag.group, creator) in _CREATORS:
                blocks[tag] = {
                    here: name
                    for (group, who, element), name in _KNOWN.items()
                    if (group, who) == (tag.group, creator)
                    and (here := Tag(group, tag.element << 8 | element)) in header.keys()  # noqa: SIM118
                }
    return {creator: names for creator, names in blocks.items() if names}


def _creator(header: Dataset, tag: BaseTag) -> str:
    value = header[tag].value
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.strip(" \0")


def _text(value: Any, vr: str) -> str:
    if isinstance(value, bytes):
        code = _BINARY.get(vr)
        if code is None:
            return value.decode("latin-1").strip(" \0")
        size = struct.calcsize(code)
        numbers = [struct.unpack_from(code, value, at)[0] for at in range(0, len(value) - size + 1, size)]
        return "\\".join(f"{number:g}" for number in numbers)
    if value is None:
        return ""
    return "\\".join(str(part).strip() for part in (value if isinstance(value, MultiValue | list) else [value]))
