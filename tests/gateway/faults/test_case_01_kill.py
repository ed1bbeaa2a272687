"""Case 1: kill -9 at the moments that matter. No acknowledged instance is lost; there is at most one logical result."""

from __future__ import annotations

import pytest
from pydicom import Dataset

from tests.gateway.faults.faulty import Faulty, alive, store_all
from tests.gateway.pacs import FakePacs
from tests.gateway.phantoms import new_phantom
from tests.gateway.receiving import CT, RawPeer, associate_request, data_set_of, encode, store_message
from tests.waiting import wait_for


def of(pacs: FakePacs, modality: str, series: list[Dataset]) -> list[Dataset]:
    return [one for one in pacs.of(modality) if one.StudyInstanceUID == series[0].StudyInstanceUID]


def assert_one_result(gateway: Faulty, pacs: FakePacs, series: list[Dataset]) -> None:
    """One current result, at the peer, made of all that was sent; what came more than once is the same object."""
    wait_for("the result at the peer", lambda: of(pacs, "SEG", series) and of(pacs, "SR", series))
    (result,) = gateway.current_results(series)
    for modality, kind in (("SEG", "seg"), ("SR", "sr")):
        objects = of(pacs, modality, series)
        assert len({one.SOPInstanceUID for one in objects}) == 1
        assert all(one == objects[0] for one in objects)
        assert {row.sop_instance_uid for row in gateway.deliveries(series) if row.kind == kind} == {
            objects[0].SOPInstanceUID
        }
    frames = of(pacs, "SEG", series)[0].ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {one.ReferencedSOPInstanceUID for one in frames} <= {one.SOPInstanceUID for one in series}
    stored = {row.sop_instance_uid: data_set_of(gateway.spool / row.path) for row in gateway.instances(series)}
    assert stored == {one.SOPInstanceUID: encode(one) for one in series}
    assert result.series_uid == series[0].SeriesInstanceUID


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("spool.written", marks=pytest.mark.slow),
        "spool.published",
        pytest.param("spool.filed", marks=pytest.mark.slow),
    ],
)
def test_case_01_killed_before_the_answer(gateway: Faulty, pacs: FakePacs, point: str) -> None:
    """In the middle of an instance, between rename and row, between row and response: the sender comes again."""
    series = new_phantom()
    with RawPeer(gateway.port, associate_request()) as peer:
        for one in series[:5]:
            if one is series[4]:
                gateway.arm(point, "kill")
            peer.send(store_message(CT, str(one.SOPInstanceUID), encode(one)))
            assert peer.read_status() == (None if one is series[4] else 0)
    wait_for("another receiver", lambda: (pid := gateway.pid_of("receiver")) and alive(pid) and gateway.answers())
    assert store_all(gateway.port, series[4:]) == [0] * 4
    wait_for("no part of an instance", lambda: not list((gateway.spool / "incoming").iterdir()))
    gateway.complete(series)
    assert_one_result(gateway, pacs, series)


@pytest.mark.parametrize("point", [pytest.param("engine", marks=pytest.mark.slow), "result.written"])
def test_case_01_killed_in_the_middle_of_inference(gateway: Faulty, pacs: FakePacs, point: str) -> None:
    """With windows still to do, and with the result written and not yet in the ledger."""
    series = new_phantom()
    gateway.arm(point, "kill")
    assert store_all(gateway.port, series) == [0] * 8
    gateway.complete(series)
    wait_for("the kill", lambda: gateway.happened(point))
    assert_one_result(gateway, pacs, series)
    (job,) = gateway.jobs(series)
    assert (job.state, job.attempt) == ("done", 2)


@pytest.mark.parametrize("point", [pytest.param("sender.send", marks=pytest.mark.slow), "sender.sent"])
def test_case_01_killed_in_the_middle_of_sending(gateway: Faulty, pacs: FakePacs, point: str) -> None:
    """Before the peer has it, and when the peer has it and the ledger does not know: it is sent again, as it was."""
    series = new_phantom()
    gateway.arm(point, "kill")
    assert store_all(gateway.port, series) == [0] * 8
    gateway.complete(series)
    wait_for("the kill", lambda: gateway.happened(point))
    assert_one_result(gateway, pacs, series)
    wait_for("deliveries", lambda: {row.state for row in gateway.deliveries(series)} == {"stored"})
    assert len(of(pacs, "SEG", series)) == (2 if point == "sender.sent" else 1)
