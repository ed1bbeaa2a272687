"""Case 5: one study over many associations, an image each, series interleaved, from two senders at once: one job."""

from __future__ import annotations

import threading

from pydicom import Dataset

from tests.gateway.faults.faulty import Faulty, store_all
from tests.gateway.pacs import FakePacs
from tests.gateway.phantoms import new_phantom
from tests.waiting import wait_for


def test_case_05_one_study_over_many_associations(gateway: Faulty, pacs: FakePacs) -> None:
    wanted = new_phantom()
    other = new_phantom(Modality="OT", StudyInstanceUID=wanted[0].StudyInstanceUID)
    mixed = [one for pair in zip(wanted, other, strict=True) for one in pair]
    statuses: list[int | None] = []

    def send(instances: list[Dataset], calling: str) -> None:
        for one in instances:
            statuses.extend(store_all(gateway.port, [one], calling))

    halves = [mixed[0::4] + mixed[1::4], mixed[2::4] + mixed[3::4]]
    senders = [threading.Thread(target=send, args=(half, f"CT0{n}")) for n, half in enumerate(halves)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert statuses == [0] * 16
    gateway.complete(wanted, other)
    assert gateway.ended(wanted).state == "done"
    assert len(gateway.jobs(wanted)) == 1 and not gateway.jobs(other)
    study = f"WHERE study_uid = '{wanted[0].StudyInstanceUID}'"
    assert {row.n for row in gateway.rows(f"SELECT count(DISTINCT association_id) AS n FROM instance {study}")} == {16}
    wait_for("the result", lambda: any(one.StudyInstanceUID == wanted[0].StudyInstanceUID for one in pacs.of("SEG")))
