"""Somebody says that this was all: a series is complete at once."""

from __future__ import annotations

from typing import Any

import pytest
from pytest import approx

from gateway.complete.decision import REQUEST_S, CompletionReason
from gateway.complete.events import (
    AssociationAborted,
    InstanceArrived,
    InstancesListed,
    RequestEnded,
)
from tests.gateway.complete.traffic import (
    SERIES,
    counted,
    from_acquisitions,
    image,
    only,
    played,
    sent,
    uids,
)


@pytest.mark.parametrize("gap_s", [2.0, 5.0])
def test_a_count_that_two_answers_agree_on(gap_s: float) -> None:
    events = [*sent(range(60), pace_s=0.5)[:-1], (1.0, counted(60)), (1.0 + gap_s, counted(60))]
    assert only(played(events)) == (approx(30.0), CompletionReason.COUNT, 60)


@pytest.mark.parametrize("answers", [[1.0], [1.0, 2.9], [1.0, 2.9, 2.95]])
def test_answers_that_do_not_agree_yet(answers: list[float]) -> None:
    events = [*sent(range(60), pace_s=0.5), *((at_s, counted(60)) for at_s in answers)]
    assert only(played(events))[1] is CompletionReason.QUIET


def test_answers_with_another_between_them_do_not_agree() -> None:
    events = [*sent(range(60), pace_s=0.5), (1.0, counted(60)), (2.0, counted(59)), (3.5, counted(60))]
    assert only(played(events))[1] is CompletionReason.QUIET


def test_answers_of_two_sources_do_not_agree_with_each_other() -> None:
    events = [*sent(range(60), pace_s=0.5), (1.0, counted(60)), (4.0, counted(60, source="archive"))]
    assert only(played(events))[1] is CompletionReason.QUIET


def test_an_agreed_count_of_the_study_completes_its_series() -> None:
    events = [
        *sent(range(10), series=SERIES, association="a1")[:-1],
        *sent(range(10), series="1.2.2", association="a2", start_s=2)[:-1],
        (0.5, counted(20, series=None)),
        (2.6, counted(20, series=None)),
    ]
    assert [(job.at_s, job.reason) for job in played(events).jobs] == [(approx(3.0), CompletionReason.COUNT)] * 2


def test_a_count_of_the_study_does_not_deny_a_series() -> None:
    events = [*sent(range(10)), (0.5, counted(500, series=None))]
    assert only(played(events))[1] is CompletionReason.QUIET


def test_a_commitment_list() -> None:
    events = [*sent(range(10))[:-1], (1.1, InstancesListed(uids(range(10))))]
    assert only(played(events)) == (approx(1.1), CompletionReason.COMMITMENT, 10)


def test_a_commitment_list_of_a_whole_study() -> None:
    events = [
        *sent(range(5), series=SERIES)[:-1],
        *sent(range(5), series="1.2.2", association="a2"),
        (1.0, InstancesListed(uids(range(5)) | uids(range(5), "1.2.2"))),
    ]
    assert [(job.at_s, job.reason) for job in played(events).jobs] == [(1.0, CompletionReason.COMMITMENT)] * 2


def test_a_list_of_a_part_completes_nothing() -> None:
    events = [*sent(range(10)), (1.1, InstancesListed(uids(range(5))))]
    assert only(played(events))[1] is CompletionReason.QUIET


def test_a_modality_that_asks_for_each_image_as_it_goes_does_not_finish_at_the_first() -> None:
    events = sent(range(10), pace_s=1.0)
    events += [(at_s + 0.2, InstancesListed(frozenset({event.sop_instance_uid}))) for at_s, event in events[1:-1]]  # type: ignore[union-attr]
    assert only(played(events))[2] == 10


def test_a_list_of_one_completes_a_series_of_one_when_it_was_released() -> None:
    events = [*sent([0]), (0.2, InstancesListed(uids([0])))]
    assert only(played(events)) == (0.2, CompletionReason.COMMITMENT, 1)


def test_a_foreign_list_does_not_matter() -> None:
    events = [*sent(range(10)), (1.1, InstancesListed(frozenset({"9.9.1", "9.9.2"})))]
    assert only(played(events))[1] is CompletionReason.QUIET


def test_a_list_with_more_of_another_series_does_not_deny_this_one() -> None:
    events = [
        *sent(range(10)),
        *sent(range(3), series="1.2.2", association="a2"),
        (1.1, InstancesListed(uids(range(5), "1.2.2"))),
    ]
    assert [(job.series, job.reason) for job in played(events).jobs] == [(SERIES, CompletionReason.QUIET)]


def test_a_listed_instance_may_come_in_another_study() -> None:
    elsewhere = InstanceArrived("7.7", "7.7.1", "7.7.1.1", image(0), "CT01", "a2")
    events = [*sent(range(10)), (1.1, InstancesListed(uids(range(10)) | {"7.7.1.1"})), (30.0, elsewhere)]
    job = next(job for job in played(events).jobs if job.series == SERIES)
    assert (job.at_s, job.reason) == (30.0, CompletionReason.COMMITMENT)


def test_a_stow_request() -> None:
    events = [*sent([0, 1, 2, 5])[:-1], (0.6, RequestEnded("a1"))]
    assert only(played(events)) == (approx(0.6 + REQUEST_S), CompletionReason.REQUEST_ENDED, 4)


def test_a_series_in_many_stow_requests() -> None:
    """Some clients part a series, and send the next part at once."""
    events: list[Any] = []
    for k in range(0, 40, 10):
        events += sent(range(k, k + 10), pace_s=0.05, association=f"a{k}", start_s=k / 10)[:-1]
        events.append((k / 10 + 0.5, RequestEnded(f"a{k}")))
    assert only(played(events))[1:] == (
        CompletionReason.REQUEST_ENDED, 40,
    )  # fmt: skip


def test_a_stow_request_that_came_late_proves_nothing() -> None:
    events = [*sent(range(4))[:-1], (0.6, RequestEnded("a1")), *sent([4], start_s=5, association="b")[:-1]]
    jobs = played([*events, (5.1, RequestEnded("b"))]).jobs
    assert [job.reason for job in jobs] == [CompletionReason.REQUEST_ENDED, CompletionReason.QUIET]


def test_a_stow_request_that_broke_off() -> None:
    events = [*sent(range(4))[:-1], (0.6, AssociationAborted("a1"))]
    assert only(played(events))[1] is CompletionReason.QUIET_ABORT


def test_one_of_two_stow_requests_ended() -> None:
    events = [
        *sent(range(0, 10, 2), association="a1")[:-1],
        *sent(range(1, 10, 2), association="a2")[:-1],
        (0.7, RequestEnded("a1")),
        (0.9, RequestEnded("a2")),
    ]
    assert only(played(events)) == (approx(0.9 + REQUEST_S), CompletionReason.REQUEST_ENDED, 10)


def test_what_comes_after_a_stow_request_takes_its_word_back() -> None:
    events = [
        *sent(range(4))[:-1],
        (0.6, counted(6)),
        (0.6, RequestEnded("a1")),
        *sent([4, 5], start_s=9, association="b"),
    ]
    assert only(played(events)) == (approx(9.2 + 3), CompletionReason.QUIET, 6)


def test_images_in_acquisition_reached_at_once_although_open() -> None:
    events = from_acquisitions(*((k, "4", 20) for k in range(20)))[:-1]
    assert only(played(events)) == (approx(2.0), CompletionReason.ACQUISITION, 20)


@pytest.mark.parametrize(
    ("slices", "reason"),
    [
        ([(k, "4", 20) for k in range(12)], CompletionReason.QUIET_GAP),  # fewer than declared: a hint, no denial
        (
            [(k, "4" if k < 10 else "5", 20) for k in range(20)],
            CompletionReason.QUIET_GAP,
        ),  # several: lower bound of each
        ([(k, "4" if k < 10 else "5", 10) for k in (*range(10), *range(10, 20))], CompletionReason.QUIET),
        ([(k, None, 20) for k in range(20)], CompletionReason.QUIET),  # no AcquisitionNumber
        ([(k, "4", 20 if k else None) for k in range(20)], CompletionReason.QUIET),  # not in each
        ([(k, "4", 12) for k in range(20)], CompletionReason.QUIET),  # more came than was declared: never mind it
    ],
)
def test_images_in_acquisition_that_prove_nothing(slices: list[Any], reason: CompletionReason) -> None:
    # The last slice comes first, so that no prefix reaches its number on the way.
    service = played(from_acquisitions(slices[-1], *slices[:-1]))
    assert service.jobs[-1].reason is reason
    assert len(service.jobs[-1].uids) == len(slices)


def test_a_second_acquisition_supersedes_the_first() -> None:
    events = from_acquisitions(*((k, "1" if k < 10 else "2", 10) for k in range(20)))
    jobs = played(events).jobs
    assert [(job.reason, len(job.uids)) for job in jobs] == [
        (CompletionReason.ACQUISITION, 10),
        (CompletionReason.QUIET, 20),
    ]


def test_a_count_outweighs_images_in_acquisition() -> None:
    events = [*from_acquisitions(*((k, "4", 20) for k in range(20))), (0.5, counted(40))]
    assert not played(events).jobs
