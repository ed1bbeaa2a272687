"""A bundle's transform chains as MONAI's own objects, for the whole-volume fallback and for comparing with MONAI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from medseg.bundle.arguments import chain
from medseg.bundle.bundle import Bundle
from medseg.bundle.expression import DEVICE, Dtype
from medseg.bundle.finishing import PREDICTION
from medseg.bundle.preparing import IMAGE
from medseg.bundle.targets import TARGETS
from medseg.errors import InvalidBundle

# reading, writing and the order of axes on disk are ours
OURS: Final = frozenset({"LoadImaged", "SaveImaged", "EnsureChannelFirstd"})


def monai_transforms(bundle: Bundle, device: torch.device) -> tuple[Any, Any]:
    """(preprocessing, postprocessing) as `monai.transforms.Compose`, without the steps that read and write.

    preprocessing takes {"image": MetaTensor (channels, x, y, z) with its RAS affine}, or each channel under its key
    where the recipe has `keys`; postprocessing takes its result with "pred" added, (channels, *S) of network output,
    and inverts with that very preprocessing. A chain without `Invertd` is given one before all else, so that "pred"
    always comes back on the source grid.
    Raises InvalidBundle where a transform refuses its arguments.
    """
    from monai.transforms import Compose, Invertd

    if bundle.preprocessing and bundle.postprocessing:
        lazy = bundle.preprocessing.get("lazy") is True
        before = Compose(_steps(bundle, "preprocessing", bundle.preprocessing, device, None), lazy=lazy)
        after = Compose(_steps(bundle, "postprocessing", bundle.postprocessing, device, before))
    else:
        from medseg.bundle.trusted import transforms

        before, after = transforms(bundle.name, bundle.path, OURS)
    if not any(isinstance(step, Invertd) for step in after.flatten().transforms):
        key = bundle.recipe.keys[0] if bundle.recipe.keys else IMAGE
        invert = Invertd(PREDICTION, before, orig_keys=key, nearest_interp=False)
        after = Compose([invert, *after.transforms])
    return before, after


def _steps(bundle: Bundle, key: str, config: Mapping[str, Any], device: torch.device, inverted: Any) -> list[Any]:
    return [
        _build(bundle.name, place, step, device, inverted)
        for place, step in chain(bundle.name, key, config)
        if step["_target_"] not in OURS
    ]


def _build(bundle: str, key: str, config: Mapping[str, Any], device: torch.device, inverted: Any) -> Any:
    target = TARGETS[config["_target_"]]
    arguments = {name: _plain(value, device) for name, value in config.items() if name != "_target_"}
    if target.name == "Invertd":
        arguments["transform"] = inverted
    try:
        return target.load()(**arguments)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, LookupError) as error:
        raise InvalidBundle(bundle, key, f"{target.name} cannot be made: {error}") from error


def _plain(value: Any, device: torch.device) -> Any:
    """Resolved values as MONAI takes them."""
    match value:
        case Dtype(name=name):
            return getattr(torch, name)
        case dict():
            return {key: _plain(item, device) for key, item in value.items()}
        case list() | tuple():
            return type(value)(_plain(item, device) for item in value)
    return device if value is DEVICE else value
