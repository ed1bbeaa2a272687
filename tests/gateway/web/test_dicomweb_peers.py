"""Orthanc's DICOMweb plugin as a client that stores, asks and retrieves, and as a service to which results go."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread, dcmwrite

from gateway.settings.model import Peer
from tests.gateway.deliver.stage import staged
from tests.gateway.phantoms import new_phantom
from tests.gateway.web.served import Served, served
from tests.peers import orthanc

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("orthanc")
    started = orthanc.start(folder)
    yield started
    orthanc.stop(folder)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as one:
        yield one


def ask(pacs: dict[str, Any], path: str, body: Any = None, method: str = "POST") -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(pacs["rest"] + path, data, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        content = answer.read()
    return json.loads(content) if content else None


def file_of(one: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, one, enforce_file_format=True)
    return buffer.getvalue()


def test_orthanc_stores_asks_and_retrieves(site: Served, pacs: dict[str, Any]) -> None:
    images = new_phantom(slices=12)
    series = {ask(pacs, "/instances", file_of(one))["ParentSeries"] for one in images}
    ask(pacs, "/dicom-web/servers/medseg", {"Url": f"http://127.0.0.1:{site.port}/dicom-web/"}, "PUT")
    ask(pacs, "/dicom-web/servers/medseg/stow", {"Resources": list(series), "Synchronous": True})
    assert {row.sop_instance_uid for row in site.box.rows("instance")} == {one.SOPInstanceUID for one in images}
    assert [(row.receiver, row.ending) for row in site.box.rows("association")] == [("web", "released")]
    uid = images[0].StudyInstanceUID
    question = {
        "Uri": "/studies",
        "Arguments": {"StudyInstanceUID": uid},
        "HttpHeaders": {"Accept": "application/json"},
    }
    (found,) = ask(pacs, "/dicom-web/servers/medseg/get", question)
    assert found["00201208"]["Value"] == [12]
    for one in series:
        ask(pacs, f"/series/{one}", method="DELETE")
    ask(pacs, "/dicom-web/servers/medseg/retrieve", {"Resources": [{"Study": uid}], "Synchronous": True})
    (one,) = series
    back = ask(pacs, f"/series/{one}", method="GET")["Instances"]
    assert len(back) == 12
    with urllib.request.urlopen(f"{pacs['rest']}/instances/{back[0]}/file", timeout=30) as answer:
        again = dcmread(BytesIO(answer.read()))
    (sent,) = (one for one in images if one.SOPInstanceUID == again.SOPInstanceUID)
    assert again.PixelData == sent.PixelData


def test_results_go_to_orthanc_and_are_confirmed(tmp_path: Path, pacs: dict[str, Any]) -> None:
    with staged(tmp_path, 1) as stage:
        for query in (None, True):
            peer = Peer("pacs", dicomweb=pacs["dicomweb"], query=query)
            stage.outbox.settle(replace(stage.settings, peers=(peer,)))
            made = stage.result("seg", "sr")
            stage.outbox.serve("pacs")
            stage.later(6)
            stage.outbox.serve("pacs")
            assert {stage.rows()[uid].state for uid in made} == {"confirmed"}
            for uid in made:
                (found,) = ask(pacs, "/tools/find", {"Level": "Instance", "Query": {"SOPInstanceUID": uid}})
                with urllib.request.urlopen(f"{pacs['rest']}/instances/{found}/file", timeout=30) as answer:
                    assert dcmread(BytesIO(answer.read())).SOPInstanceUID == uid
