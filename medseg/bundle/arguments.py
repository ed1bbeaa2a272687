"""The arguments of a bundle's components, and the chains of transforms that they stand in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from medseg.allowed import FLAG, INTEGER, NUMBER, Allowed, number, or_none, several, string
from medseg.bundle.expression import Dtype
from medseg.bundle.schema import ABSENT, Reader, as_whole
from medseg.errors import InvalidBundle

Config: TypeAlias = Mapping[str, Any]


# keep the voxels as they are, or only concern files, devices and containers
WITHOUT_EFFECT: Final = frozenset(
    {
        "LoadImaged",
        "SaveImaged",
        "EnsureChannelFirstd",
        "SelectItemsd",
        "DeleteItemsd",
        "CopyItemsd",
        "Identityd",
        "ToDeviced",
    }
)


OF_TYPE: Final = frozenset({"EnsureTyped", "ToTensord", "CastToTyped"})


class UnknownStep(Exception):
    """A step or setting that only MONAI's own transforms carry out."""


class Arguments(Reader):
    """The arguments of one component, as MONAI takes them: a list of one for one, any number of either kind."""

    def __init__(self, bundle: str, key: str, config: Config, channels: int = 1) -> None:
        super().__init__(bundle, key, {name: value for name, value in config.items() if name != "_target_"})
        self.name: str = config["_target_"]
        self.channels = channels

    def maybe_number(self, name: str, default: Any = None) -> float | None:
        value = self.read(name, or_none(NUMBER), default)
        return None if value is None else float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        return self.read(name, Allowed(FLAG.allowed, lambda value: FLAG.read(_alone(value))), default)

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        def read(value: Any) -> str:
            chosen = string(_alone(value)).lower()
            if chosen not in choices:
                raise ValueError(value)
            return chosen

        return self.read(name, Allowed(f"one of {', '.join(choices)}", read), default)

    def numbers(self, name: str, count: int, default: Any = ABSENT) -> tuple[float, ...]:
        """`count` numbers from one number or a sequence of them."""

        def read(value: Any) -> tuple[float, ...]:
            items = value if isinstance(value, list | tuple) else [value] * count
            return tuple(map(float, several(number, least=count, most=count)(items)))

        return self.read(name, Allowed(f"a number or {count} of them", read), default)

    def whole(self, name: str, default: Any = ABSENT) -> int:
        return self.read(name, Allowed(INTEGER.allowed, as_whole), default)

    def expect(self, **defaults: Any) -> None:
        """Settings the engine does not have: anything but these values goes through MONAI."""
        for name, default in defaults.items():
            given = self.value(name, default)
            if given != default:
                raise UnknownStep(f"{self.name} with {name}={given!r}")

    def float32(self, name: str = "dtype") -> None:
        dtype = self.value(name, None)
        if dtype not in (None, Dtype("float32"), "float32"):
            raise UnknownStep(f"{self.name} to {dtype.name if isinstance(dtype, Dtype) else dtype!r}")


def _alone(value: Any) -> Any:
    """The value of a list of one: MONAI takes one for each key."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def chain(bundle: str, key: str, config: Config) -> Iterator[tuple[str, Config]]:
    """The transforms of a `Compose`, nested ones in their place, each with its key."""
    if config["_target_"] != "Compose":
        yield key, config
        return
    transforms = config.get("transforms") or ()
    for i, transform in enumerate(transforms if isinstance(transforms, list | tuple) else [transforms]):
        here = f"{key}::transforms::{i}"
        if not isinstance(transform, Mapping) or "_target_" not in transform:
            raise InvalidBundle(bundle, here, f"expected a transform with _target_, found {type(transform).__name__}")
        yield from chain(bundle, here, transform)


def keys_of(bundle: str, key: str, config: Config) -> tuple[str, ...]:
    """The entries of the data dictionary that a transform changes."""
    keys = config.get("keys", ())
    keys = (keys,) if isinstance(keys, str) else keys
    if not isinstance(keys, list | tuple) or not all(isinstance(name, str) for name in keys):
        raise InvalidBundle(bundle, f"{key}::keys", f"expected names, found {keys!r}")
    return tuple(keys)


def for_key(transform: Config, keys: tuple[str, ...], wanted: str) -> dict[str, Any]:
    """The transform's arguments for one of its keys, where MONAI takes a list with one entry per key."""
    place = keys.index(wanted)
    per_key = ("mode", "padding_mode", "align_corners", "dtype", "scale_extent")
    return {
        name: value[place] if name in per_key and isinstance(value, list | tuple) and len(value) == len(keys) else value
        for name, value in transform.items()
    }
