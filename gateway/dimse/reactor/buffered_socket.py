"""An association's socket that holds what was read and not yet used, so that two ways of reading see one stream."""

from __future__ import annotations

import select
import socket
import ssl
import time
from typing import cast

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

BUFFER = 1 << 18
LONGEST_PDU = 1 << 22  # read whole by pynetdicom: association requests, commands and data sets that are not C-STOREs
LONGEST_FAREWELL = 1 << 22  # what may still come where only the end matters; before an association is accepted less
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class BufferedSocket(AssociationSocket):
    """A non-blocking socket and what was read from it and not yet used."""

    def __init__(self, assoc: Association, client_socket: socket.socket, read_timeout_s: float, read: bytes) -> None:
        """read: what was read from it before."""
        super().__init__(assoc, client_socket=client_socket)
        client_socket.setblocking(False)
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read_timeout_s = read_timeout_s
        self._ahead = read  # to be read before the buffer
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._farewell: int | None = None  # bytes that may still come and are thrown away

    def unused(self) -> memoryview:
        """What was read and not yet used."""
        return self._view[self._start : self._end]

    def use(self, count: int) -> None:
        self._start += count

    def unread(self, data: bytes) -> None:
        """Let `recv` return these bytes once more, first."""
        self._ahead += data

    def go_astray(self, most: int = LONGEST_FAREWELL) -> None:
        """The stream was left inside a PDU, or we have said our last word: what follows means nothing, and only its end
        matters."""
        if self._farewell is None:
            self._farewell, self._ahead = most, b""

    def fill(self) -> int:
        """Read what is there; 0 at the end of the stream. Raises one of WOULD_BLOCK, or OSError."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == BUFFER:
            rest = bytes(self.unused())
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        count = cast(socket.socket, self.socket).recv_into(self._view[self._end :])
        self._end += count
        return count

    @property
    def ready(self) -> bool:
        """Whether `recv` has something to say, be it the end of the stream."""
        if self.socket is None or not self._is_connected:
            return False
        try:
            if self._farewell is not None:
                while self._farewell > 0:  # unread bytes would make the close a reset, and our A-ABORT be lost with it
                    self._start = self._end = 0
                    count = self.fill()
                    if not count:
                        return False
                    self._farewell -= count
                return False
            if not self._ahead and self._start == self._end:
                self.fill()
        except WOULD_BLOCK:
            return False
        except OSError:
            self.event_queue.put("Evt17")
            return False
        return True

    def recv(self, nr_bytes: int) -> bytearray:
        """Exactly so many bytes, or fewer at the end of the stream. Raises TimeoutError, or OSError for too many."""
        if nr_bytes > LONGEST_PDU:
            raise OSError(f"a PDU of {nr_bytes} bytes where at most {LONGEST_PDU} are read")
        data = bytearray(self._ahead[:nr_bytes])
        self._ahead = self._ahead[nr_bytes:]
        deadline = time.monotonic() + self._read_timeout_s
        while len(data) < nr_bytes:
            if self._start == self._end:
                try:
                    if not self.fill():
                        break
                except WOULD_BLOCK:
                    self._wait(select.POLLIN, deadline)
                    continue
            piece = self.unused()[: nr_bytes - len(data)]
            data += piece
            self.use(len(piece))
        return data

    def send(self, bytestream: bytes) -> None:
        """All of it, or the event of a closed connection."""
        view, deadline = memoryview(bytestream), time.monotonic() + self._read_timeout_s
        try:
            while view:
                try:
                    view = view[cast(socket.socket, self.socket).send(view) :]
                except WOULD_BLOCK:
                    self._wait(select.POLLOUT, deadline)
        except OSError:
            self.event_queue.put("Evt17")

    def _wait(self, direction: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(cast(socket.socket, self.socket), direction)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("the peer stopped inside a PDU")
