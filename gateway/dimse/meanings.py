"""What the numbers of associations and answers mean, in the words of the standard; for logs and people."""

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

#: Statuses of C-STORE (PS3.4 table B.2-1), Failure Reasons of storage commitment (PS3.3 C.14.1.1), and those of all
#: services (PS3.7 Annex C): first, last, meaning. The first row in which a status lies decides.
STATUSES: tuple[tuple[int, int, str], ...] = (
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
    (0xC000, 0xCFFF, "cannot understand"),
    (0x0000, 0xFFFF, "a status of its own"),
)


def reject(result: int, source: int, reason: int) -> str:
    """What an A-ASSOCIATE-RJ says."""
    why = REJECTS.get((source, reason), f"a reason that the standard does not know ({source}, {reason})")
    return f"{why}, {RESULTS.get(result, 'for good')}"


def abort(source: int, reason: int) -> str:
    """What an A-ABORT says."""
    if source != 2:
        return "its application ended it"
    return f"its network layer ended it: {ABORTS.get(reason, 'reason not specified')}"


def status(number: int) -> str:
    """What a status or a Failure Reason says, with its number as the standard writes it."""
    return f"{next(said for first, last, said in STATUSES if first <= number <= last)} ({number:04X}H)"
