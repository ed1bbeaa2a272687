"""The SCU: Verification, Storage, Storage Commitment and Query to one peer at a time (PS3.4 Annexes A, B, J and C).

    with associate(destination, proposals, timeouts) as link:     raises NoAssociation
        link.echo() ... link.store(path) ... link.commit(...) ... link.find(...)

Bytes leave as they lie in the file wherever the peer accepts their transfer syntax. What an answer means is for the
caller to say; here it is told as it came.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from gateway.dimse import meanings
from gateway.dimse.commitment import (
    REQUEST,
    UNCOMPRESSED,
    CommitmentReport,
    CommitmentResult,
    ObjectReference,
    on_event_report,
    referenced,
)
from gateway.dimse.reactor.requestor import hear_name, no_answer_lost
from gateway.dimse.reactor.upper_layer import LenientUpperLayer
from gateway.dimse.store import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from gateway.settings.model import Destination
from medseg.dicom.headers import MALFORMED, look
from medseg.errors import MedsegError, UnreadableInstance

logger = logging.getLogger(__name__)

MOST_PROPOSALS = 128  # presentation contexts of an association (PS3.8 9.3.2.2: odd numbers from 1 to 255)
FIND, VERIFY = map(str, (StudyRootQueryRetrieveInformationModelFind, Verification))
PENDING = (0xFF00, 0xFF01)


@dataclass(frozen=True, slots=True)
class RequestorTimeouts:
    """connect_s: for a connection. acse_s: for an answer to an association request. dimse_s: for one to a message.
    report_s: for a storage commitment report on the association on which it was asked for."""

    connect_s: float = 10
    acse_s: float = 30
    dimse_s: float = 300
    report_s: float = 2


TIMEOUTS = RequestorTimeouts()


@dataclass(frozen=True, slots=True)
class Proposal:
    """A presentation context to ask for; several transfer syntaxes become as many contexts."""

    sop_class_uid: str
    transfer_syntax_uids: tuple[str, ...] = UNCOMPRESSED


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What a DICOM file says of itself."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    study_uid: str
    series_uid: str

    def proposal(self) -> Proposal:
        """The file's own transfer syntax; the plain ones too where nothing needs to be decoded for them."""
        own = self.transfer_syntax_uid
        if UID(own).is_compressed:
            return Proposal(self.sop_class_uid, (own,))
        return Proposal(self.sop_class_uid, tuple(dict.fromkeys((own, *UNCOMPRESSED))))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a C-STORE came to. The response's Error Comment (0000,0902) is left out: free text may name the patient.

    status: of the response; None where there was none: the association broke, or the context was not accepted.
    stored_as: Affected SOP Instance UID (0000,1000) of the response. ending: how the association broke, where known.
    """

    accepted: bool
    status: int | None = None
    stored_as: str | None = None
    ending: str | None = None


@dataclass(frozen=True)
class CommitmentAnswer:
    """What an N-ACTION came to. status: None for no answer. report: the first that came on this association, perhaps
    to an earlier request; None where none did."""

    status: int | None
    report: CommitmentReport | None = None


@dataclass(frozen=True, slots=True)
class CountAnswer:
    """What a question for a count came to. value: None where the peer does not say."""

    answered: bool
    value: int | None = None


class Miss(StrEnum):
    """Why there is no association."""

    UNREACHABLE = "no connection"
    REJECTED = "rejected"
    BROKEN = "aborted or not answered"
    NOTHING_ACCEPTED = "no presentation context accepted"


class NoAssociation(MedsegError):
    """A peer that could not be associated with. reject: result, source and reason of an A-ASSOCIATE-RJ. ending: how it
    came to its end, where known."""

    code = "no_association"

    def __init__(
        self,
        destination: Destination,
        miss: Miss,
        reject: tuple[int, int, int] | None = None,
        ending: str | None = None,
    ) -> None:
        detail = ending if reject is None else meanings.reject(*reject)
        super().__init__(f"{destination}: {miss}{f': {detail}' if detail else ''}")
        self.miss, self.reject = miss, reject


def read_file(path: Path) -> StoredFile:
    """What the file says of itself. Raises UnreadableInstance, or OSError where there is no file."""
    keywords = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=list(keywords))
        syntax = str(header.file_meta.TransferSyntaxUID)
        sop_class, sop_instance = str(header.SOPClassUID), str(header.SOPInstanceUID)
    except MALFORMED as error:
        raise UnreadableInstance(str(path), "not a DICOM object that could be sent") from error
    uids = (str(header.get(keyword, "")) for keyword in keywords[2:])
    return StoredFile(path, sop_class, sop_instance, syntax, *uids)


class Link:
    """An open association."""

    def __init__(self, assoc: Association, reports: queue.SimpleQueue[CommitmentReport], report_s: float) -> None:
        self._assoc, self._reports, self._report_s = assoc, reports, report_s
        self._hearing = cast(LenientUpperLayer, assoc.dul)
        self._message_id = 0
        self._silent = False  # an answer did not come: pynetdicom may not have noticed yet that it is over

    @property
    def accepted(self) -> frozenset[str]:
        """The SOP classes that the peer accepted."""
        return frozenset(str(context.abstract_syntax) for context in self._assoc.accepted_contexts)

    @property
    def alive(self) -> bool:
        """Whether there is any use in saying more."""
        return bool(self._assoc.is_established) and not self._silent

    def echo(self) -> int | None:
        """The status of a C-ECHO; None for no answer."""
        return self._status(self._assoc.send_c_echo(self._next_id())) if self.alive else None

    def store(self, file: StoredFile) -> Answer:
        """Send a file. Raises OSError where it cannot be read."""
        own = self._offers(file.sop_class_uid, {file.transfer_syntax_uid})
        plain = not UID(file.transfer_syntax_uid).is_compressed and self._offers(file.sop_class_uid, UNCOMPRESSED)
        if not own and not plain:
            return Answer(accepted=False)
        if not self.alive:
            return Answer(accepted=True, ending=self._hearing.ending)
        self._hearing.stored_as = None
        try:
            response = self._assoc.send_c_store(file.path if own else dcmread(file.path), self._next_id())
        except RuntimeError:  # the association ended between our look and the sending
            return Answer(accepted=True, ending=self._hearing.ending)
        return Answer(True, self._status(response), self._hearing.stored_as, self._hearing.ending)

    def commit(self, transaction_uid: str, objects: Sequence[ObjectReference]) -> CommitmentAnswer:
        """Ask for storage commitment, and wait `report_s` for the report to come on this association."""
        if not self.alive:
            return CommitmentAnswer(None)
        asked = Dataset()
        asked.TransactionUID = transaction_uid
        asked.ReferencedSOPSequence = referenced(objects)
        try:
            response, _ = self._assoc.send_n_action(
                asked, REQUEST, StorageCommitmentPushModel, StorageCommitmentPushModelInstance,
                self._next_id(),
            )  # fmt: skip
        except RuntimeError:
            return CommitmentAnswer(None)
        status = self._status(response)
        if status != 0x0000:
            return CommitmentAnswer(status)
        try:
            report = self._reports.get(timeout=self._report_s)
        except queue.Empty:
            return CommitmentAnswer(status)
        return CommitmentAnswer(status, report)

    def report(self, result: CommitmentResult) -> int | None:
        """Tell of a storage commitment that the peer asked us for; the status of its answer, None for no answer."""
        if not self.alive:
            return None
        try:
            response, _ = self._assoc.send_n_event_report(
                result.information(), result.event_type, StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance, self._next_id(),
            )  # fmt: skip
        except (RuntimeError, ValueError):  # the association ended, or the context was not accepted
            return None
        return self._status(response)

    def count(self, study_uid: str, series_uid: str | None) -> CountAnswer:
        """How many instances the peer has of a series, or of a study, by C-FIND.

        NumberOfSeriesRelatedInstances (0020,1209) or NumberOfStudyRelatedInstances (0020,1208), PS3.4 C.6.2.1.
        """
        keyword = "NumberOfStudyRelatedInstances" if series_uid is None else "NumberOfSeriesRelatedInstances"
        asked = Dataset()
        asked.QueryRetrieveLevel = "STUDY" if series_uid is None else "SERIES"
        asked.StudyInstanceUID = study_uid
        if series_uid is not None:
            asked.SeriesInstanceUID = series_uid
        setattr(asked, keyword, None)
        matches = self._query(asked)
        if matches is None:
            return CountAnswer(answered=False)
        numbers = [look(match).number(keyword) for match in matches]
        value = numbers[0] if len(numbers) == 1 else None
        return CountAnswer(answered=True, value=int(value) if value is not None and value >= 0 else None)

    def find(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> bool | None:
        """Whether a C-FIND at image level finds an object; None where it fails."""
        asked = Dataset()
        asked.QueryRetrieveLevel = "IMAGE"
        asked.StudyInstanceUID, asked.SeriesInstanceUID = study_uid, series_uid
        asked.SOPInstanceUID = sop_instance_uid
        matches = self._query(asked)
        return None if matches is None else any(match.get("SOPInstanceUID") == sop_instance_uid for match in matches)

    def _query(self, asked: Dataset) -> list[Dataset] | None:
        """The matches of a C-FIND; None where it fails."""
        if not self.alive:
            return None
        matches = []
        try:
            for response, identifier in self._assoc.send_c_find(asked, FIND, self._next_id()):
                status = self._status(response)
                if status in PENDING:
                    matches += [] if identifier is None else [identifier]
                elif status != 0x0000:
                    return None
        except (RuntimeError, ValueError):  # the association ended, or the context was not accepted
            return None
        return matches

    def _offers(self, sop_class_uid: str, transfer_syntax_uids: Collection[str]) -> bool:
        return any(
            context.abstract_syntax == sop_class_uid and context.transfer_syntax[0] in transfer_syntax_uids
            for context in self._assoc.accepted_contexts
        )

    def _status(self, response: Dataset) -> int | None:
        self._silent |= "Status" not in response
        return int(response.Status) if "Status" in response else None

    def _next_id(self) -> int:
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id


@contextmanager
def associate(
    destination: Destination,
    proposals: Iterable[Proposal],
    timeouts: RequestorTimeouts = TIMEOUTS,
    *,
    as_scp: bool = False,
) -> Iterator[Link]:
    """An association, released at the end. Proposals beyond 128 contexts are left out. Raises NoAssociation.

    as_scp: we call, and the peer is the SCU of what we propose (PS3.7 D.3.3.4).
    """
    ae = ApplicationEntity(destination.calling_ae)
    ae.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout, ae.acse_timeout, ae.dimse_timeout = timeouts.connect_s, timeouts.acse_s, timeouts.dimse_s
    ae.network_timeout = None  # we never wait longer than for an answer
    reports: queue.SimpleQueue[CommitmentReport] = queue.SimpleQueue()
    answering: list[threading.Thread] = []
    connected = threading.Event()
    handlers: list[Any] = [
        (evt.EVT_CONN_OPEN, _connected, [timeouts.dimse_s, connected]),
        (evt.EVT_N_EVENT_REPORT, _take_report, [answering, reports.put]),
        (evt.EVT_DIMSE_RECV, hear_name),
    ]
    contexts = _contexts(proposals)
    try:
        assoc = ae.associate(
            destination.host,
            destination.port,
            contexts,
            destination.ae_title,
            ext_neg=[build_role(str(context.abstract_syntax), scp_role=True) for context in contexts if as_scp],
            evt_handlers=handlers,
        )
    except OSError as error:  # the host's name stands for no address
        raise NoAssociation(destination, Miss.UNREACHABLE) from error
    if not assoc.is_established:
        raise _missed(destination, assoc) if connected.is_set() else NoAssociation(destination, Miss.UNREACHABLE)
    try:
        yield Link(assoc, reports, timeouts.report_s)
    finally:
        for thread in answering:  # what is sent after a release request breaks the association (PS3.8 9.2, Sta7)
            thread.join(timeouts.acse_s)
        if assoc.is_established:
            assoc.release()
        assoc.join(timeout=timeouts.acse_s)


def echo(destination: Destination, timeouts: RequestorTimeouts = TIMEOUTS) -> int | None:
    """The status of a C-ECHO; None for no answer. Raises NoAssociation."""
    with associate(destination, [Proposal(VERIFY)], timeouts) as link:
        return link.echo()


def _contexts(proposals: Iterable[Proposal]) -> list[PresentationContext]:
    wanted = dict.fromkeys(
        (proposal.sop_class_uid, syntax) for proposal in proposals for syntax in proposal.transfer_syntax_uids
    )
    return [build_context(sop_class, syntax) for sop_class, syntax in list(wanted)[:MOST_PROPOSALS]]


def _missed(destination: Destination, assoc: Association) -> NoAssociation:
    answer, hearing = assoc.acceptor.primitive, cast(LenientUpperLayer, assoc.dul)
    if hearing.rejected is not None:  # pynetdicom forgets it where the connection is closed before it has looked
        return NoAssociation(destination, Miss.REJECTED, hearing.rejected)
    if isinstance(answer, A_ASSOCIATE) and not assoc.accepted_contexts:
        return NoAssociation(destination, Miss.NOTHING_ACCEPTED)
    return NoAssociation(destination, Miss.BROKEN, ending=hearing.ending)


def _connected(event: Any, timeout_s: float, connected: threading.Event) -> None:
    """No waiting for more to send (Nagle), and no waiting for ever inside a PDU."""
    connected.set()
    no_answer_lost(event)
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    event.assoc.dul.socket.socket.settimeout(timeout_s)


def _take_report(
    event: Any, answering: list[threading.Thread], heard: Callable[[CommitmentReport], object]
) -> tuple[int, None]:
    """A report on our association: pynetdicom takes and answers it in a thread of its own."""
    answering.append(threading.current_thread())
    return on_event_report(event, heard)
