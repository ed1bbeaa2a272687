"""The answer to a C-STORE: DIMSE statuses, and the one table from what went wrong to a status.

PS3.4 B.2.3 (Storage) and PS3.7 Annex C (all services). A status of the 0xA7xx group tells the sender that the same
object may be sent again later; the 0xA9xx and 0xCxxx groups say that this object will never be taken as it is.
"""

from __future__ import annotations

import errno
from enum import IntEnum

from gateway.retry import meaning
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
    TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122  # of STOW-RS alone (PS3.18 table I.2-2)


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
