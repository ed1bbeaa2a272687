"""The web process's site over a ledger of its own, behind its real server."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from gateway import heartbeat
from gateway.settings.current import Live
from gateway.settings.model import GatewaySettings, Limits
from gateway.web import server
from tests.gateway.spooling import Inbox, inbox
from tests.ports import free_port
from tests.waiting import wait_for

PROCESSES = ("director", "receiver", "worker")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def body(self) -> str:
        return self.content.decode("utf-8")


@dataclass(frozen=True)
class Served:
    """A site that is served. live: its settings, which may be replaced."""

    box: Inbox
    live: Live
    port: int

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return self.ask(path, method, headers=headers)

    def ask(self, path: str, method: str = "GET", body: Any = None, headers: Mapping[str, str] = {}) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, headers=dict(headers))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        finally:
            connection.close()

    def answers(self) -> bool:
        try:
            return self.get("/healthz").status == 200
        except OSError:
            return False

    def beat(self, *processes: str, age_s: float = 0.0) -> None:
        for name in processes:
            at = time.time() - age_s
            os.utime(self.box.folder / heartbeat.FOLDER / name, (at, at))


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    with inbox(folder) as box:
        gateway = replace(
            GatewaySettings().gateway,
            spool=box.folder, http_port=free_port(), database=f"sqlite:///{folder}/ledger.db",
        )  # fmt: skip
        limits = Limits(disk_used_percent=100, disk_free_gb=0)
        live, stop = Live(replace(GatewaySettings(), gateway=gateway, limits=limits)), threading.Event()
        heartbeat.expect(box.folder, PROCESSES)
        site = Served(box, live, gateway.http_port)
        site.beat(*PROCESSES)
        thread = threading.Thread(target=server.run, args=(live, stop))
        thread.start()
        try:
            wait_for("the site", site.answers)
            yield site
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()


class Page(HTMLParser):
    """What a browser would make of a page: its elements, the values of their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.pieces: list[str] = []
        self.style = ""
        self._in = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._in = tag

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "style":
            self.style += data
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    @property
    def links(self) -> list[str]:
        return [value for name, value in self.attributes if name == "href"]
