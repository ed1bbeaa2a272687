"""Other bytes of an image that is here: the same image in another form, a poorer copy of it, or another image.

A SOP Instance is the same object in any transfer syntax (PS3.5 10), and archives encode anew, complete and drop what
does not matter to us. So versions are compared as the pipeline sees them: planes, what tells volumes apart, values.

    pending ──same image──────────────────────> copy        nothing is to be done again
            ──lossy, or cannot be decoded─────> copy        (PS3.3 C.7.6.1.1.5: lossy is not the image it was made of)
            ──anything else that counts───────> conflict    it takes the place of the one before

Whose it is said to be has been compared when it was filed. Cheap differences are looked at first; pixels plane by
plane, in a thread of their own, so that neither receivers nor decisions on other series wait.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from gateway.ledger import instances, patients
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.records import InstanceRow
from medseg.dicom.headers import look, read_instance, transfer_syntax
from medseg.dicom.instance import Instance, Pixels, Plane, Slice
from medseg.dicom.slices import expand
from medseg.errors import GeometryRefused, UndecodablePixels, UnreadableInstance

logger = logging.getLogger(__name__)

LOOK_S = 0.2
_PIECE = 1 << 20
#: A lossy copy differs from its image by this part of the image's range at most (root of the mean square).
LOSSY = 0.02
#: What a report repeats of the patient: a new value is a correction. How it is written (case, spaces) is none.
_OF_PATIENT = ("PatientName", "PatientBirthDate", "PatientSex")
#: What archives complete: only another value is a correction.
_OF_ORDER = ("AccessionNumber",)
_OF_IMAGE = ("SOPClassUID", "Modality", "FrameOfReferenceUID")
_ALWAYS_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)


class Sameness(StrEnum):
    """What a version is, beside one that is here."""

    SAME = "the same image in another form"
    POORER = "the same image, compressed lossily"
    UNDECODABLE = "its pixels cannot be decoded, those that are here can"
    DIFFERENT = "another image"


def compare(here: Instance, new: Instance) -> Sameness:
    """What an image is beside one under the same UIDs."""
    mine, its = look(here.header), look(new.header)
    if any(its.text(keyword) and _plain(mine.text(keyword)) != _plain(its.text(keyword)) for keyword in _OF_PATIENT):
        return Sameness.DIFFERENT
    for keyword in _OF_ORDER:
        if mine.text(keyword) and its.text(keyword) and _plain(mine.text(keyword)) != _plain(its.text(keyword)):
            return Sameness.DIFFERENT
    if any(mine.text(keyword) != its.text(keyword) for keyword in _OF_IMAGE):
        return Sameness.DIFFERENT
    slices, reason = _planes(here)
    others, its_reason = _planes(new)
    if reason != its_reason or len(slices) != len(others):
        return Sameness.DIFFERENT
    if reason:  # nothing to segment: what is stored must do
        mine_stored, its_stored = _stored(here), _stored(new)
        return Sameness.SAME if mine_stored is not None and mine_stored == its_stored else Sameness.DIFFERENT
    if not all(_alike(one.plane, other.plane) and one.phase == other.phase for one, other in zip(slices, others)):  # noqa: B905 - their number is the same
        return Sameness.DIFFERENT
    return _compare_pixels(slices, others, poorer=_is_lossy(new) and not _is_lossy(here))


def _compare_pixels(slices: Sequence[Slice], others: Sequence[Slice], *, poorer: bool) -> Sameness:
    """poorer: the others are lossy, and these are not."""
    sameness = Sameness.SAME
    for one, other in zip(slices, others, strict=True):
        try:
            mine = one.read()
        except UndecodablePixels:
            return Sameness.DIFFERENT  # what is here is of no use; if neither is, the one that came last tells
        try:
            its = other.read()
        except UndecodablePixels:
            return Sameness.UNDECODABLE
        if np.array_equal(mine, its, equal_nan=True):
            continue
        if not poorer or not _resembles(mine, its):
            return Sameness.DIFFERENT
        sameness = Sameness.POORER
    return sameness


def _resembles(mine: Pixels, its: Pixels) -> bool:
    seen = np.isfinite(mine) & np.isfinite(its)
    if mine.shape != its.shape or not seen.any():
        return False
    extent = float(mine[seen].max() - mine[seen].min())
    return float(np.sqrt(np.mean((mine[seen] - its[seen]) ** 2))) <= LOSSY * extent


def _planes(instance: Instance) -> tuple[tuple[Slice, ...], str]:
    """Its planes, or why it has none that could be segmented."""
    try:
        return expand(instance), ""
    except GeometryRefused as error:
        return (), str(error.reason)


def _stored(instance: Instance) -> str | None:
    """Digest of the pixel data as they are stored; None where they have no place in the file (deflated)."""
    if instance.pixel_offset is None:
        return None
    digest, head = hashlib.sha256(), 8 if transfer_syntax(instance.header).is_implicit_VR else 12  # PS3.5 7.1
    with instance.open() as stream:
        stream.seek(instance.pixel_offset + head)
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _alike(one: Plane, other: Plane) -> bool:
    return (one.rows, one.columns, one.spacing_mm) == (other.rows, other.columns, other.spacing_mm) and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("position_mm", "row_direction", "column_direction")
    )


def _is_lossy(instance: Instance) -> bool:
    """PS3.3 C.7.6.1.1.5, and transfer syntaxes that are lossy by themselves."""
    stated = look(instance.header).text("LossyImageCompression") == "01"
    return stated or transfer_syntax(instance.header) in _ALWAYS_LOSSY


def _plain(text: str) -> str:
    """A text without what says nothing: case, spaces, and the last delimiters of a name (PS3.5 6.2)."""
    return " ".join(text.casefold().split()).rstrip("^= ")


class Comparison:
    """Compares what is pending in the ledger; one in all processes."""

    def __init__(self, ledger: Ledger, spool: Path) -> None:
        self._ledger, self._spool = ledger, spool

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                if not self.step():
                    stop.wait(LOOK_S)
            except LedgerUnavailable as error:
                logger.error("%s", error, extra={"event": "comparison.ledger"})
                stop.wait(LOOK_S)

    def step(self) -> bool:
        """Decide on the version that waits longest; False where none does."""
        with self._ledger.read() as db:
            new = instances.next_pending(db)
            if new is None:
                return False
            here = instances.real_versions(db, new)
        verdict, now = self._verdict(new, here), time.time()
        facts = {"study": new.study_uid, "series": new.series_uid, "sop_instance": new.sop_instance_uid}
        if verdict is Sameness.DIFFERENT:
            if self._ledger.write(instances.take_version, new.id, now):
                facts["event"] = "instance.conflict"
                logger.warning("an image was received again, and differs: the new one counts", extra=facts)
        elif self._ledger.write(instances.keep_copy, new.id, now, verdict.value):
            facts["event"] = "instance.copy"
            logger.info("an image was received again and does not count: %s", verdict.value, extra=facts)
        return True

    def _verdict(self, new: InstanceRow, here: Sequence[InstanceRow]) -> Sameness:
        """Beside the version that counts, then beside those that did: one of them again is nothing new."""
        same_patient = (row for row in here if patients.adds_nothing(row.patient, new.patient))
        readable = [known for known in map(self._read, same_patient) if known is not None]
        image = self._read(new)
        if image is None:
            return Sameness.UNDECODABLE if readable else Sameness.DIFFERENT
        verdicts = (compare(known, image) for known in readable)
        return next((verdict for verdict in verdicts if verdict is not Sameness.DIFFERENT), Sameness.DIFFERENT)

    def _read(self, row: InstanceRow) -> Instance | None:
        opener: Callable[[], Any] = partial((self._spool / row.path).open, "rb")
        try:
            return read_instance(opener, row.sop_instance_uid)
        except UnreadableInstance:
            return None
