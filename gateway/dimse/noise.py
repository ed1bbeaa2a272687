"""What comes to the DICOM port and is no DICOM: what it may be, and how much of it is told.

A port scanner, a browser, a load balancer's probe or a misconfigured interface engine is worth a line that names it,
and not one for each of its connections. So of each address LINES connections in WINDOW_S are told one by one, and the
others by one line when that time is over. The table holds HOSTS addresses; more of them are counted together.
"""

from __future__ import annotations

from dataclasses import dataclass

LINES = 3
WINDOW_S = 60.0
HOSTS = 256
OTHERS = "other addresses"

#: First bytes of what is often found at a wrong port. What follows them may name a patient, and is not looked at.
PROTOCOLS: tuple[tuple[bytes, str], ...] = (
    (b"\x16\x03", "TLS, which is not spoken here"),
    (b"\x0b", "HL7 (MLLP)"),
    (b"MSH|", "HL7"),
    (b"SSH-", "SSH"),
    (b"PRI * HTTP", "HTTP"),
    (b"PROXY ", "the PROXY protocol of a load balancer"),
    (b"\r\n\r\n\x00\r\nQUIT\n", "the PROXY protocol of a load balancer"),
    (b"\x03\x00", "RDP"),
    (b"\xffSMB", "SMB"),
    (b"\x00\x00\x00", "SMB or zeros"),
)
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE", b"PATCH")


def protocol(data: bytes) -> str:
    """What the first bytes of a connection look like."""
    if data.partition(b" ")[0] in METHODS:
        return "HTTP"
    return next((name for first, name in PROTOCOLS if data.startswith(first)), "something else")


@dataclass
class _Window:
    """began_s: when the first came. count: how many have come; told: of how many there was a line."""

    began_s: float
    count: int = 0
    told: int = 0


class Noise:
    """Who was noisy lately, and what of it was told."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def heard(self, host: str, now: float) -> bool:
        """A connection from an address was no DICOM; whether there should be a line for it."""
        window = self._window(host, now)
        window.count += 1
        tell = window.told < LINES
        window.told += tell
        return tell

    def repeated(self, host: str) -> bool:
        """Whether the next connection of an address is told of no more: then it gets no answer, either."""
        window = self._windows.get(host)
        return window is not None and window.count >= LINES

    def due(self, now: float) -> tuple[tuple[str, int], ...]:
        """Whose time is over, and how many of their connections nobody was told of. They start afresh."""
        over = [host for host, window in self._windows.items() if now - window.began_s >= WINDOW_S]
        untold = ((host, window.count - window.told) for host in over if (window := self._windows.pop(host)))
        return tuple((host, count) for host, count in untold if count)

    def _window(self, host: str, now: float) -> _Window:
        if host not in self._windows and len(self._windows) >= HOSTS:
            host = OTHERS
        return self._windows.setdefault(host, _Window(now))
