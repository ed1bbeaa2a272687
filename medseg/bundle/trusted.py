"""What `--trust-bundle` does: MONAI's own ConfigParser evaluates the configuration, with any code that is in it.

Only the command line offers this, for a bundle whose author the user trusts; the gateway never does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from medseg.errors import InvalidBundle

INFERENCE: Final = "configs/inference.json"
PREPROCESSING: Final = ("preprocessing", "pre_transforms")
POSTPROCESSING: Final = ("postprocessing", "post_transforms")


def parsed(bundle: str, root: Path, keys: tuple[str, ...]) -> Any:
    """The first of `keys` that the configuration has, made by MONAI. Raises InvalidBundle where that fails."""
    return _first(bundle, _parser(root), keys)


def _parser(root: Path) -> Any:
    from monai.bundle import ConfigParser

    if str(root) not in sys.path:  # its configuration imports its own `scripts`
        sys.path.insert(0, str(root))
    parser = ConfigParser()
    parser.read_config(str(root / INFERENCE))
    parser["bundle_root"] = str(root)
    return parser


def _first(bundle: str, parser: Any, keys: tuple[str, ...]) -> Any:
    key = next((key for key in keys if key in parser.get()), keys[0])
    try:
        return parser.get_parsed_content(key)
    except (RuntimeError, ValueError, LookupError, TypeError, ImportError, AttributeError) as error:
        raise InvalidBundle(bundle, key, f"MONAI cannot make it: {error}") from error


def inferer_config(bundle: str, root: Path) -> Mapping[str, Any]:
    """The inferer MONAI makes, as the configuration it would have had."""
    inferer = parsed(bundle, root, ("inferer",))
    names = ("roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval", "spatial_dim")
    settings = {name: getattr(inferer, name) for name in names if hasattr(inferer, name)}
    kind = next((base.__name__ for base in type(inferer).__mro__ if base.__module__.startswith("monai.")), "")
    return {"_target_": kind, **settings}


def transforms(bundle: str, root: Path, left_out: frozenset[str]) -> tuple[Any, Any]:
    """(preprocessing, postprocessing) made by MONAI, without the transforms whose class is named in `left_out`."""
    from monai.transforms import Compose

    parser = _parser(root)
    chains = []
    for keys in (PREPROCESSING, POSTPROCESSING):
        made = _first(bundle, parser, keys)
        if not isinstance(made, Compose):
            raise InvalidBundle(bundle, keys[0], f"expected Compose, found {type(made).__name__}")
        # in place: Invertd holds this object and undoes what it recorded
        made.transforms = tuple(step for step in made.transforms if type(step).__name__ not in left_out)
        chains.append(made)
    return chains[0], chains[1]
