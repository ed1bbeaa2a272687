"""The spool: instances as they were sent, one file each, and the promise that what was acknowledged stays.

    spool/
      incoming/<process>.<token>.part                        being received; emptied at start
      studies/<study>/<series>/<sop instance>.<token>.dcm    acknowledged, and named by a row of the ledger
      quarantine/<token>.dcm                                 found at start, and not an instance

An acknowledgement follows this order: the data set as sent to a temporary file, its length checked, fsync, rename,
fsync of the folder, commit of the ledger (one commit for all that wait), and only then 0000H. A file under its final
name is therefore whole, and `reconcile` may adopt it where the power went before the commit. A token is unique to one
reception, so no rename ever replaces a file, however many senders send the same instance at once.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import secrets
import shutil
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from gateway.dimse import store
from gateway.dimse.status import Status, StoreRefused
from gateway.dimse.store import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    AssociationInfo,
    Ending,
    StoreRequest,
)
from gateway.files import is_whole, sync
from gateway.ledger import associations, instances
from gateway.ledger.instances import Filed, StoredInstance
from gateway.ledger.ledger import Ledger
from gateway.receive.direct_file import NewFile
from gateway.receive.identity import Identity, NeedMore, NotDicom, identify
from gateway.settings.model import Limits
from medseg.dicom.classes import is_image_class
from medseg.errors import MedsegError
from medseg.names import LONGEST_UID, uid_name

logger = logging.getLogger(__name__)

T = TypeVar("T")
UNLIMITED = store.AssociationLimits(sys.maxsize, sys.maxsize)
INCOMING, STUDIES = "incoming", "studies"
ROOM_CHECK_S = 1.0
FOLDERS_KNOWN = 10_000
MAKES = 10  # an empty folder may be tidied away (`gateway.keep`) between its making and the rename into it


@dataclass(frozen=True, slots=True)
class Watermark:
    """When the disk counts as full: used by so many percent, or less than so many bytes free."""

    used_percent: float = 90
    free_bytes: int = 5 * 10**9

    @classmethod
    def of(cls, limits: Limits) -> Watermark:
        return cls(limits.disk_used_percent, int(limits.disk_free_gb * 1e9))

    def has_room(self, folder: Path) -> bool:
        """Whether the disk of a folder is below it."""
        usage = shutil.disk_usage(folder)
        full = usage.total - usage.free >= usage.total * self.used_percent / 100
        return not full and usage.free >= self.free_bytes


def instance_path(identity: Identity, token: str) -> str:
    """Where an instance belongs, relative to the spool; the token makes it one of a kind."""
    study, series, instance = (
        uid_name(uid) for uid in (identity.study_uid, identity.series_uid, identity.sop_instance_uid)
    )
    return f"{STUDIES}/{study}/{series}/{instance}.{token}.dcm"


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae: str) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 7.1), ready for a data set to follow."""
    elements = (
        b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
        + _meta_element(0x0002, b"UI", sop_class_uid, b"\0")
        + _meta_element(0x0003, b"UI", sop_instance_uid, b"\0")
        + _meta_element(0x0010, b"UI", transfer_syntax_uid, b"\0")
        + _meta_element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID, b"\0")
        + _meta_element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME, b" ")
        + _meta_element(0x0016, b"AE", source_ae, b" ")
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(elements)) + elements


def _meta_element(element: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii", "replace")
    value += padding * (len(value) % 2)
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


class Spool:
    """An open spool: the `Store` of the SCP. Make one per process; `reconcile` before the first receiver starts."""

    def __init__(self, folder: Path, ledger: Ledger, watermark: Watermark, receiver: str = "receiver") -> None:
        """Make the folders, for the owner's eyes only. receiver: the name of this process."""
        self.folder, self._ledger, self.watermark = folder, ledger, watermark
        self.incoming, self.studies, self.quarantine = folder / INCOMING, folder / STUDIES, folder / "quarantine"
        for made in (folder, self.incoming, self.studies, self.quarantine):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(folder)
        sync(folder.parent)
        self._root = str(folder)
        self._lasting: set[str] = set()  # series folders that a power cut leaves
        self._room_until, self._room = 0.0, True
        self._receiver, self._endings = receiver, deque[tuple[str, Ending, float]]()
        self._digesters = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="digest")
        # Of each open association of this process, the file of its next instance.
        self._ready: dict[str, NewFile | None] = {}
        self._readying = threading.Lock()

    def has_room(self) -> bool:
        """Whether the disk is below its watermark; looked up at most once a second."""
        now = time.monotonic()
        if now >= self._room_until:
            self._room = self.watermark.has_room(self.folder)
            self._room_until = now + ROOM_CHECK_S
        return self._room

    def opened(self, peer: AssociationInfo, limits: store.AssociationLimits = UNLIMITED) -> bool:
        """Record an association, unless as many are open as may be. Raises LedgerUnavailable."""

        def record(db: Connection) -> bool:
            is_open = associations.open_by_caller(db)
            if is_open.total() >= limits.associations or is_open[peer.calling_ae] >= limits.per_caller:
                return False
            names = {"calling_ae": peer.calling_ae, "called_ae": peer.called_ae, "host": peer.host}
            associations.open_association(db, peer.id, **names, receiver=self._receiver, at=time.time())
            return True

        is_open = self._with_endings(record)
        if is_open:
            self._ready[peer.id] = None
        return is_open

    def closed(self, peer: AssociationInfo, ending: Ending) -> None:
        """Record its end. Raises LedgerUnavailable, and is recorded with the next that is."""
        with self._readying:
            file = self._ready.pop(peer.id, None)
        if file is not None:
            file.remove()
        self._endings.append((peer.id, ending, time.time()))
        self._with_endings(lambda _: None)

    def _with_endings(self, operation: Callable[[Connection], T]) -> T:
        """Do something in the ledger after recording all ends of associations, each of them once."""
        taken: list[tuple[str, Ending, float]] = []

        def record(db: Connection) -> T:
            with contextlib.suppress(IndexError):
                while True:
                    taken.append(self._endings.popleft())
            for ending in taken:
                associations.end_association(db, *ending)
            return operation(db)

        try:
            return self._ledger.write(record)
        except Exception:
            self._endings.extend(taken)
            raise

    def begin(self, request: StoreRequest) -> Reception:
        """Start an instance. Raises StoreRefused, OSError."""
        for uid in (request.sop_class_uid, request.sop_instance_uid):
            if len(uid) > LONGEST_UID or not uid.isprintable():
                raise StoreRefused(Status.CANNOT_UNDERSTAND, "malformed UID in the command")
        if not self.has_room():
            raise StoreRefused(Status.OUT_OF_RESOURCES, "disk is full, send again later")
        with self._readying:
            file = self._ready.get(request.peer.id)
            if file is not None:
                self._ready[request.peer.id] = None
        return Reception(self, request, file or self._new_file())

    def make_ready(self, peer: AssociationInfo) -> None:
        """Open the file of an association's next instance, while its sender is at work."""
        try:
            file = self._new_file()
        except OSError:  # which `begin` meets again
            return
        with self._readying:
            if peer.id in self._ready and self._ready[peer.id] is None:
                self._ready[peer.id] = file
                return
        file.remove()

    def _new_file(self) -> NewFile:
        return NewFile(f"{self.incoming}/{os.getpid()}.{secrets.token_hex(8)}.part", self._digesters)

    def publish(self, part: str, path: str) -> None:
        """Give a synced file its final name, relative to the spool, for good."""
        final = f"{self._root}/{path}"
        folder = final.rpartition("/")[0]
        for tries_left in reversed(range(MAKES)):
            try:
                if folder not in self._lasting:
                    self._make(folder)
                os.rename(part, final)  # noqa: PTH104 - pathlib costs more than the call here
                break
            except FileNotFoundError:
                self._lasting.discard(folder)
                if not tries_left:
                    raise
        sync(folder)

    def file(self, stored: StoredInstance) -> Filed:
        """Commit a published file to the ledger; a duplicate's file goes, unless it is the only one that is whole.

        Raises LedgerUnavailable; the file goes, too, unless its row may be there all the same.
        """
        try:
            filed = self._ledger.write(self._filed, stored)
        except MedsegError:
            if not self._may_be_filed(stored):
                self._remove(stored)
            raise
        if filed is Filed.DUPLICATE:
            self._remove(stored)
        return filed

    def _filed(self, db: Connection, stored: StoredInstance) -> Filed:
        filed = instances.file_instance(db, stored)
        if filed is Filed.DUPLICATE and instances.refile_lost(db, stored, self._is_whole):
            facts = {"event": "instance.missing", "sop_instance": stored.sop_instance_uid}
            logger.error("the file of an acknowledged instance was gone; it was sent again", extra=facts)
            return Filed.RESTORED
        return filed

    def _is_whole(self, path: str, length: int) -> bool:
        return is_whole(self.folder / path, length)

    def _may_be_filed(self, stored: StoredInstance) -> bool:
        """After a commit that failed: a connection may break when the commit is done and the answer under way."""
        try:
            with self._ledger.read() as db:
                return instances.names_file(db, stored.path)
        except MedsegError:
            return True  # the next start tells

    def _remove(self, stored: StoredInstance) -> None:
        with contextlib.suppress(OSError):
            (self.folder / stored.path).unlink()

    def _make(self, series_folder: str) -> None:
        """Study and series folders, each safe in its parent: one that is there may be of a thread that syncs it yet."""
        for made in (Path(series_folder).parent, Path(series_folder)):
            made.mkdir(mode=0o700, exist_ok=True)
            sync(made.parent)
        if len(self._lasting) >= FOLDERS_KNOWN:
            self._lasting.clear()
        self._lasting.add(series_folder)


class Reception:
    """One instance on its way into the spool: an `Incoming`."""

    def __init__(self, spool: Spool, request: StoreRequest, file: NewFile) -> None:
        self._spool, self._request, self._file = spool, request, file
        self._token = secrets.token_hex(8)
        self._published = False
        self.identity: Identity | None = None  # once `finish` has read it
        meta = file_meta(
            request.sop_class_uid, request.sop_instance_uid, request.transfer_syntax_uid, request.peer.calling_ae
        )
        self._file.begin(meta)

    def write(self, fragment: memoryview) -> None:
        """Append to the file. Raises OSError."""
        try:
            self._file.write(fragment)
        except OSError:
            self.discard()
            raise

    def finish(self) -> None:
        """Make it last, in the order the module tells. Raises StoreRefused, OSError, LedgerUnavailable."""
        try:
            self._file.end()
            self.identity = identity = self._identity()
            self._file.sync()
            path = instance_path(identity, self._token)
            self._spool.publish(self._file.path, path)
            self._published = True
            stored = self._stored(identity, path)
        finally:
            self.discard()
        filed = self._spool.file(stored)
        logger.debug("instance %s", filed, extra={"event": "instance.filed", "sop_instance": identity.sop_instance_uid})
        if filed is Filed.CONFLICT:
            logger.info(
                "instance received again with other bytes",
                extra={"event": "instance.again", "sop_instance": identity.sop_instance_uid},
            )

    def discard(self) -> None:
        """Close, and remove what has no final name."""
        if self._published:
            self._file.close()
        else:
            self._file.remove()

    def _identity(self) -> Identity:
        """The data set's identity, which must be the command's."""
        if not self._file.size:
            raise StoreRefused(Status.CANNOT_UNDERSTAND, "empty data set")
        try:
            identity = self._identify(self._request.transfer_syntax_uid)
        except NotDicom as error:
            raise StoreRefused(Status.CANNOT_UNDERSTAND, f"data set not understood: {error}") from error
        if identity.sop_class_uid != self._request.sop_class_uid:
            raise StoreRefused(Status.DATA_SET_MISMATCH, "SOP class of data set and command differ")
        if identity.sop_instance_uid != self._request.sop_instance_uid:
            raise StoreRefused(Status.DATA_SET_MISMATCH, "SOP instance of data set and command differ")
        if self._request.study_uid not in (None, identity.study_uid):
            raise StoreRefused(Status.DATA_SET_MISMATCH, "Study Instance UID of data set and request differ")
        for uid in (identity.study_uid, identity.series_uid):
            if not uid or len(uid) > LONGEST_UID or not uid.isprintable():
                raise StoreRefused(Status.CANNOT_UNDERSTAND, "Study or Series Instance UID missing or malformed")
        return identity

    def _identify(self, syntax: str) -> Identity:
        first = self._file.first
        try:
            return identify(first, syntax, whole=self._file.size == len(first))
        except NeedMore:
            with (
                mmap.mmap(self._file.file, 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as view,
                view[self._file.offset :] as data_set,
            ):
                return identify(data_set, syntax, whole=True)

    def _stored(self, identity: Identity, path: str) -> StoredInstance:
        return StoredInstance(
            study_uid=identity.study_uid,
            series_uid=identity.series_uid,
            sop_instance_uid=identity.sop_instance_uid,
            sop_class_uid=identity.sop_class_uid,
            transfer_syntax_uid=self._request.transfer_syntax_uid,
            path=path,
            offset_bytes=self._file.offset,
            size_bytes=self._file.size,
            sha256=self._file.sha256(),
            calling_ae=self._request.peer.calling_ae,
            association_id=self._request.peer.id,
            priority=self._request.priority,
            received_at=time.time(),
            patient=identity.patient if is_image_class(identity.sop_class_uid) else None,
        )
