"""How an object is sent to a destination: by C-STORE over one association, or by STOW-RS, a request for each.

with carrier(destination, files, timeouts) as carrying:     raises NoAssociation
    carrying.send(out, file) -> Sent
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pydicom.uid import UID

from gateway import retry
from gateway.dicomweb.client import WebClient
from gateway.dimse import scu
from gateway.dimse.scu import Answer, Link, RequestorTimeouts, StoredFile
from gateway.ledger.records import DeliveryRow
from gateway.retry import Fault, meaning
from gateway.settings.model import Destination, WebService


@dataclass(frozen=True)
class Sent:
    """What sending an object came to.

    fault: None where it is stored. detail: in words. status: as a C-STORE response has it. stored_as: the SOP Instance
    UID that the destination answers with. confirmed: whether the answer says for good that the object is there.
    """

    fault: Fault | None
    detail: str
    status: int | None = None
    stored_as: str | None = None
    confirmed: bool = False


class Carrier(Protocol):
    @property
    def alive(self) -> bool:
        """Whether there is any use in sending more."""
        ...

    def send(self, out: DeliveryRow, file: StoredFile) -> Sent:
        """Send an object. Raises OSError where its file cannot be read."""
        ...


@contextmanager
def carrier(
    destination: Destination | WebService, files: Sequence[StoredFile], timeouts: RequestorTimeouts
) -> Iterator[Carrier]:
    """What carries those files to a destination. Raises NoAssociation."""
    if isinstance(destination, WebService):
        yield ByDicomweb(destination, timeouts)
        return
    with scu.associate(destination, [file.proposal() for file in files], timeouts) as link:
        yield ByDimse(link)


@dataclass(frozen=True)
class ByDimse:
    link: Link

    @property
    def alive(self) -> bool:
        return self.link.alive

    def send(self, out: DeliveryRow, file: StoredFile) -> Sent:
        answer = self.link.store(file)
        fault = retry.store_fault(answer.status) if answer.accepted else Fault.NOT_ACCEPTED
        detail = f"stored: {meaning(answer.status or 0)}" if fault is None else _answered(out, answer)
        return Sent(fault, detail, answer.status, answer.stored_as)


class ByDicomweb:
    """An answer that names the object as stored confirms it, unless the service is to be asked all the same."""

    def __init__(self, service: WebService, timeouts: RequestorTimeouts) -> None:
        self._service, self._client = service, web_client(service, timeouts)
        self.alive = True

    def send(self, out: DeliveryRow, file: StoredFile) -> Sent:
        answer = self._client.store(file.path, out.sop_instance_uid)
        self.alive = answer.status is not None
        if answer.reason is not None:
            fault = retry.store_fault(answer.reason) if answer.reason else Fault.FAILED
            if fault is not None:
                return Sent(fault, f"it answered: {meaning(answer.reason)} for {class_of(out)}", answer.reason)
            return Sent(None, f"stored: {meaning(answer.reason)}", answer.reason)
        fault = retry.web_fault(answer.status, reached=answer.reached)
        if fault is not None:
            said = answer.words if answer.status is None else f"it answered {answer.words}"
            return Sent(fault, f"{self._service}: {said}")
        status = answer.warning or 0
        confirmed = answer.stored and not answer.warning and self._service.query is not True
        return Sent(None, f"stored: {answer.words}", status, confirmed=confirmed)


def web_client(service: WebService, timeouts: RequestorTimeouts) -> WebClient:
    return WebClient(service.url, timeouts.connect_s, timeouts.dimse_s)


def _answered(out: DeliveryRow, answer: Answer) -> str:
    if not answer.accepted:
        return f"no presentation context for {class_of(out)}"
    if answer.status is None:
        return f"no answer to the C-STORE{f': {answer.ending}' if answer.ending else ''}"
    said = f"it answered: {meaning(answer.status)}"
    return f"{said} for {class_of(out)}" if answer.status == 0x0122 else said


def class_of(out: DeliveryRow) -> str:
    return f"{UID(out.sop_class_uid).name} (SOP class {out.sop_class_uid})"
