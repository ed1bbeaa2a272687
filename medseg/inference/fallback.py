"""The whole volume through MONAI's own transforms, for a recipe with a step that only MONAI carries out.

Windows run as ever, but the scores of the whole volume exist at once and MONAI inverts them: more memory, no
streaming, the same labels as MONAI's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.bundle.bundle import Bundle
from medseg.bundle.recipe import Activation, Recipe, Resample
from medseg.bundle.transforms import monai_transforms
from medseg.dicom.instance import Vector
from medseg.errors import InvalidBundle
from medseg.inference.engines.device import is_out_of_memory
from medseg.inference.grids.grid import Axes, source_frame
from medseg.inference.grids.restore import Certainty, activate, discretise

Scores = Callable[[Tensor, Axes], Iterator[tuple[int, Tensor]]]
"""A volume (C, k, j, i) and its axes -> slabs of class scores, as `streaming.stream` gives them."""

MODEL_AXES = Axes((0, 1, 2), (False, False, False))


def reason_for_fallback(recipe: Recipe) -> str | None:
    """Why a recipe cannot run in the streaming engine, or None."""
    if recipe.fallback is None and sum(isinstance(step, Resample) for step in recipe.steps) > 1:
        return "the recipe resamples twice"
    return recipe.fallback


def label_planes(
    voxels: Tensor, affine: Vector, coordinates: Vector, bundle: Bundle, scores_of: Scores, certainty: Certainty
) -> Iterator[Tensor]:
    """Label planes of the source slices at `coordinates`: (1, rows, columns) channel numbers, or (C, rows, columns).

    voxels: (C, k, j, i) on the source's uniform grid. affine: (k, j, i, 1) to LPS mm.
    Raises InvalidBundle where MONAI cannot apply a transform to this volume.
    """
    from monai.data import MetaTensor
    from monai.transforms import Activationsd

    finish = bundle.recipe.finish
    before, after = monai_transforms(bundle, torch.device("cpu"))
    k, j, i = voxels.shape[1:]
    to_ras = torch.from_numpy(source_frame(affine, (k, j, i)).affine)
    images = voxels.permute(0, 3, 2, 1).contiguous()
    given = {key: images[n : n + 1] for n, key in enumerate(bundle.recipe.keys)} or {"image": images}
    data = {key: MetaTensor(image, affine=to_ras) for key, image in given.items()}
    data = _apply(bundle, "preprocessing", before, data)
    prepared: Tensor = data["image"].as_tensor().float()
    if prepared.ndim != 4 or prepared.shape[0] != bundle.image_channels:
        raise InvalidBundle(
            bundle.name,
            "preprocessing",
            f"gives {tuple(prepared.shape)}, expected ({bundle.image_channels}, x, y, z) for the network",
        )
    scores = torch.cat([slab.cpu() for _, slab in scores_of(prepared, MODEL_AXES)], dim=1)
    for plane in scores.unbind(dim=1):
        certainty.add(activate(plane, finish.activation), finish)
    activates = any(isinstance(step, Activationsd) for step in after.flatten().transforms)
    if finish.activation is Activation.SIGMOID and not activates:
        scores = scores.sigmoid()
    data["pred"] = MetaTensor(scores, meta=data["image"].meta)
    labels = _apply(bundle, "postprocessing", after, data)["pred"].as_tensor().permute(0, 3, 2, 1)  # (C, k, j, i)
    if tuple(labels.shape[1:]) != (k, j, i):
        raise InvalidBundle(
            bundle.name,
            "postprocessing",
            f"gives {tuple(labels.shape[1:])} voxels (k, j, i), expected the source's {(k, j, i)}",
        )
    discrete = finish.threshold is None and labels.shape[0] == 1
    for at in np.rint(coordinates).astype(int):
        plane = labels[:, at]
        yield plane.round().to(torch.uint8) if discrete else discretise(plane, finish)


def _apply(bundle: Bundle, key: str, transform: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    try:
        result: dict[str, Any] = transform(data)
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        cause = error.__cause__ or error
        if is_out_of_memory(cause):
            raise MemoryError(str(cause)) from error
        raise InvalidBundle(bundle.name, key, f"MONAI cannot apply it to this volume: {cause}") from error
    return result
