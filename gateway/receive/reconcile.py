"""At start: make spool and ledger say the same again, whatever moment the power went.

    found                                       then
    incoming/*.part                             never acknowledged: removed
    file with a row, of the right length        as it should be
    file without a row, an instance             whole, since it was synced before it got its name: adopted
    file without a row, bytes known already     removed
    file without a row, not an instance         moved to quarantine/
    file with a row, of another length          damaged: moved to quarantine/, the row becomes missing
    row without a file                          the row becomes missing: it counts for nothing, and is told loudly

Only for when no receiver runs.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import mmap
import os
import time
from dataclasses import dataclass
from pathlib import Path

from gateway.files import sync
from gateway.ledger import associations, instances
from gateway.ledger.instances import Filed, StoredInstance
from gateway.ledger.ledger import Ledger
from gateway.receive.identity import NotDicom, file_meta_of, identify
from gateway.receive.spool import INCOMING, Spool, instance_path
from medseg.dicom.classes import is_image_class
from medseg.names import LONGEST_ON_DISK, file_name
from medseg.texts import shown, valid

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reconciliation:
    """What was found; paths are relative to the spool."""

    lost_associations: int
    removed: tuple[str, ...]
    adopted: tuple[str, ...]
    duplicates: tuple[str, ...]
    quarantined: tuple[str, ...]
    missing: tuple[str, ...]


def reconcile(spool: Spool, ledger: Ledger) -> Reconciliation:
    """Set right what a crash left between spool and ledger; rows of missing files are logged as errors."""
    now = time.time()
    lost = ledger.write(associations.lose_open_associations, now)
    removed = [_relative(spool, part) for part in remove_parts(spool.folder)]
    with ledger.read() as db:
        rows_of = instances.instance_files(db)
    adopted: list[str] = []
    duplicates: list[str] = []
    quarantined: list[str] = []
    for file in sorted(path for path in spool.studies.rglob("*") if path.is_file()):
        path = _relative(spool, file)
        if path in rows_of:
            if file.stat().st_size == rows_of[path]:
                del rows_of[path]
            else:
                quarantined.append(_quarantine(spool, file))
            continue
        try:
            filed = spool.file(_read(spool, file))
        except NotDicom as error:
            logger.warning(
                "quarantined %s: %s", shown(Path(path)), valid(str(error)), extra={"event": "instance.quarantined"}
            )
            quarantined.append(_quarantine(spool, file))
        else:
            (duplicates if filed is Filed.DUPLICATE else adopted).append(path)
    missing = [path for path in sorted(rows_of) if _lose(ledger, path, now)]
    return Reconciliation(lost, *map(tuple, (removed, adopted, duplicates, quarantined, missing)))


def _lose(ledger: Ledger, path: str, now: float) -> bool:
    """False where its row names another file by now, of the same content."""
    lost = ledger.write(instances.lose_instance, path, now)
    if lost:
        logger.error("an acknowledged instance is gone: %s", shown(Path(path)), extra={"event": "instance.missing"})
    return lost


def remove_parts(folder: Path, which: str = "*") -> list[Path]:
    """Remove what was being received into a spool, by processes that do not run any more (`1234.*`: by that one)."""
    parts = sorted((folder / INCOMING).glob(which))
    for part in parts:
        part.unlink()
    return parts


def _quarantine(spool: Spool, file: Path) -> str:
    """Out of the way, under a name that says where it was, and that nothing else has."""
    there = spool.quarantine / _free_name(spool, _relative(spool, file))
    file.rename(there)
    sync(file.parent)
    sync(spool.quarantine)
    return _relative(spool, there)


def _free_name(spool: Spool, path: str) -> str:
    """`studies_STUDY_...`, as a purge looks for it; the rest is a hash where the whole is no name, or taken."""
    whole = path.replace("/", "_")
    study = "_".join(file_name(part) for part in path.split("/")[:2])
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    shorter = (f"{study}_{digest}{f'-{number}' if number else ''}" for number in itertools.count())
    names = itertools.chain([whole] if len(os.fsencode(whole)) <= LONGEST_ON_DISK else [], shorter)
    return next(name for name in names if not os.path.lexists(spool.quarantine / name))


def _read(spool: Spool, file: Path) -> StoredInstance:
    """The instance in a file that stands where that instance belongs; raises NotDicom."""
    size = file.stat().st_size
    if not size:
        raise NotDicom("an empty file")
    with (
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        meta = file_meta_of(view)
        with view[meta.offset_bytes :] as data_set:
            identity = identify(data_set, meta.transfer_syntax_uid, whole=True)
            sha256 = hashlib.sha256(data_set).hexdigest()
    path, token = _relative(spool, file), file.stem.rpartition(".")[2]
    if not all((identity.study_uid, identity.series_uid, identity.sop_instance_uid, identity.sop_class_uid)):
        raise NotDicom("UIDs are missing")
    if path != instance_path(identity, token):
        raise NotDicom("not where its UIDs belong")
    return StoredInstance(
        study_uid=identity.study_uid,
        series_uid=identity.series_uid,
        sop_instance_uid=identity.sop_instance_uid,
        sop_class_uid=identity.sop_class_uid,
        transfer_syntax_uid=meta.transfer_syntax_uid,
        path=path,
        offset_bytes=meta.offset_bytes,
        size_bytes=size - meta.offset_bytes,
        sha256=sha256,
        calling_ae=meta.source_ae,
        association_id=None,
        priority=0,
        received_at=file.stat().st_mtime,
        patient=identity.patient if is_image_class(identity.sop_class_uid) else None,
    )


def _relative(spool: Spool, path: Path) -> str:
    return path.relative_to(spool.folder).as_posix()
