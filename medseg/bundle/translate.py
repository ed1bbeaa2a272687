"""A resolved MONAI configuration becomes a `Recipe`.

Steps known here run in the streaming engine. A step that a bundle may use but that is not known sets
`Recipe.fallback`, and the whole volume goes through MONAI's own transforms. What does not change the voxels of the
image or the prediction (loading, saving, channel order, copies, other keys such as "label") is left out.
Meanings and defaults are those of MONAI 1.6.
"""

from __future__ import annotations

from medseg.bundle.arguments import Config
from medseg.bundle.finishing import finish_from_config
from medseg.bundle.preparing import steps_from_config
from medseg.bundle.recipe import Recipe
from medseg.bundle.window import window_from_config
from medseg.errors import InvalidBundle


def recipe_from_config(
    bundle: str,
    *,
    preprocessing: Config,
    inferer: Config,
    postprocessing: Config,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
) -> tuple[Recipe, tuple[int, ...]]:
    """The recipe of resolved `preprocessing`, `inferer` and `postprocessing`, and the labels whose largest piece the
    chain keeps after the return to the source grid. Raises InvalidBundle.
    """
    window = window_from_config(bundle, inferer, spatial_dims)
    if in_channels % window.slices:
        why = f"expected a multiple of the inferer's {window.slices} slices, found {in_channels}"
        raise InvalidBundle(bundle, "network_def::in_channels", why)
    preparing = steps_from_config(bundle, preprocessing, in_channels // window.slices)
    finish, keep_after, unknown_after = finish_from_config(bundle, postprocessing, out_channels)
    unknown = (*preparing.unknown, *unknown_after)
    reason = f"MONAI's own transforms are needed for {', '.join(unknown)}" if unknown else None
    return Recipe(preparing.steps, window, finish, reason, preparing.keys), keep_after
