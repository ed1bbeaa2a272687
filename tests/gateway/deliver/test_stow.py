"""Results leave by STOW-RS: stored, confirmed by the answer or by QIDO-RS, tried again or not, by a service that
answers as it is told to."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from email.message import Message
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from gateway.dicomweb.client import WebClient
from gateway.settings.model import Peer
from tests.gateway.deliver.stage import Stage, staged
from tests.ports import free_port


def naming(sequence: str = "00081199", **more: int) -> Callable[[str, str], bytes]:
    """An answer that names the object in a sequence."""

    def answer(sop_class: str, uid: str) -> bytes:
        item = {"00081150": {"vr": "UI", "Value": [sop_class]}, "00081155": {"vr": "UI", "Value": [uid]}}
        item |= {tag[1:]: {"vr": "US", "Value": [number]} for tag, number in more.items()}
        return json.dumps({sequence: {"vr": "SQ", "Value": [item]}}).encode()

    return answer


@dataclass
class FakeService:
    """What a service got, and how it answers. Each of these may be changed while it runs."""

    status: int = 200
    answer: Callable[[str, str], bytes] = field(default_factory=naming)
    knows: bool = True
    port: int = 0
    got: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"


@contextlib.contextmanager
def answering() -> Iterator[FakeService]:
    service = FakeService()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:  # type: ignore[override]
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            whole = message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
            (part,) = (one for one in whole.get_payload() if isinstance(one, Message))
            sent = dcmread(BytesIO(part.get_payload(decode=True)))
            service.got.append(str(sent.SOPInstanceUID))
            self._answer(service.status, service.answer(sent.SOPClassUID, sent.SOPInstanceUID))

        def do_GET(self) -> None:
            service.asked.append(self.path)
            uid = self.path.partition("SOPInstanceUID=")[2]
            found = [{"00080018": {"vr": "UI", "Value": [uid]}}] if service.knows else []
            self._answer(200, json.dumps(found).encode())

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def web_staged(folder: Path, url: str, query: bool | None = None) -> Iterator[Stage]:
    with staged(folder, 1) as stage:
        stage.settings = replace(stage.settings, peers=(Peer("pacs", dicomweb=url, query=query),))
        stage.outbox.settle(stage.settings)
        yield stage


def test_an_answer_that_names_the_object_confirms_it(tmp_path: Path) -> None:
    with answering() as service, web_staged(tmp_path, service.url) as stage:
        made = stage.result("sr", "seg")
        stage.outbox.serve("pacs")
        assert service.got == [made[1], made[0]]  # the segmentation first
        assert (stage.states(), service.asked) == (["confirmed", "confirmed"], [])


@pytest.mark.parametrize(("query", "knows", "states"), [
    (True, True, ["confirmed"]), (None, True, ["confirmed"]), (None, False, ["stored"]), (False, True, ["stored"]),
])  # fmt: skip
def test_otherwise_it_is_asked_by_qido(tmp_path: Path, query: bool | None, knows: bool, states: list[str]) -> None:
    with answering() as service, web_staged(tmp_path, service.url, query) as stage:
        service.knows = knows
        if query is not True:
            service.answer = lambda *_: b""
        (uid,) = stage.result("seg")
        stage.outbox.serve("pacs")
        assert stage.states() == ["stored"]
        stage.later(6)
        stage.outbox.serve("pacs")
        assert stage.states() == states
        assert [path.endswith(f"SOPInstanceUID={uid}") for path in service.asked] == ([] if query is False else [True])


def test_what_is_never_found_is_sent_again(tmp_path: Path) -> None:
    with answering() as service, web_staged(tmp_path, service.url, True) as stage:
        service.knows = False
        stage.result("seg")
        for _ in range(5):
            stage.outbox.serve("pacs")
            stage.later(700)
        assert (stage.states(), len(service.got), len(service.asked)) == (["queued"], 1, 4)
        assert "QIDO-RS does not find it" in next(iter(stage.rows().values())).error
        stage.outbox.serve("pacs")
        assert len(service.got) == 2


@pytest.mark.parametrize(
    ("status", "answer", "state", "code"),
    [
        (409, naming("00081198", t00081197=0xA700), "queued", "busy"),
        (202, naming("00081198", t00081197=0xC000), "dead", "refused"),
        (409, naming("00081198", t00081197=0x0122), "dead", "not_accepted"),
        (409, naming("00081198", t00081197=0x0111), "stored", None),  # it has the object already
        (409, lambda *_: b"", "dead", "refused"),
        (200, naming(t00081196=0xB000), "stored", None),  # with a warning: it is asked
        (401, lambda *_: b"", "dead", "rejected"),
        (404, lambda *_: b"no", "dead", "rejected"),
        (503, lambda *_: b"<html>", "queued", "busy"),
        (500, lambda *_: b"", "queued", "failed"),
    ],
)
def test_what_an_answer_comes_to(tmp_path: Path, status: int, answer: Any, state: str, code: str | None) -> None:
    with answering() as service, web_staged(tmp_path, service.url) as stage:
        service.status, service.answer = status, answer
        stage.result("seg")
        stage.outbox.serve("pacs")
        (row,) = stage.rows().values()
        assert (row.state, row.error_code) == (state, code)


def test_nobody_there_is_tried_again(tmp_path: Path) -> None:
    port = free_port()
    with web_staged(tmp_path, f"http://127.0.0.1:{port}/dicom-web") as stage:
        stage.result("seg")
        stage.outbox.serve("pacs")
        (row,) = stage.rows().values()
        assert (row.state, row.error_code) == ("queued", "unreachable")
        assert not WebClient(f"http://127.0.0.1:{port}", 1, 1).reach().reached
