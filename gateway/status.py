"""The answer to a C-STORE: DIMSE statuses, what they mean, and the one table from what went wrong to a status.

PS3.4 B.2.3 (Storage) and PS3.7 Annex C (all services). A status of the 0xA7xx group tells the sender that the same
object may be sent again later; the 0xA9xx and 0xCxxx groups say that this object will never be taken as it is.
"""

from __future__ import annotations

import errno
from enum import IntEnum

from medseg.errors import InputError, MedsegError, ResourceError


class Status(IntEnum):
    """The statuses this SCP answers a C-STORE with."""

    SUCCESS = 0x0000
    PROCESSING_FAILURE = 0x0110
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NOT_AUTHORIZED = 0x0124
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_MISMATCH = 0xA900
    CANNOT_UNDERSTAND = 0xC000


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
    (0xC000, 0xCFFF, "cannot understand"),
    (0x0000, 0xFFFF, "a status of its own"),
)


def meaning(number: int) -> str:
    """What a status or a Failure Reason says, with its number as the standard writes it."""
    return f"{next(words for first, last, words in MEANINGS if first <= number <= last)} ({number:04X}H)"


class StoreRefused(MedsegError):
    """An instance that is not taken; carries the status and the Error Comment (0000,0902) of the answer."""

    code = "store_refused"

    def __init__(self, status: Status, comment: str) -> None:
        super().__init__(f"{meaning(status)}: {comment}")
        self.status, self.comment = status, comment


# First match wins.
STATUS_OF: tuple[tuple[type[Exception], Status, str], ...] = (
    (ResourceError, Status.OUT_OF_RESOURCES, "out of resources, send again later"),
    (MemoryError, Status.OUT_OF_RESOURCES, "out of memory, send again later"),
    (OSError, Status.OUT_OF_RESOURCES, "storage failed, send again later"),
    (InputError, Status.CANNOT_UNDERSTAND, "data set not understood"),
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refusal(error: Exception) -> StoreRefused:
    """What to answer when storing an instance raised `error`."""
    if isinstance(error, StoreRefused):
        return error
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return StoreRefused(Status.OUT_OF_RESOURCES, "disk full, send again later")
    for kind, status, comment in STATUS_OF:
        if isinstance(error, kind):
            return StoreRefused(status, comment)
    return StoreRefused(Status.PROCESSING_FAILURE, "internal error")
