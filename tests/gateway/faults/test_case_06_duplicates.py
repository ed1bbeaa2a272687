"""Case 6: an instance again, the same; other bytes; in two series; in parallel.

Nothing is lost, nothing collides, the conflict is told, and which of the two counts does not depend on luck.
"""

from __future__ import annotations

import json
import threading

from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import data_set_of, encode
from tests.waiting import wait_for


def test_case_06_duplicates(gateway: Faulty) -> None:
    series = new_phantom(seed=1)
    corrected = new_phantom(
        seed=2, StudyInstanceUID=series[0].StudyInstanceUID, SeriesInstanceUID=series[0].SeriesInstanceUID
    )
    for old, new in zip(series, corrected, strict=True):
        new.SOPInstanceUID = old.SOPInstanceUID
    elsewhere = new_phantom(seed=1)  # the same SOP Instance UID in another series
    elsewhere[0].SOPInstanceUID = series[0].SOPInstanceUID
    assert store_all(gateway.port, series) == [0] * 8
    assert store_all(gateway.port, [*series, corrected[3], series[3], elsewhere[0]]) == [0] * 11
    wait_for("the comparison", lambda: all(row.state != "pending" for row in gateway.instances(series)))
    rows = gateway.instances(series)
    kept = {(row.sop_instance_uid, row.state): data_set_of(gateway.spool / row.path) for row in rows}
    wanted = {(one.SOPInstanceUID, "current"): encode(one) for one in series if one is not series[3]}
    wanted |= {(series[3].SOPInstanceUID, "superseded"): encode(series[3])}
    wanted |= {(series[3].SOPInstanceUID, "conflict"): encode(corrected[3])}  # seen last for the first time: it counts
    assert kept == wanted
    ((row),) = gateway.instances(elsewhere)
    assert (row.state, data_set_of(gateway.spool / row.path)) == ("current", encode(elsewhere[0]))
    told = gateway.rows(
        f"SELECT * FROM event WHERE kind = 'instance.conflict' AND series_uid = '{series[0].SeriesInstanceUID}'"
    )
    assert [(one.sop_instance_uid, json.loads(one.detail)["versions"]) for one in told] == [
        (series[3].SOPInstanceUID, 2)
    ]
    gateway.complete(series)
    assert gateway.ended(series).state == "done"
    assert len(gateway.jobs(series)) == 1


def test_case_06_duplicates_in_parallel(gateway: Faulty) -> None:
    series = new_phantom(seed=1, Modality="OT")
    statuses: list[int | None] = []
    senders = [
        threading.Thread(target=lambda n=n: statuses.extend(store_all(gateway.port, series, f"S{n}"))) for n in range(6)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert statuses == [0] * 48
    stored = {row.sop_instance_uid: data_set_of(gateway.spool / row.path) for row in gateway.instances(series)}
    assert stored == {one.SOPInstanceUID: encode(one) for one in series}
    assert len(gateway.instances(series)) == 8
    folder = (gateway.spool / gateway.instances(series)[0].path).parent
    assert len(list(folder.iterdir())) == 8
