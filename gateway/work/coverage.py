"""What a result was made of, and whether a later one may take its place: only one that is at least as complete.

    before   ────────────────       slices 1 to 16, one stack
    now      ────────────────────   all of these in one stack, and more: may replace it
    now      ────────  ────────     all of these, in pieces: may not
    now      ──────────────         fewer: may not

Slices are known by their objects. A stack that was sorted out anew (phases that first ran into each other) holds other
objects at the same places: it counts as whole where some stack has all the places of the one before, and none of its
objects is left out. What a result replaces it names: the results of stacks with which it shares objects, and those with
which none does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.dicom.series import Stack
from medseg.errors import InputError

#: Two places along the normal are one if they are nearer than this part of the step between slices.
NEAR = 0.25
_PARALLEL = 0.99


@dataclass(frozen=True)
class Sources:
    """What a stack consists of.

    patient: whose it is (`gateway.ledger.patients.key`). objects: SOP Instance UIDs, with "#frame" where there are
    several. normal: of the slices. heights_mm: their places along it, in order.
    """

    patient: str
    objects: frozenset[str]
    normal: tuple[float, ...]
    heights_mm: tuple[float, ...]

    @classmethod
    def of(cls, stack: Stack, patient: str) -> Sources:
        normal = stack.slices[0].plane.normal
        heights = sorted(float(one.plane.position_mm @ normal) for one in stack.slices)
        objects = frozenset(
            one.instance.sop_instance_uid + ("" if one.frame is None else f"#{one.frame}")
            for one in stack.slices
            if one.instance is not None
        )
        return cls(patient, objects, tuple(round(float(part), 6) for part in normal), tuple(heights))

    def record(self) -> dict[str, Any]:
        """As JSON, for the ledger."""
        return {
            "patient": self.patient,
            "objects": sorted(self.objects),
            "normal": list(self.normal),
            "heights_mm": [float(f"{height:.6g}") for height in self.heights_mm],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sources:
        return cls(
            record["patient"], frozenset(record["objects"]), tuple(record["normal"]), tuple(record["heights_mm"])
        )


class LessComplete(InputError):
    """A result would take the place of one that was made of more."""

    code = "less_complete"

    def __init__(self, series_uid: str, why: str) -> None:
        super().__init__(f"series {series_uid}: {why}: the result before stays the current one")


def lacks(before: Iterable[Sources], now: Sequence[Sources]) -> str:
    """What is missing of a result before in one that is to replace it; empty where nothing is."""
    here = frozenset().union(*(one.objects for one in now))
    for one in before:
        if gone := len(one.objects - here):
            return f"{gone} of the {len(one.objects)} slices of the result before are in no stack"
        if not any(one.objects <= other.objects or _spans(other, one) for other in now):
            parts = sorted((len(one.objects & other.objects) for other in now), reverse=True)
            pieces = " and ".join(str(part) for part in parts if part)
            return f"the {len(one.objects)} slices of one stack of the result before are now in pieces of {pieces}"
    return ""


def _spans(other: Sources, one: Sources) -> bool:
    """Whether a stack has all the places of one before."""
    if float(np.dot(other.normal, one.normal)) < _PARALLEL:
        return False
    theirs, mine = np.array(other.heights_mm), np.array(one.heights_mm)
    steps = np.diff(mine)
    near = NEAR * float(steps[steps > 0].min()) if (steps > 0).any() else 0.0
    return bool((np.abs(mine[:, None] - theirs[None, :]).min(axis=1) <= near).all())


def replaced(before: Sequence[Sources], now: Sequence[Sources]) -> list[list[int]]:
    """For each stack the numbers of those before that it takes the place of: each of those has a successor."""
    named = [[n for n, one in enumerate(before) if one.objects & other.objects] for other in now]
    left = [n for n in range(len(before)) if not any(n in some for some in named)]
    return [sorted({*some, *left}) for some in named]
