"""The first pass: another bundle, or one whose network is a threshold on a coarse grid. It goes the ways of any bundle.

threshold    values from `least` to `most`
body         the largest thing that is not air: in a CT above -400 HU, elsewhere above a tenth of the brightest
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from medseg.bundle.bundle import Bundle, Postprocess
from medseg.bundle.recipe import Activation, Finish, Order, Recipe, Resample, ScalePercentiles, Step, Window
from medseg.bundle.region import ByBody, ByBundle, ByThreshold, Region
from medseg.bundle.segments import segments_from_channels
from medseg.dicom.series import SliceSource, StackSource
from medseg.errors import GeometryRefused, Interrupted, MedsegError, UndecodablePixels, boundary
from medseg.inference.context import PipelineContext
from medseg.inference.engines.device import CPU, memory_errors
from medseg.inference.engines.engine import Engine
from medseg.inference.pieces.collect import CleanedLabels
from medseg.inference.regions.boxes import Piece, PieceFinder
from medseg.inference.settings import Settings
from medseg.inference.taken import Run, Taken

BODY_HU: Final = -400.0
BODY_SHARE: Final = 0.1  # of the way from the 1st to the 99th percentile
FINISH: Final = Finish(Activation.NONE, None, Order.PROBABILITIES_FIRST, nearest=False)
WHOLE_SLICES: Final = Window((-1, -1), (0.0, 0.0))

Open: TypeAlias = Callable[[Bundle, Settings], PipelineContext]
"""The context of a bundle over the same source."""


class Between(nn.Module):
    """(B, 1, *S) -> (B, 2, *S): scores of what lies from `least` to `most`, and of what does not."""

    def __init__(self, least: float | None, most: float | None) -> None:
        super().__init__()
        # One step beyond, since what lies on an end is within
        self._ends = _next(least, -np.inf), _next(most, np.inf)

    def forward(self, values: Tensor) -> Tensor:
        least, most = self._ends
        inside = torch.full_like(values, torch.inf) if least is None else values - least
        inside = inside if most is None else torch.minimum(inside, most - values)
        return torch.cat([-inside, inside], dim=1)


def _next(end: float | None, toward: float) -> float | None:
    return None if end is None else float(np.nextafter(np.float32(end), np.float32(toward)))


def look_first(context: PipelineContext, source: SliceSource, run: Run, open_: Open) -> Taken:
    """What the first pass finds. Errors of its own name it."""
    region = context.bundle.region
    assert region is not None
    if isinstance(source, StackSource) and _image_channels(context.bundle) == 1:
        source = StackSource(replace(source.stack, channels=()))
    what = f"first pass ({region.first_pass.words})"
    try:
        with boundary(what), memory_errors():
            first = _context(context, source, region, open_)
            return run(replace(first, clock=context.clock, warnings=context.warnings), source)
    except (Interrupted, GeometryRefused, UndecodablePixels):  # nothing that another bundle would not meet
        raise
    except MedsegError as error:
        if not str(error).startswith(what):
            error.args = (f"{what}: {error}",)
        raise


def _image_channels(bundle: Bundle) -> int:
    return 1 if bundle.first_pass is None else bundle.first_pass.image_channels


def _context(context: PipelineContext, source: SliceSource, region: Region, open_: Open) -> PipelineContext:
    settings, first = context.settings, context.bundle.first_pass
    if first is not None:
        if settings.precision not in ("auto", *first.precisions):
            settings = replace(settings, precision="fp32")
        return open_(first, settings)
    modality = source.series.modality or next(iter(context.bundle.expects.modality), "")
    bundle, network = _coarse(context.bundle, region, modality)
    return replace(
        context,
        bundle=bundle,
        recipe=bundle.recipe,
        settings=replace(settings, exact=False, overlap=None),
        engine=Engine(network, bundle, CPU),
    )


def _coarse(bundle: Bundle, region: Region, modality: str) -> tuple[Bundle, nn.Module]:
    """The bundle whose network is a threshold, or tells a body from air."""
    how = region.first_pass
    assert not isinstance(how, ByBundle)
    steps: tuple[Step, ...] = (Resample((how.spacing_mm,) * 3),)
    keep: tuple[int, ...] = ()
    match how:
        case ByThreshold():
            network = Between(how.least, how.most)
        case ByBody():
            keep, network = (1,), Between(BODY_HU if modality == "CT" else BODY_SHARE, None)
            if modality != "CT":
                steps = (*steps, ScalePercentiles(1.0, 99.0, 0.0, 1.0, clip=True))
    made = replace(
        bundle,
        name=how.words,
        digest=hashlib.sha256(f"{bundle.digest} {how}".encode()).hexdigest(),
        in_channels=1,
        out_channels=2,
        recipe=Recipe(steps, WHOLE_SLICES, FINISH),
        segments=segments_from_channels({}, exclusive=True, out_channels=2),
        postprocess=Postprocess(keep_largest=keep),
        nnunet=None,
        parts=(),
        averaged=(),
        previous=None,
        channels=None,
        region=None,
    )
    return made, network


def pieces_found(taken: Taken, region: Region) -> list[Piece]:
    """What of the first pass's labels counts, the largest first."""
    collector, stack = taken.collector, taken.stack
    asked = region.first_pass.labels if isinstance(region.first_pass, ByBundle) else ()
    numbers = [number for number in collector.numbers if not asked or number in asked]
    if region.views:
        numbers = [number for number in numbers if region.view(number) is not None]
    finders = _finders(numbers, exclusive=collector.exclusive)
    for plane in CleanedLabels(collector, stack):
        for finder, channel in finders:
            finder.add(plane if channel is None else plane[channel] * np.uint8(channel + 1))
    voxel_ml = [stack.voxel_ml(k) for k in range(len(stack.slices))]
    pieces = [piece for finder, _ in finders for piece in finder.end(voxel_ml)]
    return _that_count(sorted(pieces, key=lambda piece: -piece.volume_ml), region)


def _finders(numbers: Iterable[int], *, exclusive: bool) -> list[tuple[PieceFinder, int | None]]:
    """Finders, and which channel of a plane each is to see; None: the plane itself."""
    if exclusive:
        return [(PieceFinder(numbers), None)]
    return [(PieceFinder([number]), number - 1) for number in numbers]


def _that_count(pieces: Iterable[Piece], region: Region) -> list[Piece]:
    counted: dict[int, int] = {}
    kept = []
    for piece in pieces:
        label = piece.box.label
        if piece.volume_ml >= region.min_volume_ml and counted.get(label, 0) < (region.most or np.inf):
            counted[label] = counted.get(label, 0) + 1
            kept.append(piece)
    return kept
