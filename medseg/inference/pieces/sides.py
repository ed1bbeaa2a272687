"""Whether what is called left lies left, by centres in the patient's coordinates (LPS: x grows to the left).

A field of view may hold one side alone, or end where it likes, so nothing follows from its middle unless the bundle
says so. A segment of one side is held against the same structure of the other side, where that was found; else, where
the bundle says `beside_middle` of it, against the middle of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medseg.bundle.bundle import Side
from medseg.dicom.series import Stack
from medseg.inference.labels import Flag, Measured


def wrong_sides(stack: Stack, measured: Sequence[Measured]) -> Iterator[Flag]:
    """A flag for each segment that does not lie on its side."""
    for one in measured:
        side, x = one.segment.side, _x(one)
        if side is None or x is None:
            continue
        others = [(f"that of {other.segment.label}", _x(other)) for other in measured if _are_partners(one, other)]
        if not others and one.segment.beside_middle:
            others = [("the middle of the image", _middle(stack))]
        for what, at in others:
            if at is not None and not (x > at if side is Side.LEFT else x < at):
                label, away = one.segment.label, f"{abs(x - at):.1f} mm"
                message = f"{label}: its centre is not {side} of {what}, but {away} beyond: sides may be swapped"
                yield Flag("wrong_side", message, one.segment.number)
                break


def _are_partners(one: Measured, other: Measured) -> bool:
    """Whether both were found, and are the same structure of two sides."""
    return bool(other.voxels) and other.segment.side is not one.segment.side and _structure(one) == _structure(other)


def _structure(one: Measured) -> tuple[object, ...] | None:
    segment = one.segment
    codes = (segment.type, segment.region)
    return None if segment.side is None else tuple(code and (code.scheme, code.value) for code in codes)


def _x(one: Measured) -> float | None:
    return None if one.within.centroid_mm is None else one.within.centroid_mm[0]


def _middle(stack: Stack) -> float:
    """x of the middle of the image."""
    _, rows, columns = stack.shape
    ends = stack.coordinates[[0, -1]]
    return float(stack.affine[0] @ [ends.mean(), (rows - 1) / 2, (columns - 1) / 2, 1.0])
