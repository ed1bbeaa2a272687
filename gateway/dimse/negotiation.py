"""Association requests and answers as peers really write them (PS3.8 9.3 and annex D, PS3.7 D.3.3), item by item.

    bytes of a peer ──read──> Request, Acceptance ──encode──> bytes as the standard has them ──> pynetdicom

What the standard lets a peer send is read, and so is what says plainly what is meant: items and sub-items of unknown
types are skipped (PS3.8 9.3.1), whatever stands in reserved fields is not looked at, an AE title ends at its first NUL,
only bit 0 of the protocol version is tested (table 9-11). Of an item that may come once the first counts; of the user
information we use the maximum length, the implementation class and the roles, and the rest is nobody's business here.
What is not whole raises MalformedPdu: a length that runs out of what holds it.

pynetdicom's own decoders raise on the first thing they do not know, so they are only given what `encode` writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
HEADER = struct.Struct(">BxI")  # type, reserved, length of what follows (PS3.8 9.3.1)
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
SAFE_LENGTH = 16384  # where a peer does not say how long a PDU it takes: DCMTK's and pynetdicom's own
NO_UID = "1.2.840.10008.0"  # is no SOP class and no transfer syntax: nobody accepts it
NO_CLASS = "1.2.840.10008.3.1.1.0"  # as an implementation class, where a peer names none
ACCEPTED, REFUSED = 0, 1  # results of a presentation context (PS3.8 table 9-18)

_FIXED = 68  # bytes of a request or an acceptance before its items (tables 9-11 and 9-17)
_TITLES = slice(4, _FIXED)  # of these: AE titles and what is reserved after them
_ITEM = struct.Struct(">BxH")
_APPLICATION, _PROPOSED, _ANSWERED, _ABSTRACT, _TRANSFER, _USER = 0x10, 0x20, 0x21, 0x30, 0x40, 0x50
_MAXIMUM, _IMPLEMENTATION, _ROLE = 0x51, 0x52, 0x54


class MalformedPdu(ValueError):
    """Bytes that are no association request, or no answer to one."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A presentation context that a peer asks for (PS3.8 9.3.2.2). NO_UID stands for what is missing or no UID."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """SCP/SCU role selection (PS3.7 D.3.3.4)."""

    sop_class_uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class User:
    """User information (PS3.8 annex D). maximum_length: of a PDU that its sender takes; 0: any."""

    maximum_length: int = SAFE_LENGTH
    implementation_class_uid: str = NO_CLASS
    roles: tuple[RoleSelection, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """An A-ASSOCIATE-RQ (PS3.8 9.3.2).

    protocol_version: bit 0 stands for version 1, the only one. titles: both AE titles and what is reserved after them,
    byte for byte, to be sent back in the acceptance (table 9-17). calling_ae, called_ae: may be empty, or strange.
    """

    protocol_version: int
    titles: bytes
    called_ae: str
    calling_ae: str
    application_context: str
    contexts: tuple[Proposed, ...]
    user: User

    def encode(self) -> bytes:
        """The request as the standard has it; titles that it does not allow become `?`."""
        body = struct.pack(">HH", 1, 0) + _title(self.called_ae) + _title(self.calling_ae) + bytes(32)
        body += _item(_APPLICATION, APPLICATION_CONTEXT.encode())
        for context in self.contexts:
            syntaxes = b"".join(_item(_TRANSFER, uid.encode()) for uid in context.transfer_syntaxes)
            head = bytes((context.context_id, 0, 0, 0))
            body += _item(_PROPOSED, head + _item(_ABSTRACT, context.abstract_syntax.encode()) + syntaxes)
        return _pdu(ASSOCIATE_RQ, body + _user(self.user))


@dataclass(frozen=True, slots=True)
class Answered:
    """What a peer says to a presentation context (PS3.8 9.3.3.2). transfer_syntax: not to be tested unless accepted."""

    context_id: int
    result: int
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """An A-ASSOCIATE-AC (PS3.8 9.3.3)."""

    contexts: tuple[Answered, ...]
    user: User

    def limited(self, longest: int) -> Acceptance:
        """The same of a peer that takes no longer PDU than this."""
        maximum = min(self.user.maximum_length or longest, longest)
        return replace(self, user=replace(self.user, maximum_length=maximum))

    def encode(self) -> bytes:
        """The acceptance as the standard has it. Its AE titles are not to be tested."""
        body = struct.pack(">HH", 1, 0) + b"?".ljust(16) * 2 + bytes(32)
        body += _item(_APPLICATION, APPLICATION_CONTEXT.encode())
        for context in self.contexts:
            head = bytes((context.context_id, 0, context.result, 0))
            body += _item(_ANSWERED, head + _item(_TRANSFER, context.transfer_syntax.encode()))
        return _pdu(ASSOCIATE_AC, body + _user(self.user))


T = TypeVar("T", Proposed, Answered)


def read_request(pdu: bytes) -> Request:
    """Read a whole A-ASSOCIATE-RQ. Raises MalformedPdu."""
    version, body, items = _parts(pdu, "association request")
    contexts = _first(_proposed(value) for kind, value in items if kind == _PROPOSED)
    if not contexts:
        raise MalformedPdu("an association request without a presentation context")
    return Request(
        protocol_version=version,
        titles=body[_TITLES],
        called_ae=ae_title(body[4:20]),
        calling_ae=ae_title(body[20:36]),
        application_context=next((_uid(value) for kind, value in items if kind == _APPLICATION), ""),
        contexts=contexts,
        user=_read_user(items),
    )


def read_acceptance(pdu: bytes, asked: Mapping[int, tuple[str, ...]]) -> Acceptance:
    """Read a whole A-ASSOCIATE-AC. Raises MalformedPdu.

    asked: the transfer syntaxes of each context that was asked for. An accepted one without a transfer syntax has the
    only one that was asked for; one with another than was asked for is none that could be used, and counts as refused.
    """
    _, _, items = _parts(pdu, "answer to an association request")
    answered = _first(_answered(value, asked) for kind, value in items if kind == _ANSWERED)
    return Acceptance(tuple(one for one in answered if one.context_id in asked), _read_user(items))


def read_rejection(pdu: bytes) -> tuple[int, int, int]:
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 9.3.4), zeros where it is too short for them."""
    return _three(pdu, 7)


def read_abort(pdu: bytes) -> tuple[int, int]:
    """Source and reason of an A-ABORT (PS3.8 9.3.8), zeros where it is too short for them."""
    return _three(pdu, 8)[:2]


def rejection(result: int, source: int, reason: int) -> bytes:
    """An A-ASSOCIATE-RJ that says the nearest to this that the standard knows (table 9-21)."""
    known = {1: (1, 2, 3, 7), 2: (1, 2), 3: (1, 2)}
    source = source if source in known else 1
    return _pdu(ASSOCIATE_RJ, bytes((0, 2 if result == 2 else 1, source, reason if reason in known[source] else 1)))


def abort(source: int, reason: int) -> bytes:
    """An A-ABORT that says the nearest to this that the standard knows (table 9-26)."""
    by_provider = source == 2
    return _pdu(ABORT, bytes((0, 0, 2 if by_provider else 0, reason if by_provider and reason in range(7) else 0)))


def ae_title(value: bytes) -> str:
    """An AE title as it is meant: up to its first NUL, as C programs pad, without spaces around (PS3.5 6.2)."""
    return value.partition(b"\0")[0].decode("latin-1").strip()


# ---- reading


def _parts(pdu: bytes, what: str) -> tuple[int, bytes, list[tuple[int, bytes]]]:
    """Protocol version, what follows the header, and the items in it."""
    body = pdu[HEADER.size :]
    if len(body) < _FIXED:
        raise MalformedPdu(f"an {what} of {len(body)} bytes, where it has at least {_FIXED}")
    (version,) = struct.unpack_from(">H", body)
    return version, body, list(_items(body[_FIXED:], what))


def _items(data: bytes, where: str) -> Iterator[tuple[int, bytes]]:
    """Type and value of each item. NUL bytes at the end that are too few for an item are padding."""
    position = 0
    while position < len(data):
        if len(data) - position < _ITEM.size:
            if any(data[position:]):
                raise MalformedPdu(f"{len(data) - position} bytes after the last item of an {where}")
            return
        kind, length = _ITEM.unpack_from(data, position)
        position += _ITEM.size
        if position + length > len(data):
            left = len(data) - position
            raise MalformedPdu(f"an item {kind:02X}H of {length} bytes, where its {where} has {left} left")
        yield kind, data[position : position + length]
        position += length


def _proposed(value: bytes) -> Proposed:
    where = "asked-for presentation context"
    items = list(_items(_after_id(value, where), where))
    abstract = next((uid for kind, name in items if kind == _ABSTRACT and (uid := _uid(name))), NO_UID)
    syntaxes = dict.fromkeys(uid for kind, name in items if kind == _TRANSFER and (uid := _uid(name)))
    return Proposed(value[0], abstract, tuple(syntaxes) or (NO_UID,))


def _answered(value: bytes, asked: Mapping[int, tuple[str, ...]]) -> Answered:
    where = "answered presentation context"
    items = list(_items(_after_id(value, where), where))
    context_id, result = value[0], value[2]
    syntaxes, mine = (
        [uid for kind, name in items if kind == _TRANSFER and (uid := _uid(name))],
        asked.get(context_id, ()),
    )
    if result == ACCEPTED:
        syntax = syntaxes[0] if syntaxes else mine[0] if len(mine) == 1 else ""
        return Answered(context_id, ACCEPTED, syntax) if syntax in mine else Answered(context_id, REFUSED, NO_UID)
    return Answered(context_id, result if result <= 4 else REFUSED, NO_UID)


def _after_id(value: bytes, where: str) -> bytes:
    if len(value) < 4:
        raise MalformedPdu(f"an {where} of {len(value)} bytes, where it has at least 4")
    return value[4:]


def _read_user(items: Iterable[tuple[int, bytes]]) -> User:
    data = next((value for kind, value in items if kind == _USER), b"")
    about = list(_items(data, "user information item"))
    maximum = next(
        (int.from_bytes(value) for kind, value in about if kind == _MAXIMUM and len(value) == 4), SAFE_LENGTH
    )
    implementation = next((uid for kind, value in about if kind == _IMPLEMENTATION and (uid := _uid(value))), NO_CLASS)
    roles = [role for kind, value in about if kind == _ROLE and (role := _role(value))]
    return User(
        _usable(maximum), implementation, tuple({role.sop_class_uid: role for role in reversed(roles)}.values())
    )


def _usable(maximum: int) -> int:
    """A maximum length that fragments can keep to: even as they are (PS3.8 9.3.5.1), and long enough for any."""
    return SAFE_LENGTH if 0 < maximum < 8 else maximum & ~1


def _role(value: bytes) -> RoleSelection | None:
    length = int.from_bytes(value[:2])
    uid, flags = _uid(value[2 : 2 + length]), value[2 + length :]
    return RoleSelection(uid, flags[0] == 1, flags[1] == 1) if uid and len(flags) >= 2 else None


def _uid(value: bytes) -> str:
    """A UID without the padding that it should not have here (PS3.8 annex F); empty where it is none."""
    text = value.strip(b"\0 ")
    return text.decode() if len(text) <= 64 and text and not text.strip(b"0123456789.") else ""


def _first(contexts: Iterable[T]) -> tuple[T, ...]:
    """Of several contexts of one id the first: nobody could tell in data transfer which is meant."""
    by_id: dict[int, T] = {}
    for context in contexts:
        by_id.setdefault(context.context_id, context)
    return tuple(by_id.values())


def _three(pdu: bytes, start: int) -> tuple[int, int, int]:
    values = pdu[start : start + 3].ljust(3, b"\0")
    return values[0], values[1], values[2]


# ---- writing


def _pdu(kind: int, body: bytes) -> bytes:
    return HEADER.pack(kind, len(body)) + body


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value


def _title(title: str) -> bytes:
    allowed = title.isascii() and title.isprintable() and "\\" not in title and title
    return (title if allowed else "?").encode().ljust(16)


def _user(user: User) -> bytes:
    about = _item(_MAXIMUM, struct.pack(">I", user.maximum_length))
    about += _item(_IMPLEMENTATION, user.implementation_class_uid.encode())
    for role in user.roles:
        uid = role.sop_class_uid.encode()
        about += _item(_ROLE, struct.pack(">H", len(uid)) + uid + bytes((role.scu, role.scp)))
    return _item(_USER, about)
