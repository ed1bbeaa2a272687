"""How the house is built, in numbers: `python tests/measures.py [CHECKOUT ...]` prints a column for each checkout.

Migrations are left out: they are history. The body of a function is its lines without the docstring.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("medseg", "gateway")
LONG_FILE, LONG_BODY = 400, 50


def sources(root: Path, *folders: str) -> Iterator[tuple[Path, str]]:
    """Path below `root`, and text, of each module."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            if not {"migrations", "_bundles"} & set(path.parts):
                yield path.relative_to(root), path.read_text("utf-8")


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its head and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def room_of(dotted: str) -> str:
    """The room of a module: its package and the first name in it."""
    return ".".join(dotted.split(".")[:2])


def doors(path: Path, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """From which room a module imports from which other."""
    here = room_of(".".join(path.with_suffix("").parts))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            for alias in node.names:
                there = room_of(f"{node.module}.{alias.name}" if node.module in PACKAGES else node.module)
                if there != here:
                    yield here, there


def measure(root: Path) -> dict[str, int]:
    """Each measure of a checkout."""
    texts = dict(sources(root, *PACKAGES))
    trees = {path: ast.parse(text) for path, text in texts.items()}
    functions = [
        node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    classes = Counter(
        node.name
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    outside = [text for path, text in texts.items() if path.parts[:2] != ("gateway", "ledger")]
    loose = [path for path in texts if len(path.parts) == 2 and not path.stem.startswith("__")]
    tests = [text for _, text in sources(root, "tests")]
    return {
        f"files over {LONG_FILE} lines": sum(text.count("\n") > LONG_FILE for text in texts.values()),
        f"files over {LONG_FILE} lines, of tests": sum(text.count("\n") > LONG_FILE for text in tests),
        "loose modules, gateway": sum(path.parts[0] == "gateway" for path in loose),
        "loose modules, medseg": sum(path.parts[0] == "medseg" for path in loose),
        "public class names defined twice": sum(count > 1 for count in classes.values()),
        "Row[Any] outside the ledger": sum(text.count("Row[Any]") for text in outside),
        "type: ignore": sum(len(re.findall(r"#\s*type: ignore", text)) for text in texts.values()),
        f"functions over {LONG_BODY} lines": sum(body_lines(function) > LONG_BODY for function in functions),
        "imports between rooms": len({door for path, tree in trees.items() for door in doors(path, tree)}),
    }


def main() -> None:
    columns = [measure(Path(given)) for given in sys.argv[1:] or [Path(__file__).resolve().parent.parent]]
    for name in columns[0]:
        print(f"{name:40}" + "".join(f"{column[name]:8}" for column in columns))


if __name__ == "__main__":
    main()
