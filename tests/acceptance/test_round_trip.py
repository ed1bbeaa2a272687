"""The whole way with the hospital's side real: Orthanc routes an MRI to medseg, and has SEG and report back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from medseg.cli.demo import write_study
from tests.acceptance.test_demo import CENTRES_RAS_MM, voxel_centres_ras_mm
from tests.gateway.receiving import data_set_of
from tests.peers.routed import DEPLOY, Pair, routed
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(find_spec("nilearn") is None, reason="nilearn carries the MNI152 MRI")

RESULTS = """SELECT o.kind, o.sop_instance_uid, o.path, r.series_uid, d.state, d.stored_at, d.transaction_uid
             FROM result_object o JOIN delivery d ON d.object_id = o.id JOIN result r ON r.id = o.result_id"""
COMMITMENT = "storage commitment list"
JOBS = "SELECT id, state FROM job"


def test_a_routed_study_is_answered_with_seg_and_report(tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    files = sorted((tmp_path / "study").rglob("*.dcm"))
    images = {str(image.SOPInstanceUID): image for image in map(dcmread, files)}
    with routed(tmp_path) as pair:
        pair.send(files)
        rows = confirmed(pair, 4)
        assert is_healthy(pair)
        for row in rows:
            result = kept_by_orthanc(pair, row, tmp_path)
            assert data_set_of(result) == data_set_of(pair.medseg.folder / "spool" / row.path)
            assert_belongs(dcmread(result), images, row.series_uid)
            if row.kind == "seg":
                assert_lies_right(result, images, row.series_uid)
        # medseg's word on storage commitment: Orthanc asked for it, and the series was complete with that
        jobs = [job["Content"] for job in pair.ask("/jobs?expand") if job["Type"] == "DicomModalityStore"]
        reports = [pair.ask(f"/storage-commitment/{job['StorageCommitmentTransactionUID']}") for job in jobs]
        assert [report["Status"] for report in reports] == ["Success", "Success"]
        assert {row.complete_by for row in pair.medseg.rows("SELECT complete_by FROM series")} == {COMMITMENT}
        # Orthanc's word on storage commitment came on an association of its own, after the last result
        assert all(row.transaction_uid for row in rows)
        assert pair.medseg.rows(
            "SELECT 1 FROM association WHERE calling_ae = 'ORTHANC'"
            f" AND opened_at > {max(row.stored_at for row in rows)}"
        )

        (study,) = pair.ask("/studies")
        series = [pair.ask(f"/series/{one}") for one in pair.ask(f"/studies/{study}")["Series"]]
        assert sorted(modality(one) for one in series) == ["MR", "MR", "SEG", "SEG", "SR", "SR"]

        # Orthanc does not route results back; and where it is told to, medseg makes nothing of them.
        stable = "a result that Orthanc has looked at for routing"
        wait_for(stable, lambda: all(pair.ask(f"/series/{one['ID']}")["IsStable"] for one in series))
        assert len(pair.medseg.rows("SELECT 1 FROM instance")) == len(images)
        jobs = pair.medseg.rows(JOBS)
        sent_back = [one["ID"] for one in series if modality(one) != "MR"]
        pair.ask("/modalities/medseg/store", {"Resources": sent_back, "Synchronous": True})
        passed_over = "SELECT DISTINCT series_uid FROM event WHERE kind = 'series.passed_over'"
        wait_for("the results to be passed over", lambda: len(pair.medseg.rows(passed_over)) == 4)
        assert pair.medseg.rows(JOBS) == jobs


def is_healthy(pair: Pair) -> bool:
    """Whether the container's health check succeeds, with the port that medseg has here."""
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text("utf-8")
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n\s*CMD (.+)$", dockerfile, re.M)
    _, *arguments = json.loads(check.replace(":8090/", f":{pair.http_port}/"))
    return subprocess.run([sys.executable, *arguments], check=False, timeout=60).returncode == 0


def confirmed(pair: Pair, count: int) -> list[Any]:
    """The results in the ledger, once Orthanc has committed to all of them."""

    def found() -> list[Any]:
        rows = pair.medseg.rows(RESULTS)
        return rows if len(rows) == count and {row.state for row in rows} == {"confirmed"} else []

    return wait_for(f"{count} confirmed results", found)  # type: ignore[no-any-return]


def kept_by_orthanc(pair: Pair, row: Any, folder: Path) -> Path:
    """The file that Orthanc keeps of a result."""
    query = {"Level": "Instance", "Query": {"SOPInstanceUID": row.sop_instance_uid}}
    (found,) = pair.ask("/tools/find", query)
    path = folder / f"{row.kind}.{row.sop_instance_uid}.dcm"
    path.write_bytes(pair.get(f"/instances/{found}/file"))
    return path


def modality(series: dict[str, Any]) -> str:
    return str(series["MainDicomTags"]["Modality"])


def assert_belongs(result: Dataset, images: dict[str, Dataset], series_uid: str) -> None:
    """A result is of the patient and study of its images, and refers to all of the series it was made of."""
    source = {uid: image for uid, image in images.items() if image.SeriesInstanceUID == series_uid}
    (first, *_) = source.values()
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyID", "StudyDate", "AccessionNumber"):
        assert result[keyword].value == first[keyword].value
    if result.Modality == "SEG":
        (referenced,) = result.ReferencedSeriesSequence
        assert referenced.SeriesInstanceUID == series_uid
        assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == set(source)
        assert result.FrameOfReferenceUID == first.FrameOfReferenceUID
    else:
        (study,) = result.CurrentRequestedProcedureEvidenceSequence
        evidence = {series.SeriesInstanceUID: series.ReferencedSOPSequence for series in study.ReferencedSeriesSequence}
        assert {item.ReferencedSOPInstanceUID for item in evidence[series_uid]} == set(source)


def assert_lies_right(seg: Path, images: dict[str, Dataset], series_uid: str) -> None:
    """Each frame lies on its source image, and all of them where the hippocampus of that side is."""
    side = next(image.SeriesDescription for image in images.values() if image.SeriesInstanceUID == series_uid).split()[
        -1
    ]
    read = highdicom.seg.segread(seg)
    for groups in read.PerFrameFunctionalGroupsSequence:
        (derived,) = groups.DerivationImageSequence
        image = images[derived.SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert groups.PlanePositionSequence[0].ImagePositionPatient == image.ImagePositionPatient
    assert np.linalg.norm(voxel_centres_ras_mm(read).mean(axis=0) - CENTRES_RAS_MM[side]) <= 5.0


@pytest.mark.slow
def test_what_medseg_missed_is_routed_again(tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    with routed(tmp_path) as pair:
        pair.medseg.stop()
        pair.send(sorted((tmp_path / "study" / "left").glob("*.dcm")))
        wait_for("the routing to fail", lambda: any(job["State"] == "Failure" for job in pair.ask("/jobs?expand")))
        pair.medseg.start()
        pair.send(sorted((tmp_path / "study" / "right").glob("*.dcm")))
        confirmed(pair, 4)
