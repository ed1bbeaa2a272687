"""Which exit code an error ends in: one table for the command line and cohorts."""

from __future__ import annotations

import errno

from medseg import errors

OK = 0
SOME_FAILED = 1
USAGE = 2
INPUT = 3
BUNDLE = 4
RESOURCES = 5
INTERRUPTED = 130

# The first row whose class matches decides.
TABLE: tuple[tuple[type[BaseException], int], ...] = (
    (errors.UsageError, USAGE),
    (errors.InputError, INPUT),
    (errors.BundleError, BUNDLE),
    (errors.ResourceError, RESOURCES),
    (errors.VerificationFailed, SOME_FAILED),
    (errors.Interrupted, INTERRUPTED),
    (KeyboardInterrupt, INTERRUPTED),
    (MemoryError, RESOURCES),
)


def exit_code(error: BaseException) -> int:
    """The exit code for an error; anything unforeseen counts as a failed study."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RESOURCES
    return next((code for kind, code in TABLE if isinstance(error, kind)), SOME_FAILED)


def as_ours(what: str, error: errors.MedsegError | MemoryError | OSError) -> errors.MedsegError:
    """An error as one of ours: as it is, or of the machine. what: it was about, for the message."""
    if isinstance(error, errors.MedsegError):
        return error
    if isinstance(error, MemoryError):
        return errors.OutOfMemory(
            f"{what}: out of memory: close other programs, or choose a bundle with a smaller window"
        )
    kind = errors.ResourceError if exit_code(error) == RESOURCES else errors.InputError
    return kind(f"{what}: {error.strerror or error}")
