"""One job, whatever the way: on random traffic."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.complete.arrivals import Arrivals, observe
from gateway.complete.decision import CompletionReason, Waiting, decide
from gateway.complete.events import (
    AssociationAborted,
    AssociationOpened,
    AssociationReleased,
    CountAnswered,
    InstanceArrived,
    InstancesListed,
)
from tests.gateway.complete.traffic import (
    DEFAULTS,
    SERIES,
    STUDY,
    Service,
    Timed,
    arrived,
    counted,
    image,
    sent,
    uids,
)


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
            assert not series.undecided or series_uid in service.capped  # taken, or held at the cap


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
