"""The arguments of a bundle's components, each read once with its kind and default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from medseg.bundle.expression import Dtype
from medseg.errors import InvalidBundle

Config: TypeAlias = Mapping[str, Any]
MISSING: Final = object()


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


class Arguments:
    """The arguments of one component, each read once with its kind and default; what is left over is an error."""

    def __init__(self, bundle: str, key: str, config: Config, channels: int = 1) -> None:
        self._bundle, self._key, self.channels = bundle, key, channels
        self._values = {name: value for name, value in config.items() if name != "_target_"}
        self.name: str = config["_target_"]

    def wrong(self, name: str, why: str) -> InvalidBundle:
        return InvalidBundle(self._bundle, f"{self._key}::{name}", why)

    def value(self, name: str, default: Any = MISSING) -> Any:
        found = self._values.pop(name, default)
        if found is MISSING:
            raise self.wrong(name, f"{self.name} needs it")
        return found

    def number(self, name: str, default: Any = MISSING) -> float:
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, f"expected a number, found {value!r}")
        return float(value)

    def maybe_number(self, name: str, default: Any = None) -> float | None:
        value = self.value(name, default)
        self._values[name] = value
        if value is None:
            del self._values[name]
            return None
        return self.number(name)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.value(name, default)
        if isinstance(value, list | tuple) and len(value) == 1:  # one per key
            value = value[0]
        if not isinstance(value, bool):
            raise self.wrong(name, f"expected true or false, found {value!r}")
        return value

    def choice(self, name: str, default: str, allowed: Sequence[str]) -> str:
        value = self.value(name, default)
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if not isinstance(value, str) or value.lower() not in allowed:
            raise self.wrong(name, f"expected one of {', '.join(allowed)}, found {value!r}")
        return value.lower()

    def numbers(self, name: str, count: int, default: Any = MISSING) -> tuple[float, ...]:
        """`count` numbers from one number or a sequence of them."""
        value = self.value(name, default)
        items = list(value) if isinstance(value, list | tuple) else [value] * count
        if len(items) != count or not all(is_number(item) for item in items):
            raise self.wrong(name, f"expected a number or {count} of them, found {value!r}")
        return tuple(float(item) for item in items)

    def whole(self, name: str, default: Any = MISSING) -> int:
        value = self.number(name, default)
        if value != int(value):
            raise self.wrong(name, f"expected a whole number, found {value}")
        return int(value)

    def ignore(self, *names: str) -> None:
        for name in names:
            self._values.pop(name, None)

    def expect(self, **defaults: Any) -> None:
        """Settings the engine does not have: anything but these values goes through MONAI."""
        for name, default in defaults.items():
            found = self.value(name, default)
            if found != default:
                raise UnknownStep(f"{self.name} with {name}={found!r}")

    def float32(self, name: str = "dtype") -> None:
        found = self.value(name, None)
        if found not in (None, Dtype("float32"), "float32"):
            raise UnknownStep(f"{self.name} to {found.name if isinstance(found, Dtype) else found!r}")

    def done(self) -> None:
        if self._values:
            name = next(iter(self._values))
            raise self.wrong(name, f"{self.name} has no such argument")


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


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
