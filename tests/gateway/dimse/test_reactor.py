"""pynetdicom is as `gateway.dimse.reactor` takes it to be, and nobody else reaches into it.

A version of pynetdicom that moves something fails here, by name, and not by an answer lost in ten thousand.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import queue
import re
import socket
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pynetdicom
import pytest
from pynetdicom import _config
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationServer, AssociationSocket, RequestHandler

from gateway.dimse import reactor

GATEWAY = Path(reactor.__file__).parents[2]
REACTOR = Path(reactor.__file__).parent
LIBRARY = Path(pynetdicom.__file__).parent

#: Of each name in the table: the parameters of a method, `property`, or of what type an attribute is.
KINDS: dict[str, Any] = {
    "ACSE._negotiate_as_acceptor": (),
    "ACSE.send_accept": (),
    "ApplicationEntity._servers": list,
    "Association._is_paused": bool,
    "Association._reactor_checkpoint": threading.Event,
    "Association._run_reactor": (),
    "Association._server": type(None),
    "Association.run_reactor": (),
    "AssociationServer.get_request": (),
    "AssociationServer.process_request": ("request", "client_address"),
    "AssociationServer.request_queue_size": int,
    "AssociationServer.server_bind": (),
    "AssociationServer.server_close": (),
    "AssociationServer.service_actions": (),
    "AssociationServer.shutdown": (),
    "AssociationServer.verify_request": ("request", "client_address"),
    "AssociationSocket._is_connected": bool,
    "AssociationSocket.ready": property,
    "AssociationSocket.recv": ("nr_bytes",),
    "AssociationSocket.send": ("bytestream",),
    "DIMSEServiceProvider.receive_primitive": ("primitive",),
    "DIMSEServiceProvider.send_msg": ("primitive", "context_id"),
    "DULServiceProvider._decode_pdu": ("bytestream",),
    "DULServiceProvider._idle_timer": Timer,
    "DULServiceProvider._is_transport_event": (),
    "DULServiceProvider._kill_thread": bool,
    "DULServiceProvider._recv_pdu": queue.Queue,
    "DULServiceProvider._send": ("pdu",),
    "DULServiceProvider.kill_dul": (),
    "DULServiceProvider.run_reactor": (),
    "DULServiceProvider.send_pdu": ("primitive",),
    "PresentationContext._context_id": type(None),
    "PresentationContext.context_id": property,
    "RequestHandler._create_association": (),
    "Timer._end_time": type(None),
    "Timer._start_time": type(None),
    "Timer.remaining": property,
    "Timer.start": (),
    "Timer.stop": (),
    "_config.STORE_SEND_CHUNKED_DATASET": bool,
}


def table() -> dict[str, str]:
    """The names in the table of `gateway.dimse.reactor`, with the version since which each is there."""
    return dict(re.findall(r"^`(\w+\.\w+)` +(\d\.\d)  \S", reactor.__doc__ or "", re.M))


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, Any]]:
    """One of each class that the table speaks of, as pynetdicom makes it; of those that need a port, the class."""
    assoc = Association(ApplicationEntity("TEST"), "acceptor")
    here, there = socket.socketpair()
    with here, there:
        connection = AssociationSocket(assoc, client_socket=here)
        made = (assoc, assoc.ae, assoc.acse, assoc.dul, assoc.dimse, connection, Timer(1), PresentationContext())
        listeners = (AssociationServer, RequestHandler)
        named = {type(part).__name__: part for part in made} | {kind.__name__: kind for kind in listeners}
        yield named | {"_config": _config}


def test_the_table_is_whole() -> None:
    assert table().keys() == KINDS.keys()
    assert list(table()) == sorted(table())


@pytest.mark.parametrize("name", KINDS)
def test_each_name_is_there_and_of_its_kind(parts: dict[str, Any], name: str) -> None:
    owner, _, attribute = name.partition(".")
    part, kind = parts[owner], KINDS[name]
    of_class = inspect.getattr_static(part if isinstance(part, type) else type(part), attribute, None)
    if kind is property:
        assert isinstance(of_class, property)
    elif isinstance(kind, tuple):
        assert inspect.isfunction(of_class)
        assert tuple(inspect.signature(of_class).parameters)[1:] == kind
    else:
        assert not callable(of_class)
        assert isinstance(getattr(part, attribute), kind)


def test_whatever_we_override_is_in_the_table() -> None:
    missing = []
    for module in pkgutil.iter_modules(reactor.__path__, reactor.__name__ + "."):
        for ours in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(ours) or ours.__module__ != module.name:
                continue
            theirs = next((base for base in ours.__mro__ if base.__module__.startswith("pynetdicom.")), None)
            if theirs is not None:
                shared = [name for name in vars(ours) if hasattr(theirs, name) and not name.startswith("__")]
                missing += [f"{theirs.__name__}.{name}" for name in shared]
    missing = [name for name in missing if name not in table()]
    assert not missing


# Private names, found by syntax tree.


def trees(folder: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield path.relative_to(folder), ast.parse(path.read_text("utf-8"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def private_name(node: ast.AST) -> str | None:
    """The private name by which a node defines a method, or reaches into an object."""
    name = ""
    if isinstance(node, ast.Attribute):
        name = node.attr
    elif isinstance(node, ast.FunctionDef):
        name = node.name
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
        name = str(getattr(node.args[1], "value", ""))
    return name if is_private(name) else None


@cache
def of_pynetdicom() -> frozenset[str]:
    """All private names in pynetdicom, its programs and tests left out."""
    sources = [ast.parse(path.read_text("utf-8")) for path in sorted(LIBRARY.glob("*.py"))]
    nodes = (node for tree in sources for node in ast.walk(tree))
    return frozenset(name for node in nodes if (name := private_name(node)))


def our_own(tree: ast.Module) -> set[ast.AST]:
    """Nodes whose private names are a module's own: its functions, and what `self` is asked for in classes that come
    from nobody's."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    foreign = {
        alias.asname or alias.name
        for node in imports
        if str(node.module).startswith(("pynetdicom", reactor.__name__))
        for alias in node.names
    }
    own: set[ast.AST] = {node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        if not {base.id for base in node.bases if isinstance(base, ast.Name)} & foreign:
            inner = list(ast.walk(node))
            own |= {each for each in inner if isinstance(each, ast.FunctionDef)}
            own |= {each for each in inner if isinstance(each, ast.Attribute) and ast.unparse(each.value) == "self"}
    return own


def reaches(tree: ast.Module, theirs: frozenset[str]) -> Iterator[str]:
    """Where a module reaches into pynetdicom: private modules, names, attributes and methods, changed classes."""
    own = our_own(tree)
    for node in ast.walk(tree):
        parts: list[str] = []
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pynetdicom"):
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names if "pynetdicom" in alias.name for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute) and node.attr == "__class__" and isinstance(node.ctx, ast.Store):
            yield f"line {node.lineno}: __class__"
        elif node not in own and private_name(node) in theirs:
            yield f"line {getattr(node, 'lineno', 0)}: {private_name(node)}"
        yield from (f"line {getattr(node, 'lineno', 0)}: {part}" for part in parts if is_private(part))


def test_nobody_else_reaches_into_pynetdicom() -> None:
    theirs = of_pynetdicom()
    assert {"_reactor_checkpoint", "_is_paused", "_decode_pdu", "_servers"} <= theirs
    inside = REACTOR.relative_to(GATEWAY)
    found = [
        f"{path}, {reach}"
        for path, tree in trees(GATEWAY)
        if not path.is_relative_to(inside)
        for reach in reaches(tree, theirs)
    ]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "from pynetdicom._globals import MODE_ACCEPTOR",
        "from pynetdicom import _config",
        "import pynetdicom._config",
        "from pynetdicom.sop_class import _STORAGE_CLASSES",
        "assoc._server = None",
        "def stop(assoc):\n    assoc._kill = True",
        "setattr(assoc, '_kill', True)",
        "assoc.__class__ = Mine",
        "from pynetdicom.acse import ACSE\nclass Mine(ACSE):\n    def _negotiate_as_acceptor(self): ...",
        "from gateway.dimse.reactor.acceptor import AcceptorAssociation as A\n"
        "class Mine(A):\n    def end(self):\n        self._kill = True",
    ],
)
def test_each_way_of_reaching_in_is_found(code: str) -> None:
    assert list(reaches(ast.parse(code), of_pynetdicom()))


def test_names_of_our_own_are_nobody_elses() -> None:
    code = "class Mine:\n    def _send(self):\n        self._kill = True\ndef _decode_pdu(): ..."
    assert not list(reaches(ast.parse(code), of_pynetdicom()))


def test_what_the_reactor_reaches_for_is_in_the_table() -> None:
    """Also where a name of ours is one of pynetdicom's by chance: it would be overridden without a word."""
    theirs, listed = of_pynetdicom(), {name.partition(".")[2] for name in table()}
    nodes = [(path, node) for path, tree in trees(REACTOR) for node in ast.walk(tree)]
    own = {node for _, tree in trees(REACTOR) for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not [
        f"{path}: {name}"
        for path, node in nodes
        if node not in own and (name := private_name(node)) in theirs and name not in listed
    ]


# What pynetdicom does with these names, where a checkpoint that waits for the reactor rests on it.


def methods(kind: type) -> Iterator[tuple[str, list[str]]]:
    """The statements of each method of a class of pynetdicom's, on all levels and in order, as text."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    for method in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        statements = [node for node in ast.walk(method) if isinstance(node, ast.stmt)]
        yield method.name, [ast.unparse(node) for node in sorted(statements, key=lambda node: node.lineno)]


def test_whoever_sends_closes_the_checkpoint_and_waits_for_the_flag() -> None:
    senders = {name: lines for name, lines in methods(Association) if "self._reactor_checkpoint.clear()" in lines}
    assert {"release", "send_c_echo", "send_c_store", "send_c_find", "send_n_action", "send_n_event_report"} <= set(
        senders
    )
    for lines in senders.values():
        after = lines[lines.index("self._reactor_checkpoint.clear()") + 1]
        assert after.startswith("while not self._is_paused:")


def test_the_reactor_takes_nothing_before_it_has_passed_the_checkpoint() -> None:
    lines = dict(methods(Association))["_run_reactor"]
    assert lines.index("self._reactor_checkpoint.wait()") < lines.index(
        "context_id, msg = self.dimse.get_msg(block=False)"
    )


def test_a_class_may_change_when_a_connection_opens(parts: dict[str, Any]) -> None:
    """`no_answer_lost` changes classes of objects that pynetdicom has made."""
    for part in (parts["Association"], parts["DULServiceProvider"]):
        assert not hasattr(type(part), "__slots__")
    requests = dict(methods(Association))["request"]
    assert requests.index("self._dul_ready.wait()") < requests.index("self.acse.negotiate_association()")
