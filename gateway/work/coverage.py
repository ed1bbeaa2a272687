"""What a result was made of, and whether a later one may take its place: only one that is at least as complete.

    before   ────────────────       slices 1 to 16, one stack
    now      ────────────────────   all of these in one stack, and more: may replace it
    now      ────────  ────────     all of these, in pieces: may not
    now      ──────────────         fewer: may not

Slices are known by their objects. A stack that was sorted out anew (phases that first ran into each other) holds other
objects at the same places: it counts as whole where some stack has all the places of the one before, and none of its
objects is left out. What a result replaces it names: the results of stacks with which it shares objects, and those with
which none does.

Of several channels each is asked for itself: of the same series it must have all that it had; another series, which the
bundle's conditions prefer, is no loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    several. normal: of the slices. heights_mm: their places along it, in order. channels: where there are several, the
    series of each by name, and what it consists of.
    """

    patient: str
    objects: frozenset[str]
    normal: tuple[float, ...]
    heights_mm: tuple[float, ...]
    channels: Mapping[str, tuple[str, Sources]] = field(default_factory=dict)

    @classmethod
    def of(cls, stack: Stack, patient: str) -> Sources:
        normal = stack.slices[0].plane.normal
        heights = sorted(float(one.plane.position_mm @ normal) for one in stack.slices)
        objects = frozenset(
            one.instance.sop_instance_uid + ("" if one.frame is None else f"#{one.frame}")
            for one in stack.slices
            if one.instance is not None
        )
        channels = {
            one.name: (one.stack.series.series_uid, cls.of(replace(one.stack, channels=()), patient))
            for one in stack.channels
            if one.stack is not None
        }
        return cls(patient, objects, tuple(round(float(part), 6) for part in normal), tuple(heights), channels)

    def record(self) -> dict[str, Any]:
        """As JSON, for the ledger."""
        return {
            "patient": self.patient,
            "objects": sorted(self.objects),
            "normal": list(self.normal),
            "heights_mm": [float(f"{height:.6g}") for height in self.heights_mm],
            "channels": {name: [uid, one.record()] for name, (uid, one) in self.channels.items()},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sources:
        several = record.get("channels", {})  # earlier versions wrote none down
        channels = {name: (uid, cls.from_record(one)) for name, (uid, one) in several.items()}
        objects = frozenset(record["objects"])
        return cls(record["patient"], objects, tuple(record["normal"]), tuple(record["heights_mm"]), channels)


class LessComplete(InputError):
    """A result would take the place of one that was made of more."""

    code = "less_complete"

    def __init__(self, study_uid: str, series_uid: str | None, why: str) -> None:
        where = f"study {study_uid}" if series_uid is None else f"series {series_uid}"
        super().__init__(f"{where}: {why}: the result before stays the current one")


def lacks(before: Iterable[Sources], now: Sequence[Sources]) -> str:
    """What is missing of a result before in one that is to replace it; empty where nothing is."""
    here = frozenset().union(*(one.objects for one in now))
    for one in before:
        if one.channels:
            if why := _lacks_of_channels(one, now):
                return why
            continue
        if gone := len(one.objects - here):
            return f"{gone} of the {len(one.objects)} slices of the result before are in no stack"
        if not any(one.objects <= other.objects or _spans(other, one) for other in now):
            parts = sorted((len(one.objects & other.objects) for other in now), reverse=True)
            pieces = " and ".join(str(part) for part in parts if part)
            return f"the {len(one.objects)} slices of one stack of the result before are now in pieces of {pieces}"
    return ""


def _lacks_of_channels(before: Sources, now: Sequence[Sources]) -> str:
    for name, (series_uid, one) in before.channels.items():
        mine = next((stack.channels[name] for stack in now if name in stack.channels), None)
        if mine is None:
            return f"channel {name} of the result before is not there"
        if mine[0] == series_uid and (why := lacks([one], [mine[1]])):
            return f"channel {name}: {why}"
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
    if any(other.channels for other in now):  # of one study and patient
        return [list(range(len(before))) for _ in now]
    named = [[n for n, one in enumerate(before) if one.objects & other.objects] for other in now]
    left = [n for n in range(len(before)) if not any(n in some for some in named)]
    return [sorted({*some, *left}) for some in named]
