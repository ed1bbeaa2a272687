"""Associations that we ask for, and any other of pynetdicom's own by which something is sent."""

from __future__ import annotations

from typing import Any

from pynetdicom.dimse_messages import C_STORE_RSP

from gateway.dimse.reactor.checkpoint import Checkpoint, PausingAssociation
from gateway.dimse.reactor.upper_layer import LenientUpperLayer


def no_answer_lost(event: Any) -> None:
    """EVT_CONN_OPEN of an association that is to send, whoever asked for it.

    pynetdicom makes the association itself, so its class changes here, while neither of its threads has begun to work:
    once it is connected, and before anything is negotiated.
    """
    event.assoc._reactor_checkpoint = Checkpoint()
    event.assoc.__class__ = PausingAssociation
    event.assoc.dul.__class__ = LenientUpperLayer


def hear_name(event: Any) -> None:
    """EVT_DIMSE_RECV: under which UID a peer says that it stored an object, which pynetdicom does not tell."""
    if isinstance(event.message, C_STORE_RSP):
        event.assoc.dul.stored_as = str(event.message.command_set.get("AffectedSOPInstanceUID", "")).strip("\0 ")
