"""Who a result is: one key from what went in, and every UID from that key.

The command line, a cohort run and the gateway that see the same images, bundle and settings derive the same key, so
the same result carries the same UIDs wherever and however often it is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from pydicom.uid import UID

from medseg.dicom.instance import Instance, Slice
from medseg.dicom.overlap import ASSUMED
from medseg.dicom.series import Stack
from medseg.dicom.sources import instance_digest
from medseg.names import named_uid

SCHEMA = "2"  # raised whenever the same inputs would give another result object


@dataclass(frozen=True)
class ResultKey:
    """SHA-256 (hex) over everything that determines a result."""

    digest: str

    def uid(self, role: str) -> UID:
        """The UID of one object or entity of this result, such as "seg" or "seg.series"."""
        return UID(named_uid(f"{self.digest}/{role}"))


def result_key(
    digests: Iterable[str], bundle_digest: str, settings: Mapping[str, object], *, part: str = "", schema: str = SCHEMA
) -> ResultKey:
    """The key of a result.

    digests: of the instances that were segmented, in any order (`stack_digests`).
    bundle_digest: `Bundle.digest`.
    settings: those that change labels or what is written, such as precision and overlap, as JSON values; engine and
        device stay out: they are recorded, but the result is meant to be the same.
    part: what tells this stack from others of the same instances (phase, frame of reference).
    """
    facts = {
        "schema": schema,
        "instances": sorted(digests),
        "bundle": bundle_digest,
        "settings": dict(settings),
        "part": part,
    }
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return ResultKey(hashlib.sha256(canonical.encode()).hexdigest())


def stack_key(
    stack: Stack,
    bundle_digest: str,
    settings: Mapping[str, object],
    digest: Callable[[Instance], str] = instance_digest,
) -> ResultKey:
    """The key of what `stack` becomes; asks for the digest of every instance once, which reads it by default."""
    digests = stack_digests(stack, digest)
    part = [stack.phase, stack.frame_of_reference_uid]
    # The report says what was lost: where that changes, it is another report, and no UID may name two.
    part += sorted(one.sentence for one in stack.left_out if one.lost)
    part += [f"{channel.name}={channel.stack.phase if channel.stack else ''}" for channel in stack.channels]
    part += [finding.code for finding in stack.findings if finding.code == ASSUMED]
    return result_key(digests, bundle_digest, settings, part="|".join(part))


def key_object_role(*, captured: bool) -> str:
    """Of a key object selection: one of secondary captures is another object than one of the images."""
    return "ko.sc" if captured else "ko"


def stack_digests(stack: Stack, digest: Callable[[Instance], str] = instance_digest) -> tuple[str, ...]:
    """One digest per slice: its instance's (`medseg.dicom.sources.instance_digest`), and its frame if one of several.

    A plane that came from NIfTI has no instance: its values and its place are what is hashed.
    """
    by_instance: dict[str, str] = {}
    digests = []
    for part in stack.slices:
        if part.instance is None:
            digests.append(_plane_digest(part))
            continue
        uid = part.instance.sop_instance_uid
        if uid not in by_instance:
            by_instance[uid] = digest(part.instance)
        digests.append(by_instance[uid] if part.frame is None else f"{by_instance[uid]}#{part.frame}")
    for number, channel in enumerate(stack.channels):
        if channel.stack is None or channel.stack.slices is stack.slices:
            digests.append(f"{number}:{'itself' if channel.stack else 'not there'}")
        else:
            digests += [f"{number}:{one}" for one in stack_digests(channel.stack, digest)]
    return tuple(digests)


def _plane_digest(part: Slice) -> str:
    plane = part.plane
    place = np.concatenate([plane.position_mm, plane.row_direction, plane.column_direction, plane.spacing_mm])
    return hashlib.sha256(place.astype("<f8").tobytes() + part.read().astype("<f4").tobytes()).hexdigest()
