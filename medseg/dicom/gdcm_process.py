"""JPEG frames decoded by GDCM in processes of its own.

GDCM throws C++ exceptions at damaged frames and its Python binding lets them end the process (python-gdcm issue 34).
It is also the only permissively licensed decoder of lossless and of 12-bit JPEG. So a child decodes, and where it
ends early the frame was damaged. Children are kept for the next frame, one for each thread that decodes at a time.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from pathlib import Path

from medseg.dicom.gdcm_child import LENGTH, REQUEST

_CHILD = Path(__file__).with_name("gdcm_child.py")


class _Children:
    """Processes that wait for a frame."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []

    def take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        # -P: the folder of the child's file must not come before the standard library. GDCM tells standard error of
        # every codec it tries.
        return subprocess.Popen(
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def put(self, child: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._idle.append(child)

    def end(self, child: subprocess.Popen[bytes]) -> None:
        child.kill()
        with child:  # closes its pipes and waits
            pass

    def end_all(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            self.end(child)

    def forget(self) -> None:
        """After a fork the children are the parent's, and the lock may be held by a thread that is not here."""
        self._lock = threading.Lock()
        self._idle = []


_children = _Children()
atexit.register(_children.end_all)
os.register_at_fork(after_in_child=_children.forget)


def decode_jpeg(
    frame: bytes, syntax: str, *, rows: int, columns: int, bits_allocated: int, bits_stored: int, signed: bool
) -> bytes:
    """Decode one grey frame to little-endian samples.

    Raises:
        ValueError: GDCM cannot decode it.
    """
    child = _children.take()
    assert child.stdin is not None
    assert child.stdout is not None
    head = REQUEST.pack(rows, columns, bits_allocated, bits_stored, signed, len(syntax), len(frame))
    try:
        child.stdin.write(head + syntax.encode() + frame)
        child.stdin.flush()
        reply = child.stdout.read(LENGTH.size)
        length = LENGTH.unpack(reply)[0] if len(reply) == LENGTH.size else 0
        pixels = child.stdout.read(length)
    except BrokenPipeError:
        length, pixels = 0, b""
    if not length or len(pixels) < length:
        _children.end(child)
        raise ValueError("damaged JPEG image: GDCM gave up")
    _children.put(child)
    return pixels
