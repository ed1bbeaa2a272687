"""What comes after the result."""

from __future__ import annotations

from dataclasses import replace

from pytest import approx

from gateway.complete.decision import Complete, CompletionReason, decide
from gateway.complete.events import (
    AssociationAborted,
    AssociationOpened,
    AssociationReleased,
    InstancesListed,
)
from gateway.settings.model import Completion as Settings
from tests.gateway.complete.traffic import (
    DEFAULTS,
    SERIES,
    STUDY,
    Service,
    Timed,
    arrived,
    counted,
    from_acquisitions,
    image,
    played,
    sent,
    uids,
)


def late(*more: Timed, settings_: Settings = DEFAULTS) -> Service:
    return played([*sent(range(10)), *more], settings=settings_)


def test_a_late_instance_supersedes() -> None:
    service = late(*sent([10], start_s=3600, association="a2"))
    assert [(job.generation, len(job.uids)) for job in service.jobs] == [(1, 10), (2, 11)]
    assert service.jobs[1].at_s == approx(3600.1 + 2 * 3)


def test_an_abort_that_was_waited_for_does_not_delay_what_another_sends_late() -> None:
    aborted = [*sent(range(9))[:-1], (1.0, AssociationAborted("a1"))]
    jobs = played([*aborted, *sent([9], start_s=3600, association="a2", sender="CT02")]).jobs
    assert [(job.at_s, job.reason) for job in jobs] == [
        (approx(61), CompletionReason.QUIET_ABORT),
        (approx(3606.1), CompletionReason.QUIET),
    ]


def test_a_corrected_instance_supersedes() -> None:
    corrected = arrived(4, "a2", what=image(4, digest="better"))
    service = late((3600.0, corrected))
    assert [(job.generation, len(job.uids)) for job in service.jobs] == [(1, 10), (2, 10)]
    assert service.arrivals.studies[STUDY].series[SERIES].images[f"{SERIES}.4"].digest == "better"


def test_a_repetition_does_not() -> None:
    assert len(late(*sent(range(10), start_s=3600, association="a2")).jobs) == 1


def test_after_late_s_it_does_not_either() -> None:
    service = late(*sent([10], start_s=3600, association="a2"), settings_=replace(DEFAULTS, late_s=600))
    assert len(service.jobs) == 1
    assert isinstance(decide(service.arrivals, STUDY, SERIES, 1e6, DEFAULTS), Complete)  # were late_s a day


def test_a_whole_series_of_corrections_is_one_job_although_the_numbers_fit_all_the_time() -> None:
    events = from_acquisitions(*((k, "4", 20) for k in range(20)))
    events += [(0.1, counted(20)), (2.2, counted(20)), (50.0, AssociationOpened("a2", "CT01"))]
    for k in range(20):
        better = image(k, digest=f"better {k}", acquisition="4", declared=20)
        events.append((50.1 + k / 10, arrived(k, "a2", what=better)))
    events.append((52.0, AssociationReleased("a2")))
    jobs = played(events).jobs
    assert [(job.generation, job.reason) for job in jobs] == [
        (1, CompletionReason.ACQUISITION),
        (2, CompletionReason.QUIET),
    ]


def test_after_corrections_were_taken_numbers_count_again() -> None:
    corrected = (100.0, arrived(4, what=image(4, digest="better")))
    events = [*sent(range(10)), corrected, (200.0, counted(11)), (203.0, counted(11)), (300.0, arrived(10))]
    assert [(job.generation, job.reason) for job in played(events).jobs][1:] == [
        (2, CompletionReason.QUIET),
        (3, CompletionReason.COUNT),
    ]


def test_a_list_from_before_does_not_complete_what_came_late() -> None:
    events = [
        *sent(range(10)),
        (1.1, InstancesListed(uids(range(10)))),
        (100.0, arrived(3, what=image(3, digest="new"))),
    ]
    assert [job.reason for job in played(events).jobs] == [CompletionReason.COMMITMENT, CompletionReason.QUIET]
