"""What a disk holds after a power cut, by replaying the system calls of a service (`strace`).

    recorded      open write rename mkdir unlink fsync ... sendto
    replayed up to a cut: what was synced is there; of what was not, nothing, or some of it at random

A file's content lasts once the file is synced, a name once the folder that holds it is (POSIX fsync; more than ext4 or
XFS would forget). A rename happens whole or not at all. What was sent on a socket before the cut, a peer may know of.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

CALLS = (
    "open,openat,creat,lseek,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,rename,renameat,renameat2,unlink,"
    "unlinkat,rmdir,mkdir,mkdirat,ftruncate,truncate,fallocate,link,linkat,symlink,symlinkat,sendfile,"
    "copy_file_range,sendto,sendmsg"
)
PAGE = 512  # a sector is written whole
LONGEST = 1 << 20  # bytes of a write that strace keeps


def command(trace: Path) -> list[str]:
    """What to put before a command to record it."""
    return ["strace", "-f", "-y", "-x", "--seccomp-bpf", "-qq", "-s", str(LONGEST), "-e", f"trace={CALLS}", "-o",
            str(trace)]  # fmt: skip


# ---- reading a trace

_LINE = re.compile(r"(?P<pid>\d+)\s+(?:<\.\.\. (?P<resumed>\w+) resumed>(?P<rest>.*)|(?P<call>\w+)\((?P<args>.*))$")
_ENDED = re.compile(r"(?P<args>.*)\)\s+= (?P<returned>\d+)(?:<.*>)?")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^,"]+|,')
_UNFINISHED = " <unfinished ...>"


@dataclass(frozen=True)
class Call:
    """A system call that succeeded, or `sendto` when it begins. args: strings as bytes, the rest as text."""

    name: str
    args: tuple[bytes | str, ...]
    returned: int


def read_trace(trace: Path) -> Iterator[Call]:
    """The calls in the order of their ends; what is sent, when its sending begins."""
    open_calls: dict[str, tuple[str, str]] = {}
    with trace.open(errors="surrogateescape") as lines:
        for line in lines:
            match = _LINE.match(line.rstrip("\n"))
            if match is None:
                continue
            pid = match["pid"]
            if match["call"]:
                name, text = match["call"], match["args"]
                if name in ("sendto", "sendmsg"):
                    yield Call(name, _arguments(text.removesuffix(_UNFINISHED)), 0)
                    continue
                if text.endswith(_UNFINISHED):
                    open_calls[pid] = name, text.removesuffix(_UNFINISHED)
                    continue
            elif pid in open_calls:
                name, begun = open_calls.pop(pid)
                text = begun + match["rest"]
            else:
                continue
            ended = _ENDED.fullmatch(text)
            if ended is not None:  # it succeeded
                yield Call(name, _arguments(ended["args"]), int(ended["returned"]))


def _arguments(text: str) -> tuple[bytes | str, ...]:
    found: list[bytes | str] = [""]
    for token in _TOKEN.findall(text):
        if token == ",":
            found.append("")
        elif token.startswith('"'):
            found[-1] = ast.literal_eval("b" + token)
        elif isinstance(found[-1], str):
            found[-1] = (found[-1] + token).strip()
    return tuple(found)


# ---- a disk


@dataclass(eq=False)
class File:
    """content: what lasts. pending: what was done since the last sync, as (offset, bytes) or a new length."""

    content: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes] | int] = field(default_factory=list)

    def after_cut(self, chance: random.Random | None) -> bytes:
        """Without what was not synced, or with some of its sectors."""
        if chance is None:
            return bytes(self.content)
        content = bytearray(self.content)
        for change in self.pending:
            if isinstance(change, int):
                if chance.random() < 0.5:
                    _resize(content, change)
                continue
            offset, data = change
            for start in range(0, len(data), PAGE):
                if chance.random() < 0.5:
                    _write(content, offset + start, data[start : start + PAGE])
        return bytes(content)

    def sync(self) -> None:
        for change in self.pending:
            if isinstance(change, int):
                _resize(self.content, change)
            else:
                _write(self.content, *change)
        self.pending.clear()


@dataclass(eq=False)
class Folder:
    """names: as they are now. lasting: as they would be after a cut."""

    names: dict[str, Node] = field(default_factory=dict)
    lasting: dict[str, Node] = field(default_factory=dict)


Node: TypeAlias = File | Folder


@dataclass(eq=False)
class Naming:
    """A change of names, made in one piece: (folder, name, node or None for none)."""

    changes: tuple[tuple[Folder, str, Node | None], ...]

    def last(self) -> None:
        for folder, name, node in self.changes:
            if node is None:
                folder.lasting.pop(name, None)
            else:
                folder.lasting[name] = node


def _resize(content: bytearray, length: int) -> None:
    if length < len(content):
        del content[length:]
    else:
        content.extend(bytes(length - len(content)))


def _write(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        _resize(content, offset)
    content[offset : offset + len(data)] = data


class Disk:
    """A folder of a disk, through the calls that change it."""

    def __init__(self, root: Path) -> None:
        """root: lasts itself, and is empty."""
        self._root, self._top = str(root), Folder()
        self._namings: list[Naming] = []
        self._offsets: dict[File, int] = {}  # a file is written through one descriptor at a time

    def apply(self, call: Call) -> None:
        """Raises NotImplementedError for a call on the root that this does not know."""
        match call.name:
            case "open" | "openat" | "creat":
                self._open(call)
            case "write":
                if isinstance(file := self._of(call.args[0]), File):
                    offset = self._offsets.get(file, 0)
                    file.pending.append((offset, _bytes(call.args[1])[: call.returned]))
                    self._offsets[file] = offset + call.returned
            case "lseek":
                if isinstance(file := self._of(call.args[0]), File):
                    self._offsets[file] = call.returned
            case "pwrite64":
                if isinstance(file := self._of(call.args[0]), File):
                    file.pending.append((int(str(call.args[3])), _bytes(call.args[1])[: call.returned]))
            case "ftruncate":
                if isinstance(file := self._of(call.args[0]), File):
                    file.pending.append(int(str(call.args[1])))
            case "fsync" | "fdatasync":
                self._sync(self._of(call.args[0]))
            case "mkdir" | "mkdirat":
                self._name(self._path(call.args[:-1]), Folder())
            case "rename" | "renameat" | "renameat2":
                half = 1 if call.name == "rename" else 2
                self._rename(self._path(call.args[:half]), self._path(call.args[half : 2 * half]))
            case "unlink" | "rmdir":
                self._name(self._path(call.args[:1]), None)
            case "unlinkat":
                self._name(self._path(call.args[:2]), None)
            case "sendto" | "sendmsg":
                pass
            case _:
                if any(self._root in (arg if isinstance(arg, str) else arg.decode("latin-1")) for arg in call.args):
                    raise NotImplementedError(str(call)[:500])

    def files(self) -> dict[str, bytes]:
        """What a running system sees: path to content."""
        found: dict[str, bytes] = {}

        def walk(folder: Folder, path: str) -> None:
            for name, node in folder.names.items():
                if isinstance(node, Folder):
                    walk(node, f"{path}{name}/")
                else:
                    seen = File(bytearray(node.content), list(node.pending))
                    seen.sync()
                    found[path + name] = bytes(seen.content)

        walk(self._top, "")
        return found

    def write_after_cut(self, there: Path, chance: random.Random | None) -> None:
        """Write what is left after a cut now into an empty folder.

        chance: None drops all that was not synced; else some sectors of it are kept, and the first changes of names.
        """
        extra = list(self._namings[: chance.randint(0, len(self._namings))]) if chance else []
        over: dict[Folder, dict[str, Node]] = {}
        for naming in extra:
            for folder, name, node in naming.changes:
                names = over.setdefault(folder, dict(folder.lasting))
                if node is None:
                    names.pop(name, None)
                else:
                    names[name] = node
        self._write_folder(self._top, there, chance, over)

    def _write_folder(
        self, folder: Folder, there: Path, chance: random.Random | None, over: dict[Folder, dict[str, Node]]
    ) -> None:
        for name, node in over.get(folder, folder.lasting).items():
            if isinstance(node, Folder):
                (there / name).mkdir()
                self._write_folder(node, there / name, chance, over)
            else:
                (there / name).write_bytes(node.after_cut(chance))

    def _open(self, call: Call) -> None:
        at = call.args[:2] if call.name == "openat" else call.args[:1]
        flags = "O_CREAT|O_TRUNC" if call.name == "creat" else str(call.args[len(at)])
        path = self._path(at)
        if path is None:
            return
        node = self._at(path)
        if node is None and "O_CREAT" in flags:
            self._name(path, File())
        elif isinstance(node, File) and "O_TRUNC" in flags:
            node.pending.append(0)
            self._offsets.pop(node, None)
        elif isinstance(node, File) and "O_APPEND" not in flags:
            self._offsets.pop(node, None)

    def _sync(self, node: Node | None) -> None:
        if isinstance(node, File):
            node.sync()
        elif node is not None:
            left = []
            for naming in self._namings:
                if any(folder is node for folder, *_ in naming.changes):
                    naming.last()
                else:
                    left.append(naming)
            self._namings = left

    def _name(self, path: str | None, node: Node | None) -> None:
        if path is None:
            return
        folder, name = self._parent(path)
        if node is None:
            del folder.names[name]
        else:
            folder.names[name] = node
        self._namings.append(Naming(((folder, name, node),)))

    def _rename(self, old: str | None, new: str | None) -> None:
        assert (old is None) == (new is None)
        if old is None or new is None:
            return
        (source, old_name), (target, new_name) = self._parent(old), self._parent(new)
        node = source.names.pop(old_name)
        target.names[new_name] = node
        self._namings.append(Naming(((source, old_name, None), (target, new_name, node))))

    def _path(self, at: tuple[bytes | str, ...]) -> str | None:
        """The path below the root that (folder and) name stand for; None for one elsewhere."""
        name = _bytes(at[-1]).decode()
        if not name.startswith("/"):
            folder = str(at[0]).partition("<")[2].rpartition(">")[0] if len(at) > 1 else ""
            name = f"{folder}/{name}"
        return self._below(name)

    def _below(self, path: str) -> str | None:
        if path == self._root:
            return ""
        return path.removeprefix(f"{self._root}/") if path.startswith(f"{self._root}/") else None

    def _of(self, descriptor: Any) -> Node | None:
        path = self._below(str(descriptor).partition("<")[2].rpartition(">")[0])
        return None if path is None else self._at(path)

    def _at(self, path: str) -> Node | None:
        node: Node | None = self._top
        for name in filter(None, path.split("/")):
            node = node.names.get(name) if isinstance(node, Folder) else None
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        folder, _, name = path.rpartition("/")
        found = self._at(folder)
        assert isinstance(found, Folder), path
        return found, name


def _bytes(value: bytes | str) -> bytes:
    assert isinstance(value, bytes), value
    return value
