"""The SCU: how an association is asked for, and what of it is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless
from pynetdicom.sop_class import Verification

from gateway.dimse import scu
from gateway.dimse.scu import VERIFY, Miss, NoAssociation, ObjectReference, Proposal, StoredFile, associate
from gateway.settings.model import Destination
from medseg.errors import UnreadableInstance
from tests.gateway.deliver.stage import QUICK
from tests.gateway.pacs import COMMIT, FIND, SEG, SR, FakePacs, listening
from tests.gateway.receiving import make_ct, write_file
from tests.ports import free_port


def at(port: int, host: str = "127.0.0.1") -> Destination:
    return Destination("PACS", host, port, "MEDSEG")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_echo(host: str) -> None:
    with listening(FakePacs()) as pacs:
        assert scu.echo(at(pacs.port, host), QUICK) == 0x0000


def test_nothing_waits_for_more_to_send() -> None:
    with listening(FakePacs()) as pacs, associate(at(pacs.port), [Proposal(VERIFY)], QUICK) as link:
        opened = link._assoc.dul.socket.socket
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert opened.gettimeout() == QUICK.dimse_s


def test_what_is_accepted_is_told() -> None:
    with listening(FakePacs(), (SR, Verification)) as pacs:
        with associate(at(pacs.port), [Proposal(SEG), Proposal(SR)], QUICK) as link:
            assert link.accepted == {SR}
        with pytest.raises(NoAssociation) as raised:
            scu_fails(at(pacs.port), [Proposal(SEG)])
        assert raised.value.miss is Miss.NOTHING_ACCEPTED


@pytest.mark.parametrize("reject", [(1, 1, 7), (1, 2, 2), (2, 3, 1), (2, 3, 2)])
def test_a_rejection_is_told_as_it_came(reject: tuple[int, int, int]) -> None:
    with listening(FakePacs(reject=reject)) as pacs, pytest.raises(NoAssociation) as raised:
        scu_fails(at(pacs.port), [Proposal(VERIFY)])
    assert (raised.value.miss, raised.value.reject) == (Miss.REJECTED, reject)


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_nobody_there(host: str) -> None:
    with pytest.raises(NoAssociation) as raised:
        scu_fails(at(free_port(), host), [Proposal(VERIFY)])
    assert raised.value.miss is Miss.UNREACHABLE


def scu_fails(destination: Destination, proposals: list[Proposal]) -> None:
    with associate(destination, proposals, QUICK):
        raise AssertionError("there is an association")


def test_more_kinds_than_an_association_holds(tmp_path: Path) -> None:
    many = [Proposal(f"1.2.826.0.1.{number}") for number in range(200)]
    with listening(FakePacs()) as pacs, associate(at(pacs.port), [Proposal(VERIFY), *many], QUICK) as link:
        assert link.accepted == {VERIFY}
        assert link.echo() == 0x0000


@pytest.mark.parametrize(
    ("own", "proposed"),
    [
        (ExplicitVRLittleEndian, (ExplicitVRLittleEndian, ImplicitVRLittleEndian)),
        (ImplicitVRLittleEndian, (ImplicitVRLittleEndian, ExplicitVRLittleEndian)),
        (
            DeflatedExplicitVRLittleEndian,
            (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian),
        ),
        (JPEG2000Lossless, (JPEG2000Lossless,)),
    ],
)
def test_what_is_proposed_for_a_file(own: str, proposed: tuple[str, ...]) -> None:
    assert StoredFile(Path("x"), SEG, "1.2", own, "1.3", "1.4").proposal() == Proposal(SEG, proposed)


def test_a_broken_association_is_not_waited_for(tmp_path: Path) -> None:
    file = scu.read_file(write_file(make_ct(SOPClassUID=SEG), tmp_path / "seg.dcm"))
    with (
        listening(FakePacs(answer=lambda _: None), (SEG, COMMIT, FIND)) as pacs,
        associate(at(pacs.port), [file.proposal(), Proposal(COMMIT), Proposal(FIND)], QUICK) as link,
    ):
        assert link.store(file).status is None
        assert not link.alive
        assert link.store(file).status is None
        assert link.echo() is None
        assert link.commit("1.2.3", [ObjectReference(SEG, file.sop_instance_uid)]).status is None
        assert link.find("1.2", "1.3", file.sop_instance_uid) is None
        assert len(pacs.asked) == 0


@pytest.mark.parametrize("content", [b"", b"text", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0"])
def test_what_cannot_be_sent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UnreadableInstance):
        scu.read_file(tmp_path / "file")
