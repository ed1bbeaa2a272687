"""Storage commitment reports (PS3.4 J.3.3), on an association of ours or on one of the peer's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

UNCOMPRESSED = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
PROCESSING_FAILURE = 0x0110
NO_SUCH_ARGUMENT = 0x0114


@dataclass(frozen=True)
class CommitmentReport:
    """An N-EVENT-REPORT of storage commitment (PS3.4 J.3.3): who is safe, and who failed for which reason."""

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, int] = field(default_factory=dict)


def commitment_context() -> PresentationContext:
    """What an acceptor supports so that reports may come on an association of the peer's own: there the one who calls
    is the SCP (PS3.4 J.3.3)."""
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
