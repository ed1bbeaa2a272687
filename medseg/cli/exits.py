"""Which exit code an error ends in: the command line's one table."""

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
