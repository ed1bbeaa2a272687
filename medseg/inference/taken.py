"""What one of the ways through the pipeline gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from medseg.dicom.series import SliceSource, Stack
from medseg.inference.context import PipelineContext
from medseg.inference.labels import Flag, RegionFound
from medseg.inference.pieces.collect import LabelCollector


@dataclass(frozen=True, eq=False)
class Taken:
    """A stack that has gone one of the ways, and what was found in it.

    waited: why windows had to wait for its last slice; None where they ran as slices came.
    region: where they looked, if not everywhere. flags: doubts of that.
    """

    stack: Stack
    collector: LabelCollector
    waited: str | None
    region: RegionFound | None = None
    flags: tuple[Flag, ...] = ()


Run: TypeAlias = Callable[[PipelineContext, SliceSource], Taken]
"""All of a source through a context's bundle."""
