"""The axis of a network's windows through a stack: its slices in the order in which windows meet them, and a grid that
is known before their number is.

    stack    k = 0 1 2 3 4 5        by position along the normal (`dicom.geometry`)
    axis         0 1 2 3 4 5        or 5 4 3 2 1 0, where the network's own axis runs the other way;
                                    or backwards, from the last slice to the first, where their number is known

MONAI anchors windows and resampled slices at the first slice along the network's axis. Counted from there, where a
slice lies, what a resampled slice is made of and where windows begin does not depend on how many slices follow, but for
the last ones. So an axis that is laid through the first slices holds for all of a series, and whether it did is checked
to the bit against the axis that is laid through the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from medseg.bundle.recipe import Orient, Padding, Recipe, Resample, needs_whole
from medseg.dicom.instance import Slice, Vector
from medseg.dicom.series import Stack
from medseg.inference.arriving.oblique import reason_to_wait
from medseg.inference.fallback import reason_for_fallback
from medseg.inference.grids.grid import index_map, parallel
from medseg.inference.grids.prepare import PreprocessingPlan, Resampling, preprocessing_plan
from medseg.inference.grids.resample import Across, InPlane, Taps, axis_taps
from medseg.inference.grids.restore import Parallel, Slanted, to_source
from medseg.inference.grids.zeros import Sampler
from medseg.inference.windows.layout import Layout, lay_out

MANY: Final = 1 << 13  # slices: stands for a number that is not known
_OFF_NORMAL_PIXELS: Final = 0.01  # what moves no voxel by more is no slant, as in `grid.parallel`
_ON_GRID: Final = 0.05  # of the spacing: positions are rounded
_ROUNDED: Final = 5e-7  # of the spacing
_STILL: Final = 1e-3  # of a voxel: less slant than that changes one label of 20,000 where labels flicker
_FROM_FIRST: Final = "an axis that is known from the first slices is at right angles to them"


@dataclass(frozen=True, eq=False)
class SliceAxis:
    """Evenly spaced slices along their normal, or against it.

    affine: 4x4, (k, j, i, 1) to LPS mm with k counted along the axis. shape: (rows, columns).
    count: of all slices, where the axis begins at the last of them and they come from there; else None.
    """

    slices: tuple[Slice, ...]
    affine: Vector
    shape: tuple[int, int]
    count: int | None = None

    def reversed(self, count: int) -> SliceAxis:
        """From the last of `count` slices to the first; the last is among those that are there."""
        affine = self._from(self.slices[-1].plane.position_mm)
        return replace(self, slices=self.slices[::-1], affine=affine, count=count)

    def forward(self, count: int) -> SliceAxis:
        """This axis, which runs backwards, as it lies from the first of `count` slices on, whichever are there."""
        first = self.affine[:3, 3] + (count - 1) * self.affine[:3, 0]
        return replace(self, slices=self.slices[::-1], affine=self._from(first), count=None)

    def _from(self, position_mm: Vector) -> Vector:
        affine = self.affine.copy()
        affine[:3, 0], affine[:3, 3] = -affine[:3, 0], position_mm
        return affine

    def same_grid(self, other: SliceAxis) -> bool:
        """To the bit."""
        known = self.shape, self.count
        return known == (other.shape, other.count) and np.array_equal(self.affine, other.affine)

    def number(self, slice_: Slice) -> int | None:
        """Which slice of the axis `slice_` is, whether it is among its slices or would come later; None for none."""
        place = np.linalg.solve(self.affine[:3, :3], slice_.plane.position_mm - self.affine[:3, 3])[0]
        number = round(float(place))
        return number if number >= 0 and abs(place - number) <= _ON_GRID else None


def axis_through(stack: Stack, recipe: Recipe) -> SliceAxis | str:
    """The axis of a recipe's windows through a stack, or why it must be taken as a whole."""
    barrier = next(iter(reasons(recipe)), None)
    if barrier is not None:
        return barrier
    if not stack.uniform:
        return "slices that are unevenly spaced, or lack one, are resampled as a whole"
    if stack.tilt_deg:
        return "slices under a gantry tilt are straightened as a whole"
    axis = _along(stack.slices)
    if axis is None:
        return "slices that lie aslant are resampled as a whole"
    # To the last bit, so that the grid is the one that MONAI reads; but not where slices may come one by one.
    as_read = recipe.zeros_matter or len(stack.channels) > 1 or waits_for_last(stack, recipe) is not None
    if as_read:
        axis = replace(axis, affine=stack.as_read)
    axes = preprocessing_plan(axis.affine, stack.shape, recipe).frame.axes
    if axes.flipped[axes.model_axis(0)]:
        if not _oriented_first(recipe):
            return "the recipe turns slices round after it has resampled them"
        axis = replace(axis.reversed(len(stack.slices)), count=None) if as_read else _along(stack.slices[::-1])
        assert axis is not None
    roi = list(recipe.window.roi)
    if len(roi) == 2:
        roi.insert(recipe.window.slice_axis, 1)
    if roi[axes.model_axis(0)] <= 0:
        return "a window takes all slices at once"
    return axis


def reasons(recipe: Recipe) -> tuple[str, ...]:
    """Why a recipe has no axis through any stack; empty where it has."""
    fallback = reason_for_fallback(recipe)
    # What one step must know of the whole is gathered along the axis (`deferred`); two would have to wait in turn.
    barriers = recipe.barriers() if sum(map(needs_whole, recipe.steps)) > 1 else ()
    if fallback is not None and fallback not in barriers:
        barriers = (fallback, *barriers)
    for step in recipe.steps:
        if isinstance(step, Resample) and step.scale_extent:
            barriers = (*barriers, "scale_extent makes the grid depend on the number of slices")
        if isinstance(step, Resample) and step.padding is Padding.REFLECTION:
            barriers = (*barriers, "resampling reflects the slices about the last one")
    return barriers


def waits_for_last(stack: Stack, recipe: Recipe) -> str | None:
    """Why the axis through a stack is not the one through its first slices; None where it is, or there is none."""
    axis = _along(stack.slices)
    return None if axis is None else reason_to_wait(axis.affine, stack, recipe)


def _oriented_first(recipe: Recipe) -> bool:
    steps = [step for step in recipe.steps if isinstance(step, Orient | Resample)]
    return bool(steps) and isinstance(steps[0], Orient)


def _along(slices: Sequence[Slice]) -> SliceAxis | None:
    """None where the slices do not lie one above the other."""
    first = slices[0].plane
    offsets = np.array([slice_.plane.position_mm for slice_ in slices]) - first.position_mm
    normal = first.normal if offsets[-1] @ first.normal >= 0 else -first.normal
    heights = offsets @ normal
    aside = np.linalg.norm(offsets - np.outer(heights, normal), axis=1).max()
    if aside > _OFF_NORMAL_PIXELS * min(first.spacing_mm):
        return None
    affine = np.eye(4)
    written = slices[0].instance is not None  # in decimals; a NIfTI volume's places are what they are
    affine[:3, 0] = normal * (rounded_spacing(heights) if written else float(heights[-1]) / (len(heights) - 1))
    affine[:3, 1] = first.column_direction * first.spacing_mm[0]
    affine[:3, 2] = first.row_direction * first.spacing_mm[1]
    affine[:3, 3] = first.position_mm
    return SliceAxis(tuple(slices), affine, (first.rows, first.columns))


def rounded_spacing(heights: Vector) -> float:
    """The spacing (mm) of even heights, from 0 up: the roundest number that fits them as well as they fit a grid.

    Positions are written with so many decimals, and a spacing of 0.625 mm appears as 0.62 or 0.63. Rounding gives the
    spacing that was meant, and the same for the first slices of a series as for all of them.
    """
    steps = len(heights) - 1
    spacing = float(heights[-1]) / steps
    uneven = float(np.abs(heights - spacing * np.arange(len(heights))).max())
    allowed = max(3 * uneven / steps, _ROUNDED * spacing)
    rounded = (float(f"{spacing:.{digits}g}") for digits in range(1, 9))
    return next((mm for mm in rounded if abs(mm - spacing) <= allowed and _on_grid(heights / mm)), spacing)


def _on_grid(places: Vector) -> bool:
    """Whether slices 0, 1, 2, ... of a grid lie where they are said to; see `SliceAxis.number`."""
    return bool(np.abs(places - np.arange(len(places))).max() <= _ON_GRID)


There: TypeAlias = tuple[Taps, InPlane] | Sampler | Across | None


@dataclass(frozen=True, eq=False)
class AxisPlan:
    """Everything that is to be done with the slices of an axis, where there are `count` of them.

    there: to the model's grid along k, and in the plane, as MONAI's zeros ask for, or across; None where that is the
        source's grid. back: from there.
    """

    count: int
    preprocessing_plan: PreprocessingPlan
    there: There
    back: Parallel | Slanted
    layout: Layout

    def needed(self, prepared: int) -> int:
        """How many slices the first `prepared` slices of the model's grid are made of."""
        match self.there:
            case None:
                return prepared
            case Sampler() | Across():  # where these lie depends on the number of slices
                return self.count
            case slices, _:
                return int(slices.upper[prepared - 1]) + 1

    def agrees(self, other: AxisPlan, *, prepared: int, restored: int) -> bool:
        """Whether the first `prepared` slices and the windows over them are those of another plan, for fewer slices,
        and the first `restored` slices are brought back in the same way; to the bit."""
        if other.layout.shape[0] < prepared or other.count < restored:
            return False
        ours, theirs = self.layout, other.layout
        return (
            _same_mapping(self.there, other.there, prepared)
            and _same_mapping(_to_source(self), _to_source(other), restored)
            and (ours.roi, ours.pads, ours.extent) == (theirs.roi, theirs.pads, theirs.extent)
            and ours.begins[1:] == theirs.begins[1:]
        )

    def mirrored(self) -> AxisPlan:
        """The same for slices that come from the other end."""
        there = self.there
        match there:
            case Sampler():
                there = there.reversed()
            case slices, in_plane:
                there = slices.reversed(), in_plane
        assert isinstance(self.back, Parallel), _FROM_FIRST
        back = replace(self.back, slices=self.back.slices.reversed())
        return replace(self, there=there, back=back, layout=self.layout.mirrored())


def plan(axis: SliceAxis, count: int, recipe: Recipe) -> AxisPlan:
    """What `recipe` does to `count` slices that lie on an axis."""
    if axis.count is not None:
        return plan(axis.forward(count), count, recipe).mirrored()
    steps = preprocessing_plan(axis.affine, (count, *axis.shape), recipe)
    how = steps.resampling
    there = None if how is None else _there(how, recipe)
    back = to_source(steps, np.arange(count, dtype=float), axis.shape, recipe.finish, still=_STILL)
    return AxisPlan(count, steps, there, back, lay_out(steps.frame.stored_shape, steps.frame.axes, recipe.window))


def _there(how: Resampling, recipe: Recipe) -> There:
    step, old, new = how.step, how.old, how.new
    sampler = Sampler.between(old, new, step) if recipe.zeros_matter else None
    if sampler is not None:
        return sampler
    if not (parallel(old, new, still=_STILL) and parallel(new, old, still=_STILL)):
        return Across(step, index_map(old, new), new.stored_shape[1:], old.stored_shape[0])
    k, j, i = axis_taps(old, new, step.interpolation, step.padding, align_corners=step.align_corners)
    return k, InPlane.of(j, i)


def _to_source(plan: AxisPlan) -> tuple[Taps, InPlane]:
    assert isinstance(plan.back, Parallel), _FROM_FIRST
    return plan.back.slices, plan.back.in_plane


def _same_mapping(a: There, b: There, count: int) -> bool:
    if isinstance(a, Sampler) and isinstance(b, Sampler):
        return a.same(b)
    if not isinstance(a, tuple) or not isinstance(b, tuple):
        return a is b
    return a[0].begins_like(b[0], count) and _equal(a[1].rows, b[1].rows) and _equal(a[1].columns, b[1].columns)


def _equal(a: Taps | None, b: Taps | None) -> bool:
    if a is None or b is None:
        return a is b
    return (len(a), a.old) == (len(b), b.old) and a.begins_like(b, len(a))
