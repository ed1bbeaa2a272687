"""What the numbers of rejections and aborts mean, in the words of the standard; for logs and people."""

from __future__ import annotations

#: A-ASSOCIATE-RJ (PS3.8 table 9-21), by source and reason.
REJECTS: dict[tuple[int, int], str] = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
RESULTS = {1: "for good", 2: "for now"}

#: A-ABORT (PS3.8 table 9-26): the reasons of a service provider. That of a service user is not significant.
ABORTS: dict[int, str] = {
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}


def reject(result: int, source: int, reason: int) -> str:
    """What an A-ASSOCIATE-RJ says."""
    why = REJECTS.get((source, reason), f"a reason that the standard does not know ({source}, {reason})")
    return f"{why}, {RESULTS.get(result, 'for good')}"


def abort(source: int, reason: int) -> str:
    """What an A-ABORT says."""
    if source != 2:
        return "its application ended it"
    return f"its network layer ended it: {ABORTS.get(reason, 'reason not specified')}"
