"""A series in the spool as a source of slices."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from gateway.dimse.store import Ending, StoreRequest
from gateway.ledger import series as series_rows
from gateway.receive.comparison import Comparison
from gateway.receive.source import SpoolSource, read_series
from medseg.dicom.encoding import find_encoding
from medseg.errors import Interrupted
from tests.gateway.phantoms import phantom
from tests.gateway.receiving import encode
from tests.gateway.spooling import Inbox, inbox


def complete(box: Inbox, revision: int) -> None:
    (row,) = box.rows("series")
    at = time.time()
    assert box.ledger.write(series_rows.complete_series, row.study_uid, row.series_uid, revision, "quiet", at)


def source_of(box: Inbox, **options: object) -> SpoolSource:
    (row,) = box.rows("series")
    return SpoolSource(box.ledger, box.folder, row.study_uid, row.series_uid, **options)  # type: ignore[arg-type]


def test_it_gives_what_is_here_waits_for_the_rest_and_ends_when_complete(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        series = phantom()
        box.send(series[:4])
        source = source_of(box)
        slices = iter(source)
        seen = [next(slices) for _ in range(4)]

        def rest() -> None:
            box.send(series[4:])
            complete(box, 6)

        sender = threading.Thread(target=rest)
        sender.start()
        seen += slices
        sender.join()
        assert [one.instance.sop_instance_uid for one in seen if one and one.instance] == [
            one.SOPInstanceUID for one in series
        ]
        assert (source.revision, source.expected, len(source.series.instances)) == (6, None, 6)


def test_it_stops_waiting_when_nobody_wants_it(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        box.send(phantom())
        given: list[object] = []
        slices = iter(source_of(box, cancelled=lambda: len(given) == 6))
        given += [next(slices) for _ in range(6)]
        assert next(slices) is None
        with pytest.raises(Interrupted):
            next(slices)


def test_a_series_is_read_only_at_the_revision_that_is_asked_for(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        series = phantom()
        box.send(series[:5])
        complete(box, 5)
        (row,) = box.rows("series")
        of = box.ledger, box.folder, row.study_uid, row.series_uid
        found = read_series(*of, 5)
        assert found is not None and len(found.instances) == 5
        box.send(series[5:])
        assert read_series(*of, 5) is None


def test_a_corrected_instance_takes_the_place_of_the_first(tmp_path: Path) -> None:
    with inbox(tmp_path) as box:
        series = phantom()
        box.send(series)
        corrected = phantom(ImageComments="corrected", PatientName="Corrected^Name")[2]
        box.send([corrected])
        assert Comparison(box.ledger, box.folder).step()
        complete(box, 7)
        source = source_of(box)
        assert len([one for one in source.instances() if one]) == 6
        comments = [str(one.header.get("ImageComments", "")) for one in source.series.instances]
        assert sorted(comments)[-1] == "corrected" and len(comments) == 6


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("stray", [JPEG2000Lossless, ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_file_meta_that_a_sender_left_in_the_data_set_says_nothing(tmp_path: Path, syntax: UID, stray: UID) -> None:
    """The presentation context alone says how a data set is encoded, and the ledger where it begins."""
    value = str(stray).encode() + b"\0" * (len(stray) % 2)
    length = struct.pack("<L", len(value)) if syntax.is_implicit_VR else b"UI" + struct.pack("<H", len(value))
    inside = struct.pack("<HH", 0x0002, 0x0010) + length + value
    series = phantom()
    with inbox(tmp_path) as box:
        peer = box.open()
        for one in series:
            incoming = box.spool.begin(StoreRequest(peer, one.SOPClassUID, one.SOPInstanceUID, syntax, 0))
            incoming.write(memoryview(inside + encode(one, syntax)))
            incoming.finish()
        box.spool.closed(peer, Ending.RELEASED)
        complete(box, 6)
        for row in box.rows("instance"):
            with (box.folder / row.path).open("rb") as file:
                coded = find_encoding(file)
            assert (coded.offset, coded.syntax) == (row.offset_bytes, row.transfer_syntax_uid)
        found = {one.instance.sop_instance_uid: one for one in source_of(box) if one and one.instance}
        for one in series:
            plane = found[one.SOPInstanceUID]
            stored = np.frombuffer(one.PixelData, "<u2").reshape(32, 32)
            assert np.array_equal(plane.read(), stored.astype(np.float32) + float(one.RescaleIntercept))
            assert [remark.code for remark in plane.instance.remarks] == ["file_meta_in_data_set"]  # type: ignore[union-attr]
