"""A whole image, prepared for parts of it to be looked at, with all that its recipe must know of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medseg.bundle.recipe import Intensity, Orient, Recipe, Resample, Step, needs_whole
from medseg.dicom.instance import Pixels
from medseg.dicom.series import Stack
from medseg.inference.arriving.axis import SliceAxis, axis_through
from medseg.inference.arriving.passage import StreamedVolume
from medseg.inference.channels import ChannelPlanes
from medseg.inference.context import PipelineContext
from medseg.inference.grids.prepare import preprocessing_plan, scale_settled, settled, to_grid
from medseg.inference.pieces.collect import LabelCollector
from medseg.inference.valueless import Valueless
from medseg.inference.whole import read_whole


def passing(context: PipelineContext, stack: Stack, axis: SliceAxis, recipe: Recipe) -> StreamedVolume:
    """The slices of a stack that is all there, and of its channels, on their way along its axis."""
    values, count = Valueless(context.floor), len(axis.slices)
    backwards = axis.slices[0] is not stack.slices[0]
    channels = ChannelPlanes(context, stack, backwards=backwards)

    def seen(n: int, plane: Pixels) -> Sequence[Pixels]:
        return channels.at(count - 1 - n if backwards else n, values.see(plane)[0])

    return StreamedVolume(
        axis,
        recipe,
        context.decoder,
        end=lambda: axis,
        channels=len(channels),
        seen=seen,
        clock=context.clock,
        to_device=context.engine.to_device,
        room=context.engine.room_for_voxels,
    )


def settled_recipe(context: PipelineContext, stack: Stack) -> Recipe:
    """The context's recipe, with percentiles, extremes, means and deviations of the whole image as numbers."""
    recipe = context.recipe
    if not any(map(needs_whole, recipe.steps)):
        return recipe
    axis = axis_through(stack, recipe)
    if not isinstance(axis, SliceAxis):
        return _with_steps(recipe, _of_whole(context, stack))
    step = passing(context, stack, axis, recipe).settled()
    assert step is not None
    return _with_steps(recipe, [step if needs_whole(one) else one for one in _intensity(recipe.steps)])


def _intensity(steps: Sequence[Step]) -> list[Intensity]:
    return [step for step in steps if not isinstance(step, Orient | Resample)]


def _with_steps(recipe: Recipe, intensity: Sequence[Intensity]) -> Recipe:
    left = iter(intensity)
    steps = tuple(step if isinstance(step, Orient | Resample) else next(left) for step in recipe.steps)
    return replace(recipe, steps=steps)


def _of_whole(context: PipelineContext, stack: Stack) -> list[Intensity]:
    """As `prepare` carries the steps out, of a volume that is read as a whole."""
    voxels = read_whole(context, stack, LabelCollector(context.bundle, context.floor))
    k, j, i = voxels.shape[1:]
    way = preprocessing_plan(stack.as_read, (k, j, i), context.recipe, tilted=stack.tilt_deg != 0)
    steps: list[Intensity] = []
    for after, some in enumerate((way.before, way.after)):
        if after and way.resampling is not None:
            voxels = to_grid(voxels, way.resampling, zeros=context.recipe.zeros_matter)
        for step in some:
            steps.append(settled(voxels, step))
            voxels = scale_settled(voxels, steps[-1])
    return steps
