"""What the SCP tells of, and what it needs: a store that takes instances as they stream in.

SCP:    admitted ── opened ──┬── begin ── write … write ── finish ──┬── closed
store:                       │          (or discard)                │
                             └──────────── once per C-STORE ────────┘
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gateway.ledger.states import Ending as Ending
from gateway.ledger.states import RefusedCaller as RefusedCaller
from medseg.names import IMPLEMENTATION_CLASS_UID as IMPLEMENTATION_CLASS_UID

IMPLEMENTATION_VERSION_NAME = "MEDSEG"


@dataclass(frozen=True, slots=True)
class AssociationInfo:
    """One open association, as its acceptor sees it; `id` is unique for all time."""

    id: str
    calling_ae: str
    called_ae: str
    host: str

    def facts(self) -> dict[str, str]:
        """Of whom a line of the log is."""
        return {"association": self.id} | self.who()

    def who(self) -> dict[str, str]:
        """Who called, and whom."""
        return {"calling_ae": self.calling_ae, "called_ae": self.called_ae, "host": self.host}


@dataclass(frozen=True, slots=True)
class StoreRefusal:
    """Something that was not taken, and whose: for people to see.

    calling_ae: empty where nobody said. reason: in words. count: how many at once.
    """

    what: RefusedCaller
    calling_ae: str
    host: str
    reason: str
    sop_instance_uid: str | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class AssociationLimits:
    """How many associations may be open at once, in all and per calling AE."""

    associations: int = 25
    per_caller: int = 10


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A C-STORE request (PS3.7 9.1.1): what its command set says of the data set that follows; or what the file meta
    information says of a file in a STOW-RS request.

    priority: 0 medium, 1 high, 2 low, as (0000,0700). study_uid: of which study it has to be; None for any.
    """

    peer: AssociationInfo
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    priority: int
    study_uid: str | None = None


class Incoming(Protocol):
    """An instance being received. After `finish` or `discard`, or once either method raised, it is over."""

    def write(self, fragment: memoryview) -> None:
        """Append a fragment of the data set. The view is valid during the call only."""
        ...

    def finish(self) -> None:
        """Return once the instance is safe for good. Raises what `gateway.dimse.status.refusal` turns into a status."""
        ...

    def discard(self) -> None:
        """Forget the instance: the association broke or the message was malformed. Never raises."""
        ...


class Store(Protocol):
    """Where instances go."""

    def has_room(self) -> bool:
        """Whether new associations should be let in."""
        ...

    def opened(self, peer: AssociationInfo, limits: AssociationLimits) -> bool:
        """An association is about to be accepted; False where as many are open as may be, in whatever process."""
        ...

    def closed(self, peer: AssociationInfo, ending: Ending) -> None:
        """The association is over."""
        ...

    def make_ready(self, peer: AssociationInfo) -> None:
        """An instance was answered, and its sender prepares the next, if there is one. Never raises."""
        ...

    def begin(self, request: StoreRequest) -> Incoming:
        """An instance starts to arrive. Raises what `gateway.dimse.status.refusal` turns into a status."""
        ...
