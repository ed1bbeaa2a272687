"""The small PACS of the demonstration, asked by our own SCU and by DCMTK."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import SegmentationStorage, generate_uid
from pynetdicom.dimse_messages import N_ACTION_RSP, N_EVENT_REPORT_RQ, DIMSEMessage

from gateway.dimse import scu
from gateway.dimse.commitment import COMMIT, ObjectReference
from gateway.dimse.demo_pacs import NO_SUCH_OBJECT_INSTANCE, SmallPacs
from gateway.dimse.scu import Proposal, RequestorTimeouts
from gateway.settings.model import Destination
from tests.gateway.receiving import STORESCU, data_set_of, make_ct, write_file
from tests.peers import missing

SEG = str(SegmentationStorage)


def segmentation(path: Path) -> Path:
    instance = make_ct(SOPClassUID=SEG)
    instance.file_meta.MediaStorageSOPClassUID = SEG
    return write_file(instance, path)


def test_it_commits_to_what_it_keeps_and_to_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    file = scu.read_file(segmentation(tmp_path / "seg.dcm"))
    other = str(generate_uid())
    with SmallPacs(tmp_path / "kept", "PACS") as pacs:
        to = Destination("PACS", "127.0.0.1", pacs.port)
        with scu.associate(to, [file.proposal(), Proposal(COMMIT)], RequestorTimeouts(report_s=30)) as link:
            assert link.store(file).status == 0x0000
            asked = [ObjectReference(SEG, file.sop_instance_uid), ObjectReference(SEG, other)]
            report = link.commit("1.2.3", asked).report
        assert report is not None and report.transaction_uid == "1.2.3"
        assert report.committed == {file.sop_instance_uid} == pacs.received().keys()
        assert report.failed == {other: NO_SUCH_OBJECT_INSTANCE}
        assert data_set_of(pacs.file(file.sop_instance_uid)) == data_set_of(file.path)


def test_its_report_never_comes_before_the_end_of_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, answered = threading.Event(), threading.Event()
    encode_msg = DIMSEMessage.encode_msg

    def held_up(message: DIMSEMessage, *facts: Any) -> Iterator[Any]:
        if isinstance(message, N_ACTION_RSP):
            begun.wait(1)  # in vain, as it should be
        for part in encode_msg(message, *facts):
            yield part
            if isinstance(message, N_EVENT_REPORT_RQ):
                begun.set()
                answered.wait(20)
        if isinstance(message, N_ACTION_RSP):
            answered.set()

    monkeypatch.setattr(DIMSEMessage, "encode_msg", held_up)
    with SmallPacs(tmp_path, "PACS") as pacs:
        to = Destination("PACS", "127.0.0.1", pacs.port)
        with scu.associate(to, [Proposal(COMMIT)], RequestorTimeouts(report_s=30)) as link:
            report = link.commit("1.2.3", [ObjectReference(SEG, "1.2.4")]).report
    assert report is not None and report.failed == {"1.2.4": NO_SUCH_OBJECT_INSTANCE}


def test_dcmtk_stores_in_it(tmp_path: Path) -> None:
    if not Path(STORESCU).exists():
        missing("storescu")
    (tmp_path / "kept").mkdir()
    file = segmentation(tmp_path / "seg.dcm")
    with SmallPacs(tmp_path / "kept", "PACS") as pacs:
        command = [STORESCU, "-R", "-xe", "-aec", "PACS", "127.0.0.1", str(pacs.port), str(file)]
        subprocess.run(command, env=os.environ | {"TCP_NODELAY": "1"}, check=True, capture_output=True)
        assert dcmread(pacs.file(dcmread(file).SOPInstanceUID)) == dcmread(file)
