"""What follows a failure: again, never again, or a person has to look. Tables first; the code that reads them is short.

    what went wrong --a table--> Fault --POLICIES--> Policy --decide--> RetryAt | DeadLetter | GiveUp

A dead letter can be sent or run again by hand (`medseg outbox retry`, `medseg jobs retry`) once its cause is mended;
after a stop there is nothing that trying again could change.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from gateway.settings.model import Deliver
from medseg import errors


class Effort(StrEnum):
    """How a job is tried again."""

    SAME = "same"
    SMALLER = "smaller"  # one window at a time, scores stitched in the machine's memory
    CPU = "cpu"


#: The error codes of a job that ran out of memory.
OUT_OF_MEMORY = ("out_of_memory", "MemoryError")


@dataclass(frozen=True)
class RetryAt:
    """Again, after a pause."""

    delay_s: float
    effort: Effort = Effort.SAME


@dataclass(frozen=True)
class DeadLetter:
    """Not again by itself."""

    reason: str


@dataclass(frozen=True)
class GiveUp:
    """Not again at all."""

    reason: str


Next: TypeAlias = RetryAt | DeadLetter | GiveUp


class Fault(StrEnum):
    """What went wrong, in words for people."""

    # a job
    INPUT = "the series cannot be segmented"
    CANCELLED = "the job is not wanted any more"
    MISCONFIGURED = "the bundle or the settings cannot be used"
    OUT_OF_MEMORY = "memory did not suffice"
    DISK_FULL = "the disk is full or cannot be written"
    CRASHED = "the worker crashed"
    HUNG = "the job took longer than its deadline"
    UNVERIFIED = "the result did not read back as it was written"
    DRAINED = "the gateway was stopped"
    # a delivery
    UNREACHABLE = "the peer cannot be reached"
    BROKEN = "the connection broke or the peer did not answer"
    BUSY = "the peer has no resources now"
    REJECTED = "the peer rejects our associations"
    REFUSED = "the peer refuses the object"
    NOT_ACCEPTED = "the peer does not accept this kind of object"
    FAILED = "the peer failed to process the object"
    LOST = "the peer said that it stored the object, and does not know it when asked"
    UNSENDABLE = "the result's file is missing or damaged"
    NO_PEER = "there is no such peer to send to in the settings"


class Limit(StrEnum):
    """How often a policy lets try again."""

    EFFORTS = "once for each of its efforts"
    TIME = "until `give_up_s` has passed, always with the last of its efforts"
    NONE = "always"


@dataclass(frozen=True)
class Policy:
    """What follows a fault.

    efforts: how to try again after the first, second, ... attempt.
    pause: with a pause before each, growing; else at once.
    final: in the end there is nothing a person could do, either.
    """

    efforts: tuple[Effort, ...] = ()
    limit: Limit = Limit.EFFORTS
    pause: bool = True
    final: bool = False


#: How often an object is stored by one destination that does not know it afterwards: each time it may have one more.
MOST_COPIES = 3

_SAME = Effort.SAME
_LATER = Policy((_SAME,), Limit.TIME)

POLICIES: dict[Fault, Policy] = {
    Fault.INPUT: Policy(final=True),
    Fault.CANCELLED: Policy(final=True),
    Fault.MISCONFIGURED: Policy(),
    Fault.OUT_OF_MEMORY: Policy((Effort.SMALLER, Effort.CPU), pause=False),
    Fault.DISK_FULL: _LATER,
    Fault.CRASHED: Policy((_SAME, _SAME)),
    Fault.HUNG: Policy((_SAME,)),
    Fault.UNVERIFIED: Policy((_SAME,)),
    Fault.DRAINED: Policy((_SAME,), Limit.NONE, pause=False),
    Fault.UNREACHABLE: _LATER,
    Fault.BROKEN: _LATER,
    Fault.BUSY: _LATER,
    Fault.FAILED: _LATER,
    Fault.LOST: Policy((_SAME,) * (MOST_COPIES - 1)),
    Fault.REJECTED: Policy(),
    Fault.REFUSED: Policy(),
    Fault.UNSENDABLE: Policy(),
    Fault.NO_PEER: Policy(),
    Fault.NOT_ACCEPTED: Policy(),
}

JITTER = 0.2


def decide(fault: Fault, attempts: int, age_s: float, settings: Deliver, random: float) -> Next:
    """What follows the latest failure.

    attempts: how many there were, the failed one included (>= 1). age_s: since the first of them.
    random: from [0, 1), spreads the pauses by JITTER, so that what failed together does not come again together.
    """
    policy = POLICIES[fault]
    if policy.final:
        return GiveUp(fault.value)
    if policy.limit is Limit.TIME and age_s >= settings.give_up_s:
        return DeadLetter(f"{fault.value}: given up after {attempts} attempts in {age_s / 3600:.1f} h")
    if policy.limit is Limit.EFFORTS and attempts > len(policy.efforts):
        times = f" ({attempts} attempts)" if policy.efforts else ""
        return DeadLetter(f"{fault.value}{times}")
    effort = policy.efforts[min(attempts, len(policy.efforts)) - 1]
    return RetryAt(pause_s(attempts, settings, random) if policy.pause else 0.0, effort)


def effort(error_code: str | None, failures: int) -> Effort:
    """How a job is run, by how its last attempt ended and how many have failed."""
    if error_code not in OUT_OF_MEMORY or not failures:
        return Effort.SAME
    efforts = POLICIES[Fault.OUT_OF_MEMORY].efforts
    return efforts[min(failures, len(efforts)) - 1]


def pause_s(attempts: int, settings: Deliver, random: float) -> float:
    """5, 10, 20, ... 600, 600 s (by default), each up to JITTER shorter or longer."""
    doubled = settings.first_retry_s * 2.0 ** min(attempts - 1, 64)
    return min(doubled, settings.longest_retry_s) * (1 + JITTER * (2 * random - 1))


# From what went wrong to a fault.

#: Errors of a job. The first row whose class matches decides.
JOB_FAULTS: tuple[tuple[type[BaseException], Fault], ...] = (
    (errors.InputError, Fault.INPUT),
    (errors.UsageError, Fault.MISCONFIGURED),
    (errors.BundleError, Fault.MISCONFIGURED),
    (errors.OutOfMemory, Fault.OUT_OF_MEMORY),
    (MemoryError, Fault.OUT_OF_MEMORY),
    (errors.ResourceError, Fault.DISK_FULL),
    (errors.VerificationFailed, Fault.UNVERIFIED),
    (errors.Interrupted, Fault.DRAINED),
)


def job_fault(error: BaseException) -> Fault:
    """The fault that an error of a job is; what nobody foresaw counts as a crash."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return Fault.DISK_FULL
    return next((fault for kind, fault in JOB_FAULTS if isinstance(error, kind)), Fault.CRASHED)


#: Answers to a C-STORE (PS3.4 B.2.3, PS3.7 Annex C) that are not Success: first, last, fault. None: it is stored.
#: The first row in which a status lies decides.
STORE_STATUSES: tuple[tuple[int, int, Fault | None], ...] = (
    (0x0000, 0x0000, None),
    (0x0001, 0x0001, None),  # warning: requested optional attributes are not supported
    (0x0107, 0x0107, None),  # warning: attribute list error
    (0x0110, 0x0110, Fault.FAILED),  # processing failure
    (0x0111, 0x0111, None),  # duplicate SOP instance: a repetition of ours is the same object
    (0x0116, 0x0116, None),  # warning: attribute value out of range
    (0x0122, 0x0122, Fault.NOT_ACCEPTED),  # SOP class not supported
    (0x0124, 0x0124, Fault.REFUSED),  # not authorized
    (0x0213, 0x0213, Fault.BUSY),  # resource limitation
    (0xA700, 0xA7FF, Fault.BUSY),  # out of resources
    (0xA900, 0xA9FF, Fault.REFUSED),  # data set does not match SOP class
    (0xB000, 0xBFFF, None),  # warnings: B000 coerced, B006 elements discarded, B007 does not match SOP class
    (0xC000, 0xCFFF, Fault.REFUSED),  # cannot understand
    (0x0000, 0xFFFF, Fault.FAILED),  # any other failure
)


#: Failure Reasons of storage commitment (PS3.3 C.14.1.1) that say nothing of the object, but that nobody looked.
UNSERVED = frozenset(
    {
        0x0110,  # processing failure
        0x0131,  # duplicate transaction UID
        0x0213,  # resource limitation
    }
)

COERCED = 0xB000  # warning of a C-STORE (PS3.4 table B.2-1): the peer changed data elements


def store_fault(status: int | None) -> Fault | None:
    """The fault that the status of a C-STORE response is, None where the object is stored. status None: no answer."""
    if status is None:
        return Fault.BROKEN
    return next(fault for first, last, fault in STORE_STATUSES if first <= status <= last)


#: Answers of HTTP to a STOW request that say nothing of the object: first, last, fault. The first row decides.
WEB_STATUSES: tuple[tuple[int, int, Fault | None], ...] = (
    (200, 299, None),
    (300, 399, Fault.REJECTED),  # elsewhere
    (401, 405, Fault.REJECTED),  # who asks, or where: nothing that another try could change
    (407, 407, Fault.REJECTED),
    (408, 408, Fault.BUSY),
    (425, 425, Fault.BUSY),
    (429, 429, Fault.BUSY),
    (400, 499, Fault.REFUSED),
    (503, 503, Fault.BUSY),
    (507, 507, Fault.BUSY),
    (0, 999, Fault.FAILED),
)


def web_fault(status: int | None, *, reached: bool) -> Fault | None:
    """The fault that an answer to a STOW request is, None where it is none. status None: no answer."""
    if status is None:
        return Fault.BROKEN if reached else Fault.UNREACHABLE
    return next(fault for first, last, fault in WEB_STATUSES if first <= status <= last)


#: A-ASSOCIATE-RJ (PS3.8 9.3.4), result 1 (permanent), by source and reason. Result 2 (transient) and what is not here
#: count as busy and rejected.
PERMANENT_REJECTS: dict[tuple[int, int], Fault] = {
    (3, 1): Fault.BUSY,  # temporary congestion, whatever the result says
    (3, 2): Fault.BUSY,  # local limit exceeded
}


def reject_fault(result: int, source: int, reason: int) -> Fault:
    """The fault that a rejected association is."""
    return Fault.BUSY if result == 2 else PERMANENT_REJECTS.get((source, reason), Fault.REJECTED)


#: Statuses of C-STORE (PS3.4 table B.2-1), Failure Reasons of storage commitment (PS3.3 C.14.1.1), and those of all
#: services (PS3.7 Annex C): first, last, meaning. The first row in which a status lies decides.
MEANINGS: tuple[tuple[int, int, str], ...] = (
    (0x0000, 0x0000, "success"),
    (0x0001, 0x0001, "requested optional attributes are not supported"),
    (0x0105, 0x0105, "no such attribute"),
    (0x0106, 0x0106, "invalid attribute value"),
    (0x0107, 0x0107, "attribute list error"),
    (0x0110, 0x0110, "processing failure"),
    (0x0111, 0x0111, "duplicate SOP instance"),
    (0x0112, 0x0112, "no such object instance"),
    (0x0116, 0x0116, "attribute value out of range"),
    (0x0117, 0x0117, "invalid object instance"),
    (0x0118, 0x0118, "no such SOP class"),
    (0x0119, 0x0119, "class and instance conflict"),
    (0x0122, 0x0122, "SOP class not supported"),
    (0x0124, 0x0124, "not authorized"),
    (0x0131, 0x0131, "duplicate transaction UID"),
    (0x0210, 0x0210, "duplicate invocation"),
    (0x0211, 0x0211, "unrecognized operation"),
    (0x0212, 0x0212, "mistyped argument"),
    (0x0213, 0x0213, "resource limitation"),
    (0xA700, 0xA7FF, "out of resources"),
    (0xA900, 0xA9FF, "data set does not match its SOP class"),
    (0xB000, 0xB000, "stored with data elements coerced"),
    (0xB006, 0xB006, "stored with elements discarded"),
    (0xB007, 0xB007, "stored, though the data set does not match its SOP class"),
    (0xB000, 0xBFFF, "stored with a warning"),
    (0xC122, 0xC122, "transfer syntax not supported"),
    (0xC000, 0xCFFF, "cannot understand"),
    (0x0000, 0xFFFF, "a status of its own"),
)


def meaning(number: int) -> str:
    """What a status or a Failure Reason says, with its number as the standard writes it."""
    return f"{next(words for first, last, words in MEANINGS if first <= number <= last)} ({number:04X}H)"
