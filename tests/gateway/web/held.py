"""A study in a served spool: a series as it was sent, and a result of it, filed as the worker does."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from sqlalchemy import Connection, insert

from gateway.ledger import tables
from medseg.results.report import write_report
from medseg.results.seg import SegWriter
from tests.gateway.phantoms import phantom
from tests.gateway.web.served import Served
from tests.medseg.results.stacks import SEGMENTS, feed, findings, made, make_result, to_stack


@dataclass(frozen=True)
class HeldStudy:
    """labels: of the SEG, slice by slice."""

    images: list[Dataset]
    seg: Path
    sr: Path
    labels: np.ndarray

    @property
    def uid(self) -> str:
        return str(self.images[0].StudyInstanceUID)

    @property
    def series_uid(self) -> str:
        return str(self.images[0].SeriesInstanceUID)


def hold(site: Served, seed: int = 0, slices: int = 4) -> HeldStudy:
    """A series of 32 x 32 with a segmentation and a report."""
    images = phantom(seed, slices)
    site.box.send(images)
    stack = to_stack([_file(one) for one in images])
    labels = np.zeros(stack.shape, np.uint8)
    labels[1:3, 8:20, 4:16], labels[1, 22:26, 24:29] = 1, 2
    folder = site.box.folder / "results" / f"{seed}"
    folder.mkdir(parents=True)
    seg, sr = folder / "seg.dcm", folder / "sr.dcm"
    feed(SegWriter(seg, made(f"seed {seed}")), stack, SEGMENTS, labels)
    measured = findings(stack, SEGMENTS, labels)
    write_report(sr, make_result(stack, SEGMENTS, labels), measured, made(f"seed {seed}"), with_seg=True)
    study = HeldStudy(images, seg, sr, labels)
    site.box.ledger.write(file_result, site.box.folder, study, f"k{seed}")
    return study


def file_result(
    db: Connection, spool: Path, study: HeldStudy, key: str, predecessor: int | None = None, kinds: str = "seg sr"
) -> int:
    """The row of a result, with its objects. Returns its id."""
    names = {"study_uid": study.uid, "series_uid": study.series_uid}
    work = names | {"revision": 1, "bundle": "b", "rule": "r", "mode": "on", "state": "done", "attempt": 1}
    times = {"due": 1.0, "ready_at": 1.0, "created_at": 1.0, "finished_at": 1.0}
    job = db.execute(insert(tables.job).returning(tables.job.c.id), work | times).scalar_one()
    came = names | {"job_id": job, "result_key": key, "bundle": "b", "bundle_version": "1", "facts": "[]"}
    more = {"created_at": 1.0, "predecessor_id": predecessor}
    result = db.execute(insert(tables.result).returning(tables.result.c.id), came | more).scalar_one()
    for kind in kinds.split():
        path = {"seg": study.seg, "sr": study.sr}[kind]
        header, content = dcmread(path, stop_before_pixels=True), path.read_bytes()
        facts = {"result_id": result, "kind": kind, "sop_class_uid": str(header.SOPClassUID)}
        facts |= {"sop_instance_uid": str(header.SOPInstanceUID), "path": path.relative_to(spool).as_posix()}
        digest = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        db.execute(insert(tables.result_object), facts | digest)
    return int(result)


def _file(one: Dataset) -> bytes:
    buffer = io.BytesIO()
    one.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
