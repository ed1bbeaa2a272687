"""A result's label planes as the files that are asked for, each read back before it counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import NamedTuple, Protocol

from medseg.dicom.series import Stack
from medseg.inference.labels import LabelSink
from medseg.job.folder import FILES, Format
from medseg.job.follow import Segmented
from medseg.progress import Cancelled, check
from medseg.results.capture import CaptureWriter
from medseg.results.labelmap import LabelmapWriter
from medseg.results.provenance import Provenance
from medseg.results.seg import SegWriter
from medseg.results.structures import StructureWriter
from medseg.results.verify import verify_seg
from medseg.results.verify_capture import verify_captures
from medseg.results.verify_labelmap import verify_labelmap
from medseg.results.verify_structures import verify_structures


class FormWriter(LabelSink, Protocol):
    """A sink that puts a file, or a folder of them, in its place at the end, unless nothing was found."""

    written: bool


class Form(NamedTuple):
    """One way to write label planes. verify: by a reader that shares no code with the writer."""

    format: Format
    writer: FormWriter
    verify: Callable[[], object]


def write_planes(
    folder: Path, formats: Set[Format], stack: Stack, found: Segmented, made: Provenance, cancelled: Cancelled
) -> frozenset[Format]:
    """Write those of the formats that are made plane by plane, in one pass, and read each back; which there are now.

    stack: what was meant to be segmented, which each is compared with.
    Raises VerificationFailed, OutputNotWritable, MayOverlap, GeometryRefused.
    """
    labels = found.labels
    forms = [form for form in _forms(folder, stack, found, made) if form.format in formats]
    for form in forms:
        form.writer.begin(labels.stack, labels.segments, exclusive=labels.exclusive)
    for k, plane in enumerate(labels) if forms else ():
        check(cancelled)
        for form in forms:
            form.writer.plane(k, plane)
    for form in forms:
        form.writer.end()
    there = [form for form in forms if form.writer.written]
    for form in there:
        check(cancelled)
        form.verify()
    return frozenset(form.format for form in there)


def _forms(folder: Path, stack: Stack, found: Segmented, made: Provenance) -> Iterator[Form]:
    labels = found.labels
    segments, exclusive = labels.segments, labels.exclusive
    seg, labelmap, structures = (folder / FILES[kind] for kind in (Format.SEG, Format.LABELMAP, Format.RTSTRUCT))
    yield Form(Format.SEG, SegWriter(seg, made), lambda: verify_seg(seg, stack, segments, labels, exclusive=exclusive))
    yield Form(
        Format.LABELMAP, LabelmapWriter(labelmap, made), lambda: verify_labelmap(labelmap, stack, segments, labels)
    )
    yield Form(
        Format.RTSTRUCT,
        StructureWriter(structures, made),
        lambda: verify_structures(structures, stack, segments, labels, exclusive=exclusive),
    )
    captures = CaptureWriter(folder / FILES[Format.SC], labels, found.result, made)
    yield Form(
        Format.SC,
        captures,
        lambda: verify_captures(captures.folder, stack, segments, labels, exclusive=exclusive, window=captures.window),
    )
