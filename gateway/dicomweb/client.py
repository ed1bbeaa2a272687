"""The client: an object is stored by STOW-RS, and asked after by QIDO-RS (PS3.18 10.5, 10.6), one request for each.

A file is sent piece by piece, as it lies on the disk. What an answer means is for the caller to say. Of what a service
says in words nothing is kept: it may name the patient.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from gateway.dicomweb.dataset_json import values_of
from gateway.dicomweb.media import DICOM, DICOM_JSON, MULTIPART
from gateway.dicomweb.multipart import head, new_boundary, tail

LONGEST_ANSWER: Final = 1 << 24  # bytes
_PIECE: Final = 1 << 18
_BROKEN = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class WebAnswer:
    """What a request came to.

    status: of HTTP; None where there was no answer. reached: whether there was a connection. stored: whether the answer
    names the object as stored. reason, warning: the Failure Reason or Warning Reason that it gives for it.
    """

    status: int | None
    reached: bool = True
    stored: bool = False
    reason: int | None = None
    warning: int | None = None

    @property
    def words(self) -> str:
        """The status, for people."""
        if self.status is None:
            return "no answer" if self.reached else "no connection"
        known = {int(one): one.phrase for one in HTTPStatus}
        return f"HTTP {self.status} {known.get(self.status, '')}".rstrip()


@dataclass(frozen=True)
class WebClient:
    """Of the service at an address. connect_s, answer_s: how long it is waited for."""

    url: str
    connect_s: float
    answer_s: float

    def store(self, file: Path, sop_instance_uid: str) -> WebAnswer:
        """Send a file. Raises OSError where it cannot be read."""
        boundary = new_boundary()
        before, after = head(boundary, {"Content-Type": DICOM}), b"\r\n" + tail(boundary)
        headers = {
            "Content-Type": f'{MULTIPART}; type="{DICOM}"; boundary={boundary}',
            "Content-Length": str(len(before) + os.path.getsize(file) + len(after)),  # noqa: PTH202
            "Accept": DICOM_JSON,
        }

        def body() -> Iterator[bytes]:
            yield before
            with file.open("rb") as stream:
                while piece := stream.read(_PIECE):
                    yield piece
            yield after

        status, content = self._ask("POST", "/studies", headers, body())
        if status is None:
            return WebAnswer(None, reached=content is not None)
        return _told(status, content or b"", sop_instance_uid)

    def find(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> bool | None:
        """Whether the service knows an object; None where it does not say."""
        path = f"/studies/{quote(study_uid)}/series/{quote(series_uid)}/instances?SOPInstanceUID={sop_instance_uid}"
        status, content = self._ask("GET", path, {"Accept": DICOM_JSON})
        if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND):
            return False
        found = _json(content or b"") if status == HTTPStatus.OK else None
        if not isinstance(found, list):
            return None
        return any(sop_instance_uid in values_of(one.get("00080018")) for one in found if isinstance(one, dict))

    def reach(self) -> WebAnswer:
        """Ask for one study, whichever."""
        status, content = self._ask("GET", "/studies?limit=1", {"Accept": DICOM_JSON})
        return WebAnswer(status, reached=status is not None or content is not None)

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: Iterator[bytes] | None = None
    ) -> tuple[int | None, bytes | None]:
        """Status and content; (None, b"") where there is no answer, (None, None) where there is no connection."""
        place = urlsplit(self.url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        with closing(kind(place.hostname or "", place.port, timeout=self.connect_s)) as connection:
            try:
                connection.connect()
            except _BROKEN:
                return None, None
            connection.sock.settimeout(self.answer_s)
            try:
                # A service that refuses may answer, and read no more, before all is sent.
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, place.path + path, body, dict(headers))
                answer = connection.getresponse()
                return answer.status, answer.read(LONGEST_ANSWER)
            except _BROKEN:
                return None, b""


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _told(status: int, content: bytes, sop_instance_uid: str) -> WebAnswer:
    """What a Store Instances Response (PS3.18 table I.2-1) says of an object."""
    told = _json(content)
    told = told[0] if isinstance(told, list) and told else told
    if not isinstance(told, dict):
        return WebAnswer(status)
    stored = _of(told, "00081199", sop_instance_uid)
    failed = _of(told, "00081198", sop_instance_uid)
    return WebAnswer(
        status,
        stored=stored is not None and failed is None,
        reason=None if failed is None else _number(failed, "00081197") or 0,
        warning=None if stored is None else _number(stored, "00081196"),
    )


def _of(told: dict[str, Any], sequence: str, sop_instance_uid: str) -> dict[str, Any] | None:
    for item in values_of(told.get(sequence)):
        if isinstance(item, dict) and sop_instance_uid in values_of(item.get("00081155")):
            return item
    return None


def _number(item: dict[str, Any], name: str) -> int | None:
    values = values_of(item.get(name))
    return int(values[0]) if values and isinstance(values[0], int | float) else None
