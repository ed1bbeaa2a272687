"""Case 9: a flood of 100 associations from one caller. Others are served; whoever is turned away may come again."""

from __future__ import annotations

import contextlib
import socket

from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import RawPeer, associate_request
from tests.waiting import wait_for

LOCAL_LIMIT = (2, 3, 2)  # transient; presentation; local limit exceeded (PS3.8 table 9-21)


def is_open(peer: RawPeer) -> bool:
    """Whether an association to which nothing was said has not been ended by the other side."""
    try:
        peer.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    return False


def test_case_09_a_flood_from_one_caller(gateway: Faulty) -> None:
    patient = new_phantom(Modality="OT")
    with contextlib.ExitStack() as open_peers:
        flood = [
            open_peers.enter_context(RawPeer(gateway.port, associate_request(calling="ABUSIVE"), timeout_s=60))
            for _ in range(100)
        ]
        accepted = [peer for peer in flood if peer.answer_type == 2]
        rejected = [peer for peer in flood if peer.answer_type == 3]
        # On a busy machine the first are let go for their silence, and others let in, before the last has asked.
        assert sum(map(is_open, accepted)) <= 10 and len(accepted) + len(rejected) == 100
        assert {tuple(peer.answer[1:4]) for peer in rejected} == {LOCAL_LIMIT}
        assert store_all(gateway.port, patient, calling="MODEST") == [0] * 8
    wait_for("room for the first again", lambda: store_all(gateway.port, patient[:1], calling="ABUSIVE") == [0])
