"""Storage commitment (PS3.4 Annex J) from both sides: what is asked (N-ACTION) and what is reported (N-EVENT-REPORT).

A report comes on the association on which it was asked for, or on another that either side opens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance  # type: ignore[attr-defined]

from gateway.dimse.pdata import STORE_ERRORS
from gateway.dimse.store import AssociationInfo
from medseg.dicom.headers import MALFORMED

logger = logging.getLogger(__name__)

UNCOMPRESSED = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
COMMIT = str(StorageCommitmentPushModel)
REQUEST = 1  # Action Type ID (PS3.4 J.3.2)
ALL_COMMITTED, SOME_FAILED = 1, 2  # Event Type IDs (PS3.4 J.3.3)

# Statuses (PS3.7 Annex C), and Failure Reasons (PS3.3 C.14.1.1)
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
NO_SUCH_ARGUMENT = 0x0114
INVALID_ARGUMENT = 0x0115
CLASS_INSTANCE_CONFLICT = 0x0119
NO_SUCH_ACTION = 0x0123


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """An object by its UIDs (PS3.3 10.8)."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class CommitmentRequest:
    """What a peer asks us to be responsible for (PS3.4 J.3.2)."""

    peer: AssociationInfo
    transaction_uid: str
    objects: tuple[ObjectReference, ...]


@dataclass(frozen=True, slots=True)
class CommitmentResult:
    """What we report of a request. reasons: Failure Reason of each object, None where it is stored for good."""

    transaction_uid: str
    reasons: Mapping[ObjectReference, int | None]

    @property
    def event_type(self) -> int:
        return SOME_FAILED if any(reason is not None for reason in self.reasons.values()) else ALL_COMMITTED

    def information(self) -> Dataset:
        """The Event Information (PS3.4 table J.3-2)."""
        told = Dataset()
        told.TransactionUID = self.transaction_uid
        committed = [one for one, reason in self.reasons.items() if reason is None]
        failed = [(one, reason) for one, reason in self.reasons.items() if reason is not None]
        if committed:
            told.ReferencedSOPSequence = referenced(committed)
        if failed:
            told.FailedSOPSequence = referenced(one for one, _ in failed)
            for item, (_, reason) in zip(told.FailedSOPSequence, failed, strict=True):
                item.FailureReason = reason
        return told


def event_report(result: CommitmentResult, transfer_syntax: UID) -> N_EVENT_REPORT:
    """The request that tells a peer of it on an association that it opened."""
    request = N_EVENT_REPORT()
    request.MessageID = 1
    request.AffectedSOPClassUID = UID(StorageCommitmentPushModel)
    request.AffectedSOPInstanceUID = UID(StorageCommitmentPushModelInstance)
    request.EventTypeID = result.event_type
    information = encode(result.information(), transfer_syntax.is_implicit_VR, is_little_endian=True)
    request.EventInformation = BytesIO(information or b"")
    return request


def referenced(objects: Iterable[ObjectReference]) -> Items:
    """The items of a sequence of references."""
    return Items(_item(one) for one in objects)


def _item(one: ObjectReference) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
    return item


@dataclass(frozen=True)
class CommitmentReport:
    """An N-EVENT-REPORT of storage commitment (PS3.4 J.3.3): who is safe, and who failed for which reason."""

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, int] = field(default_factory=dict)


def commitment_context() -> PresentationContext:
    """What an acceptor supports: requests of a peer that is the SCU, and reports of one that is the SCP, which may call
    for that (PS3.4 J.3.3)."""
    context = build_context(StorageCommitmentPushModel, list(UNCOMPRESSED))
    context.scu_role, context.scp_role = True, True
    return context


def on_event_report(event: Any, heard: Callable[[CommitmentReport], object]) -> tuple[int, None]:
    """Handler of pynetdicom's EVT_N_EVENT_REPORT, on whichever side: tell of the report, answer once that is done."""
    information = event.event_information
    if "TransactionUID" not in information:
        return NO_SUCH_ARGUMENT, None
    heard(
        CommitmentReport(
            str(information.TransactionUID),
            frozenset(str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence", ())),
            {
                str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", PROCESSING_FAILURE))
                for item in information.get("FailedSOPSequence", ())
            },
        )
    )
    return 0x0000, None


def on_action(event: Any, asked: Callable[[CommitmentRequest], object]) -> tuple[int, None]:
    """Handler of pynetdicom's EVT_N_ACTION: tell of the request, answer once it is written down."""
    if event.request.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:
        return NO_SUCH_INSTANCE, None
    if event.action_type != REQUEST:
        return NO_SUCH_ACTION, None
    try:
        information = event.action_information
        objects = tuple(
            ObjectReference(str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in information.ReferencedSOPSequence
        )
        request = CommitmentRequest(event.assoc.peer, str(information.TransactionUID), objects)
    except MALFORMED:
        return INVALID_ARGUMENT, None
    if not objects or not request.transaction_uid:
        return INVALID_ARGUMENT, None
    try:
        asked(request)
    except STORE_ERRORS:
        logger.exception("storage commitment request not recorded", extra={"event": "commitment.unrecorded"})
        return PROCESSING_FAILURE, None
    return 0x0000, None
