"""The parts of a bundle's configuration that inference needs, resolved."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medseg.bundle.recipe import Activation, Finish, Order, Recipe
from medseg.bundle.safe_config import SafeConfig
from medseg.bundle.targets import Role
from medseg.bundle.translate import recipe_from_config
from medseg.bundle.trusted import POSTPROCESSING, PREPROCESSING, inferer_config
from medseg.bundle.window import window_from_config
from medseg.errors import InvalidBundle

logger = logging.getLogger(__name__)

NETWORK: Final = ("network_def", "network")
INFERER: Final = ("inferer",)
NO_STEPS: Final[Mapping[str, Any]] = {"_target_": "Compose", "transforms": []}
WHOLE: Final[Mapping[str, Any]] = {"_target_": "SimpleInferer"}
# networks whose constructor does not default to three axes
DEFAULT_DIMS: Final = {"FlexibleUNet": 2, "torch.nn.Conv2d": 2}


@dataclass(frozen=True)
class Parts:
    """network, preprocessing, postprocessing: resolved components, empty where MONAI's parser must make them.

    keep_largest: labels whose largest piece is kept after the return to the source grid.
    """

    network: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    postprocessing: Mapping[str, Any]
    in_channels: int
    out_channels: int
    recipe: Recipe
    keep_largest: tuple[int, ...]
    trusted: bool


def read_parts(
    bundle: str,
    root: Path,
    config: SafeConfig,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    *,
    trust: bool,
) -> Parts:
    """inputs, outputs: `network_data_format` of the metadata, asked where the network does not say its channels.

    Raises InvalidBundle, unless `trust`: then a part that the safe reader refuses is left to MONAI's parser.
    """
    refused: list[str] = []

    def component(keys: tuple[str, ...], role: Role, absent: Mapping[str, Any] | None) -> Mapping[str, Any]:
        key = next((key for key in keys if key in config), None)
        if key is None:
            if absent is None:
                raise InvalidBundle(bundle, keys[0], "missing from configs/inference.json")
            return absent
        try:
            return config.component(key, role)
        except InvalidBundle as error:
            if not trust:
                raise
            logger.warning("evaluated by MONAI's parser, since the bundle is trusted: %s", error)
            refused.append(key)
            return {}

    network = component(NETWORK, Role.NETWORK, None)
    preprocessing = component(PREPROCESSING, Role.TRANSFORM, NO_STEPS)
    inferer = component(INFERER, Role.INFERER, WHOLE)
    postprocessing = component(POSTPROCESSING, Role.TRANSFORM, NO_STEPS)
    if "inferer" in refused:
        inferer = inferer_config(bundle, root)
    dims = _dims(bundle, network, inputs)
    in_channels = _channels(bundle, network, "in_channels", inputs)
    out_channels = _channels(bundle, network, "out_channels", outputs)
    if preprocessing and postprocessing:
        recipe, keep_largest = recipe_from_config(
            bundle,
            preprocessing=preprocessing,
            inferer=inferer,
            postprocessing=postprocessing,
            spatial_dims=dims,
            in_channels=in_channels,
            out_channels=out_channels,
        )
    else:
        finish = Finish(Activation.NONE, None if out_channels > 1 else 0.5, Order.PROBABILITIES_FIRST, nearest=False)
        reason = f"only MONAI's parser reads {' and '.join(refused)}"
        recipe, keep_largest = Recipe((), window_from_config(bundle, inferer, dims), finish, reason), ()
    return Parts(network, preprocessing, postprocessing, in_channels, out_channels, recipe, keep_largest, bool(refused))


def _dims(bundle: str, network: Mapping[str, Any], inputs: Mapping[str, Any]) -> int:
    shape = inputs.get("spatial_shape")
    stated = len(shape) if isinstance(shape, list) and not network else 3
    dims = network.get("spatial_dims", DEFAULT_DIMS.get(network.get("_target_", ""), stated))
    if dims not in (2, 3):
        raise InvalidBundle(bundle, "network_def::spatial_dims", f"expected 2 or 3, found {dims!r}")
    return int(dims)


def _channels(bundle: str, network: Mapping[str, Any], name: str, format_: Mapping[str, Any]) -> int:
    channels = network.get(name, format_.get("num_channels"))
    if not isinstance(channels, int) or isinstance(channels, bool) or not 1 <= channels <= 4096:
        why = f"expected a number of channels here or in network_data_format, found {channels!r}"
        raise InvalidBundle(bundle, f"network_def::{name}", why)
    return channels
