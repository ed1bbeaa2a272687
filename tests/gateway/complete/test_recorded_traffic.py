"""Recorded traffic: real senders, timed on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.complete.decision import CompletionReason
from gateway.complete.events import (
    InstanceArrived,
)
from tests.gateway.complete.traffic import (
    DEFAULTS,
    played,
    recorded,
)

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.json"))

EXPECTED = {
    "dcmsend": (30, {CompletionReason.QUIET}),
    "orthanc_instance": (30, {CompletionReason.QUIET}),
    "orthanc_stable": (30, {CompletionReason.QUIET}),
    "pynetdicom_paced": (30, {CompletionReason.QUIET}),
    "storescu": (30, {CompletionReason.QUIET}),
    "storescu_abort": (30, {CompletionReason.QUIET_ABORT}),
    "storescu_killed": (30, {CompletionReason.QUIET}),
    "storescu_parallel": (30, {CompletionReason.QUIET}),
    "storescu_shuffled": (30, {CompletionReason.QUIET}),
    "storescu_singly": (12, {CompletionReason.QUIET}),
}


def test_every_recording_is_played() -> None:
    assert [path.stem for path in RECORDINGS] == sorted(EXPECTED)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_traffic_gives_one_job_a_series(path: Path) -> None:
    number, reasons = EXPECTED[path.stem]
    service = played(recorded(path))
    names = [job.series for job in service.jobs]
    assert len(set(names)) == len(names)
    assert {len(job.uids) for job in service.jobs} == {number}
    assert {job.reason for job in service.jobs} == reasons


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_traffic_cut_anywhere_waits_for_its_quiet_time(path: Path) -> None:
    events = recorded(path)
    for cut in range(2, len(events), 5):
        for job in played(events[:cut]).jobs:
            last_s = max(
                at_s
                for at_s, event in events[:cut]
                if isinstance(event, InstanceArrived) and event.series_uid == job.series
            )
            assert job.at_s - last_s >= DEFAULTS.quiet_s
