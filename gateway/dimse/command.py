"""Command sets (PS3.7 6.3, 9.3.1): implicit VR little endian elements of group 0000.

Read as others read them: elements in any order, without a group length or with a wrong one, beside elements of other
groups (which say nothing here), with NUL bytes behind the last; a US in four bytes is the number that it is. Of an
element that comes twice the last counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway.dimse.status import Status

C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001
NO_DATA_SET = 0x0101

GROUP_LENGTH = 0x0000
AFFECTED_SOP_CLASS_UID = 0x0002
COMMAND_FIELD = 0x0100
MESSAGE_ID = 0x0110
MESSAGE_ID_BEING_RESPONDED_TO = 0x0120
PRIORITY = 0x0700
COMMAND_DATA_SET_TYPE = 0x0800
STATUS = 0x0900
ERROR_COMMENT = 0x0902
AFFECTED_SOP_INSTANCE_UID = 0x1000
EVENT_TYPE_ID, ACTION_TYPE_ID = 0x1002, 0x1008
UNSIGNED = frozenset(
    {
        COMMAND_FIELD, MESSAGE_ID, MESSAGE_ID_BEING_RESPONDED_TO, PRIORITY, COMMAND_DATA_SET_TYPE, STATUS,
        EVENT_TYPE_ID, ACTION_TYPE_ID,
    }
)  # fmt: skip

P_DATA_TF = 0x04
COMMAND, LAST = 0x01, 0x02  # bits of the message control header (PS3.8 E.2)

_ELEMENT = struct.Struct("<HHI")
_PDU_AND_PDV = struct.Struct(">BxIIBB")


class MalformedCommand(ValueError):
    """Bytes that are not a command set."""


def elements(data: bytes) -> dict[int, bytes]:
    """Element number to value of a command set; raises MalformedCommand."""
    found: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        if position + 8 > len(data):
            if any(data[position:]):
                raise MalformedCommand("the command set ends inside an element")
            break
        group, element, length = _ELEMENT.unpack_from(data, position)
        position += 8
        if position + length > len(data):
            raise MalformedCommand(f"({group:04X},{element:04X}) is longer than its command set")
        if group == 0x0000:
            found[element] = data[position : position + length]
        position += length
    return found


def written(found: Mapping[int, bytes]) -> bytes:
    """A command set as the standard has it: elements in order, each US in two bytes, the group length first."""
    values = {element: value for element, value in sorted(found.items()) if element != GROUP_LENGTH}
    for element in UNSIGNED & values.keys():
        number = unsigned(values, element)
        values[element] = values[element] if number is None else number.to_bytes(2, "little")
    return _with_length(values)


def unsigned(found: Mapping[int, bytes], element: int) -> int | None:
    """A US element's value, or None where it is absent or no number of two bytes."""
    value = found.get(element, b"")
    number = int.from_bytes(value, "little")
    return number if len(value) in (2, 4) and number <= 0xFFFF else None


def uid(found: Mapping[int, bytes], element: int) -> str:
    """A UI element's value without its padding; empty where it is absent or not ASCII."""
    value = found.get(element, b"").strip(b"\0 ")
    return value.decode("ascii") if value.isascii() else ""


@dataclass(frozen=True, slots=True)
class StoreCommand:
    """A C-STORE-RQ (PS3.7 9.3.1.1). UIDs are empty where the sender left them out."""

    message_id: int
    sop_class_uid: str
    sop_instance_uid: str
    priority: int
    has_data_set: bool

    @classmethod
    def of(cls, found: Mapping[int, bytes]) -> StoreCommand:
        """Raises MalformedCommand where even an answer is impossible: no Message ID."""
        message_id = unsigned(found, MESSAGE_ID)
        if message_id is None:
            raise MalformedCommand("C-STORE-RQ without Message ID (0000,0110)")
        return cls(
            message_id,
            uid(found, AFFECTED_SOP_CLASS_UID),
            uid(found, AFFECTED_SOP_INSTANCE_UID),
            unsigned(found, PRIORITY) or 0,
            unsigned(found, COMMAND_DATA_SET_TYPE) != NO_DATA_SET,
        )


def store_response(command: StoreCommand, status: Status, comment: str = "") -> bytes:
    """The command set of a C-STORE-RSP (PS3.7 9.3.1.2); the comment (LO) is cut to 64 characters."""
    values = {
        AFFECTED_SOP_CLASS_UID: _even(command.sop_class_uid, b"\0"),
        COMMAND_FIELD: C_STORE_RSP.to_bytes(2, "little"),
        MESSAGE_ID_BEING_RESPONDED_TO: command.message_id.to_bytes(2, "little"),
        COMMAND_DATA_SET_TYPE: NO_DATA_SET.to_bytes(2, "little"),
        STATUS: status.to_bytes(2, "little"),
        ERROR_COMMENT: _even(comment[:64], b" "),
        AFFECTED_SOP_INSTANCE_UID: _even(command.sop_instance_uid, b"\0"),
    }
    return _with_length({element: value for element, value in values.items() if value})


def p_data(context_id: int, command_set: bytes, maximum_length: int) -> bytes:
    """A command set as P-DATA-TF PDUs of one PDV each, none longer than the peer takes (0: any length; PS3.8 D.1)."""
    size = maximum_length - 6 if maximum_length > 6 else len(command_set)
    return b"".join(_fragments(context_id, command_set, size))


def _fragments(context_id: int, command_set: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(command_set), size):
        piece = command_set[start : start + size]
        control = COMMAND | (LAST if start + size >= len(command_set) else 0)
        yield _PDU_AND_PDV.pack(P_DATA_TF, len(piece) + 6, len(piece) + 2, context_id, control) + piece


def _with_length(values: Mapping[int, bytes]) -> bytes:
    body = b"".join(_ELEMENT.pack(0, element, len(value)) + value for element, value in values.items())
    return _ELEMENT.pack(0, GROUP_LENGTH, 4) + len(body).to_bytes(4, "little") + body


def _even(text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    return value + padding * (len(value) % 2)
