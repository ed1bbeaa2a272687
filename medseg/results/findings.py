"""What a report measures: each segment, and each lesion, from labels that are final.

A lesion is a 26-connected piece of a segment whose category is an abnormal structure; an organ has none. Pieces are
joined over planes as they pass (`inference.pieces.survey`), where there are such segments; then the planes pass once
more, those with most labels first, so that of most parts their box alone tells that they are not the longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID
from scipy import ndimage

from medseg.bundle.bundle import Segment
from medseg.inference.labels import LabelPlane, Within, boxes
from medseg.inference.pieces.cleanup import exact_sum
from medseg.inference.pieces.statistics import SegmentSums
from medseg.inference.pieces.survey import ComponentFinder, Components, parts_of
from medseg.inference.planes import LabelSpool
from medseg.results.diameters import Diameters, diameters_of, longest_possible_mm
from medseg.results.provenance import Provenance

ABNORMAL = ("SCT", "49755003")
"""Category "Morphologically Abnormal Structure" (CID 7150): its pieces are lesions."""


@dataclass(frozen=True)
class Lesion:
    """A piece of a segment. number: from 1, the largest first. k: the slice in which it has most voxels."""

    number: int
    voxels: int
    volume_ml: float
    k: int
    within: Within = field(default_factory=Within)
    diameters: Diameters | None = None


@dataclass(frozen=True)
class Finding:
    """A segment as found. k: the slice in which it has most voxels; None where there is nothing.

    lesions: the largest, of an abnormal structure. pieces: how many it has, those that are not measured among them.
    """

    segment: Segment
    k: int | None = None
    diameters: Diameters | None = None
    lesions: tuple[Lesion, ...] = ()
    pieces: int = 0

    @property
    def has_lesions(self) -> bool:
        return (self.segment.category.scheme, self.segment.category.value) == ABNORMAL


def lesion_uid(made: Provenance, segment: Segment, lesion: Lesion) -> UID:
    """By which a lesion is tracked."""
    return made.key.uid(f"segment.{segment.number}.lesion.{lesion.number}")


def findings_of(labels: LabelSpool, most: int) -> tuple[Finding, ...]:
    """Of each segment, in their order. most: lesions of a segment that are measured, the largest.

    Slices in which such a lesion lies are read again, one after the other. Raises UndecodablePixels.
    """
    each = [_Segment(segment, len(labels)) for segment in labels.segments]
    abnormal = [index for index, one in enumerate(each) if one.finding.has_lesions]
    finder = ComponentFinder([each[index].finding.segment.number for index in abnormal], exclusive=labels.exclusive)
    for k, plane in enumerate(labels):
        for one, mask, _ in _masks(plane, each, exclusive=labels.exclusive):
            one.areas[k] = np.count_nonzero(mask)
        if abnormal:
            finder.add(plane if labels.exclusive else plane[abnormal])
    voxel_ml = np.array([labels.stack.voxel_ml(k) for k in range(len(labels))])
    components = finder.end()
    for place, index in enumerate(abnormal):
        each[index].take(components, place, voxel_ml, most)
    areas = sum((one.areas for one in each), np.zeros(len(labels), np.intp))
    for k in np.argsort(-areas, kind="stable").tolist():
        if areas[k]:
            _look_at(labels, k, each)
    return tuple(one.end() for one in each)


def _look_at(labels: LabelSpool, k: int, each: list[_Segment]) -> None:
    """Measure in a slice what may be the longest, and the values of lesions."""
    part = labels.stack.slices[k]
    values = None
    for one, mask, first in _masks(labels[k], each, exclusive=labels.exclusive):
        numbered, count = parts_of(mask)
        lesion_of_part = one.lesions_in(k, count)
        for number, (rows, columns) in enumerate(ndimage.find_objects(numbered), start=1):
            inside, lesion = numbered[rows, columns] == number, lesion_of_part[number - 1]
            if longest_possible_mm(inside, part.plane.spacing_mm) > one.shortest_mm(lesion):
                where = first[0] + rows.start, first[1] + columns.start
                one.compare(diameters_of(inside, where, k, part.plane), lesion)
        lesions = np.array([0, *(0 if lesion is None else lesion + 1 for lesion in lesion_of_part)], np.uint8)
        if lesions.any():
            values = part.read() if values is None else values
            plane = np.zeros(values.shape, np.uint8)
            plane[first[0] : first[0] + mask.shape[0], first[1] : first[1] + mask.shape[1]] = lesions[numbered]
            one.sums.add(plane, values, part.plane, labels.stack.voxel_ml(k))


def _masks(
    plane: LabelPlane, each: list[_Segment], *, exclusive: bool
) -> Iterator[tuple[_Segment, NDArray[np.bool_], tuple[int, int]]]:
    """Of each segment in a plane: what is inside of the box around it, and the first voxel of that."""
    around = boxes(plane) if exclusive else {}
    for index, one in enumerate(each):
        number, image = (one.finding.segment.number, plane) if exclusive else (1, plane[index])
        box = around.get(number) if exclusive else boxes(image).get(1)
        if box is not None:
            yield one, image[box] == number, (box[0].start, box[1].start)


class _Segment:
    """A segment while it is measured. areas: of each slice, its voxels. lesion_of: of a piece that is, which lesion."""

    def __init__(self, segment: Segment, slices: int) -> None:
        self.finding = Finding(segment)
        self.areas = np.zeros(slices, np.intp)
        self.lesion_of: dict[int, int] = {}
        self.sums = SegmentSums((), exclusive=True)
        self._longest: Diameters | None = None
        self._of_lesions: list[Diameters | None] = []
        self._part_piece: dict[int, NDArray[np.intp]] = {}

    def take(self, components: Components, index: int, voxel_ml: NDArray[np.float64], most: int) -> None:
        """Of an abnormal structure: its pieces, the largest of which are lesions that are measured."""
        parts, here = components.parts, components.parts.segment == index
        planes, voxels, piece = parts.plane[here], parts.voxels[here], components.piece[here]
        pieces, of_piece = np.unique(piece, return_inverse=True)
        volumes = np.bincount(of_piece, voxels * voxel_ml[planes], len(pieces))
        chosen = np.lexsort((pieces, -volumes))[:most]
        lesions = []
        for number, n in enumerate(chosen.tolist(), start=1):
            mine = of_piece == n
            area = np.bincount(planes[mine], voxels[mine])
            volume = exact_sum(voxels[mine] * voxel_ml[planes[mine]])
            lesions.append(Lesion(number, int(voxels[mine].sum()), volume, int(area.argmax())))
        self.finding = replace(self.finding, lesions=tuple(lesions), pieces=len(pieces))
        self.lesion_of = {int(pieces[n]): place for place, n in enumerate(chosen.tolist())}
        self.sums = SegmentSums(range(1, len(lesions) + 1), exclusive=True)
        self._of_lesions = [None] * len(lesions)
        self._part_piece = {k: components.piece[parts.of(k, index)] for k in np.unique(planes).tolist()}

    def lesions_in(self, k: int, parts: int) -> list[int | None]:
        """Of each part of slice k, in their order, which lesion it is of."""
        if not self.lesion_of:
            return [None] * parts
        return [self.lesion_of.get(piece) for piece in self._part_piece[k].tolist()]

    def shortest_mm(self, lesion: int | None) -> float:
        """What a part must be longer than to change anything."""
        each = [self._longest] + ([] if lesion is None else [self._of_lesions[lesion]])
        return min(one.long_mm if one is not None else 0.0 for one in each)

    def compare(self, found: Diameters, lesion: int | None) -> None:
        if self._longest is None or found.long_mm > self._longest.long_mm:
            self._longest = found
        if lesion is not None:
            before = self._of_lesions[lesion]
            self._of_lesions[lesion] = found if before is None or found.long_mm > before.long_mm else before

    def end(self) -> Finding:
        lesions = zip(self.finding.lesions, self.sums.end(), self._of_lesions, strict=True)
        measured = tuple(replace(one, within=within, diameters=longest) for one, within, longest in lesions)
        k = int(self.areas.argmax()) if self.areas.any() else None
        return replace(self.finding, k=k, diameters=self._longest, lesions=measured)
