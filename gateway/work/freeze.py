"""Results in the spool: made once, frozen, and synced before the ledger knows of them.

spool/results/<result key>/     seg.dcm  sr.dcm  result.json        see `medseg.job`
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydicom.filereader import read_file_meta_info

from gateway.files import RESULTS, sync
from gateway.ledger.object_kind import ObjectKind
from gateway.ledger.results import NewObject, NewResult
from gateway.settings.model import ResultForm
from gateway.work.coverage import Sources
from medseg.bundle.bundle import Bundle
from medseg.job.folder import DICOM
from medseg.job.run import Outcome


def freeze(outcomes: Sequence[Outcome], sources: Sequence[Sources], bundle: Bundle, spool: Path) -> NewResult:
    """Sync what was written for each stack of a series, and describe it for the ledger. sources: of each.

    The key of one stack is the key of the result; that of several is made of all of theirs.
    """
    objects: list[NewObject] = []
    for number, outcome in enumerate(outcomes, 1):
        sync_all(outcome.folder)
        for kind, file in sorted(outcome.record["outputs"].items()):
            if kind in DICOM:
                here = outcome.folder / Path(file).name  # the record says where it was made: the spool may have moved
                objects.append(frozen(ObjectKind.of(ResultForm(kind), number), here, spool))
    sync_places(spool)
    keys = [outcome.record["result_key"] for outcome in outcomes]
    whole = keys[0] if len(keys) == 1 else hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()
    facts, made_of = [dict(outcome.record) for outcome in outcomes], [one.record() for one in sources]
    return NewResult(whole, bundle.name, bundle.version, facts, tuple(objects), made_of)


def sync_all(folder: Path) -> None:
    """Make the files of a result last."""
    for file in folder.iterdir():
        sync(file)
    sync(folder)


def sync_places(spool: Path) -> None:
    """Make the names of results last; the first of them made their folder."""
    for folder in (spool / RESULTS, spool):
        sync(folder)


def frozen(kind: ObjectKind, file: Path, spool: Path) -> NewObject:
    """An object as the ledger has it, from its file, which changes no more."""
    meta = read_file_meta_info(file)
    content = file.read_bytes()
    return NewObject(
        kind=kind,
        sop_class_uid=str(meta.MediaStorageSOPClassUID),
        sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
        path=file.relative_to(spool).as_posix(),
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
