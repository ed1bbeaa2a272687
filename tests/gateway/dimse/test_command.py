"""Command sets as peers write them: what leaves no doubt is read."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset

from gateway.dimse.command import MalformedCommand, elements, unsigned, written
from tests.gateway.receiving import (
    CT,
    RawPeer,
    associate_request,
    element,
    encode,
    make_ct,
    padded,
    pdu,
    pdv,
    receiving,
    store_request,
)

VERIFY = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"


def us(number: int, size: int = 2) -> bytes:
    return number.to_bytes(size, "little")


def foreign(group: int, number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", group, number, len(value)) + value


def habits(parts: list[bytes], number: dict[int, int]) -> dict[str, bytes]:
    """The same command set in several ways. parts: its elements; number: those of type US."""
    body = b"".join(parts)
    wide = b"".join(
        element(name, us(number[name], 4)) if (name := struct.unpack_from("<H", part, 2)[0]) in number else part
        for part in parts
    )
    return {
        "plain": element(0, us(len(body), 4)) + body,
        "no group length": body,
        "short group length": element(0, us(10, 4)) + body,
        "long group length": element(0, us(9999, 4)) + body,
        "group length in two bytes": element(0, us(10)) + body,
        "group length last": body + element(0, us(len(body), 4)),
        "in reverse": b"".join(reversed(parts)),
        "a retired element": element(1, us(5, 4)) + body,
        "an unknown element": body + element(0x5010, b"ab"),
        "elements of other groups": foreign(8, 5, b"ISO_IR 100") + body + foreign(2, 0x10, padded(IMPLICIT)),
        "NUL bytes behind": body + bytes(4),
        "more NUL bytes behind": body + bytes(8),
        "numbers in four bytes": wide,
    }


NAMES = list(habits([], {}))


@pytest.mark.parametrize("name", NAMES)
def test_habits_of_senders(tmp_path: Path, name: str) -> None:
    """An instance, then a C-ECHO, which goes to pynetdicom; on one association."""
    instance = make_ct()
    uid = str(instance.SOPInstanceUID)
    store = [
        element(0x0002, padded(CT)),
        element(0x0100, us(1)),
        element(0x0110, us(7)),
        element(0x0700, us(0)),
        element(0x0800, us(1)),
        element(0x1000, padded(uid)),
    ]
    echo = [
        element(0x0002, padded(VERIFY)),
        element(0x0100, us(0x30)),
        element(0x0110, us(8)),
        element(0x0800, us(0x101)),
    ]
    contexts = [(1, CT, "1.2.840.10008.1.2.1"), (3, VERIFY, IMPLICIT)]
    with receiving(tmp_path) as receiver, RawPeer(receiver.scp.port, associate_request(contexts=contexts)) as peer:
        command = habits(store, {0x100: 1, 0x110: 7, 0x700: 0, 0x800: 1})[name]
        peer.send(pdu(pdv(1, 3, command)) + pdu(pdv(1, 2, encode(instance))))
        assert peer.read_status() == 0
        peer.send(pdu(pdv(3, 3, habits(echo, {0x100: 0x30, 0x110: 8, 0x800: 0x101})[name])))
        assert peer.read_status() == 0
        peer.release()
        assert receiver.stored() == {uid: encode(instance)}


@pytest.mark.parametrize(
    "broken",
    [
        b"garbage",
        element(0x0100, us(1))[:-1],
        struct.pack("<HHI", 0, 0x100, 0xFFFFFFFF) + us(1),
        element(0x0100, us(1)) + b"\0\0\0\1",
    ],
)
def test_what_is_not_whole(broken: bytes) -> None:
    with pytest.raises(MalformedCommand):
        elements(broken)


@pytest.mark.parametrize(("value", "number"), [(b"\7\0", 7), (b"\7\0\0\0", 7), (b"\0\0\1\0", None), (b"\7", None)])
def test_numbers(value: bytes, number: int | None) -> None:
    assert unsigned({0x110: value}, 0x110) == number


@given(st.dictionaries(st.sampled_from([0x2, 0x100, 0x110, 0x900, 0x1000, 0x1002, 0x5010]), st.binary(max_size=8)))
def test_what_is_written_is_read_by_pydicom(values: dict[int, bytes]) -> None:
    again = written(values)
    assert written(elements(again)) == again
    read = read_dataset(DicomBytesIO(again), is_implicit_VR=True, is_little_endian=True)
    assert {element.tag.element for element in read.values()} == values.keys() | {0}
    assert {element.tag.group for element in read.values()} == {0}


def test_a_request_that_is_as_it_should_be_stays_as_it_is() -> None:
    assert written(elements(store_request(CT, "1.2.3"))) == store_request(CT, "1.2.3")
