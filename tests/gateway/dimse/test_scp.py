"""The SCP over real sockets: who comes in, what is said, and what hostile bytes come to."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    SegmentationStorage,
    generate_uid,
)

from gateway.dimse.contexts import TRANSFER_SYNTAXES
from gateway.dimse.scp import AcceptorTimeouts
from gateway.dimse.store import AssociationLimits
from gateway.receive.spool import Watermark
from tests.gateway.faults.report import report
from tests.gateway.receiving import (
    CT,
    RawPeer,
    Receiver,
    associate,
    associate_request,
    encode,
    make_ct,
    pdu,
    pdv,
    receiving,
    store_message,
    store_request,
)
from tests.waiting import wait_for

VERIFICATION = "1.2.840.10008.1.1"
PRIVATE = "1.3.12.2.1107.5.9.1"
FUTURE = "1.2.840.10008.5.1.4.1.1.999.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"


def rejected(port: int, **names: str) -> tuple[int, int, int] | None:
    """Result, source and reason of the rejection, None where the association was accepted."""
    with RawPeer(port, associate_request(**names)) as peer:
        if peer.answer_type == 2:
            peer.release()
            return None
        assert peer.answer_type == 3
        return peer.answer[1], peer.answer[2], peer.answer[3]


def test_echo_between_stores_over_one_association(tmp_path: Path) -> None:
    with receiving(tmp_path) as receiver:
        contexts = [(VERIFICATION, [ImplicitVRLittleEndian]), (CT, [ExplicitVRLittleEndian])]
        assoc = associate(receiver.scp.port, contexts)
        instances = [make_ct(seed=seed) for seed in range(3)]
        for instance in instances:
            assert assoc.send_c_echo().Status == 0
            assert assoc.send_c_store(instance).Status == 0
        assert assoc.send_c_echo().Status == 0
        assoc.release()
        assert assoc.is_released
        assert receiver.stored() == {str(instance.SOPInstanceUID): encode(instance) for instance in instances}
        wait_for("the associations to end", lambda: not receiver.scp.associations)
        wait_for("the release on record", lambda: [row.ending for row in receiver.rows("association")] == ["released"])


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        ({"calling": "PACS"}, None),
        ({"calling": "CT01"}, None),
        ({"calling": "CT02"}, (1, 1, 3)),
        ({"calling": "pacs"}, (1, 1, 3)),
        ({"calling": "OTHER"}, (1, 1, 3)),
        ({"calling": "PACS", "called": "MEDSEG_STAT"}, None),
        ({"calling": "PACS", "called": "ELSE"}, (1, 1, 7)),
    ],
)
def test_who_is_unknown_is_rejected_for_good(
    tmp_path: Path, names: dict[str, str], answer: tuple[int, int, int] | None
) -> None:
    callers = [("PACS", None), ("CT01", "127.0.0.1"), ("CT02", "192.0.2.1")]
    with receiving(tmp_path, callers=callers, ae_titles=["MEDSEG", "MEDSEG_STAT"]) as receiver:
        assert rejected(receiver.scp.port, **names) == answer
        wait_for("the connections to end", lambda: not receiver.scp.connections)


def test_limits_are_transient_and_end_with_the_crowd(tmp_path: Path) -> None:
    with receiving(tmp_path, limits=AssociationLimits(associations=3, per_caller=2)) as receiver:
        port = receiver.scp.port
        greedy = [RawPeer(port, associate_request(calling="GREEDY")) for _ in range(2)]
        assert [peer.answer_type for peer in greedy] == [2, 2]
        assert rejected(port, calling="GREEDY") == (2, 3, 2)
        with RawPeer(port, associate_request(calling="MODEST")) as modest:
            assert modest.answer_type == 2
            assert rejected(port, calling="THIRD") == (2, 3, 2)
            for peer in greedy:
                peer.socket.close()
            wait_for("the association", lambda: receiver.scp.associations == 1)
            assert rejected(port, calling="THIRD") is None


def test_a_full_disk_is_transient(tmp_path: Path) -> None:
    with receiving(tmp_path, watermark=Watermark(used_percent=0, free_bytes=0)) as receiver:
        assert rejected(receiver.scp.port) == (2, 3, 1)


def test_what_is_accepted(tmp_path: Path) -> None:
    proposed = [
        (CT, [ImplicitVRLittleEndian, ExplicitVRLittleEndian]),
        (str(SegmentationStorage), [JPEG2000Lossless]),
        (PRIVATE, [ImplicitVRLittleEndian]),
        (FUTURE, [ExplicitVRBigEndian]),
        (STUDY_ROOT_FIND, [ImplicitVRLittleEndian]),
        (CT, ["1.2.840.10008.1.2.4.100"]),
    ]
    with receiving(tmp_path) as receiver:
        assoc = associate(receiver.scp.port, proposed[:5])
        accepted = {str(cx.abstract_syntax): str(cx.transfer_syntax[0]) for cx in assoc.accepted_contexts}
        assert accepted == {
            CT: ExplicitVRLittleEndian,
            SegmentationStorage: JPEG2000Lossless,
            PRIVATE: ImplicitVRLittleEndian,
            FUTURE: ExplicitVRBigEndian,
        }
        assert [cx.result for cx in assoc.rejected_contexts] == [3]
        assoc.release()


@pytest.mark.parametrize("transfer_syntax", TRANSFER_SYNTAXES, ids=lambda uid: uid.keyword)
def test_every_transfer_syntax_is_negotiated(tmp_path: Path, transfer_syntax: str) -> None:
    with receiving(tmp_path) as receiver:
        assoc = associate(receiver.scp.port, [(CT, [transfer_syntax])])
        assert [str(cx.transfer_syntax[0]) for cx in assoc.accepted_contexts] == [transfer_syntax]
        assoc.release()


def test_statuses_of_instances_that_contradict_themselves(tmp_path: Path) -> None:
    instance = make_ct()
    uid = str(instance.SOPInstanceUID)
    missing = make_ct()
    del missing.SeriesInstanceUID
    cases = [
        (store_message(CT, uid, encode(make_ct(SOPInstanceUID=uid, SOPClassUID=PRIVATE))), 0xA900),
        (store_message(CT, "1.2.3", encode(instance)), 0xA900),
        (store_message(CT, str(missing.SOPInstanceUID), encode(missing)), 0xC000),
        (store_message(CT, uid, b"this is not a data set, not at all"), 0xC000),
        (store_message(CT, uid, encode(instance)[:40]), 0xC000),
        (store_message(CT, uid, b""), 0xC000),
        (store_message(CT, "1." + "2" * 80, encode(instance)), 0xC000),
        (store_message(PRIVATE, uid, encode(instance)), 0x0122),
        (store_message(CT, uid, encode(instance)), 0x0000),
    ]
    with receiving(tmp_path) as receiver, RawPeer(receiver.scp.port, associate_request()) as peer:
        for message, status in cases:
            peer.send(message)
            assert peer.read_status() == status
        peer.release()
        assert list(receiver.stored()) == [uid]
        assert receiver.no_parts()


def pdu_ends(stream: bytes) -> list[int]:
    """Where the PDUs of a stream end."""
    ends = [0]
    while ends[-1] < len(stream):
        ends.append(ends[-1] + 6 + int(struct.unpack_from(">I", stream, ends[-1] + 2)[0]))
    return ends[1:]


@pytest.mark.parametrize(
    ("ending", "part"),
    [
        *((ending, part) for ending in ("reset", "close") for part in (0.0, 0.05, 0.2, 0.6, 0.999)),
        *((ending, part) for ending in ("abort", "release") for part in (0.0, 0.5, 0.99)),
    ],
)
def test_a_torn_instance_leaves_nothing(tmp_path: Path, ending: str, part: float) -> None:
    instance = make_ct()
    message = store_message(CT, str(instance.SOPInstanceUID), encode(instance), fragment=256)
    at = int(len(message) * part)
    if ending in ("abort", "release"):  # a PDU, and not bytes inside one
        at = [end for end in pdu_ends(message) if end <= max(at, pdu_ends(message)[0])][-1]
    with receiving(tmp_path) as receiver:
        with RawPeer(receiver.scp.port, associate_request()) as peer:
            peer.send(message[:at])
            if ending == "reset":
                peer.socket.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: close with a reset
            elif ending == "abort":
                peer.send(struct.pack(">BxIxxBB", 7, 4, 0, 0))
            elif ending == "release":
                peer.send(struct.pack(">BxIxxxx", 5, 4))
        wait_for("the connections to end", lambda: not receiver.scp.connections)
        assert not receiver.rows()
        assert receiver.no_parts()
        assert not receiver.files()
        with RawPeer(receiver.scp.port, associate_request()) as peer:
            peer.send(message)
            assert peer.read_status() == 0


def test_interleaved_contexts_are_aborted(tmp_path: Path) -> None:
    contexts = [(1, CT, str(ExplicitVRLittleEndian)), (3, PRIVATE, str(ImplicitVRLittleEndian))]
    stream = pdu(pdv(1, 3, store_request(CT, "1.2.3"))) + pdu(pdv(3, 2, b"data"))
    with receiving(tmp_path) as receiver, RawPeer(receiver.scp.port, associate_request(contexts=contexts)) as peer:
        peer.send(stream)
        assert peer.read_pdu() == (7, b"\x00\x00\x02\x00")  # A-ABORT, by the provider
        assert peer.read_pdu()[0] is None
        wait_for("the abort on record", lambda: [row.ending for row in receiver.rows("association")] == ["aborted"])


@pytest.mark.parametrize("sent", [0, 3, 30])
def test_a_silent_peer_is_let_go(tmp_path: Path, sent: int) -> None:
    timeouts = AcceptorTimeouts(acse_s=0.5, dimse_s=0.5, network_s=0.5)
    with receiving(tmp_path, timeouts=timeouts) as receiver:
        with RawPeer(receiver.scp.port) as peer:
            peer.send(associate_request()[:sent])
            assert peer.read_pdu()[0] in (None, 7)
        message = store_message(CT, "1.2.3", bytes(100))
        with RawPeer(receiver.scp.port, associate_request()) as peer:
            peer.send(message[:sent])
            assert peer.read_pdu()[0] in (None, 7)
        wait_for("the connections to end", lambda: not receiver.scp.connections)


def test_stop_lets_an_association_finish_and_aborts_the_idle(tmp_path: Path) -> None:
    with receiving(tmp_path) as receiver:
        peer = RawPeer(receiver.scp.port, associate_request())
        stopping = threading.Thread(target=receiver.scp.stop, args=(1,))
        stopping.start()
        instance = make_ct()
        peer.send(store_message(CT, str(instance.SOPInstanceUID), encode(instance)))
        assert peer.read_status() == 0
        stopping.join()
        assert peer.read_pdu()[0] == 7
        peer.socket.close()


def test_receivers_share_a_socket_and_the_limits(tmp_path: Path) -> None:
    """Each takes its part, and both together let in no more than one would."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        limits = AssociationLimits(associations=8, per_caller=6)
        with (
            receiving(tmp_path, listener=listener.dup(), limits=limits) as first,
            receiving(tmp_path, listener=listener.dup(), limits=limits) as second,
        ):
            both, port = (first.scp, second.scp), first.scp.port
            with contextlib.ExitStack() as stack:
                greedy = [stack.enter_context(RawPeer(port, associate_request(calling="GREEDY"))) for _ in range(6)]
                assert {peer.answer_type for peer in greedy} == {2}
                assert all(scp.associations for scp in both)
                assert rejected(port, calling="GREEDY") == (2, 3, 2)
                for name in ("THIRD", "FOURTH"):
                    assert stack.enter_context(RawPeer(port, associate_request(calling=name))).answer_type == 2
                assert rejected(port, calling="FIFTH") == (2, 3, 2)
            wait_for("the associations to end", lambda: not any(scp.associations for scp in both))
            first.scp.stop()
            assert rejected(port, calling="FIFTH") is None  # the other goes on


@pytest.mark.parametrize("senders", [30, pytest.param(100, marks=pytest.mark.reliability)])
def test_parallel_associations(tmp_path: Path, senders: int) -> None:
    study, series = generate_uid(), generate_uid()
    instances = [
        [make_ct(seed=number, StudyInstanceUID=study, SeriesInstanceUID=series) for number in range(3)]
        for _ in range(senders)
    ]
    statuses: list[int | None] = []
    began_s = time.monotonic()
    with receiving(tmp_path) as receiver:

        def send(mine: list[object]) -> None:
            with RawPeer(receiver.scp.port, associate_request(), timeout_s=120) as peer:
                for instance in mine:
                    peer.send(store_message(CT, str(instance.SOPInstanceUID), encode(instance)))  # type: ignore[attr-defined]
                    statuses.append(peer.read_status())
                peer.release()

        threads = [threading.Thread(target=send, args=(mine,)) for mine in instances]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [0] * (3 * senders)
        assert receiver.stored() == {str(one.SOPInstanceUID): encode(one) for mine in instances for one in mine}
        assert [(row.instances, row.revision) for row in receiver.rows("series")] == [(3 * senders, 3 * senders)]
    report(
        "parallel associations",
        began_s,
        injected=f"{senders} associations at once",
        held=f"all {3 * senders} instances stored byte for byte",
    )


def fuzzed(seed: int) -> bytes:
    """A stream of an association that is mutated: its PDUs by an even seed, its data set by an odd one."""
    chance = random.Random(seed)
    instance = make_ct(size=8)
    data_set = encode(instance) if seed % 2 == 0 else mutated(encode(instance), chance, 0)
    message = store_message(CT, str(instance.SOPInstanceUID), data_set, fragment=chance.choice([64, 300, 5000]))
    stream = associate_request() + message + struct.pack(">BxIxxxx", 5, 4)
    return stream if seed % 2 else mutated(stream, chance, chance.choice([0, len(associate_request())]))


def mutated(given: bytes, chance: random.Random, start: int) -> bytes:
    """Some bytes changed, dropped, doubled, or lengths made absurd."""
    stream = bytearray(given)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(start, len(stream))
        what = chance.randrange(5)
        if what == 0:
            stream[at] = chance.randrange(256)
        elif what == 1:
            del stream[at : at + chance.randrange(1, 50)]
        elif what == 2:
            stream[at:at] = chance.randbytes(chance.randrange(1, 50))
        elif what == 3:
            stream[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"])
        else:
            stream[at:at] = stream[at : at + chance.randrange(1, 200)]
    return bytes(stream)


def accepted(port: int) -> bool:
    """Whether an association is accepted; on a busy machine a request may come after `acse_s`."""
    with contextlib.suppress(OSError), RawPeer(port, associate_request()) as peer:
        if peer.answer_type == 2:
            peer.release()
            return True
    return False


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module")
def fuzz_receiver(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("fuzz")
    with receiving(folder, timeouts=AcceptorTimeouts(acse_s=1, dimse_s=1, network_s=1)) as receiver:
        yield receiver


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.reliability)])
def test_mutated_pdus_never_break_it(fuzz_receiver: Receiver, count: int) -> None:
    receiver = fuzz_receiver
    folder = receiver.spool.folder.parent
    began_s = time.monotonic()
    wait_for("an association", lambda: accepted(receiver.scp.port))
    wait_for("the connections to end", lambda: not receiver.scp.connections)
    open_before, threads_before = descriptors(), threading.active_count()
    for seed in range(count):
        with contextlib.suppress(OSError), RawPeer(receiver.scp.port) as peer:
            peer.send(fuzzed(seed))
            peer.socket.shutdown(1)
            while peer.read_pdu()[0] is not None:
                pass
    wait_for("the connections to end", lambda: not receiver.scp.connections)
    wait_for("the threads to end", lambda: threading.active_count() <= threads_before)
    assert descriptors() <= open_before
    wait_for("an association", lambda: accepted(receiver.scp.port))
    receiver.stored()
    assert receiver.no_parts()
    inside = {receiver.spool.folder, *receiver.spool.folder.rglob("*")}
    ledger = {folder / f"ledger.db{suffix}" for suffix in ("", "-wal", "-shm")}
    assert set(folder.rglob("*")) <= inside | ledger
    report(
        "mutated PDUs and data sets",
        began_s,
        injected=f"{count} associations (seeds 0 to {count - 1}), half with mutated PDUs, half with mutated data sets",
        held="no crash, no hang, no descriptor or thread left, no file outside the spool",
    )


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(min_size=1, max_size=300))
def test_noise_instead_of_pdus_never_breaks_it(fuzz_receiver: Receiver, noise: bytes) -> None:
    for prefix in (b"", associate_request()):
        with contextlib.suppress(OSError), RawPeer(fuzz_receiver.scp.port) as peer:
            peer.send(prefix + noise)
            peer.socket.shutdown(1)
            while peer.read_pdu()[0] is not None:
                pass
    assert os.path.isdir(fuzz_receiver.spool.incoming)  # noqa: PTH112
    assert rejected(fuzz_receiver.scp.port) is None
