"""A bundle's configuration, resolved without executing anything.

MONAI's ConfigParser evaluates `$` text with `eval`, imports whatever `_target_` names and runs what it finds
(GHSA-873f-pvrv-4x83, GHSA-x6pr-233j-x5cw, GHSA-wvpx-5qmp-46g3). Here

    "@id::key"     is looked up in the configuration
    "%id", "%configs/other.json::id"
                   is a copy of another part, or of another file among the bundle's own configuration files
    "$..."         is read by `expression`: arithmetic and references, no names and no calls
    "_target_"     must be a name in `targets.TARGETS`, and stays a name: nothing is imported here

Only what is asked for is visited, so `imports`, dataset, evaluator, handlers, `initialize` and `run` of a configuration
made for training may hold anything. Format: MONAI's bundle specification, docs/source/mb_specification.rst and
config_syntax.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final

from medseg.bundle.expression import DEVICE, LARGEST, REFERENCE, RefusedError, evaluate
from medseg.bundle.targets import TARGETS, Role
from medseg.errors import InvalidBundle

LARGEST_FILE: Final = 4 * 1024 * 1024  # bytes
DEEPEST: Final = 60  # nested values, references counted
MOST_VALUES: Final = 50_000  # of one resolved part
MOST_VISITS: Final = 500_000  # of values while resolving; copies made by `%` count each time
DEVICE_IDS: Final = frozenset({"device"})
ROOT: Final = "bundle_root"
TWINS: Final = (".pt", ".pth", ".ckpt")  # of what a .safetensors of the same stem holds the same weights
OURS: Final = frozenset({"LoadImaged", "SaveImaged"})  # medseg reads and writes itself, so only their keys matter
RESERVED: Final = frozenset({"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"})


def read_json(bundle: str, root: Path, name: str) -> dict[str, Any]:
    """The object in a configuration file of the bundle; `name` is relative to `root`, whose path must be resolved.

    Raises InvalidBundle for a missing, oversized or malformed file, a repeated key, a number that is not finite,
    and a path that leaves the bundle.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
            raise InvalidBundle(bundle, name, f"the key {twice!r} appears twice")
        return found

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise InvalidBundle(bundle, name, f"{text} is not a finite number")
        return value

    def whole(text: str) -> int:
        if abs(value := int(text)) > LARGEST:
            raise InvalidBundle(bundle, name, f"{text[:30]} is too large to be meant")
        return value

    path = inside(bundle, root, name)
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise InvalidBundle(bundle, name, f"{size} bytes; a configuration has at most {LARGEST_FILE}")
        text = path.read_text("utf-8-sig")
        content = json.loads(text, object_pairs_hook=once, parse_constant=number, parse_float=number, parse_int=whole)
    except OSError as error:
        raise InvalidBundle(bundle, name, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidBundle(bundle, name, f"not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise InvalidBundle(bundle, name, f"expected an object of keys, found {type(content).__name__}")
    return content


def inside(bundle: str, root: Path, name: str) -> Path:
    """The file `name` of the bundle, links followed. Raises InvalidBundle where it is missing or lies elsewhere."""
    try:
        path = (root / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise InvalidBundle(bundle, name, "no such file in the bundle") from None
    if not path.is_relative_to(root):
        raise InvalidBundle(bundle, name, "leads out of the bundle's folder")
    if not path.is_file():
        raise InvalidBundle(bundle, name, "not a file")
    return path


class SafeConfig:
    """Resolves parts of one configuration; each part once.

    A resolved part consists of dict, list, tuple, str, int, float, bool, None, `DEVICE` and `Dtype`. A component stays
    a dict whose `_target_` is the name as listed in `targets`.
    """

    def __init__(self, bundle: str, root: Path, content: Mapping[str, Any], file: str = "configs/inference.json"):
        self._bundle = bundle
        self._root = root
        self._content = content
        self._file = file
        self._resolved: dict[str, Any] = {}
        self._included: dict[str, dict[str, Any]] = {}
        self._underway: list[str] = []
        self._visits = 0

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def component(self, key: str, role: Role) -> dict[str, Any]:
        """The resolved component under `key`. Raises InvalidBundle if it is missing or of another kind."""
        value = self.get(key)
        if not isinstance(value, dict) or "_target_" not in value:
            raise InvalidBundle(self._bundle, key, f"expected a {role} with _target_, found {type(value).__name__}")
        actual = TARGETS[value["_target_"]].role
        if actual is not role:
            raise InvalidBundle(self._bundle, f"{key}::_target_", f"expected a {role}, found a {actual}")
        return value

    def get(self, key: str) -> Any:
        """The resolved value of `a::b`. Raises InvalidBundle naming the key that breaks a rule."""
        key = key.replace("#", "::")
        if key in DEVICE_IDS:
            return DEVICE
        if key == ROOT:  # wherever its author had it
            return "."
        if key in self._underway:
            raise InvalidBundle(self._bundle, key, f"refers to itself: {' -> '.join((*self._underway, key))}")
        if len(self._underway) > DEEPEST:
            raise InvalidBundle(self._bundle, key, f"references nested deeper than {DEEPEST}")
        if key not in self._resolved:
            self._underway.append(key)
            try:
                self._resolved[key] = self._counted(self._resolve(self._raw(self._content, key), key, 0), key)
            finally:
                self._underway.pop()
        return self._resolved[key]

    def top(self) -> Iterator[tuple[str, Any]]:
        """Keys of the configuration, and what is written there."""
        yield from self._content.items()

    def raw(self, key: str) -> Any:
        """What is written under `a::b`, unresolved. Raises InvalidBundle where there is no such key."""
        return self._raw(self._content, key.replace("#", "::"))

    def written(self, text: str, key: str) -> tuple[Any, str]:
        """What a macro (without its `%`) stands for, unresolved, and the key it then has. Raises InvalidBundle."""
        file, _, name = text.replace("#", "::").rpartition(".json")
        if file:
            return self._raw(self._include(f"{file.removeprefix('configs/')}.json", key), name.lstrip(":")), key
        origin = self.absolute(name, key)
        return self._raw(self._content, origin), origin

    def resolve(self, value: Any, key: str) -> Any:
        """A value that is written at `key`, resolved. Raises InvalidBundle."""
        return self._counted(self._resolve(value, key, 0), key)

    def exists(self, name: str) -> bool:
        """Whether the bundle has a file of that name, or weights of that name as safetensors."""
        path = PurePosixPath(name)
        files = [path, path.with_suffix(".safetensors")] if path.suffix in TWINS else [path]
        for file in files:
            with suppress(InvalidBundle):
                return inside(self._bundle, self._root, str(file)).is_file()
        return False

    def _raw(self, content: Any, key: str) -> Any:
        value = content
        for part in key.split("::") if key else ():
            try:
                value = value[int(part)] if isinstance(value, list) else value[part]
            except (LookupError, TypeError, ValueError):
                raise InvalidBundle(self._bundle, key, f"no such key: {part!r} is not in {self._file}") from None
        return value

    def _resolve(self, value: Any, key: str, depth: int) -> Any:
        self._visits += 1
        if depth > DEEPEST or self._visits > MOST_VISITS:
            raise InvalidBundle(self._bundle, key, f"nested deeper than {DEEPEST} or more than {MOST_VISITS} values")
        match value:
            case str():
                return self._text(value, key, depth)
            case dict() if "_target_" in value:
                return self._component(value, key, depth)
            case dict():
                return self._items(value, key, depth)
            case list():
                return list(self._items(dict(enumerate(value)), key, depth).values())
        return value

    def _items(self, values: dict[Any, Any], key: str, depth: int) -> dict[Any, Any]:
        found = {name: self._resolve(item, f"{key}::{name}", depth + 1) for name, item in values.items()}
        # as MONAI, a disabled component is left out
        return {
            name: item
            for name, item in found.items()
            if item is not None or not (isinstance(values[name], dict) and "_target_" in values[name])
        }

    def _text(self, text: str, key: str, depth: int) -> Any:
        if text.startswith("$"):
            try:
                return evaluate(text[1:], lambda name: self.get(self.absolute(name, key)), self.exists)
            except RefusedError as refusal:
                raise InvalidBundle(self._bundle, key, f"{refusal}; only arithmetic and references are read") from None
        if text.startswith("%"):
            return self._macro(text[1:], key, depth)
        whole = REFERENCE.fullmatch(text)
        return self.get(self.absolute(whole[1], key)) if whole else text

    def absolute(self, name: str, key: str) -> str:
        """A relative id counts levels up from the key it stands at: `::a` is beside it, `::::a` one further up."""
        name = name.replace("#", "::")
        plain = name.lstrip(":")
        levels = (len(name) - len(plain)) // 2
        parts = key.split("::")
        if levels > len(parts):
            raise InvalidBundle(self._bundle, key, f"@{name} leads out of the configuration")
        return "::".join((*parts[:-levels], plain)) if levels else plain

    def _macro(self, text: str, key: str, depth: int) -> Any:
        value, origin = self.written(text, key)
        return self._resolve(value, origin, depth + 1)

    def _include(self, file: str, key: str) -> dict[str, Any]:
        """Another configuration file of the bundle, from configs/ itself, so that the digest covers it."""
        if Path(file).name != file:
            raise InvalidBundle(self._bundle, key, f"%{file}: only files in configs/ are included")
        if file not in self._included:
            try:
                self._included[file] = read_json(self._bundle, self._root, f"configs/{file}")
            except InvalidBundle as error:
                raise InvalidBundle(self._bundle, key, f"%{file}: {error.why}") from None
        return self._included[file]

    def _component(self, value: dict[str, Any], key: str, depth: int) -> dict[str, Any] | None:
        disabled = self._resolve(value.get("_disabled_", False), f"{key}::_disabled_", depth + 1)
        if disabled is True or (isinstance(disabled, str) and disabled.strip().lower() == "true"):
            return None
        target = value["_target_"]
        known = TARGETS.get(target) if isinstance(target, str) else None
        if known is None:
            raise InvalidBundle(self._bundle, f"{key}::_target_", f"{target!r} is not a class that a bundle may use")
        if value.get("_mode_", "default") != "default":
            raise InvalidBundle(self._bundle, f"{key}::_mode_", f"{value['_mode_']!r}: components are only constructed")
        if "_requires_" in value:
            raise InvalidBundle(self._bundle, f"{key}::_requires_", "nothing may run before a component is constructed")
        wanted = {"keys"} if known.name in OURS else value.keys() - RESERVED
        arguments = self._items({name: item for name, item in value.items() if name in wanted}, key, depth)
        return {"_target_": known.listed, **arguments}

    def _counted(self, value: Any, key: str) -> Any:
        """The value, unless it holds too many, shared ones counted each time they appear."""
        count, stack = 0, [value]
        while stack:
            item = stack.pop()
            count += 1
            if count + len(stack) > MOST_VALUES:
                raise InvalidBundle(self._bundle, key, f"more than {MOST_VALUES} values")
            if isinstance(item, dict):
                stack.extend(item.values())
            elif isinstance(item, list | tuple):
                stack.extend(item)
        return value
