"""What a bundle's configuration loads into its network, read without running it.

    what runs           `initialize`, `run` and the evaluator, with all that these refer to
    CheckpointLoader    its `load_path`, and under which name of `load_dict` the network stands
    an expression       @network.load_state_dict(torch.load(@path)["model"]), copy_model_state, load_model

A choice (`@loader(@evaluator) if @load_pretrain else None`) is made as the expression makes it. What would load
something into the network in a way that is not read is refused.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medseg.bundle.expression import REFERENCE, Parsed, RefusedError, Resolve, dotted, parse, read
from medseg.bundle.safe_config import SafeConfig
from medseg.bundle.trusted import parsed as made_by_monai
from medseg.errors import InvalidBundle

RUNS: Final = ("initialize", "run", "evaluate", "evaluating", "evaluator", "handlers", "val_handlers")
LOADER: Final = "CheckpointLoader"
WRAPPERS: Final = ("DataParallel", "DistributedDataParallel")
READS: Final = ("torch.load", "load_file", "safetensors.torch.load_file")
SUSPECT: Final = ("load", "weights", "restore", "checkpoint", "ckpt", "pretrain", "copy_model_state")
HARMLESS: Final = ("CheckpointSaver",)
# methods of a network that give something else than the network
GIVES_OTHER: Final = ("parameters", "named_parameters", "state_dict", "children", "modules")


@dataclass(frozen=True)
class Load:
    """`key` of the configuration loads `path`, as it is written there; on: whether it does so as things are set."""

    key: str
    path: str
    entry: str | None
    on: bool = True


class LoadsReader:
    """Goes through what a configuration runs, and notes what is loaded into the network.

    Each key, and each part of another file, is gone through once, so that nothing leads in a circle.
    """

    def __init__(self, bundle: str, root: Path, config: SafeConfig, network: str, trust: bool) -> None:
        self._bundle, self._root, self._config, self._trust = bundle, root, config, trust
        self._seen: set[tuple[str, bool]] = set()
        self._networks = {network: True}  # keys, and whether each is the network
        self._asked: set[str] = set()  # keys on the way from a load to its file
        self._loads: list[Load] = []
        self._unclear: InvalidBundle | None = None  # weights are read, and it is not seen into what

    def loads(self) -> list[Load]:
        try:
            for key in RUNS:
                if key in self._config:
                    self._follow(key)
            if not self._loads and self._unclear is not None:
                raise self._unclear
            if not self._loads:
                for key, value in self._config.top():
                    self._spare(value, key)
        except RecursionError:
            why = "nested too deep to tell which weights are loaded"
            raise InvalidBundle(self._bundle, "configs/inference.json", why) from None
        return self._loads

    def _spare(self, value: Any, key: str) -> None:
        """A loader that nothing here runs still says which weights are the network's."""
        if isinstance(value, dict) and _class(value) == LOADER:
            self._component(value, key, on=True)
        elif isinstance(value, dict | list):
            for name, item in value.items() if isinstance(value, dict) else enumerate(value):
                self._spare(item, f"{key}::{name}")

    # ---- going through; on: whether it runs as things are set

    def _follow(self, key: str, on: bool = True) -> None:
        key = key.replace("#", "::")
        if self._is_new(key, on):
            try:
                value = self._config.raw(key)
            except InvalidBundle:  # a name that MONAI itself gives
                return
            self._visit(value, key, on)

    def _is_new(self, key: str, on: bool) -> bool:
        if {(key, on), (key, True)} & self._seen:
            return False
        self._seen.add((key, on))
        return True

    def _visit(self, value: Any, key: str, on: bool) -> None:
        match value:
            case str() if value.startswith("$"):
                self._expression(value, key, on)
            case str() if value.startswith("%") and ".json" in value:
                if self._is_new(value, on):
                    self._visit(*self._config.written(value[1:], key), on)
            case str() if value.startswith("%"):
                self._follow(self._config.absolute(value[1:], key), on)
            case str():
                if reference := REFERENCE.fullmatch(value):
                    self._follow(self._config.absolute(reference[1], key), on)
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
        name = _class(value)
        if name == LOADER:
            self._loader(value, key, on)
        elif on and key.partition("::")[0] not in ("dataset", "dataloader"):
            into = any(self._is_network(item, key) for item in value.values())
            self._suspect(name, str(value["_target_"]), key, reads=value["_target_"] in READS, into=into)
            for argument, item in value.items():
                self._visit(item, f"{key}::{argument}", on)

    def _is_disabled(self, value: dict[str, Any], key: str) -> bool:
        try:
            disabled = self._config.resolve(value.get("_disabled_", False), key)
        except InvalidBundle:  # asks for what only a run knows, as its rank among several
            return False
        return disabled is True or str(disabled).strip().lower() == "true"

    def _loader(self, value: dict[str, Any], key: str, on: bool) -> None:
        names = self._entries(value.get("load_dict"), f"{key}::load_dict")
        if names:
            place = f"{key}::load_path"
            self._loads.append(Load(place, self._path(value.get("load_path"), place), names[0], on))

    def _entries(self, value: Any, key: str, depth: int = 0) -> list[str]:
        """The names in a `load_dict` under which the network stands."""
        if isinstance(value, Mapping):
            return [name for name, item in value.items() if self._is_network(item, key)]
        if isinstance(value, str) and depth < 20:
            if reference := REFERENCE.fullmatch(value.removeprefix("$")):
                origin = self._config.absolute(reference[1], key)
                return self._entries(self._config.raw(origin), origin, depth + 1)
            parsed = self._parse(value, key) if value.startswith("$") else None
            match parsed:
                case Parsed(body=ast.Dict(keys=keys, values=items)):
                    names = [name.value for name in keys if isinstance(name, ast.Constant)]
                    if len(names) == len(items):
                        return [
                            str(n) for n, item in zip(names, items, strict=True) if self._is_part(parsed, item, key)
                        ]
        why = "expected names and networks, written out: which weights are loaded cannot be told"
        raise InvalidBundle(self._bundle, key, why)

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

    # ---- what is the network: its key, on a device, in a wrapper

    def _is_network(self, value: Any, key: str) -> bool:
        if isinstance(value, Mapping):
            return _class(value) in WRAPPERS and self._is_network(value.get("module"), key)
        if not isinstance(value, str):
            return False
        if reference := REFERENCE.fullmatch(value):
            return self._names_network(self._config.absolute(reference[1], key))
        parsed = self._parse(value, key) if value.startswith("$") else None
        return parsed is not None and self._is_part(parsed, parsed.body, key)

    def _names_network(self, name: str) -> bool:
        if name not in self._networks:
            self._networks[name] = False  # while it is asked: a circle is no network
            with suppress(InvalidBundle):
                self._networks[name] = self._is_network(self._config.raw(name), name)
        return self._networks[name]

    def _is_part(self, parsed: Parsed, node: ast.AST | None, key: str) -> bool:
        """Whether a part of an expression is the network, or its module, or what a method or wrapper of it gives."""
        match node:
            case ast.Name() if name := parsed.reference(node):
                return self._names_network(self._config.absolute(name, key))
            case ast.Attribute(value=value, attr=attr):
                return attr not in GIVES_OTHER and self._is_part(parsed, value, key)
            case ast.Call(func=function, args=args):
                return self._is_part(parsed, function, key) or (bool(args) and self._is_part(parsed, args[0], key))
            case ast.IfExp(body=body, orelse=other):
                return self._is_part(parsed, body, key) or self._is_part(parsed, other, key)
        return False

    # ---- expressions

    def _parse(self, text: str, key: str) -> Parsed | None:
        """None for what is no expression (imports and other statements)."""
        try:
            return parse(text[1:])
        except RefusedError:
            into = any(self._names_network(self._config.absolute(name, key)) for name in REFERENCE.findall(text))
            if into and _is_suspect(text):
                raise self._unread(text, key) from None
            return None

    def _suspect(self, word: str, text: str, key: str, *, reads: bool, into: bool) -> None:
        """A call of that name, not understood: refused beside the network, or where nothing else names weights."""
        if into and _is_suspect(word):
            raise self._unread(text, key)
        if reads and self._unclear is None:
            self._unclear = self._unread(text, key)

    def _unread(self, text: str, key: str) -> InvalidBundle:
        why = f"{text[:80]!r} loads the network's weights in a way that is not read: name them by a {LOADER}"
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
                self._node(parsed, test, key, on)
                self._node(parsed, body, key, on and chosen is not False)
                self._node(parsed, other, key, on and chosen is not True)
                return
            case ast.BoolOp(op=ast.And(), values=values):
                for value in values:
                    self._node(parsed, value, key, on)
                    on = on and self._value(parsed, value, key) is not False
                return
            case ast.Call() if source := self._loaded(parsed, node, key):
                path, entry = self._source(parsed, source, key)
                self._loads.append(Load(key, path, entry, on))
                return
            case ast.Attribute(attr=word) | ast.Name(id=word) if on:
                into = any(self._names_network(self._config.absolute(name, key)) for name in parsed.references)
                self._suspect(word, ast.unparse(parsed.body), key, reads=dotted(node) in READS, into=into)
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

    def _loaded(self, parsed: Parsed, call: ast.Call, key: str) -> ast.expr | None:
        """What a call loads into the network; None for another call."""
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        match call.func:
            case ast.Attribute(value=of, attr="load_state_dict") if given and self._is_part(parsed, of, key):
                return given[0]
            case ast.Attribute(attr="copy_model_state" | "load_model") | ast.Name(id="copy_model_state" | "load_model"):
                return given[1] if len(given) > 1 and self._is_part(parsed, given[0], key) else None
        return None

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
                node = path
        try:
            value = read(parsed, node, self._resolver(key), self._config.exists)
        except RefusedError:
            raise self._unread(ast.unparse(node), key) from None
        return self._path(value, key), None

    def _source_at(self, key: str) -> tuple[str, str | None]:
        if key in self._asked:
            raise InvalidBundle(self._bundle, key, "refers to itself")
        self._asked.add(key)
        value = self._config.raw(key)
        parsed = self._parse(value, key) if isinstance(value, str) and value.startswith("$") else None
        if parsed is not None:
            source = self._source(parsed, parsed.body, key)
        elif isinstance(value, str) and (reference := REFERENCE.fullmatch(value)):
            source = self._source_at(self._config.absolute(reference[1], key))
        elif isinstance(value, Mapping) and value.get("_target_") in READS:
            name = "f" if "f" in value else "filename"
            source = self._path(value.get(name), f"{key}::{name}"), None
        else:
            source = self._path(value, key), None
        self._asked.remove(key)
        return source


def _class(value: Mapping[str, Any]) -> str:
    """The name that a component's `_target_` ends in."""
    return str(value.get("_target_", "")).rpartition(".")[2]


def _is_suspect(name: str) -> bool:
    return name not in HARMLESS and any(word in name.lower() for word in SUSPECT)
