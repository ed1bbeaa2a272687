"""Case 14: our own SEG and SR, auto-routed back to us, are filed and ignored: there is no loop."""

from __future__ import annotations

import json

from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.pacs import FakePacs
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import RawPeer, associate_request, encode, store_message
from tests.waiting import wait_for


def test_case_14_our_own_results_come_back(gateway: Faulty, pacs: FakePacs) -> None:
    series = new_phantom()
    study = series[0].StudyInstanceUID
    assert store_all(gateway.port, series) == [0] * 8
    gateway.complete(series)

    def both() -> list[object]:
        found = [one for kind in ("SEG", "SR") for one in pacs.of(kind) if one.StudyInstanceUID == study]
        return found if len(found) == 2 else []

    ours = wait_for("both results", both)
    contexts = [(1 + 2 * n, str(one.SOPClassUID), str(one.file_meta.TransferSyntaxUID)) for n, one in enumerate(ours)]
    jobs = gateway.rows("SELECT count(*) AS n FROM job")[0].n
    with RawPeer(gateway.port, associate_request(contexts=contexts, calling="PACS")) as peer:
        for (context_id, sop_class, _), one in zip(contexts, ours, strict=True):
            peer.send(store_message(sop_class, str(one.SOPInstanceUID), encode(one), context_id=context_id))
            assert peer.read_status() == 0
        peer.release()
    gateway.complete(*([one] for one in ours))
    assert gateway.rows("SELECT count(*) AS n FROM job")[0].n == jobs
    for one in ours:
        (told,) = gateway.rows(
            f"SELECT detail FROM event WHERE kind = 'series.passed_over' AND series_uid = '{one.SeriesInstanceUID}'"
        )
        assert "made by medseg" in json.loads(told.detail)["why"]
    assert len(gateway.current_results(series)) == 1
