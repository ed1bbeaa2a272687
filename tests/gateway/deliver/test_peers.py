"""Deliveries to programs of others: DCMTK's storescp, and Orthanc with storage commitment on its own association."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from gateway.dimse import scu
from gateway.dimse.commitment import CommitmentReport
from gateway.ledger import deliveries
from gateway.settings.model import Destination
from medseg.results.identity import ResultKey
from medseg.results.report import write_report
from medseg.results.seg import SegWriter
from medseg.results.statement import Statement, write_rejection, write_statement
from tests.gateway.deliver.stage import QUICK, Stage, staged
from tests.gateway.phantoms import phantom
from tests.gateway.receiving import data_set_of, receiving
from tests.medseg.results.stacks import SEGMENTS, blobs, feed, findings, made, make_result, make_stack
from tests.peers import missing, orthanc
from tests.waiting import wait_for

STORESCP = Path("/usr/bin/storescp")  # DCMTK's, and not pynetdicom's of the same name


def segmented(stage: Stage, seed: str = "a") -> dict[str, Path]:
    """A SEG and an SR as medseg writes them, in the outbox."""
    stack, provenance = make_stack(shape=(4, 16, 20)), made(seed)
    labels = blobs(stack.shape)
    files = {"seg": stage.spool / f"seg.{seed}.dcm", "sr": stage.spool / f"sr.{seed}.dcm"}
    writer = SegWriter(files["seg"], provenance)
    feed(writer, stack, SEGMENTS, labels)
    write_report(
        files["sr"],
        make_result(stack, SEGMENTS, labels),
        findings(stack, SEGMENTS, labels),
        provenance,
        with_seg=True,
    )
    stage.deliver(list(files.items()))
    return files


def told(stage: Stage) -> dict[str, Path]:
    """That a result is withdrawn, in words and as a rejection, in the outbox."""
    (header,) = phantom(slices=1)
    image = {header.SeriesInstanceUID: [(header.SOPClassUID, header.SOPInstanceUID)]}
    key, at = ResultKey("c" * 64), datetime(2026, 5, 6, 7, 8)
    said = Statement(key, header.StudyInstanceUID, header, at, ("It is wrong.",), image, "AI", evidence=image)
    files = {"sr": stage.spool / "words.dcm", "ko": stage.spool / "rejection.dcm"}
    write_statement(files["sr"], said)
    write_rejection(files["ko"], said)
    stage.deliver(list(files.items()))
    return files


def test_storescp_takes_a_result_byte_for_byte(tmp_path: Path) -> None:
    if not STORESCP.exists():
        missing("DCMTK's storescp")
    port, inbox = orthanc.free_port(), tmp_path / "inbox"
    inbox.mkdir()
    command = [STORESCP, "-aet", "PACS", "-od", inbox, "+B", str(port)]
    peer = subprocess.Popen(command, env=os.environ | {"TCP_NODELAY": "1"}, stderr=subprocess.DEVNULL)
    try:
        wait_for("the peer", lambda: _echoes(port))
        with staged(tmp_path, port) as stage:
            files = [*segmented(stage).values(), *told(stage).values()]
            stage.outbox.serve("pacs")
            assert stage.states() == ["stored"] * 4
            got = {str(dcmread(path).SOPInstanceUID): data_set_of(path) for path in inbox.iterdir()}
            sent = {str(dcmread(path).SOPInstanceUID): data_set_of(path) for path in files}
            assert got == sent
            stage.later(6)
            stage.outbox.serve("pacs")  # it neither commits nor answers queries
            assert stage.states() == ["stored"] * 4
            assert stage.outbox.due() == frozenset()
    finally:
        peer.terminate()
        peer.wait(10)


PROFILE = """
[[TransferSyntaxes]]
[Plain]
TransferSyntax1 = LittleEndianExplicit
TransferSyntax2 = LittleEndianImplicit
[[PresentationContexts]]
[Some]
PresentationContext1 = {}\\Plain
PresentationContext2 = VerificationSOPClass\\Plain
[[Profiles]]
[Some]
PresentationContexts = Some
"""


@pytest.mark.parametrize(("kind", "sop_class"), [("seg", "SegmentationStorage"), ("sr", "Comprehensive3DSRStorage")])
def test_storescp_gets_what_it_accepts_and_nothing_else(tmp_path: Path, kind: str, sop_class: str) -> None:
    if not STORESCP.exists():
        missing("DCMTK's storescp")
    port, inbox = orthanc.free_port(), tmp_path / "inbox"
    inbox.mkdir()
    (tmp_path / "profile.cfg").write_text(PROFILE.format(sop_class))
    command = [STORESCP, "-xf", tmp_path / "profile.cfg", "Some", "-od", inbox, "+B", str(port)]
    peer = subprocess.Popen(command, env=os.environ | {"TCP_NODELAY": "1"}, stderr=subprocess.DEVNULL)
    try:
        wait_for("the peer", lambda: _echoes(port))
        with staged(tmp_path, port) as stage:
            files = segmented(stage)
            stage.outbox.serve("pacs")
            assert sorted(stage.states()) == ["dead", "stored"]
            assert [dcmread(path).SOPInstanceUID for path in inbox.iterdir()] == [dcmread(files[kind]).SOPInstanceUID]
    finally:
        peer.terminate()
        peer.wait(10)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[tuple[Stage, dict[str, Any]]]:
    """An outbox, and an Orthanc that knows its receiver."""
    moved: list[int] = []

    def reported(report: CommitmentReport) -> None:
        facts = (report.transaction_uid, report.committed, report.failed, stage.clock.wall_s)
        moved.append(stage.ledger.write(deliveries.take_report, *facts, stage.settings.deliver, 0.5))

    (tmp_path / "receiver").mkdir()
    with receiving(tmp_path / "receiver", reported=reported) as receiver:
        folder = tmp_path / "orthanc"
        started = orthanc.start(folder, aet="PACS", peers={"gw": ("MEDSEG", receiver.scp.port)})
        try:
            with staged(tmp_path, started["dicom_port"]) as stage:
                stage.open(timeouts=replace(QUICK, report_s=0))  # Orthanc reports on associations of its own
                yield stage, started
        finally:
            orthanc.stop(folder)


def test_orthanc_stores_a_result_and_commits_to_it(pacs: tuple[Stage, dict[str, Any]]) -> None:
    stage, peer = pacs
    files = segmented(stage)
    stage.outbox.serve("pacs")
    assert stage.states() == ["stored", "stored"]
    stage.later(6)
    stage.outbox.serve("pacs")
    wait_for("the states of the deliveries", lambda: stage.states() == ["confirmed", "confirmed"])
    kept = {
        str(dcmread(path).SOPInstanceUID): _rest(peer, "/tools/lookup", str(dcmread(path).SOPInstanceUID))[0]["ID"]
        for path in files.values()
    }
    for path in files.values():
        identifier = kept[str(dcmread(path).SOPInstanceUID)]
        file = path.with_suffix(".back")
        file.write_bytes(_get(peer, f"/instances/{identifier}/file"))
        assert dcmread(file) == dcmread(path)

    again = segmented(stage, "b")
    stage.outbox.serve("pacs")
    (lost,) = _rest(peer, "/tools/lookup", str(dcmread(again["sr"]).SOPInstanceUID))
    _delete(peer, f"/instances/{lost['ID']}")
    stage.later(6)
    stage.outbox.serve("pacs")
    wait_for(
        "the states of the deliveries", lambda: stage.states() == ["confirmed", "confirmed", "confirmed", "queued"]
    )
    stage.later(6)
    stage.outbox.serve("pacs")
    stage.later(6)
    stage.outbox.serve("pacs")
    wait_for("the states of the deliveries", lambda: stage.states() == ["confirmed"] * 4)


def test_orthanc_is_queried_where_commitment_is_switched_off(pacs: tuple[Stage, dict[str, Any]]) -> None:
    stage, _ = pacs
    stage.settings = replace(stage.settings, deliver=replace(stage.settings.deliver, commitment=False))
    stage.open()
    segmented(stage)
    told(stage)
    stage.outbox.serve("pacs")
    stage.later(6)
    stage.outbox.serve("pacs")
    assert stage.states() == ["confirmed"] * 4


def _echoes(port: int) -> bool:
    try:
        return scu.echo(Destination("PACS", "127.0.0.1", port), QUICK) == 0x0000
    except scu.NoAssociation:
        return False


def _get(peer: dict[str, Any], path: str) -> bytes:
    with urllib.request.urlopen(peer["rest"] + path, timeout=10) as answer:
        return bytes(answer.read())


def _rest(peer: dict[str, Any], path: str, body: str) -> Any:
    with urllib.request.urlopen(peer["rest"] + path, data=body.encode(), timeout=10) as answer:
        return json.load(answer)


def _delete(peer: dict[str, Any], path: str) -> None:
    urllib.request.urlopen(urllib.request.Request(peer["rest"] + path, method="DELETE"), timeout=10).close()
