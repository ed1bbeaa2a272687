"""When a series is complete: DESIGN.md section 7, sentence by sentence, then on random and on recorded traffic."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest import approx

from gateway.complete.arrivals import Arrivals, forget, observe
from gateway.complete.decision import CapReached, Complete, CompletionReason, Settled, Waiting, decide, lacks_slices
from gateway.complete.events import (
    AssociationAborted,
    AssociationOpened,
    AssociationReleased,
    CountAnswered,
    Image,
    InstanceArrived,
    InstancesListed,
    RequestEnded,
    Taken,
)
from gateway.settings.model import Completion as Settings
from tests.gateway.receive.traffic import STUDY, Service, Timed, arrived, image, recorded, sent

DEFAULTS = Settings()
SERIES = "1.2.1"
RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.json"))


def uids(numbers: Any, series: str = SERIES) -> frozenset[str]:
    return frozenset(f"{series}.{k}" for k in numbers)


def counted(count: int, series: str | None = SERIES, source: str = "pacs") -> CountAnswered:
    return CountAnswered(source, STUDY, series, count)


def played(events: list[Timed], **kwargs: Any) -> Service:
    service = Service(**kwargs)
    service.play(events)
    return service


def only(service: Service) -> tuple[float, CompletionReason | None, int]:
    """Time, reason and number of images of the one job there was."""
    (job,) = service.jobs
    assert job.generation == 1
    return job.at_s, job.reason, len(job.uids)


# Quiet times.


def test_released_without_a_gap() -> None:
    assert only(played(sent(range(10)))) == (approx(1.0 + 3), CompletionReason.QUIET, 10)


def test_a_slice_missing() -> None:
    assert only(played(sent([0, 1, 2, 4, 5]))) == (approx(0.5 + 30), CompletionReason.QUIET_GAP, 5)


def test_an_association_open() -> None:
    assert only(played(sent(range(10))[:-1])) == (approx(1.0 + 60), CompletionReason.QUIET_OPEN, 10)


def test_another_association_of_the_same_sender_open() -> None:
    events = [(0.0, AssociationOpened("other", "CT01")), *sent(range(10))]
    assert only(played(events)) == (approx(1.0 + 60), CompletionReason.QUIET_OPEN, 10)


def test_an_association_of_another_sender_does_not_matter() -> None:
    events = [(0.0, AssociationOpened("other", "CT02")), *sent(range(10))]
    assert only(played(events)) == (approx(1.0 + 3), CompletionReason.QUIET, 10)


def test_aborted() -> None:
    events = [*sent(range(10))[:-1], (1.5, AssociationAborted("a1"))]
    assert only(played(events)) == (approx(1.5 + 60), CompletionReason.QUIET_ABORT, 10)


def test_aborted_and_sent_again() -> None:
    events = [*sent(range(6))[:-1], (0.7, AssociationAborted("a1")), *sent(range(10), start_s=20, association="a2")]
    assert only(played(events)) == (approx(21 + 3), CompletionReason.QUIET, 10)


def test_a_release_of_an_association_opened_before_the_abort_heals_nothing() -> None:
    events = [
        *sent(range(0, 10, 2), association="a1")[:-1],
        *sent(range(1, 10, 2), association="a2")[:-1],
        (1.0, AssociationAborted("a1")),
        (1.2, AssociationReleased("a2")),
    ]
    assert only(played(events)) == (approx(1.2 + 60), CompletionReason.QUIET_ABORT, 10)


def test_an_abort_before_any_image_of_the_series_does_not_matter() -> None:
    events = [(0.0, AssociationOpened("a0", "CT01")), (0.1, AssociationAborted("a0")), *sent(range(4), start_s=1)]
    assert only(played(events))[1] is CompletionReason.QUIET


def test_quiet_is_counted_from_the_release_and_not_only_from_the_last_instance() -> None:
    events = [*sent(range(10))[:-1], (20.0, AssociationReleased("a1"))]
    assert only(played(events)) == (approx(20 + 3), CompletionReason.QUIET, 10)


def test_each_instance_starts_the_quiet_time_anew() -> None:
    events: list[Timed] = []
    for k in range(6):
        events += sent([k], start_s=2.5 * k, association=f"a{k}")
    assert only(played(events)) == (approx(12.6 + 3), CompletionReason.QUIET, 6)


def test_a_repeated_instance_starts_the_quiet_time_anew() -> None:
    events = [*sent(range(10)), *sent([9], start_s=3, association="a2")]
    assert only(played(events)) == (approx(3.1 + 3), CompletionReason.QUIET, 10)


@pytest.mark.parametrize("key", ["quiet_s", "quiet_gap_s", "quiet_open_s", "quiet_abort_s"])
def test_the_settings_are_obeyed(key: str) -> None:
    traffic = {
        "quiet_s": sent(range(5)),
        "quiet_gap_s": sent([0, 1, 3]),
        "quiet_open_s": sent(range(5))[:-1],
        "quiet_abort_s": [*sent(range(5))[:-1], (0.5, AssociationAborted("a1"))],
    }[key]
    end_s = traffic[-1][0]
    longer = replace(DEFAULTS, **{key: 77.0})
    assert only(played(traffic, settings=longer))[0] == approx(end_s + 77)


def test_a_truncated_even_prefix_waits_for_its_quiet_time_and_no_longer() -> None:
    """Every prefix is even: the pause decides. Shorter than the quiet time: one job; longer: superseded."""
    tail = {"association": "a2", "start_s": 1.0}
    assert only(played([*sent(range(10)), *sent(range(10, 20), **tail | {"start_s": 3.8})]))[2] == 20  # type: ignore[arg-type]
    service = played([*sent(range(10)), *sent(range(10, 20), **tail | {"start_s": 8.0})])  # type: ignore[arg-type]
    assert [(job.generation, len(job.uids), job.at_s) for job in service.jobs] == [
        (1, 10, approx(4)),
        (2, 20, approx(9 + 2 * (8.1 - 1))),
    ]


# Somebody says that more is to come.


def test_no_silence_finishes_a_series_of_which_more_is_counted() -> None:
    service = played([*sent(range(10)), (0.5, counted(20))])
    assert not service.jobs
    assert service.capped == {SERIES: approx(0.1 + 1800)}


def test_a_count_that_goes_up_is_a_lower_bound() -> None:
    """A PACS that is still receiving: two agreeing answers that are too low prove nothing."""
    events = [
        *sent(range(30), pace_s=0.3),
        (0.5, counted(4)),
        (2.6, counted(4)),
        (6.0, counted(30)),
        (7.0, counted(30)),
    ]
    assert only(played(events)) == (approx(9.0 + 3), CompletionReason.QUIET, 30)


def test_a_count_that_goes_down_lets_go() -> None:
    events = [*sent(range(10)), (0.5, counted(20)), (100.0, counted(10)), (101.0, counted(10))]
    assert only(played(events)) == (approx(100), CompletionReason.QUIET, 10)


def test_a_count_may_be_known_before_the_first_instance() -> None:
    assert only(played([(-3.0, counted(10)), (-0.5, counted(10)), *sent(range(10))[:-1]])) == (
        approx(1.0),
        CompletionReason.COUNT,
        10,
    )
    assert not played([(-3.0, counted(11)), *sent(range(10))]).jobs


def test_the_cap_is_not_the_end() -> None:
    events = [*sent(range(10)), (0.5, counted(11)), *sent([10], start_s=2000, association="a2")]
    service = played(events)
    assert service.capped == {SERIES: approx(1800.1)}
    assert only(service)[2] == 11


def test_one_source_saying_more_outweighs_another() -> None:
    events = [*sent(range(10)), (0.1, counted(10)), (2.2, counted(10)), (0.2, counted(12, source="archive"))]
    assert not played(events).jobs


def test_a_commitment_list_with_more() -> None:
    listed = InstancesListed(uids(range(12)))
    assert not played([*sent(range(10)), (1.5, listed)]).jobs
    events = [*sent(range(10)), (1.5, listed), *sent([10, 11], start_s=40, association="a2")]
    assert only(played(events)) == (approx(40.2), CompletionReason.COMMITMENT, 12)


def test_cap_while_it_never_gets_quiet() -> None:
    settings_ = replace(DEFAULTS, cap_s=10)
    events = sent(range(40), pace_s=1.0)
    service = played(events, settings=settings_)
    assert service.capped == {SERIES: approx(11)}
    assert only(service) == (approx(43), CompletionReason.QUIET, 40)


# Somebody says that this was all.


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
    assert only(played(events)) == (approx(0.6), CompletionReason.REQUEST_ENDED, 4)


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
    assert only(played(events)) == (approx(0.9), CompletionReason.REQUEST_ENDED, 10)


def test_what_comes_after_a_stow_request_takes_its_word_back() -> None:
    events = [
        *sent(range(4))[:-1],
        (0.6, counted(6)),
        (0.6, RequestEnded("a1")),
        *sent([4, 5], start_s=9, association="b"),
    ]
    assert only(played(events)) == (approx(9.2 + 3), CompletionReason.QUIET, 6)


def acquired(k: int, acquisition: str | None, declared: int | None) -> InstanceArrived:
    return arrived(k, what=image(k, acquisition=acquisition, declared=declared))


def from_acquisitions(*slices: tuple[int, str | None, int | None]) -> list[Timed]:
    events: list[Timed] = [(0.0, AssociationOpened("a1", "CT01"))]
    events += [(0.1 * (n + 1), acquired(*one)) for n, one in enumerate(slices)]
    return [*events, (events[-1][0], AssociationReleased("a1"))]


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


# Slices known to be missing.


@pytest.mark.parametrize(
    ("positions", "missing"),
    [
        ([], False),
        ([5.0], False),
        ([0, 10], False),
        ([0, 2, 4, 6], False),
        ([0, 2, 6, 8], True),
        ([6, 0, 8, 2], True),
        ([0, 2, 4.2, 6.1], False),  # within what is resampled
        ([0, 4, 8, 12, 6], True),  # interleaved, the second half has begun
        ([0, 2, 4, 0, 2, 4], False),  # two phases
        ([0, 2, 4, 0, 2], True),  # the second of them not whole
        ([0, 0.001, 2, 2.001], False),
        ([3, 3, 3], False),
        ([-4, -2, 0, 6], True),
    ],
)
def test_missing_slices(positions: list[float], missing: bool) -> None:
    assert lacks_slices([Image("", "axial", at_mm) for at_mm in positions]) is missing


def test_orientations_are_looked_at_by_themselves() -> None:
    axial = [Image("", "axial", at_mm) for at_mm in (0, 2, 4)]
    sagittal = [Image("", "sagittal", at_mm) for at_mm in (1, 51, 101)]
    assert not lacks_slices([*axial, *sagittal, Image("", "", None)])
    assert lacks_slices([*axial, *sagittal, Image("", "sagittal", 251)])


@hypothesis_settings(deadline=None)
@given(st.integers(1, 40), st.floats(0.3, 20), st.floats(-500, 500), st.randoms(use_true_random=False))
def test_no_prefix_in_order_lacks_a_slice_and_every_inner_hole_does(
    number: int, spacing_mm: float, first_mm: float, order: random.Random
) -> None:
    images = [Image("", "axial", first_mm + k * spacing_mm) for k in range(number + 3)]
    assert not lacks_slices(images[:number])
    hole = order.randrange(1, len(images) - 1)
    holed = images[:hole] + images[hole + 1 :]
    order.shuffle(holed)
    assert lacks_slices(holed) is (len(holed) > 2)


# One job, whatever the way.


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_job_for_a_study_sent_in_any_way_without_long_pauses(data: st.DataObject) -> None:
    """Many associations, two senders, interleaved series, resent and repeated instances: one job a series, with all."""
    number = data.draw(st.integers(3, 14))
    wanted = [(series, k) for series in ("1.2.1", "1.2.2") for k in range(number)]
    again = data.draw(st.lists(st.sampled_from(wanted), max_size=6))
    order = data.draw(st.permutations([*wanted, *again]))
    pauses = data.draw(st.lists(st.sampled_from([0.0, 0.01, 0.4, 2.4]), min_size=len(order), max_size=len(order)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order) - 1), max_size=6)))
    events: list[Timed] = []
    times = list(accumulate(pauses))
    for number_, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(order)], strict=True)):
        sender = data.draw(st.sampled_from(["CT01", "CT02"]))
        association = f"a{number_}"
        events.append((times[start], AssociationOpened(association, sender)))
        for (series, k), at_s in zip(order[start:end], times[start:end], strict=True):
            events.append((at_s, arrived(k, association, series=series, sender=sender)))
        events.append((times[end - 1] + 0.1, AssociationReleased(association)))
    service = Service(settings=replace(DEFAULTS, quiet_s=60))  # longer than the whole, so each series is one
    jobs = service.play(events)
    assert {(job.series, job.uids) for job in jobs} == {(one, uids(range(number), one)) for one in ("1.2.1", "1.2.2")}
    assert len(jobs) == 2


actions = st.lists(
    st.tuples(
        st.sampled_from(["open", "send", "send", "send", "release", "abort", "count", "list", "correct"]),
        st.integers(0, 3),  # association
        st.integers(0, 7),  # slice
        st.sampled_from([0.0, 0.5, 2.0, 2.5, 4.0, 29.0, 45.0, 61.0]),  # pause before
    ),
    max_size=40,
)


def random_traffic(script: list[tuple[str, int, int, float]]) -> list[Timed]:
    """Any order of events at all, sensible or not; all of one series."""
    events: list[Timed] = []
    now_s = 0.0
    for number, (what, association, k, pause_s) in enumerate(script):
        now_s += pause_s
        name, sender = f"a{association}", f"CT0{association % 2}"
        event = {
            "open": AssociationOpened(name, sender),
            "send": arrived(k, name, sender=sender),
            "correct": arrived(k, name, sender=sender, what=image(k, digest=f"corrected {number}")),
            "release": AssociationReleased(name),
            "abort": AssociationAborted(name),
            "count": counted(k),
            "list": InstancesListed(uids(range(k))),
        }[what]
        events.append((now_s, event))
    return events


@hypothesis_settings(max_examples=150, deadline=None)
@given(actions)
def test_whatever_happens_no_job_is_early_and_every_instance_is_in_one(script: list[Any]) -> None:
    events = random_traffic(script)
    instances = [(at_s, event) for at_s, event in events if isinstance(event, InstanceArrived)]
    service = Service()
    for job in service.play(events):
        before = [at_s for at_s, _ in instances if at_s <= job.at_s]
        known = {event.sop_instance_uid for at_s, event in instances if at_s <= job.at_s}
        assert job.uids == known
        counts = [event.count for at_s, event in events if isinstance(event, CountAnswered) and at_s <= job.at_s]
        assert not counts or counts[-1] <= len(known)
        silence_s = job.at_s - max(before)
        if job.reason in (CompletionReason.COUNT, CompletionReason.COMMITMENT):
            continue
        assert silence_s >= DEFAULTS.quiet_s
        senders = {event.sender for at_s, event in instances if at_s <= job.at_s}
        open_now: dict[str, str] = {}
        for at_s, event in events:
            if isinstance(event, AssociationOpened) and at_s <= job.at_s:
                open_now[event.association] = event.sender
            elif isinstance(event, AssociationReleased | AssociationAborted) and at_s <= job.at_s:
                open_now.pop(event.association, None)
        if job.generation == 1 and senders & set(open_now.values()):
            assert silence_s >= DEFAULTS.quiet_open_s
        places = sorted(int(uid.rsplit(".", 1)[1]) for uid in job.uids)
        steps = {after - before for before, after in pairwise(places)}
        if len(steps) > 1 and max(steps) > 1.5 * min(steps):
            assert silence_s >= DEFAULTS.quiet_gap_s
    for study in service.arrivals.studies.values():
        for series_uid, series in study.series.items():
            assert not series.fresh or series_uid in service.capped  # taken, or held at the cap


@hypothesis_settings(deadline=None)
@given(actions, st.floats(0, 1))
def test_until_then_nothing_changes_by_itself(script: list[Any], share: float) -> None:
    arrivals, now_s = Arrivals(), 0.0
    for at_s, event in random_traffic(script):
        arrivals, now_s = observe(arrivals, event, at_s), at_s
    if STUDY not in arrivals.studies or SERIES not in arrivals.studies[STUDY].series:
        return
    decision = decide(arrivals, STUDY, SERIES, now_s, DEFAULTS)
    if isinstance(decision, Waiting):
        assert decision.until_s > now_s
        between_s = now_s + share * (decision.until_s - now_s)
        if between_s < decision.until_s:
            assert decide(arrivals, STUDY, SERIES, between_s, DEFAULTS) == decision
        then = decide(arrivals, STUDY, SERIES, decision.until_s, DEFAULTS)
        assert not isinstance(then, Waiting) or then.until_s > decision.until_s


@hypothesis_settings(deadline=None)
@given(st.permutations(range(9)), st.permutations(range(9)), st.sampled_from([(), (4,), (2, 5)]), st.integers(0, 9))
def test_the_order_of_instances_changes_nothing_in_the_end(
    one: list[int], other: list[int], withheld: tuple[int, ...], expected: int
) -> None:
    """Same times, same instances, other order: same decision after the last one, at any time."""

    def state(order: list[int]) -> Arrivals:
        arrivals = Arrivals()
        for at_s, event in [(0.0, counted(expected)), *sent([k for k in order if k not in withheld])]:
            arrivals = observe(arrivals, event, at_s)
        return observe(arrivals, counted(expected), 1.0)

    for now_s in (1.0, 2.0, 4.5, 31.0, 2000.0):
        assert decide(state(one), STUDY, SERIES, now_s, DEFAULTS) == decide(
            state(other), STUDY, SERIES, now_s, DEFAULTS
        )


def test_a_clock_that_steps_back_makes_nothing_complete() -> None:
    arrivals = Arrivals()
    for at_s, event in sent(range(10), start_s=1000.0):
        arrivals = observe(arrivals, event, at_s)
    for now_s in (-1e9, 0.0, 900.0, 1003.9):
        assert isinstance(decide(arrivals, STUDY, SERIES, now_s, DEFAULTS), Waiting)


# After the result.


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


# A whole study, for rules that choose among its series.


def whole(arrivals: Arrivals, now_s: float) -> Any:
    return decide(arrivals, STUDY, None, now_s, DEFAULTS)


def state_of(events: list[Timed]) -> Arrivals:
    arrivals = Arrivals()
    for at_s, event in sorted(events, key=lambda timed: timed[0]):
        arrivals = observe(arrivals, event, at_s)
    return arrivals


def test_a_study_waits_for_the_last_of_its_series() -> None:
    arrivals = state_of([*sent(range(5)), *sent(range(5), start_s=2, series="1.2.2", association="a2")])
    assert decide(arrivals, STUDY, SERIES, 4.0, DEFAULTS) == Complete(CompletionReason.QUIET)
    assert whole(arrivals, 4.0) == Waiting(approx(5.5), "quiet")
    assert whole(arrivals, 5.6) == Complete(CompletionReason.QUIET)


def test_the_number_of_one_series_says_nothing_of_the_study() -> None:
    arrivals = state_of([*from_acquisitions(*((k, "4", 5) for k in range(5))), (0.1, counted(5)), (2.2, counted(5))])
    assert decide(arrivals, STUDY, SERIES, 2.3, DEFAULTS) == Complete(CompletionReason.ACQUISITION)
    assert isinstance(whole(arrivals, 2.3), Waiting)


def test_a_study_is_counted_as_a_whole() -> None:
    two = [*sent(range(5)), *sent(range(5), series="1.2.2", association="a2")]
    agreed = state_of([*two, (0.6, counted(10, None)), (2.6, counted(10, None))])
    assert whole(agreed, 2.7) == Complete(CompletionReason.COUNT)
    more = state_of([*two, (0.6, counted(11, None))])
    assert isinstance(whole(more, 100), Waiting)
    assert whole(more, 2000) == CapReached("pacs counts 11 instances, 10 are here")
    for series in (SERIES, "1.2.3"):  # one that is here in part, one that has not begun
        assert isinstance(whole(state_of([*two, (0.6, counted(6, series))]), 100), Waiting)


def test_a_study_of_which_all_is_taken_is_settled() -> None:
    arrivals = state_of([*sent(range(5)), (9.0, Taken(STUDY, SERIES))])
    assert whole(arrivals, 10) == decide(arrivals, STUDY, SERIES, 10, DEFAULTS) == Settled()


def test_forget() -> None:
    arrivals = state_of(sent(range(3)))
    assert not forget(arrivals, STUDY).studies
    with pytest.raises(KeyError):
        decide(forget(arrivals, STUDY), STUDY, SERIES, 0.0, DEFAULTS)


# Recorded traffic: real senders, timed on loopback.

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


# Real headers.


def headers(folder: Path) -> list[pydicom.Dataset]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in files]


def as_sent(found: list[pydicom.Dataset]) -> list[Timed]:
    events: list[Timed] = [(0.0, AssociationOpened("a1", "CT01"))]
    for number, header in enumerate(found, 1):
        uid = f"{STUDY}.{header.InstanceNumber}"  # one of the sets comes without UIDs
        one = InstanceArrived(STUDY, SERIES, uid, Image.from_header(header, uid), "CT01", "a1")
        events.append((number / 10, one))
    return [*events, (events[-1][0], AssociationReleased("a1"))]


@pytest.mark.parametrize("folder", ["ct_totalseg_j2k", "mr_siemens_hfs_t1_sag"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_real_series(shared_data: Path, folder: str, shuffled: bool) -> None:
    found = headers(shared_data / "dicom" / folder)
    found.sort(key=lambda header: header.InstanceNumber)
    withheld = found[9]
    if shuffled:
        random.Random(7).shuffle(found)
    (job,) = played(as_sent(found)).jobs
    assert (job.reason, len(job.uids)) == (CompletionReason.QUIET, len(found))
    (holed,) = played(as_sent([header for header in found if header is not withheld])).jobs
    assert holed.reason is CompletionReason.QUIET_GAP


def test_real_study_with_images_in_acquisition(shared_data: Path) -> None:
    """A GE study on pydicom's DICOMDIR: series MR700 has 7 of 12 images, the single images are whole by themselves."""
    study = shared_data / "dicom" / "pydicom_files" / "dicomdirtests" / "98892003"
    found = headers(study / "MR700")
    (job,) = played(as_sent(found)).jobs
    assert (job.reason, len(job.uids)) == (CompletionReason.QUIET_GAP, 7)
    (single, *_) = headers(study / "MR1")
    assert played(as_sent([single])).jobs[0].reason is CompletionReason.ACQUISITION


def test_headers_with_nothing_or_nonsense_in_them() -> None:
    assert Image.from_header(pydicom.Dataset(), "d") == Image("d")
    odd = pydicom.Dataset()
    odd.ImageOrientationPatient = [1, 0, 0, 0, 1]
    odd.ImagePositionPatient = [1, 2, 3]
    odd.AcquisitionNumber = ""
    odd.ImagesInAcquisition = "0"
    assert Image.from_header(odd, "d") == Image("d")


def test_position_along_the_normal() -> None:
    header = pydicom.Dataset()
    header.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]  # sagittal, normal to the right: (-1, 0, 0)
    header.ImagePositionPatient = [12.5, 3, 4]
    seen = Image.from_header(header, "d")
    assert seen.position_mm == -12.5
    header.ImagePositionPatient = [14.5, 8, 9]
    assert Image.from_header(header, "d").position_mm == -14.5
    assert seen.stack == Image.from_header(header, "d").stack


# An association for each image.


def one_by_one(slices: range, pace_s: float, *, start_s: float = 0.0, **more: str) -> list[Timed]:
    """Each image over an association of its own, at a pace."""
    name = more.get("series", SERIES)
    return [
        one
        for n, k in enumerate(slices)
        for one in sent([k], start_s=start_s + n * pace_s, association=f"{name} {k}", **more)
    ]


@pytest.mark.parametrize(
    ("pace_s", "most"),
    [(0.5, 1), (2.9, 1), (3.5, 2), (5, 2), (6, 2), (12, 2), (20, 2), (29, 2), (45, 2), (59, 2), (70, 20)],
)
def test_a_series_of_which_each_image_has_an_association(pace_s: float, most: int) -> None:
    """With the default settings: one result, or one that was too early and one of the whole."""
    jobs = played(one_by_one(range(20), pace_s)).jobs
    assert len(jobs) == most and len(jobs[-1].uids) == 20


@given(st.lists(st.floats(0.2, 29.0), min_size=3, max_size=40))
def test_pauses_of_any_length_give_few_results(pauses_s: list[float]) -> None:
    """Each result that was too early shows a pause twice as long as any before it."""
    events, at_s = [], 0.0
    for k, pause_s in enumerate(pauses_s):
        at_s += pause_s
        events += sent([k], start_s=at_s, association=f"a{k}")
    jobs = played(events).jobs
    assert len(jobs) <= 5 and len(jobs[-1].uids) == len(pauses_s)


def test_the_next_series_of_such_a_sender_waits_from_the_start() -> None:
    later = one_by_one(range(20), 6, start_s=1000, series="1.2.2")
    elsewhere = one_by_one(range(5), 6, start_s=2000, series="1.2.3", sender="CT02")
    jobs = played([*one_by_one(range(20), 6), *later, *elsewhere]).jobs
    assert [(job.series, len(job.uids)) for job in jobs] == [
        (SERIES, 1), (SERIES, 20), ("1.2.2", 20), ("1.2.3", 1), ("1.2.3", 5)
    ]  # fmt: skip


def test_a_series_in_one_association_waits_no_longer_for_its_sender(pace_s: float = 6) -> None:
    at_once = sent(range(10), start_s=1000, series="1.2.2", association="whole")
    assert played([*one_by_one(range(5), pace_s), *at_once]).jobs[-1].at_s == approx(1001 + 3)


def test_who_sent_one_image_late_is_not_taken_for_such_a_sender() -> None:
    events = [*sent(range(10)), *sent([10], start_s=9, association="a2")]
    single = sent([0], start_s=1000, series="1.2.2", association="a3")
    assert played([*events, *single]).jobs[-1].at_s == approx(1000.1 + 3)


def test_the_wait_ends_where_the_settings_say(longest_s: float = 10) -> None:
    some = Settings(quiet_late_s=longest_s)
    jobs = played(one_by_one(range(4), 20), settings=some).jobs
    assert [job.at_s for job in jobs] == [approx(3.1), *(approx(20.1 + 20 * k + longest_s) for k in range(3))]
    assert played(one_by_one(range(1), 6), settings=Settings(quiet_s=90)).jobs[0].at_s == approx(90.1)


def test_a_count_ends_the_longer_wait() -> None:
    service = Service()
    service.play(one_by_one(range(5), 6), until_s=24.5)
    events: list[Timed] = [(25.0, counted(5)), (27.5, counted(5))]
    assert service.play(events)[-1].reason is CompletionReason.COUNT and service.jobs[-1].at_s == approx(27.5)


def test_a_correction_is_no_pace() -> None:
    other = {"what": image(3, digest="corrected")}
    again: list[Timed] = [
        (9.0, AssociationOpened("a2", "CT01")),
        (9.1, arrived(3, "a2", **other)),
        (9.1, AssociationReleased("a2")),
    ]  # type: ignore[arg-type]
    service = played([*sent(range(10)), *again])
    assert [job.at_s for job in service.jobs] == [approx(4), approx(9.1 + 6)] and not service.arrivals.paces_s
