"""A STOW-RS request (PS3.18 10.5) on its way into a `Store`: what C-STORE instances pass, its parts pass, too.

    bytes -> parts -> file meta information -> begin, write ... write, finish -> stored, or refused with a reason

Nothing of a part is held but its file meta information. A part that is refused is skipped, and the others are taken.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from pydicom.uid import UID

from gateway.dicomweb.media import DICOM, media_types
from gateway.dicomweb.multipart import MultipartReader, PartBegins, PartData
from gateway.dimse.contexts import TRANSFER_SYNTAXES, is_storage
from gateway.dimse.pdata import STORE_ERRORS
from gateway.dimse.status import Status, StoreRefused, refusal
from gateway.dimse.store import AssociationInfo, RefusedCaller, StoreRefusal, StoreRequest
from gateway.receive.identity import FileMeta, NotDicom, file_meta_of
from gateway.receive.refused import Refusals
from gateway.receive.spool import Reception, Spool
from gateway.retry import meaning

logger = logging.getLogger(__name__)

MOST_INSTANCES: Final = 50_000  # of a request
LONGEST_META: Final = 1 << 16  # bytes
_GROUP_LENGTH: Final = 144  # bytes up to the end of (0002,0000)
Names: TypeAlias = tuple[str, str]


class TooMany(ValueError):
    """More parts than a request may have."""


@dataclass(frozen=True)
class StoredPart:
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str


@dataclass(frozen=True)
class RefusedPart:
    """reason: as (0008,1197) has it. names: SOP Class and SOP Instance UID; None where they are not known."""

    reason: int
    names: Names | None


@dataclass
class StoreOutcome:
    """What became of the parts of a request, in their order."""

    stored: list[StoredPart] = field(default_factory=list)
    refused: list[RefusedPart] = field(default_factory=list)

    @property
    def may_come_again(self) -> bool:
        """Whether something was refused that may be sent again as it is."""
        return any(part.reason in (Status.OUT_OF_RESOURCES, Status.PROCESSING_FAILURE) for part in self.refused)


class RequestReception:
    """Takes one request. After `abandon`, or once `feed` raised, it is over."""

    def __init__(
        self, spool: Spool, refusals: Refusals, peer: AssociationInfo, boundary: str, study_uid: str | None
    ) -> None:
        """study_uid: of which study all has to be. Raises MalformedMultipart."""
        self._reader = MultipartReader(boundary)
        self._spool, self._refusals, self._peer, self._study_uid = spool, refusals, peer, study_uid
        self.outcome = StoreOutcome()
        self._head: bytearray | None = None  # of a part, until its file meta information is whole
        self._names: Names | None = None
        self._incoming: Reception | None = None
        self._parts = 0
        self._lock = threading.RLock()  # who abandons it need not know of a thread that still feeds it

    @property
    def whole(self) -> bool:
        """Whether the request came to its end."""
        return self._reader.closed

    def feed(self, data: bytes) -> None:
        """Take more of the body. Raises MalformedMultipart, TooMany."""
        with self._lock:
            try:
                for event in self._reader.feed(data):
                    if isinstance(event, PartBegins):
                        self._begin_part(event.headers.get("content-type", DICOM))
                    elif isinstance(event, PartData):
                        self._take(event.data)
                    else:
                        self._end_part()
            except BaseException:
                self.abandon()
                raise

    def abandon(self) -> None:
        """Forget the part under way: the request broke off, or is malformed."""
        with self._lock:
            if self._incoming is not None:
                self._incoming.discard()
            self._incoming = self._head = None

    def _begin_part(self, content_type: str) -> None:
        self._parts += 1
        if self._parts > MOST_INSTANCES:
            raise TooMany(f"more than {MOST_INSTANCES} parts in one request: send them in several")
        self._head, self._names = bytearray(), None
        if [kind.name for kind in media_types(content_type)] != [DICOM]:
            self._refuse(StoreRefused(Status.CANNOT_UNDERSTAND, f"a part that is not {DICOM}"))

    def _take(self, data: memoryview) -> None:
        if self._head is not None:
            self._head += data
            data = self._after_head()
        if self._incoming is None or not data:
            return
        try:
            if not self._spool.has_room():  # which was there when the part began
                raise StoreRefused(Status.OUT_OF_RESOURCES, "disk is full, send again later")
            self._incoming.write(data)
        except STORE_ERRORS as error:
            self._refuse(refusal(error), error)

    def _after_head(self) -> memoryview:
        """Begin the instance once its file meta information is here; what there is of its data set."""
        head = self._head
        assert head is not None
        nothing = memoryview(b"")
        if len(head) < _GROUP_LENGTH:
            return nothing
        end = _GROUP_LENGTH + int.from_bytes(head[_GROUP_LENGTH - 4 : _GROUP_LENGTH], "little")
        if len(head) < end <= LONGEST_META and head[128:132] == b"DICM":
            return nothing
        self._head = None
        try:
            meta = file_meta_of(head)
            self._names = meta.sop_class_uid, meta.sop_instance_uid
            self._incoming = self._spool.begin(self._request(meta))
        except NotDicom as error:
            self._refuse(StoreRefused(Status.CANNOT_UNDERSTAND, f"no DICOM file (PS3.10): {error}"), error)
            return nothing
        except STORE_ERRORS as error:
            self._refuse(refusal(error), error)
            return nothing
        return memoryview(bytes(head[meta.offset_bytes :]))

    def _request(self, meta: FileMeta) -> StoreRequest:
        if not meta.sop_class_uid or not meta.sop_instance_uid:
            raise StoreRefused(Status.CANNOT_UNDERSTAND, "file meta information without SOP Class or Instance UID")
        if not is_storage(UID(meta.sop_class_uid)):
            raise StoreRefused(Status.SOP_CLASS_NOT_SUPPORTED, "its SOP class is none of storage")
        if meta.transfer_syntax_uid not in TRANSFER_SYNTAXES:
            raise StoreRefused(Status.TRANSFER_SYNTAX_NOT_SUPPORTED, "its transfer syntax is not supported")
        uids = meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid
        return StoreRequest(self._peer, *uids, 0, self._study_uid)

    def _end_part(self) -> None:
        if self._head is not None:
            self._refuse(StoreRefused(Status.CANNOT_UNDERSTAND, "no DICOM file (PS3.10): too short"))
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            return
        try:
            incoming.finish()
        except STORE_ERRORS as error:
            self._refuse(refusal(error), error)
        except Exception as error:
            # As for C-STORE: whatever else went wrong, the sender hears of it, and the other parts are taken.
            logger.exception("receiving failed", extra={"event": "instance.failed"})
            self._refuse(refusal(error), error)
        else:
            identity = incoming.identity
            assert identity is not None
            names = identity.sop_class_uid, identity.sop_instance_uid
            self.outcome.stored.append(StoredPart(*names, identity.study_uid, identity.series_uid))
            self._spool.make_ready(self._peer)

    def _refuse(self, refused: StoreRefused, cause: BaseException | None = None) -> None:
        """Note the part as refused; what still comes of it is dropped."""
        self.abandon()
        self.outcome.refused.append(RefusedPart(int(refused.status), self._names))
        uid = self._names[1] if self._names else ""
        facts = {"event": "instance.refused", "sop_instance": uid, "status": f"{refused.status:04X}"}
        detail = refused.comment if cause in (None, refused) else cause
        what = meaning(refused.status)
        logger.warning("instance refused: %s: %s", what, detail, extra=facts | self._peer.facts())
        reason = f"{what}: {refused.comment}"
        refusal_ = StoreRefusal(RefusedCaller.INSTANCE, self._peer.calling_ae, self._peer.host, reason, uid or None)
        self._refusals.note(refusal_)
