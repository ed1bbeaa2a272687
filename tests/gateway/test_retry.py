"""What follows a failure. The rows are those of PS3.4 B.2.3, PS3.7 Annex C and PS3.8 9.3.4, written out again."""

from __future__ import annotations

import errno
import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS, code_to_category

from gateway.retry import (
    POLICIES,
    DeadLetter,
    Effort,
    Fault,
    GiveUp,
    Next,
    RetryAt,
    decide,
    effort,
    job_fault,
    pause_s,
    reject_fault,
    store_fault,
)
from gateway.settings.model import Deliver
from medseg import errors

DEFAULTS = Deliver()
DAY_S = 86400.0


def after(fault: Fault, attempts: int = 1, age_s: float = 0.0, random: float = 0.5) -> Next:
    return decide(fault, attempts, age_s, DEFAULTS, random)


# Deliveries.


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0xB007, 0xB123, 0x0001, 0x0107, 0x0116, 0x0111])
def test_success_and_warnings_count_as_stored(status: int) -> None:
    assert store_fault(status) is None


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0xA7FF, 0x0110, 0x0213, 0x0112, 0xFE00, 0xD000, None])
def test_transient_refusals_are_tried_again(status: int | None) -> None:
    fault = store_fault(status)
    assert fault is not None
    assert isinstance(after(fault, attempts=100, age_s=DAY_S - 1), RetryAt)
    assert isinstance(after(fault, attempts=100, age_s=DAY_S), DeadLetter)


@pytest.mark.parametrize("status", [0x0122, 0x0124, 0xA900, 0xA901, 0xA9FF, 0xC000, 0xC211, 0xCFFF])
def test_permanent_refusals_are_dead_letters_at_once(status: int) -> None:
    fault = store_fault(status)
    assert fault is not None
    assert isinstance(after(fault), DeadLetter)


def test_what_is_not_accepted_is_a_dead_letter_at_once() -> None:
    assert store_fault(0x0122) is Fault.NOT_ACCEPTED
    assert isinstance(after(Fault.NOT_ACCEPTED), DeadLetter)


def test_every_storage_status_that_pynetdicom_knows() -> None:
    stored = {status for status in STORAGE_SERVICE_CLASS_STATUS if store_fault(status) is None}
    fine = {status for status in STORAGE_SERVICE_CLASS_STATUS if code_to_category(status) in ("Success", "Warning")}
    assert stored == fine | {0x0111}  # duplicate SOP instance: what we repeat is the same object


@hypothesis_settings(deadline=None)
@given(st.integers(0, 0xFFFF))
def test_every_status_has_a_meaning(status: int) -> None:
    fault = store_fault(status)
    assert fault is None or fault in POLICIES


@pytest.mark.parametrize(
    ("result", "source", "reason", "fault"),
    [
        (1, 1, 1, Fault.REJECTED),  # no reason given
        (1, 1, 2, Fault.REJECTED),  # application context name not supported
        (1, 1, 3, Fault.REJECTED),  # calling AE title not recognized
        (1, 1, 7, Fault.REJECTED),  # called AE title not recognized
        (1, 2, 2, Fault.REJECTED),  # protocol version not supported
        (1, 3, 1, Fault.BUSY),  # temporary congestion, although called permanent
        (1, 3, 2, Fault.BUSY),  # local limit exceeded, although called permanent
        (2, 3, 1, Fault.BUSY),
        (2, 3, 2, Fault.BUSY),
        (2, 1, 1, Fault.BUSY),
        (2, 1, 3, Fault.BUSY),
    ],
)
def test_rejected_associations(result: int, source: int, reason: int, fault: Fault) -> None:
    assert reject_fault(result, source, reason) is fault


@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.BROKEN, Fault.BUSY, Fault.FAILED])
def test_a_peer_that_is_down_for_an_hour_loses_nothing(fault: Fault) -> None:
    age_s, attempts = 0.0, 1
    while age_s < 3600:
        then = after(fault, attempts, age_s, random=attempts * 0.37 % 1)
        assert isinstance(then, RetryAt) and then.effort is Effort.SAME
        age_s, attempts = age_s + then.delay_s, attempts + 1
    assert attempts < 20


# Pauses.


def test_pauses_double_from_5_s_to_10_min() -> None:
    pauses = [pause_s(attempts, DEFAULTS, 0.5) for attempts in range(1, 11)]
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]


@hypothesis_settings(deadline=None)
@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_pauses_are_spread_by_a_fifth(attempts: int, random: float) -> None:
    plain = pause_s(attempts, DEFAULTS, 0.5)
    assert plain * 0.8 <= pause_s(attempts, DEFAULTS, random) <= plain * 1.2


def test_pauses_are_set() -> None:
    own = Deliver(first_retry_s=1, longest_retry_s=3, give_up_s=10)
    assert [pause_s(attempts, own, 0.5) for attempts in (1, 2, 3, 4)] == [1, 2, 3, 3]
    assert isinstance(decide(Fault.BUSY, 9, 10.0, own, 0.5), DeadLetter)
    assert isinstance(decide(Fault.BUSY, 9, 9.9, own, 0.5), RetryAt)


# Jobs.


def leaves(kind: type[errors.MedsegError]) -> set[type[errors.MedsegError]]:
    return {kind}.union(*(leaves(child) for child in kind.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(leaves(errors.InputError), key=lambda kind: kind.__name__))
def test_input_errors_are_never_tried_again(kind: type[errors.InputError]) -> None:
    assert isinstance(after(job_fault(kind.__new__(kind))), GiveUp)


@pytest.mark.parametrize("kind", sorted(leaves(errors.BundleError) | leaves(errors.UsageError), key=str))
def test_what_a_person_must_mend_is_a_dead_letter(kind: type[errors.MedsegError]) -> None:
    assert isinstance(after(job_fault(kind.__new__(kind))), DeadLetter)


@pytest.mark.parametrize("error", [errors.OutOfMemory("device"), MemoryError()])
def test_out_of_memory_is_tried_smaller_and_then_on_the_cpu(error: BaseException) -> None:
    fault = job_fault(error)
    assert [after(fault, attempts) for attempts in (1, 2)] == [RetryAt(0, Effort.SMALLER), RetryAt(0, Effort.CPU)]
    assert after(fault, 3) == DeadLetter("memory did not suffice (3 attempts)")


@pytest.mark.parametrize(
    "error",
    [errors.OutputNotWritable(Path("x"), "full"), OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "full")],
)
def test_a_full_disk_is_waited_for(error: BaseException) -> None:
    fault = job_fault(error)
    assert after(fault, 1) == RetryAt(5, Effort.SAME)
    assert after(fault, 50) == RetryAt(600, Effort.SAME)
    assert isinstance(after(fault, 200, DAY_S), DeadLetter)


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [
        (job_fault(ZeroDivisionError()), 3),
        (job_fault(OSError(errno.EIO, "broken")), 3),
        (Fault.CRASHED, 3),
        (Fault.HUNG, 2),
        (job_fault(errors.VerificationFailed()), 2),
    ],
)
def test_crashes_are_tried_again_within_limits(fault: Fault, attempts: int) -> None:
    for attempt in range(1, attempts):
        assert isinstance(after(fault, attempt), RetryAt)
    assert isinstance(after(fault, attempts), DeadLetter)


def test_a_drained_job_starts_again_however_long_the_gateway_was_down() -> None:
    assert after(job_fault(errors.Interrupted()), 7, 30 * DAY_S) == RetryAt(0, Effort.SAME)


def test_a_cancelled_job_stops() -> None:
    assert after(Fault.CANCELLED) == GiveUp("the job is not wanted any more")


def test_every_error_of_medseg_and_every_fault_has_its_row() -> None:
    assert set(POLICIES) == set(Fault)
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.MedsegError) and kind is not errors.MedsegError:
            unforeseen = kind is errors.Unforeseen  # counts as a crash, as any error that nobody foresaw
            assert (job_fault(kind.__new__(kind)) is Fault.CRASHED) == unforeseen


@hypothesis_settings(deadline=None)
@given(st.sampled_from(Fault), st.integers(1, 1000), st.floats(0, 1e7), st.floats(0, 1, exclude_max=True))
def test_every_failure_ends_or_pauses(fault: Fault, attempts: int, age_s: float, random: float) -> None:
    then = after(fault, attempts, age_s, random)
    if isinstance(then, RetryAt):
        assert 0 <= then.delay_s <= DEFAULTS.longest_retry_s * 1.2
    else:
        assert then.reason.startswith(fault.value)


@pytest.mark.parametrize(
    ("code", "failures", "expected"),
    [
        (None, 0, Effort.SAME),
        ("out_of_memory", 1, Effort.SMALLER),
        ("out_of_memory", 2, Effort.CPU),
        ("out_of_memory", 7, Effort.CPU),
        ("out_of_memory", 0, Effort.SAME),  # by hand, from the beginning
        ("MemoryError", 1, Effort.SMALLER),
        ("crashed", 1, Effort.SAME),
    ],
)
def test_a_job_is_run_with_the_effort_that_its_last_attempt_calls_for(
    code: str | None, failures: int, expected: Effort
) -> None:
    assert effort(code, failures) is expected
