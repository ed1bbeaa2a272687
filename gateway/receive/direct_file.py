"""A new file, digested on its way to the disk, and written past the page cache where the file system allows.

What is received is written once and synced before it is acknowledged, so the cache gains nothing; finding and clearing
its pages can take longer than the disk does, above all on a virtual machine whose unused memory its host takes back.

    write, write, ...  ->  a piece of a MiB  -- when full, and at the end -->  the disk, and the digest beside it
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import Executor, Future
from typing import Final

PIECE: Final = 1 << 20  # bytes
BLOCK: Final = 4096  # bytes: direct writing begins and ends on them
HEAD: Final = 1 << 16  # bytes of the data that are kept to be looked at
_spare: list[mmap.mmap] = []  # memory that was used before has its pages already; appending and popping are atomic


class NewFile:
    """A file being written by one thread. Close it in any case, or remove it."""

    def __init__(self, path: str, beside: Executor) -> None:
        """Create it, for the owner's eyes only. beside: digests while this thread waits for the disk. Raises OSError,
        also where the path is there."""
        self.path = path
        self.offset = self.size = 0  # bytes: where the data begin, and how many there are
        self._piece = _spare.pop() if _spare else mmap.mmap(-1, PIECE)
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # not every file system has direct writing
            _set_direct(self.file, True)
        self._first, self._written = b"", 0
        self._digest, self._beside, self._digesting = hashlib.sha256(), beside, Future[None]()
        self._digesting.set_result(None)
        self._filled = 0

    def begin(self, head: bytes) -> None:
        """First of all, once. head: what comes before the data and is not digested, shorter than a piece."""
        self._piece[: len(head)] = head
        self.offset = self._filled = len(head)

    @property
    def first(self) -> bytes:
        """The first bytes of the data, up to `HEAD`."""
        return self._first or bytes(self._piece[self.offset : min(self._filled, self.offset + HEAD)])

    def write(self, data: memoryview) -> None:
        """Append. Raises OSError."""
        self.size += len(data)
        while data:
            end = min(self._filled + len(data), PIECE)
            taken = end - self._filled
            self._piece[self._filled : end] = data[:taken]
            self._filled, data = end, data[taken:]
            if self._filled == PIECE:
                self._hand_on()
                self._digesting.result()  # the piece is filled anew

    def end(self) -> None:
        """Hand on what is left; nothing may be written afterwards. Raises OSError."""
        if self._filled:
            self._hand_on()
        length = os.fstat(self.file).st_size
        if length != self._written:
            raise OSError(f"a file has {length} bytes where {self._written} were written")
        os.ftruncate(self.file, self.offset + self.size)

    def sync(self) -> None:
        """Make it last. Raises OSError."""
        os.fsync(self.file)

    def sha256(self) -> str:
        """Of the data, once `end` was called."""
        self._digesting.result()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Any number of times."""
        if self.file < 0:
            return
        os.close(self.file)
        self.file = -1
        self._digesting.result()
        _spare.append(self._piece)

    def remove(self) -> None:
        """Close it, and take it away."""
        self.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)  # noqa: PTH108 - pathlib costs more than the call here

    def _hand_on(self) -> None:
        """Digest what is in the piece, and write it with zeros up to the next block."""
        self._first = self.first
        whole = memoryview(self._piece)
        data = whole[0 if self._written else self.offset : self._filled]
        self._digesting = self._beside.submit(self._digest.update, data)
        blocks = -(-self._filled // BLOCK) * BLOCK
        self._piece[self._filled : blocks] = bytes(blocks - self._filled)
        _write_all(self.file, whole[:blocks])
        self._written, self._filled = self._written + blocks, 0


def _write_all(file: int, data: memoryview) -> None:
    while data:
        try:
            data = data[os.write(file, data) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _is_direct(file):
                raise
            _set_direct(file, False)  # larger blocks than ours, or a write that a full disk cut short


def _is_direct(file: int) -> bool:
    return bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)


def _set_direct(file: int, direct: bool) -> None:
    flags = fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT
    fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags)
