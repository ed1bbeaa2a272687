"""Association requests and answers, item by item: pynetdicom's decoders are the oracle of what is written anew."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ

from gateway.dimse import reactor  # noqa: F401 - pynetdicom takes even context ids only with it
from gateway.dimse.negotiation import (
    ACCEPTED,
    APPLICATION_CONTEXT,
    NO_UID,
    REFUSED,
    SAFE_LENGTH,
    MalformedPdu,
    RoleSelection,
    abort,
    ae_title,
    read_abort,
    read_acceptance,
    read_rejection,
    read_request,
    rejection,
)
from tests.gateway.receiving import CT

EXPLICIT, IMPLICIT, MR = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.5.1.4.1.1.4"


def item(kind: int, value: bytes, reserved: int = 0) -> bytes:
    return struct.pack(">BBH", kind, reserved, len(value)) + value


def context(context_id: int, abstract: str, *syntaxes: str, reserved: bytes = bytes(3)) -> bytes:
    names = b"".join(item(0x40, syntax.encode()) for syntax in syntaxes)
    return item(0x20, bytes((context_id,)) + reserved + item(0x30, abstract.encode()) + names)


def answer(context_id: int, result: int, *syntaxes: str) -> bytes:
    return item(0x21, bytes((context_id, 0, result, 0)) + b"".join(item(0x40, name.encode()) for name in syntaxes))


def user(*more: bytes, maximum: bytes = struct.pack(">I", 16384)) -> bytes:
    return item(0x50, item(0x51, maximum) + item(0x52, b"1.2.3") + b"".join(more))


APPLICATION = item(0x10, APPLICATION_CONTEXT.encode())
PROPOSED = context(1, CT, EXPLICIT, IMPLICIT)


def pdu(
    *items: bytes,
    kind: int = 1,
    version: int = 1,
    called: bytes = b"MEDSEG          ",
    calling: bytes = b"SENDER          ",
    reserved: bytes = bytes(32),
) -> bytes:
    body = struct.pack(">HH", version, 0) + called + calling + reserved + b"".join(items)
    return struct.pack(">BxI", kind, len(body)) + body


def as_pynetdicom_reads(data: bytes, kind: type = A_ASSOCIATE_RQ) -> object:
    decoded = kind()
    decoded.decode(data)
    return decoded.to_primitive()


@pytest.mark.parametrize(
    "items",
    [
        [APPLICATION, PROPOSED, user()],
        [user(), PROPOSED, APPLICATION],
        [APPLICATION, item(0x77, b"unknown"), PROPOSED, user(), item(0x99, b"")],
        [APPLICATION, item(0x20, item(1, bytes(0))[:4] + item(0x99, b"x") + PROPOSED[8:]), user()],
        [APPLICATION, context(1, CT, EXPLICIT, IMPLICIT, reserved=b"\xff\xfe\xfd"), user()],
        [APPLICATION, context(1, CT + "\0", EXPLICIT + "\0", IMPLICIT + " "), user()],
        [APPLICATION, PROPOSED, user(item(0x60, b"vendor"), item(0x55, b"A" * 40), item(0x58, b"\1"))],
        [APPLICATION, PROPOSED, user(item(0x53, b"\0"), item(0x56, b""), item(0x57, b"\xff" * 9))],
        [APPLICATION, PROPOSED, user(), bytes(4)],
        [APPLICATION, PROPOSED, user(), bytes(3)],
        [APPLICATION, PROPOSED, user(), user(maximum=bytes(4))],
        [APPLICATION, PROPOSED, PROPOSED, context(1, MR, IMPLICIT), user()],
        [item(0x10, APPLICATION_CONTEXT.encode() + b"\0", 7), PROPOSED, user()],
    ],
)
def test_habits_that_leave_no_doubt(items: list[bytes]) -> None:
    read = read_request(pdu(*items))
    assert (read.called_ae, read.calling_ae, read.application_context) == ("MEDSEG", "SENDER", APPLICATION_CONTEXT)
    assert [(one.context_id, one.abstract_syntax, one.transfer_syntaxes) for one in read.contexts] == [
        (1, CT, (EXPLICIT, IMPLICIT))
    ]
    assert read.user.maximum_length == 16384
    assert read_request(read.encode()) == read_request(pdu(*items))


@pytest.mark.parametrize(
    ("title", "meant"),
    [
        (b"MEDSEG          ", "MEDSEG"),
        (b"MEDSEG\0\0\0\0\0\0\0\0\0\0", "MEDSEG"),
        (b"MEDSEG\0garbage!!", "MEDSEG"),
        (b"  MEDSEG  \0     ", "MEDSEG"),
        (b"                ", ""),
        (bytes(16), ""),
        (b"M\xdcNCHEN         ", "MÜNCHEN"),
    ],
)
def test_titles(title: bytes, meant: str) -> None:
    assert ae_title(title) == meant
    read = read_request(pdu(APPLICATION, PROPOSED, user(), called=title, calling=title, reserved=b"r" * 32))
    assert (read.called_ae, read.calling_ae, read.titles) == (meant, meant, title * 2 + b"r" * 32)
    as_pynetdicom_reads(read.encode())


@pytest.mark.parametrize(
    ("items", "maximum"),
    [
        ([], SAFE_LENGTH),
        ([item(0x50, b"")], SAFE_LENGTH),
        ([item(0x50, item(0x51, b"\x40\0"))], SAFE_LENGTH),
        ([user(maximum=bytes(4))], 0),
        ([user(maximum=b"\0\0\0\7")], SAFE_LENGTH),
        ([user(maximum=b"\0\0\0\x41")], 0x40),
        ([user(maximum=b"\xff" * 4)], 0xFFFFFFFE),
    ],
)
def test_maximum_lengths(items: list[bytes], maximum: int) -> None:
    assert read_request(pdu(APPLICATION, PROPOSED, *items)).user.maximum_length == maximum


def test_a_context_that_asks_for_nothing_is_answered_all_the_same() -> None:
    bare = [context(1, CT), item(0x20, b"\3\0\0\0" + item(0x40, EXPLICIT.encode())), context(5, "x.y", "é")]
    read = read_request(pdu(APPLICATION, *bare, context(7, CT, EXPLICIT), user()))
    assert [(one.context_id, one.abstract_syntax, one.transfer_syntaxes) for one in read.contexts] == [
        (1, CT, (NO_UID,)),
        (3, NO_UID, (EXPLICIT,)),
        (5, NO_UID, (NO_UID,)),
        (7, CT, (EXPLICIT,)),
    ]


def test_roles() -> None:
    def role(uid: str, *flags: int) -> bytes:
        return item(0x54, struct.pack(">H", len(uid)) + uid.encode() + bytes(flags))

    broken = [item(0x54, b"\xff\xff1.2\1\1"), role("1.2.3", 1), role("", 1, 1)]
    read = read_request(pdu(APPLICATION, PROPOSED, user(role(CT, 0, 1), role(CT, 1, 0), role(MR, 2, 1), *broken)))
    assert set(read.user.roles) == {RoleSelection(CT, False, True), RoleSelection(MR, False, True)}


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (pdu()[:60], "at least 68"),
        (pdu(APPLICATION, user()), "without a presentation context"),
        (pdu(APPLICATION, PROPOSED, user()[:-1]), "50H of 17 bytes"),
        (pdu(APPLICATION, PROPOSED, user(), b"abc"), "3 bytes after the last item"),
        (pdu(APPLICATION, item(0x20, b"\1\0\0"), user()), "at least 4"),
        (pdu(APPLICATION, item(0x20, b"\1\0\0\0\x30\0\xff\xff1.2"), user()), "30H of 65535 bytes"),
        (pdu(APPLICATION, PROPOSED, item(0x50, b"\x51\0\0\x09\0\0\0\0")), "51H of 9 bytes"),
    ],
)
def test_what_is_not_whole(broken: bytes, why: str) -> None:
    with pytest.raises(MalformedPdu, match=why):
        read_request(broken)


ASKED = {1: (EXPLICIT,), 3: (IMPLICIT,), 5: (EXPLICIT, IMPLICIT)}


@pytest.mark.parametrize(
    ("items", "answered"),
    [
        ([answer(1, 0, EXPLICIT)], [(1, ACCEPTED, EXPLICIT)]),
        ([answer(1, 0)], [(1, ACCEPTED, EXPLICIT)]),  # only one was asked for
        ([answer(5, 0)], [(5, REFUSED, NO_UID)]),
        ([answer(1, 0, EXPLICIT + "\0")], [(1, ACCEPTED, EXPLICIT)]),
        ([answer(1, 0, EXPLICIT, IMPLICIT)], [(1, ACCEPTED, EXPLICIT)]),
        ([answer(1, 0, IMPLICIT)], [(1, REFUSED, NO_UID)]),  # nobody asked for that
        ([answer(1, 9, EXPLICIT)], [(1, REFUSED, NO_UID)]),
        ([answer(1, 3)], [(1, 3, NO_UID)]),
        ([answer(99, 0, EXPLICIT), answer(3, 0, IMPLICIT)], [(3, ACCEPTED, IMPLICIT)]),
        ([answer(1, 0, EXPLICIT), answer(1, 4)], [(1, ACCEPTED, EXPLICIT)]),
        ([item(0x77, b"x"), answer(1, 0, EXPLICIT)], [(1, ACCEPTED, EXPLICIT)]),
        ([], []),
    ],
)
def test_answers(items: list[bytes], answered: list[tuple[int, int, str]]) -> None:
    odd = pdu(APPLICATION, *items, user(item(0x60, b"?")), kind=2, called=bytes(16), calling=b"\xff" * 16)
    read = read_acceptance(odd, ASKED)
    assert [(one.context_id, one.result, one.transfer_syntax) for one in read.contexts] == answered
    as_pynetdicom_reads(read.encode(), A_ASSOCIATE_AC)
    assert read.limited(1000).user.maximum_length == 1000


PIECES = st.lists(
    st.one_of(
        st.sampled_from([APPLICATION, PROPOSED, user(), answer(1, 0, EXPLICIT), bytes(1), b"\x20\0\0\4\1\0\0\0"]),
        st.builds(item, st.integers(0, 255), st.binary(max_size=40)),
        st.builds(context, st.integers(0, 255), st.text("0123456789.", max_size=70), st.sampled_from([EXPLICIT, "x"])),
        st.builds(lambda value: user(item(0x54, value)), st.binary(max_size=20)),
        st.binary(max_size=10),
    ),
    max_size=8,
)
TITLES = st.binary(min_size=16, max_size=16)


@given(PIECES, TITLES, TITLES, st.integers(0, 0xFFFF))
def test_whatever_is_read_pynetdicom_reads_too(items: list[bytes], called: bytes, calling: bytes, version: int) -> None:
    given_pdu = pdu(*items, called=called, calling=calling, version=version)
    try:
        read = read_request(given_pdu)
    except MalformedPdu:
        pass
    else:
        assert read.protocol_version == version
        primitive = as_pynetdicom_reads(read.encode())
        proposed = primitive.presentation_context_definition_list  # type: ignore[attr-defined]
        assert [(one.context_id, str(one.abstract_syntax)) for one in proposed] == [
            (one.context_id, one.abstract_syntax) for one in read.contexts
        ]
    try:
        accepted = read_acceptance(given_pdu, ASKED)
    except MalformedPdu:
        pass
    else:
        primitive = as_pynetdicom_reads(accepted.encode(), A_ASSOCIATE_AC)
        results = primitive.presentation_context_definition_results_list  # type: ignore[attr-defined]
        assert [(one.context_id, one.result) for one in results] == [
            (one.context_id, one.result) for one in accepted.contexts
        ]


@given(st.binary(max_size=12))
def test_rejections_and_aborts_of_any_kind(body: bytes) -> None:
    rejected = struct.pack(">BxI", 3, len(body)) + body
    primitive = as_pynetdicom_reads(rejection(*read_rejection(rejected)), A_ASSOCIATE_RJ)
    assert primitive.result in (1, 2)  # type: ignore[attr-defined]
    as_pynetdicom_reads(abort(*read_abort(struct.pack(">BxI", 7, len(body)) + body)), A_ABORT_RQ)
