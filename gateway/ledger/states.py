"""The states of the ledger's rows: its checks and index conditions are made of them, and so are its moves.

    series       arriving ──> complete          held: not known to be complete; more may come, or a person decides
    instance     current │ conflict             counts; else pending, a copy, superseded or missing
    job          waiting ──> queued ──> running ──> done │ failed │ cancelled       held: waits for a person
    delivery     queued ──> sending ──> stored ──> confirmed                        or dead, or cancelled
    commitment   waiting ──> known ──> reported                                     or dead

What each means stands with the moves that lead there, in the module of its table.
"""

from __future__ import annotations

from enum import StrEnum


class Ending(StrEnum):
    """How an association came to its end."""

    RELEASED = "released"
    ABORTED = "aborted"
    LOST = "lost"  # its receiver died while it was open


class SeriesState(StrEnum):
    ARRIVING = "arriving"
    COMPLETE = "complete"
    HELD = "held"


class InstanceState(StrEnum):
    """Of a version of an instance."""

    CURRENT = "current"
    CONFLICT = "conflict"  # it counts, and another version differs
    SUPERSEDED = "superseded"
    MISSING = "missing"
    PENDING = "pending"
    COPY = "copy"


class ConflictState(StrEnum):
    """Of a study with images of several patients."""

    OPEN = "open"
    MERGED = "merged"
    SPLIT = "split"


class JobState(StrEnum):
    WAITING = "waiting"  # its series is still arriving
    HELD = "held"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DeliveryState(StrEnum):
    QUEUED = "queued"
    SENDING = "sending"
    STORED = "stored"
    CONFIRMED = "confirmed"
    DEAD = "dead"
    CANCELLED = "cancelled"


class ResultKind(StrEnum):
    """What a result is to those who get it."""

    SEGMENTED = "segmented"
    REASON = "reason"  # why nothing of a study was, by a rule
    WITHDRAWAL = "withdrawal"  # of the one before


class CommitmentState(StrEnum):
    WAITING = "waiting"
    KNOWN = "known"
    REPORTED = "reported"
    DEAD = "dead"


class RefusedCaller(StrEnum):
    """What was not taken."""

    INSTANCE = "instance"
    ASSOCIATION = "association"
    CONNECTION = "connection"  # it asked for no association


#: Series that are not decided upon.
UNDECIDED = (SeriesState.ARRIVING, SeriesState.HELD)
#: The states of an instance's version that counts.
COUNTING = (InstanceState.CURRENT, InstanceState.CONFLICT)
#: ... of one that counts or did; the others wait to be compared, are copies, or lost their file.
REAL = (*COUNTING, InstanceState.SUPERSEDED)
#: ... of one that has changed nothing of its series.
UNCOUNTED = (InstanceState.PENDING, InstanceState.COPY)
#: ... of one that says whose it is: it counts, or that is not decided.
SAYING = (*COUNTING, InstanceState.PENDING)
#: Jobs that are not over. Of each series and bundle there is one at most.
LIVE = (JobState.WAITING, JobState.HELD, JobState.QUEUED, JobState.RUNNING)
OVER = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)
#: Jobs that somebody may claim, at once or once their lease has run out.
CLAIMABLE = (JobState.WAITING, JobState.QUEUED, JobState.RUNNING)
#: Deliveries that a destination is yet to take.
UNSENT = (DeliveryState.QUEUED, DeliveryState.SENDING)
#: ... that it took, as it said.
STORED = (DeliveryState.STORED, DeliveryState.CONFIRMED)
#: ... that are not confirmed, and may yet be.
UNDELIVERED = (*UNSENT, DeliveryState.STORED)
#: Commitments that the sender has not been told of.
UNREPORTED = (CommitmentState.WAITING, CommitmentState.KNOWN)
