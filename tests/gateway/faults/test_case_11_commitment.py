"""Case 11: N-EVENT-REPORTs on an association of the peer's own, late, twice, for an unknown Transaction UID, of a part.

Only what failed is sent again. Our own reports to those who ask us are in `tests/gateway/test_signals.py`.
"""

from __future__ import annotations

from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.sop_class import StorageCommitmentPushModelInstance, Verification

from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.pacs import COMMIT, SEG, SR, FakePacs, listening
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import CAREFUL
from tests.waiting import wait_for

NO_SUCH_OBJECT = 0x0112
COMPLETE, FAILURES = 1, 2  # Event Type ID (PS3.4 J.3.3)


def send_report(gateway: Faulty, report: Dataset, kind: int) -> int:
    """On an association of the peer's own, with the SCP role negotiated (PS3.4 J.3.3)."""
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = COMMIT, False, True
    ae = AE("PACS")
    ae.add_requested_context(COMMIT)
    assoc = ae.associate("127.0.0.1", gateway.port, ae_title="MEDSEG", ext_neg=[role], evt_handlers=CAREFUL)
    assert assoc.is_established
    response, _ = assoc.send_n_event_report(report, kind, COMMIT, StorageCommitmentPushModelInstance)
    assoc.release()
    return int(response.Status)


def test_case_11_reports_on_new_associations(gateway: Faulty, fakes: dict[str, FakePacs]) -> None:
    pacs = fakes["reporting"]
    pacs.reports = False  # not by itself
    pacs.committed = lambda uid: NO_SUCH_OBJECT if uid == seg and pacs.uids().count(seg) == 1 else None
    series = new_phantom(SeriesDescription="to be reported")
    with listening(pacs, (SEG, SR, COMMIT, Verification)):
        assert store_all(gateway.port, series) == [0] * 8
        gateway.complete(series)
        assert gateway.ended(series).state == "done"
        seg, sr = (
            next(row.sop_instance_uid for row in gateway.deliveries(series) if row.kind == kind)
            for kind in ("seg", "sr")
        )
        wait_for("a request", lambda: {uid for asked in pacs.asked for uid in referenced(asked)} == {seg, sr})
        gateway.leap(300)  # late, and before it is asked again

        unknown = pacs.report(pacs.asked[0])
        unknown.TransactionUID = generate_uid()
        assert send_report(gateway, unknown, FAILURES) == 0
        assert states(gateway, series) == {"seg": "stored", "sr": "stored"}

        for asked in list(pacs.asked):
            report = pacs.report(asked)
            for _ in range(2):
                assert send_report(gateway, report, FAILURES if "FailedSOPSequence" in report else COMPLETE) == 0
        assert states(gateway, series)["sr"] == "confirmed"
        assert {row.failures for row in gateway.deliveries(series) if row.kind == "seg"} == {
            1
        }  # told twice, counted once

        requests = len(pacs.asked)

        def asked_again() -> bool:
            gateway.leap(1)
            return len(pacs.asked) > requests

        wait_for("another request", asked_again)
        assert pacs.uids() == [seg, sr, seg]  # what failed, and nothing else
        (again,) = pacs.asked[requests:]
        assert referenced(again) == [seg]
        assert send_report(gateway, pacs.report(again), COMPLETE) == 0
        assert states(gateway, series) == {"seg": "confirmed", "sr": "confirmed"}


def referenced(asked: Dataset) -> list[str]:
    return [str(item.ReferencedSOPInstanceUID) for item in asked.ReferencedSOPSequence]


def states(gateway: Faulty, series: list[Dataset]) -> dict[str, str]:
    return {row.kind: row.state for row in gateway.deliveries(series)}
