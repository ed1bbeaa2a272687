"""What a person can do about what went wrong: one table from error codes to a sentence."""

from __future__ import annotations

from gateway.ledger.records import ConflictRow, DeliveryRow, JobRow, SeriesRow
from gateway.ledger.states import ConflictState, DeliveryState, JobState, SeriesState

_SPOOL = "make room on the spool's disk"
_RULE = "change the rule or the bundle that it names"
_AGAIN = "send the series again from where it came"

#: By `job.error_code`. What is not here is a property of the series itself.
JOB_CODES = {
    "ambiguous_bundle": "name one of the bundles in the rule (`bundle`)",
    "bundle": _RULE,
    "crashed": "look for the worker's error in the log",
    "error": "look for the worker's error in the log",
    "hung": "see what else the machine does, or choose a bundle with less to compute",
    "less_complete": "send what is missing; or let the result lack it",
    "no_identity": "send an image of that patient again, or merge to another patient",
    "invalid_bundle": "mend the bundle: `medseg bundles verify` says what is wrong",
    "ledger_unavailable": _SPOOL,
    "may_overlap": "leave labelmap out of the rule's results: seg holds segments that overlap",
    "no_device": "see why the GPU is away",
    "no_such_bundle": "install the bundle, or " + _RULE,
    "out_of_memory": "choose a bundle with a smaller window, or give the machine more memory",
    "output_not_writable": _SPOOL,
    "resources": _SPOOL,
    "unchecked_precision": _RULE,
    "undecodable_pixels": _AGAIN + ", in another transfer syntax",
    "unreadable_instance": _AGAIN,
    "usage": _RULE,
    "verification_failed": "keep the log, and report it: the result was not sent",
    "weights_mismatch": "mend the bundle: `medseg bundles verify` says what is wrong",
}
#: By the code of the error for which a series was passed over; for others there is nothing to mend.
PASSED_OVER_CODES = {
    "does_not_fit": "where it should be segmented, name another bundle in the rule (`bundle`), then " + _AGAIN,
    "no_frame_of_reference": "where its positions can be trusted, set assume_frame_of_reference = true in the rule, "
    "then " + _AGAIN,
}
#: By `delivery.error_code`, a fault of `gateway.retry`.
DELIVERY_CODES = {
    "broken": "see why the peer ends associations or does not answer",
    "busy": "wait, or give the peer room",
    "failed": "see the peer's log",
    "lost": "see in the peer's log whether it stores under UIDs of its own, or deletes what we send",
    "no_peer": "name the peer in the settings, with ae_title, host and port, or dicomweb",
    "not_accepted": "let the peer accept this SOP class, or leave it out of the rule's results",
    "refused": "see in the peer's log why it refuses the object",
    "rejected": "see that its `dicomweb` address is right, or let the peer know our AE title; `medseg echo` tries it",
    "unreachable": "see that the peer runs, and that its host and port in the settings are right",
    "unsendable": "restore the file of the result from a backup, or purge the study and send it again",
}


def for_conflict(row: ConflictRow) -> str:
    """What to do about a study with images of several patients; empty where that is settled."""
    if row.state != ConflictState.OPEN:
        return ""
    return (
        f"`medseg studies show {row.study_uid}` tells whose the images say they are; wait for the rest of a "
        "correction, or settle it: `medseg studies merge` or `medseg studies split`"
    )


def for_series(row: SeriesRow, *, stopped: bool = False) -> str:
    """What to do about a series; empty where nothing is. stopped: its study has images of several patients."""
    if row.state == SeriesState.HELD and stopped:
        return f"settle whose the images are: `medseg studies show {row.study_uid}`"
    return "send what is missing; after a quiet time it is taken as it is" if row.state == SeriesState.HELD else ""


def for_passed_over(code: str) -> str:
    """What to do about a series that was passed over; empty where nothing is."""
    return PASSED_OVER_CODES.get(code, "")


def for_job(row: JobRow) -> str:
    """What to do about a job; empty where nothing is."""
    if row.lacks_something:
        return _for_lacking(row)
    if row.state == JobState.HELD:
        return f"`medseg jobs release {row.id}` lets it run"
    if row.state == JobState.QUEUED and row.error_code:
        return "wait: it is tried again"
    if row.state != JobState.FAILED:
        return ""
    cause = JOB_CODES.get(row.error_code or "")
    if cause is None and row.error_code and row.error_code[0].isupper():  # a Python exception that nobody foresaw
        cause = JOB_CODES["crashed"]
    if cause is None:
        return f"the series itself cannot be segmented: send other images, or `medseg jobs dismiss {row.id}`"
    return f"{cause}; then `medseg jobs retry {row.id}`"


def _for_lacking(row: JobRow) -> str:
    """What to do about a job that is held since its study lacks something."""
    release = f"`medseg jobs release {row.id}`"
    if (mend := JOB_CODES.get(row.error_code or "")) is not None:
        return f"{mend}; then {release}"
    if row.error_code == "channel_other_frame":
        return f"send others; or, where they are registered, say so: {release} has an option for it"
    named = f"say which series is which channel: {release} has an option for it"
    return f"send what is missing; or {named}; or `medseg jobs dismiss {row.id}`"


def for_delivery(row: DeliveryRow) -> str:
    """What to do about a delivery; empty where nothing is."""
    if not row.error_code or row.state not in (DeliveryState.QUEUED, DeliveryState.DEAD):
        return ""
    cause = DELIVERY_CODES.get(row.error_code, DELIVERY_CODES["failed"])
    if row.state == DeliveryState.DEAD:
        return f"{cause}; then `medseg outbox retry {row.id}`"
    return f"wait: it is tried again; {cause}"
