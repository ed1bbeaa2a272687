"""How much memory a job will take, told before it begins; and how much there is.

    scores of as many slices as a window is deep       classes x depth x rows x columns of the model's grid
    scores on their way back                           as many, or 16 MiB
    windows, and what the network makes of them        batch x (input + activations + scores)
    slices at hand, prepared and as they came          depth x rows x columns, of both grids
    planes of other channels                           as many as a slice is made of, and a few ahead
    a slice on its way back, and its labels            classes x a few planes of both grids

None of it grows with the number of slices, but where a recipe needs the whole volume.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from medseg.bundle.bundle import Bundle
from medseg.errors import OutOfMemory
from medseg.inference.arriving.decoding import AHEAD
from medseg.inference.engines import gpu
from medseg.inference.engines.device import CPU
from medseg.inference.engines.engine import Engine
from medseg.inference.engines.held import held_by
from medseg.inference.windows.layout import Layout

FLOAT: Final = 4  # bytes
WAITING: Final = 16 << 20  # bytes of scores that wait to be brought back, while windows run
RUNTIME: Final = 150 << 20  # what libraries, threads and allocators take once they work; measured 50 to 250 MiB
_PLANES_BACK: Final = 4  # of scores between the model's grid and the source's: two held, one new, one blended
_LABEL_PLANES: Final = 16  # bytes a voxel: label planes, their parts, masks
_SOURCE_PLANES: Final = 12  # bytes a voxel of a slice: as it came, decoded, in modality values


@dataclass(frozen=True)
class Need:
    """Peak bytes beyond what is taken already.

    scores: of the slices that windows lie over. window: for each window of a batch. rest: whatever the batch; in the
    machine's memory always, where scores and windows may be on a GPU. before: while a whole volume is prepared.
    slab: of the rest, the prepared slices, which may be on a GPU, too.
    """

    scores: int
    window: int
    rest: int
    before: int = 0
    slab: int = 0

    def of(self, batch: int) -> int:
        return max(self.before, self.rest + self.scores + batch * self.window)


def need(
    layout: Layout,
    source: tuple[int, int],
    *,
    channels: int,
    classes: int,
    exclusive: bool,
    activations: int,
    volumes: tuple[int, int] = (0, 0),
    images: int = 0,
    exact: bool = False,
) -> Need:
    """What segmenting takes.

    layout: windows over the model's grid. source: (rows, columns) of a slice. activations: bytes of the network's
    tensors for one window. volumes: voxels of the source and of the model's grid, where slices do not stream.
    images: bytes of other channels' planes that are at hand.
    exact: windows are stitched in MONAI's order (`stitching.AsMonai`).
    """
    depth = layout.extent[0] + 2 * layout.reach
    model, voxels, window = layout.shape[1] * layout.shape[2], math.prod(source), math.prod(layout.roi)
    prepared = FLOAT * channels * ((depth + _PLANES_BACK) * model + volumes[1])
    waiting = min(WAITING + FLOAT * classes * model, FLOAT * classes * depth * model)
    back = FLOAT * classes * (_PLANES_BACK * model + source[0] * layout.shape[2] + 2 * voxels)
    labels = _LABEL_PLANES * voxels * (1 if exclusive else classes)
    slices = _SOURCE_PLANES * voxels * (AHEAD + 2)
    return Need(
        scores=FLOAT * (classes + exact) * _stitched(layout, exact=exact) + waiting,  # exact: and their weights
        window=activations + FLOAT * window * (channels * layout.slices + 3),  # cut out; a class, weighted, turned
        rest=RUNTIME + prepared + back + labels + slices + images,
        before=2 * FLOAT * channels * max(volumes),
        slab=prepared,
    )


def _stitched(layout: Layout, *, exact: bool) -> int:
    """Voxels of which scores are held: under a row of windows, and what the rows before it have left (`stitching`)."""
    depth, begins, plane = layout.extent[0], layout.begins[0], layout.shape[1] * layout.shape[2]
    over = [
        [first + depth - begin for first in begins[max(n - depth, 0) : n] if first + depth > begin]
        for n, begin in enumerate(begins)
    ]
    if exact:
        return (1 + max(map(len, over))) * len(layout.in_plane()) * math.prod(layout.extent) + depth * plane
    held = max(sum(slices) if layout.backwards else max(slices, default=0) for slices in over)
    return (depth + held) * plane


def fitting(need: Need, batch: int, free: int, on_device: int | None = None) -> int:
    """How many windows at a time, `batch` or what remains of it when halved, fit into `free` bytes; 0 where none does.

    on_device: bytes free on the GPU that the network runs on, if it does. Where that has no room for one window, the
    engine goes on elsewhere, so it is 1 then.
    """
    if on_device is not None:
        batch = gpu.most_that_fit(on_device, need.scores + need.slab, need.window, batch)
        return batch if max(need.before, need.rest) <= free else 0
    while batch and need.of(batch) > free:
        batch //= 2
    return batch


def fit(
    engine: Engine,
    layout: Layout,
    source: tuple[int, int],
    series_uid: str,
    volumes: tuple[int, int] = (0, 0),
    images: int = 0,
) -> tuple[int, str | None]:
    """How many windows at a time there is memory for, at most what is worth it, and a warning where it is less.

    See `need` for the arguments. Raises OutOfMemory where there is none for one window.
    """
    free = free_bytes(CPU)
    on_device = None if engine.device == CPU else gpu.share_bytes(engine.device)
    bundle, most = engine.bundle, engine.worth(layout)
    if free is None and on_device is None:
        return most, None
    free = sys.maxsize if free is None else free
    needed = need(
        layout,
        source,
        channels=bundle.image_channels,
        classes=bundle.out_channels,
        exclusive=bundle.recipe.exclusive,
        activations=engine.held(layout) * engine.mirrored,
        volumes=volumes,
        images=images,
        exact=engine.exact,
    )
    batch = fitting(needed, most, free, on_device)
    least = most if engine.exact else 1  # exact results need batches as they are
    if batch < least:
        raise OutOfMemory(
            f"series {series_uid}: about {gib(needed.of(least))} of memory needed, {gib(free)} free: "
            f"{bundle.out_channels} classes on slices of {layout.shape[1]} x {layout.shape[2]} voxels, bundle "
            f"{bundle.name}: close other programs, use a machine with more memory, or a bundle with fewer classes, "
            "larger voxels or a smaller window"
        )
    if batch >= min(most, bundle.recipe.window.batch if on_device else most):
        return batch, None
    less = f"{batch} instead of {most} windows at a time"
    room = free if on_device is None else on_device
    return batch, f"{less}: {gib(needed.of(most))} needed, {gib(room)} free"


def gpu_batch(network: nn.Module, bundle: Bundle, roi: Sequence[int], device: torch.device) -> int:
    """Windows at a time on a GPU, as `fit` finds where nothing else decides."""
    held = held_by(network, (bundle.in_channels, *roi), device) * 2 ** len(bundle.flips)
    each = held + FLOAT * math.prod(roi) * (bundle.in_channels + bundle.out_channels)
    return gpu.most_that_fit(gpu.share_bytes(device), 0, each)


def free_bytes(device: torch.device, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is free on a device; for the CPU what the machine, or the control group that we run in, has left.

    None where nobody tells.
    """
    if device.type == "cuda":
        return gpu.free_bytes(device)
    return min((free for free in (_of_machine(proc), *_of_groups(proc, cgroups)) if free is not None), default=None)


def _of_machine(proc: Path) -> int | None:
    kilobytes = _table(proc / "meminfo").get("MemAvailable:")
    return None if kilobytes is None else kilobytes << 10


def _of_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What our control group (version 2, or 1 as containers have it) and those around it have left."""
    try:
        groups = [line.split(":", 2) for line in (proc / "self/cgroup").read_text("ascii").splitlines()]
    except OSError:
        return
    for number, kinds, name in groups:
        root, limit, used = cgroups, "memory.max", "memory.current"
        if "memory" in kinds.split(","):
            root, limit, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        elif number != "0":
            continue
        group = root / name.lstrip("/")
        for folder in (group, *group.parents):
            most, taken = _number(folder / limit), _number(folder / used)
            if most is not None and taken is not None:
                # Files in the page cache count as taken, and are given back when memory is needed.
                cached = _table(folder / "memory.stat")
                yield max(most - taken + cached.get("inactive_file", 0) + cached.get("active_file", 0), 0)
            if folder == root:
                break


def _number(path: Path) -> int | None:
    """None where there is no such file, or no limit ("max")."""
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        rows = [line.split() for line in path.read_text("ascii").splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


def gib(size: int) -> str:
    """A size as people say it."""
    return f"{size / 2**30:.1f} GiB"
