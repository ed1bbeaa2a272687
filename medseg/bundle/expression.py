"""The `$` expressions of a bundle configuration, read without evaluating Python.

MONAI hands the text after `$` to `eval`. Here it is parsed, and the tree is walked by a reader that knows numbers,
strings, f-strings, lists, tuples, dicts, arithmetic, comparisons, a choice (`a if b else c`), an item (`@pixdim[0]`)
and references (`@id::key`). There are no names, no attributes and no calls, so there is nothing through which code
could run. A few phrases that real configurations use are known as a whole, by their tree:

    $torch.device(...)        the device: `DEVICE`, whichever it names, since the caller chooses
    $torch.float32            a data type, also of numpy: `Dtype`
    $@network_def.to(@device) the thing referred to
    $None, $True, $False
    $os.path.join(a, b)       a path of these parts; so are $Path(a) and $Path(a) / b
    $os.path.exists(a)        asked of `exists`, which the caller gives; so is $os.path.isfile(a)
"""

from __future__ import annotations

import ast
import math
import operator
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias

from medseg.allowed import is_number

REFERENCE: Final = re.compile(r"@((?:::|#)*\w+(?:(?:::|#)\w+)*)")
LONGEST: Final = 1000  # characters of an expression
DEEPEST: Final = 40  # nested operations
LARGEST: Final = 2**53  # magnitude of an integer, so that it is also exact as a float
MOST_ITEMS: Final = 10_000  # of a list or string made by an expression

Resolve: TypeAlias = Callable[[str], Any]
Exists: TypeAlias = Callable[[str], bool]


class Device(Enum):
    """Stands for the device that the caller chooses."""

    CHOSEN = "chosen"


DEVICE: Final = Device.CHOSEN


@dataclass(frozen=True)
class Dtype:
    """A data type by its name, "float32"."""

    name: str


class RefusedError(ValueError):
    """An expression outside the grammar; the message says which part."""


DTYPES: Final = frozenset(
    {"float16", "float32", "float64", "bfloat16", "uint8", "int8", "int16", "uint16", "int32", "int64", "long", "bool"}
)
DEVICES: Final = frozenset(
    ast.dump(ast.parse(text, mode="eval").body)
    for text in (
        "torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "'cuda:0' if torch.cuda.is_available() else 'cpu'",
        "'cuda' if torch.cuda.is_available() else 'cpu'",
        "torch.device('cuda:0')",
        "torch.device('cuda')",
        "torch.device('cpu')",
    )
)
ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Parsed:
    """An expression's tree, in which a name `reference__n` stands for `references[n]`."""

    body: ast.expr
    references: tuple[str, ...]

    def reference(self, node: ast.AST) -> str | None:
        """The reference (without its `@`) that a node of the tree stands for."""
        if not isinstance(node, ast.Name) or not node.id.startswith("reference__"):
            return None
        return self.references[int(node.id.removeprefix("reference__"))]


def nothing_there(_: str) -> bool:
    raise RefusedError("a file that is asked for")


def evaluate(text: str, resolve: Resolve, exists: Exists = nothing_there) -> Any:
    """Value of an expression (without its `$`); `resolve` gives the value of a reference (without its `@`).

    Raises RefusedError for anything outside the grammar and for values out of bounds; whatever `resolve` raises passes.
    """
    parsed = parse(text)
    return read(parsed, parsed.body, resolve, exists)


def read(parsed: Parsed, node: ast.expr, resolve: Resolve, exists: Exists = nothing_there) -> Any:
    """Value of a part of an expression; see `evaluate`."""
    return _Reader(parsed, resolve, exists).read(node)


def parse(text: str) -> Parsed:
    """The tree of an expression (without its `$`). Raises RefusedError."""
    if len(text) > LONGEST:
        raise RefusedError(f"an expression of {len(text)} characters; at most {LONGEST} are read")
    if "__" in text:
        raise RefusedError("a name with two underscores")
    references: list[str] = []

    def placeholder(match: re.Match[str]) -> str:
        references.append(match[1])
        return f" reference__{len(references) - 1} "

    source = REFERENCE.sub(placeholder, text).strip()
    try:
        body = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RefusedError(f"{text[:60]!r} is not an expression") from None
    if _deeper_than(body, DEEPEST):
        raise RefusedError(f"operations nested deeper than {DEEPEST}")
    return Parsed(body, tuple(references))


def _deeper_than(node: ast.expr, limit: int) -> bool:
    level: list[ast.AST] = [node]
    for _ in range(limit):
        level = [child for parent in level for child in ast.iter_child_nodes(parent)]
    return bool(level)


class _Reader:
    def __init__(self, parsed: Parsed, resolve: Resolve, exists: Exists) -> None:
        self._parsed, self._resolve, self._exists = parsed, resolve, exists

    def read(self, node: ast.expr) -> Any:
        known = self._phrase(node)
        if known is not None:
            return known
        match node:
            case ast.Constant(value=value):
                return _bounded(value)
            case ast.Name():
                return self._reference(node)
            case ast.List(elts=items):
                return [self.read(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self.read(item) for item in items)
            case ast.Dict(keys=keys, values=items):
                return {_name(key): self.read(item) for key, item in zip(keys, items, strict=True)}
            case ast.JoinedStr(values=[_, *_] as parts):
                return _bounded("".join(self._part(part) for part in parts))
            case ast.UnaryOp(op=operation, operand=operand):
                return self._unary(operation, self.read(operand))
            case ast.BinOp(left=left, op=ast.Div(), right=right) if _is_path(left):
                return self._path([left, right])
            case ast.BinOp(left=left, op=operation, right=right):
                return _arithmetic(operation, self.read(left), self.read(right))
            case ast.Compare(left=left, ops=[comparison], comparators=[right]):
                return _compare(comparison, self.read(left), self.read(right))
            case ast.BoolOp(op=operation, values=values):
                flags = [_flag(self.read(value)) for value in values]
                return all(flags) if isinstance(operation, ast.And) else any(flags)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self.read(body if _flag(self.read(test)) else other)
            case ast.Subscript(value=value, slice=index):
                return _item(self.read(value), self.read(index))
        raise RefusedError(f"{_words(node)} in an expression")

    def _phrase(self, node: ast.expr) -> Any:
        """The value of a phrase known as a whole, else None."""
        if isinstance(node, ast.Call | ast.IfExp) and ast.dump(node) in DEVICES:
            return DEVICE
        match node:
            case ast.Attribute(value=ast.Name(id="torch" | "numpy" | "np"), attr=name) if name in DTYPES:
                return Dtype("int64" if name == "long" else name)
            case ast.Call(func=ast.Attribute(value=ast.Name() as thing, attr="to"), args=[device], keywords=[]):
                if self.read(device) is DEVICE:
                    return self._reference(thing)
            case ast.Call(args=[_, *_] as parts, keywords=[]):
                match dotted(node.func):
                    case "os.path.join" | "Path" | "pathlib.Path":
                        return self._path(parts)
                    case "os.path.exists" | "os.path.isfile" if len(parts) == 1:
                        return self._exists(self._path(parts))
                    case "str" if len(parts) == 1:
                        return self._as_text(self.read(parts[0]))
        return None

    def _path(self, parts: list[ast.expr]) -> str:
        names = [self.read(part) for part in parts]
        if not all(isinstance(name, str) for name in names):
            raise RefusedError("a path of other things than strings")
        return str(_bounded(posixpath.join(*names)))

    def _part(self, part: ast.expr) -> str:
        """Of an f-string."""
        match part:
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                text = self.read(value)
                if isinstance(text, str):
                    return text
            case ast.Constant(value=str() as text):
                return text
        raise RefusedError("an f-string of other things than strings")

    def _as_text(self, value: Any) -> str:
        if not isinstance(value, str | int | float):
            raise RefusedError(f"{_kind(value)} as a string")
        return str(value)

    def _reference(self, node: ast.Name) -> Any:
        name = self._parsed.reference(node)
        if name is None:
            raise RefusedError(f"the name {node.id!r} in an expression")
        return self._resolve(name)

    def _unary(self, operation: ast.unaryop, value: Any) -> Any:
        if isinstance(operation, ast.Not):
            return not _flag(value)
        if not is_number(value) or isinstance(operation, ast.Invert):
            raise RefusedError(f"{_words(operation)} of {_kind(value)}")
        return -value if isinstance(operation, ast.USub) else +value


def dotted(node: ast.expr) -> str:
    """A name such as "torch.load"; empty for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name) if dotted(value):
            return f"{dotted(value)}.{name}"
    return ""


def _name(key: ast.expr | None) -> str:
    if isinstance(key, ast.Constant) and isinstance(key.value, str):
        return key.value
    raise RefusedError("a dict whose keys are not strings")


def _is_path(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=function):
            return dotted(function) in ("Path", "pathlib.Path")
        case ast.BinOp(left=left, op=ast.Div()):
            return _is_path(left)
    return False


def _arithmetic(operation: ast.operator, left: Any, right: Any) -> Any:
    function = ARITHMETIC.get(type(operation))
    if function is None:
        raise RefusedError(f"{_words(operation)} in an expression")
    if is_number(left) and is_number(right):
        if isinstance(operation, ast.Pow) and (abs(left) > LARGEST or abs(right) > 64):
            raise RefusedError("a power too large to be meant")
    elif isinstance(operation, ast.Mult) and _repeats(left, right):
        size = len(left) * right if is_number(right) else len(right) * left
        if size > MOST_ITEMS:
            raise RefusedError(f"a sequence of {size} items; at most {MOST_ITEMS} are made")
    elif not (isinstance(operation, ast.Add) and type(left) is type(right) and isinstance(left, str | list | tuple)):
        raise RefusedError(f"{_words(operation)} of {_kind(left)} and {_kind(right)}")
    elif len(left) + len(right) > MOST_ITEMS:
        raise RefusedError(f"a sequence of more than {MOST_ITEMS} items")
    try:
        return _bounded(function(left, right))
    except ArithmeticError as error:
        raise RefusedError(str(error)) from None


def _repeats(left: Any, right: Any) -> bool:
    return any(
        isinstance(items, str | list | tuple) and isinstance(times, int) and not isinstance(times, bool)
        for items, times in ((left, right), (right, left))
    )


def _compare(comparison: ast.cmpop, left: Any, right: Any) -> bool:
    function = COMPARISONS.get(type(comparison))
    alike = (is_number(left) and is_number(right)) or type(left) is type(right)
    if function is None or not (alike or isinstance(comparison, ast.Eq | ast.NotEq)):
        raise RefusedError(f"{_words(comparison)} of {_kind(left)} and {_kind(right)}")
    if not all(is_number(value) or isinstance(value, str | bool | None) for value in (left, right)):
        raise RefusedError(f"comparing {_kind(left)} with {_kind(right)}")
    try:
        return bool(function(left, right))
    except TypeError as error:
        raise RefusedError(str(error)) from None


def _item(value: Any, index: Any) -> Any:
    if not isinstance(value, list | tuple | dict) or not isinstance(index, int | str):
        raise RefusedError(f"an item of {_kind(value)}")
    try:
        return value[index]  # type: ignore[index]
    except (LookupError, TypeError):
        raise RefusedError(f"no item {index!r} in {_kind(value)}") from None


def _flag(value: Any) -> bool:
    if isinstance(value, bool | int | float | str | list | tuple | dict | None):
        return bool(value)
    raise RefusedError(f"{_kind(value)} as a condition")


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and abs(value) > LARGEST:
        raise RefusedError("an integer too large to be meant")
    if isinstance(value, float) and not math.isfinite(value):
        raise RefusedError("a number that is not finite")
    if isinstance(value, str) and len(value) > MOST_ITEMS:
        raise RefusedError(f"a string of {len(value)} characters; at most {MOST_ITEMS} are made")
    if not isinstance(value, bool | int | float | str | list | tuple | None):
        raise RefusedError(f"{_kind(value)} in an expression")
    return value


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"


def _words(node: ast.AST) -> str:
    return {
        "Attribute": "an attribute",
        "Call": "a call",
        "Lambda": "a function",
        "JoinedStr": "an f-string",
        "ListComp": "a comprehension",
        "SetComp": "a comprehension",
        "DictComp": "a comprehension",
        "GeneratorExp": "a comprehension",
        "NamedExpr": "an assignment",
    }.get(type(node).__name__, f"the operation {type(node).__name__}")
