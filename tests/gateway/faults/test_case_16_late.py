"""Case 16: the last slice arrives after the result. A new result names the old one as what it takes the place of."""

from __future__ import annotations

from pydicom import Dataset

from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.pacs import FakePacs
from tests.gateway.phantoms import new_phantom
from tests.waiting import wait_for


def test_case_16_the_last_slice_comes_after_the_result(gateway: Faulty, pacs: FakePacs) -> None:
    series = new_phantom()
    study = series[0].StudyInstanceUID

    def at_peer(kind: str, count: int) -> list[Dataset]:
        def there() -> list[Dataset]:
            found = [one for one in pacs.of(kind) if one.StudyInstanceUID == study]
            return found if len(found) == count else []

        return wait_for(f"{count} {kind} at the peer", there)  # type: ignore[no-any-return]

    assert store_all(gateway.port, series[:-1]) == [0] * 7
    gateway.complete(series)
    (old_seg,), (old_report,) = at_peer("SEG", 1), at_peer("SR", 1)
    gateway.leap(3600)
    assert store_all(gateway.port, series[-1:]) == [0]
    gateway.complete(series)
    (_, seg), (_, report) = at_peer("SEG", 2), at_peer("SR", 2)

    old, new = gateway.rows(f"SELECT * FROM result WHERE study_uid = '{study}' ORDER BY id")
    assert (old.predecessor_id, new.predecessor_id) == (None, old.id)
    assert [row.id for row in gateway.current_results(series)] == [new.id]
    assert seg.SOPInstanceUID != old_seg.SOPInstanceUID and report.SOPInstanceUID != old_report.SOPInstanceUID
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 8
    (before,) = report.PredecessorDocumentsSequence
    (named,) = before.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert named.ReferencedSOPInstanceUID == old_report.SOPInstanceUID
    (replaced,) = seg.ReferencedImageSequence
    assert replaced.ReferencedSOPInstanceUID == old_seg.SOPInstanceUID
