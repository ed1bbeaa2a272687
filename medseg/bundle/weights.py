"""Which file of weights a bundle's configuration loads into its network, without running it.

    what runs           `initialize`, `run` and the evaluator, with all that these refer to
    CheckpointLoader    its `load_path`, and under which name of `load_dict` the network stands
    an expression       @network.load_state_dict(torch.load(@path)["model"]), copy_model_state, load_model
    nothing of these    models/model.safetensors, or models/model.pt

A choice (`@loader(@evaluator) if @load_pretrain else None`) is made as the expression makes it. What would load
something into the network in a way that is not read is refused, and so is a configuration that loads two files.
"""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from medseg.bundle.expression import REFERENCE, Parsed, RefusedError, Resolve, dotted, parse, read
from medseg.bundle.safe_config import TWINS, SafeConfig, inside
from medseg.bundle.trusted import parsed as made_by_monai
from medseg.errors import InvalidBundle

USUAL: Final = ("models/model.safetensors", "models/model.pt")
RUNS: Final = ("initialize", "run", "evaluate", "evaluating", "evaluator", "handlers", "val_handlers")
WRAPPERS: Final = ("DataParallel", "DistributedDataParallel")
READS: Final = ("torch.load", "load_file", "safetensors.torch.load_file")
TORCHSCRIPT: Final = "TorchScript is not read: it can run code; save the state dict"
SUSPECT: Final = ("load", "weights", "restore", "checkpoint", "ckpt", "pretrain")


@dataclass(frozen=True)
class Weights:
    """file: absolute. twin: another file there that must hold the same. entry: of a checkpoint, where it has it."""

    file: Path
    twin: Path | None = None
    entry: str | None = None


@dataclass(frozen=True)
class _Load:
    """`key` of the configuration loads `path`, as it is written there; on: whether it does so as things are set."""

    key: str
    path: str
    entry: str | None
    on: bool = True


def find_weights(
    bundle: str, root: Path, config: SafeConfig, network: str, *, trained: bool = True, trust: bool = False
) -> Weights:
    """network: the key of the network in the configuration. Raises InvalidBundle."""
    loads = _Reader(bundle, root, config, network, trust).loads()
    if not loads:
        return _usual(bundle, root, trained)
    on = [load for load in loads if load.on]
    if not on:
        first = loads[0]
        _named(bundle, root, _within(bundle, root, first), first, trained)
        why = f"{first.path} is named, but as the configuration is set nothing is loaded: let it be loaded"
        raise InvalidBundle(bundle, first.key, why)
    files = {_within(bundle, root, load): load for load in on}
    if len(files) > 1:
        named = " and ".join(f"{file} ({load.key})" for file, load in files.items())
        why = f"the configuration loads {named} into the same network: leave the one that is meant"
        raise InvalidBundle(bundle, on[-1].key, why)
    file, load = next(iter(files.items()))
    return _named(bundle, root, file, load, trained)


def _usual(bundle: str, root: Path, trained: bool) -> Weights:
    files = [inside(bundle, root, file) for file in USUAL if _there(root, file)]
    if files:
        return Weights(files[0], files[1] if len(files) > 1 else None)
    if not trained:
        return Weights(root / USUAL[0])
    if (root / "models/model.ts").exists():
        raise InvalidBundle(bundle, "models/model.ts", TORCHSCRIPT)
    why = "no weights: a bundle has models/model.safetensors or models/model.pt, or its configuration names them"
    raise InvalidBundle(bundle, USUAL[0], why)


def _named(bundle: str, root: Path, file: str, load: _Load, trained: bool) -> Weights:
    path = PurePosixPath(file)
    if path.suffix == ".ts":
        raise InvalidBundle(bundle, file, TORCHSCRIPT)
    names = [str(path.with_suffix(".safetensors")), file] if path.suffix in TWINS else [file]
    there = [inside(bundle, root, name) for name in names if _there(root, name)]
    if there:
        return Weights(there[0], there[1] if len(there) > 1 else None, load.entry)
    if not trained:
        return Weights(root / names[0], None, load.entry)
    if _there(root, str(path.with_suffix(".ts"))):
        raise InvalidBundle(bundle, str(path.with_suffix(".ts")), TORCHSCRIPT)
    why = f"no weights: {load.key} of the configuration loads this file, and it is not there: add it, or name another"
    raise InvalidBundle(bundle, file, why)


def _there(root: Path, file: str) -> bool:
    return (root / file).exists() or (root / file).is_symlink()


def _within(bundle: str, root: Path, load: _Load) -> str:
    """The path that a configuration names, from the bundle's folder on."""
    path = posixpath.normpath(load.path)
    if path.startswith(f"{root.as_posix()}/"):
        path = path.removeprefix(f"{root.as_posix()}/")
    if path.startswith(("/", "..")):
        why = f"{load.path} leads out of the bundle's folder: weights lie within it (@bundle_root + '/models/...')"
        raise InvalidBundle(bundle, load.key, why)
    return path


class _Reader:
    """Goes through what a configuration runs, and notes what is loaded into the network."""

    def __init__(self, bundle: str, root: Path, config: SafeConfig, network: str, trust: bool) -> None:
        self._bundle, self._root, self._config, self._network = bundle, root, config, network
        self._trust = trust
        self._seen: set[tuple[str, bool]] = set()
        self._loads: list[_Load] = []

    def loads(self) -> list[_Load]:
        for key in RUNS:
            if key in self._config:
                self._follow(key)
        if not self._loads:  # a loader that nothing here runs still says which weights are the network's
            for key, value in self._config.top():
                if isinstance(value, dict) and _is_loader(value):
                    self._follow(key)
        return self._loads

    # ---- going through

    def _follow(self, key: str, on: bool = True) -> None:
        key = key.replace("#", "::")
        if {(key, on), (key, True)} & self._seen:
            return
        self._seen.add((key, on))
        try:
            value = self._config.raw(key)
        except InvalidBundle:  # a name that MONAI itself gives
            return
        self._visit(value, key, on)

    def _visit(self, value: Any, key: str, on: bool) -> None:
        match value:
            case str() if value.startswith("$"):
                self._expression(value, key, on)
            case str() if value.startswith("%"):
                written, origin = self._config.written(value[1:], key)
                self._visit(written, origin, on)
            case str():
                for name in REFERENCE.findall(value) if REFERENCE.fullmatch(value) else ():
                    self._follow(self._config.absolute(name, key), on)
            case dict() if "_target_" in value:
                self._component(value, key, on)
            case dict():
                for name, item in value.items():
                    self._visit(item, f"{key}::{name}", on)
            case list():
                for n, item in enumerate(value):
                    self._visit(item, f"{key}::{n}", on)

    def _component(self, value: dict[str, Any], key: str, on: bool) -> None:
        on = on and not self._is_disabled(value, f"{key}::_disabled_")
        if _is_loader(value):
            self._loader(value, key, on)
        elif on and key.partition("::")[0] not in ("dataset", "dataloader"):
            for name, item in value.items():
                self._visit(item, f"{key}::{name}", on)

    def _is_disabled(self, value: dict[str, Any], key: str) -> bool:
        try:
            disabled = self._config.resolve(value.get("_disabled_", False), key)
        except InvalidBundle:  # asks for what only a run knows, as its rank among several
            return False
        return disabled is True or str(disabled).strip().lower() == "true"

    def _loader(self, value: dict[str, Any], key: str, on: bool) -> None:
        place = f"{key}::load_dict"
        names = [name for name, item in self._load_dict(value.get("load_dict"), place) if self._is_network(item, place)]
        if not names:
            return
        place = f"{key}::load_path"
        self._loads.append(_Load(place, self._path(value.get("load_path"), place), names[0], on))

    def _load_dict(self, value: Any, key: str) -> Iterator[tuple[str, Any]]:
        whole = REFERENCE.fullmatch(value.removeprefix("$")) if isinstance(value, str) else None
        if whole:
            yield from self._load_dict(self._config.raw(self._config.absolute(whole[1], key)), key)
        elif isinstance(value, Mapping):
            yield from value.items()
        elif isinstance(value, str) and value.startswith("$"):
            parsed = self._parse(value, key)
            match parsed and parsed.body:
                case ast.Dict(keys=keys, values=items):
                    assert parsed is not None
                    for name, item in zip(keys, items, strict=True):
                        if isinstance(name, ast.Constant):
                            yield str(name.value), f"@{parsed.reference(item) or ''}"
                case _:
                    why = "expected names and networks, found an expression"
                    raise InvalidBundle(self._bundle, key, f"{why}: which weights are loaded cannot be told")

    def _path(self, value: Any, key: str) -> str:
        try:
            path = self._config.resolve(value, key)
        except InvalidBundle:
            if not self._trust:
                raise
            path = made_by_monai(self._bundle, self._root, (key,))
        if not isinstance(path, str):
            raise InvalidBundle(self._bundle, key, f"expected the path of the weights, found {type(path).__name__}")
        return path

    # ---- what is the network

    def _is_network(self, value: Any, key: str, depth: int = 0) -> bool:
        """Whether a value is the network, moved to a device or wrapped."""
        if depth > 20:
            return False
        if isinstance(value, Mapping):
            wrapped = str(value.get("_target_", "")).rpartition(".")[2] in WRAPPERS
            return wrapped and self._is_network(value.get("module"), key, depth + 1)
        if not isinstance(value, str) or not value.startswith(("$", "@")):
            return False
        return any(self._names_network(self._config.absolute(name, key), depth) for name in REFERENCE.findall(value))

    def _names_network(self, name: str, depth: int = 0) -> bool:
        if name == self._network:
            return True
        try:
            return self._is_network(self._config.raw(name), name, depth + 1)
        except InvalidBundle:
            return False

    # ---- expressions

    def _parse(self, text: str, key: str) -> Parsed | None:
        """None for what is no expression (imports and other statements)."""
        try:
            return parse(text[1:])
        except RefusedError:
            into = any(self._names_network(self._config.absolute(name, key)) for name in REFERENCE.findall(text))
            if into and any(word in text for word in SUSPECT):
                raise self._unread(text, key) from None
            return None

    def _unread(self, text: str, key: str) -> InvalidBundle:
        why = f"{text[:80]!r} loads the network's weights in a way that is not read: name them by a CheckpointLoader"
        return InvalidBundle(self._bundle, key, why)

    def _expression(self, text: str, key: str, on: bool) -> None:
        parsed = self._parse(text, key)
        if parsed is not None:
            self._node(parsed, parsed.body, key, on)

    def _node(self, parsed: Parsed, node: ast.AST, key: str, on: bool) -> None:
        name = parsed.reference(node)
        if name is not None:
            self._follow(self._config.absolute(name, key), on)
            return
        match node:
            case ast.IfExp(test=test, body=body, orelse=other):
                chosen = self._value(parsed, test, key)
                self._node(parsed, body, key, on and chosen is not False)
                self._node(parsed, other, key, on and chosen is not True)
            case ast.BoolOp(op=ast.And(), values=values):
                for value in values:
                    self._node(parsed, value, key, on)
                    on = on and self._value(parsed, value, key) is not False
            case ast.Call():
                self._call(parsed, node, key, on)
            case _:
                for child in ast.iter_child_nodes(node):
                    self._node(parsed, child, key, on)

    def _value(self, parsed: Parsed, node: ast.expr, key: str) -> bool | None:
        """A condition; None where it cannot be told."""
        try:
            return bool(read(parsed, node, self._resolver(key), self._config.exists))
        except (RefusedError, InvalidBundle):
            return None

    def _resolver(self, key: str) -> Resolve:
        return lambda name: self._config.get(self._config.absolute(name, key))

    def _call(self, parsed: Parsed, node: ast.Call, key: str, on: bool) -> None:
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        of, function = None, dotted(node.func)
        if isinstance(node.func, ast.Attribute):
            of, function = node.func.value, node.func.attr
        into = [item for item in (of, *given) if item is not None and self._is_the_network(parsed, item, key)]
        if into and of is into[0] and function.startswith("load") and function.endswith("state_dict") and given:
            self._note(parsed, given[0], key, on)
        elif into and function in ("copy_model_state", "load_model") and into[0] is given[0] and len(given) > 1:
            self._note(parsed, given[1], key, on)
        elif into and any(word in function.lower() for word in SUSPECT):
            raise self._unread(ast.unparse(node), key)
        else:
            for child in ast.iter_child_nodes(node):
                self._node(parsed, child, key, on)

    def _is_the_network(self, parsed: Parsed, node: ast.AST, key: str) -> bool:
        """Whether a part of an expression is the network, or its module, or what a method of it gives."""
        while isinstance(node, ast.Attribute | ast.Call):
            node = node.value if isinstance(node, ast.Attribute) else node.func
        name = parsed.reference(node)
        return name is not None and self._names_network(self._config.absolute(name, key))

    def _note(self, parsed: Parsed, node: ast.expr, key: str, on: bool) -> None:
        path, entry = self._source(parsed, node, key)
        self._loads.append(_Load(key, path, entry, on))

    def _source(self, parsed: Parsed, node: ast.expr, key: str) -> tuple[str, str | None]:
        """Path and entry of a checkpoint that is read by a part of an expression."""
        name = parsed.reference(node)
        if name is not None:
            return self._source_at(self._config.absolute(name, key))
        match node:
            case ast.Subscript(value=value, slice=ast.Constant(value=str() as entry)):
                return self._source(parsed, value, key)[0], entry
            case ast.Call(func=ast.Attribute(value=value, attr="get"), args=[ast.Constant(value=str() as entry), *_]):
                return self._source(parsed, value, key)[0], entry
            case ast.Call(func=function, args=[path, *_]) if dotted(function) in READS:
                try:
                    value = read(parsed, path, self._resolver(key), self._config.exists)
                except RefusedError as refusal:
                    why = f"{refusal}; which weights are loaded cannot be told"
                    raise InvalidBundle(self._bundle, key, why) from None
                return self._path(value, key), None
            case ast.Constant(value=str() as path):  # load_model(@network, "models/model.safetensors")
                return path, None
        raise self._unread(ast.unparse(node), key)

    def _source_at(self, key: str) -> tuple[str, str | None]:
        value = self._config.raw(key)
        if isinstance(value, Mapping) and value.get("_target_") in READS:
            return self._path(value.get("f", value.get("filename")), f"{key}::f"), None
        if isinstance(value, str) and REFERENCE.fullmatch(value):
            return self._source_at(self._config.absolute(value[1:], key))
        if isinstance(value, str) and value.startswith("$"):
            parsed = self._parse(value, key)
            if parsed is not None and not isinstance(parsed.body, ast.Constant | ast.BinOp):
                match parsed.body:
                    case ast.Call() | ast.Subscript() | ast.Name():
                        return self._source(parsed, parsed.body, key)
        return self._path(value, key), None


def _is_loader(value: Mapping[str, Any]) -> bool:
    return str(value.get("_target_", "")).rpartition(".")[2] == "CheckpointLoader"
