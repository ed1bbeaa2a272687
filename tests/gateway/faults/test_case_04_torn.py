"""Case 4: an association aborted in the middle of an instance, a reset, a half-open peer, a stalled sender.

The instance is discarded, the slot is free again within the timeout, and the study is not taken as complete.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import CT, RawPeer, associate_request, encode, store_message
from tests.waiting import wait_for

A_ABORT = struct.pack(">BxIxxBB", 7, 4, 0, 0)


def reset(peer: RawPeer) -> None:
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()


# Each: how the sender leaves, and whether it is inside a PDU then.
ENDINGS: dict[str, tuple[Callable[[RawPeer], object], bool]] = {
    "aborted": (lambda peer: peer.send(A_ABORT), False),
    "reset": (reset, True),
    "closed": (lambda peer: peer.socket.close(), True),
    "half open": (lambda peer: None, False),  # says nothing more, and never closes
    "stalled": (lambda peer: None, True),
}


def test_case_04_torn_associations(gateway: Faulty) -> None:
    torn = {name: new_phantom(Modality="OT") for name in ENDINGS}  # for no rule
    with contextlib.ExitStack() as open_peers:
        for name, series in torn.items():
            leave, inside = ENDINGS[name]
            peer = open_peers.enter_context(RawPeer(gateway.port, associate_request(calling=name.upper())))
            for one in series[:4]:
                peer.send(store_message(CT, str(one.SOPInstanceUID), encode(one)))
                assert peer.read_status() == 0
            message = store_message(CT, str(series[4].SOPInstanceUID), encode(series[4]), fragment=512)
            first_pdu = 6 + int.from_bytes(message[2:6], "big")
            peer.send(message[: len(message) // 2] if inside else message[:first_pdu])
            leave(peer)
        for name, series in torn.items():
            (association,) = {row.association_id for row in gateway.instances(series)}
            query = f"SELECT ending FROM association WHERE id = '{association}' AND ended_at IS NOT NULL"
            ((told,),) = wait_for(f"the slot of who {name}", lambda query=query: gateway.rows(query))
            assert told == "aborted"
    assert not list((gateway.spool / "incoming").iterdir())
    for series in torn.values():
        assert [row.sop_instance_uid for row in gateway.instances(series)] == [one.SOPInstanceUID for one in series[:4]]
        assert gateway.series_row(series).state == "arriving"
    gateway.leap(20)  # far beyond the quiet time of an association that was released
    marker = new_phantom(Modality="OT")
    assert store_all(gateway.port, marker) == [0] * 8
    gateway.complete(marker)
    assert {gateway.series_row(series).state for series in torn.values()} == {"arriving"}
    gateway.complete(*torn.values())
    assert {gateway.series_row(series).complete_by for series in torn.values()} == {"quiet after an abort"}
