"""Results without who they are of, in every form: judged by the standard's table, and searched byte by byte."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.deidentify.pseudonyms import Pseudonyms
from medseg.deidentify.request import Deidentify
from medseg.dicom.phantom import Box, make_series, write_series
from medseg.dicom.sources import find_instances, read_series
from medseg.errors import OutputExists
from medseg.inference.settings import Settings
from medseg.job.folder import DICOM, Format
from medseg.job.plan import StudyPlan, plan
from medseg.job.run import Outcome, run
from medseg.job.study import StudyTask, WithoutResult, do_study, plan_study
from tests.acceptance.test_geometry import threshold_bundle
from tests.medseg.deidentify.judge import complaints
from tests.peers.programs import dciodvfy

ONE, OTHER = Deidentify(Pseudonyms(b"1" * 32), copy_sources=True), Deidentify(Pseudonyms(b"2" * 32))
PLANTED = {
    "PatientName": "Plantagenet^Henry",
    "PatientID": "MRN-4711",
    "AccessionNumber": "ACC-0815",
    "StudyDate": "20190314",
    "StudyTime": "101112",
    "StudyDescription": "Plantagenet head",
    "SeriesDescription": "t1 for dr lancaster",
    "InstitutionName": "St Elsewhere",
    "StudyID": "SID-99",
    "PatientBirthDate": "19540802",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(threshold_bundle(tmp_path_factory.mktemp("bundle") / "threshold"))


def study(folder: Path, **values: str) -> list[Dataset]:
    box = Box((0.0, 0.0, 0.0), (4.0, 4.0, 4.0), 100.0)
    datasets = make_series(shape=(5, 12, 12), spacing_mm=(2.0, 1.0, 1.0), objects=[box], seed=1)
    for dataset in datasets:
        for keyword, value in (PLANTED | values).items():
            setattr(dataset, keyword, value)
        dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(1, "LO", "Plantagenet")
        dataset.RequestAttributesSequence = [Dataset()]
        dataset.RequestAttributesSequence[0].ScheduledProcedureStepDescription = "Plantagenet"
    write_series(datasets, folder / "Plantagenet")
    return datasets


def jobs(folder: Path, bundle: Bundle) -> StudyPlan:
    return plan(read_series(folder), [bundle], explicit=True)


def made(folder: Path, out: Path, bundle: Bundle, request: Deidentify | None, formats: frozenset[Format]) -> Outcome:
    (job,) = jobs(folder, bundle).jobs
    settings = Settings(device="cpu", engine="torch")
    return run(job, out, formats, settings=settings, deidentify=request)


def leaks(folder: Path, datasets: list[Dataset]) -> list[str]:
    """Which planted values, and UIDs of the source, stand in the files of a folder or in their names."""
    wanted = [*PLANTED.values(), "Plantagenet", "lancaster", *(str(one.SOPInstanceUID) for one in datasets)]
    wanted += [str(datasets[0][keyword].value) for keyword in ("StudyInstanceUID", "SeriesInstanceUID")]
    wanted.remove(PLANTED["StudyTime"])  # times of day stay
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        content += gzip.decompress(content) if content[:2] == b"\x1f\x8b" else b""
        content = (content + str(path.relative_to(folder)).encode()).lower()
        found += [f"{text} in {path.name}" for text in wanted if text.lower().encode() in content]
    return found


def test_every_form_of_a_result(tmp_path: Path, bundle: Bundle) -> None:
    datasets = study(tmp_path / "in")
    result = made(tmp_path / "in", tmp_path / "out", bundle, ONE, frozenset(Format))
    assert leaks(tmp_path / "out", datasets) == []
    person = ONE.pseudonyms.person(datasets[0])
    written = [path for path in result.folder.rglob("*.dcm") if path.parent.name != "source"]
    files = {path.relative_to(result.folder).parts[0].removesuffix(".dcm"): dcmread(path) for path in written}
    assert len(files) == len(DICOM)
    for name, dataset in files.items():
        assert complaints(dataset) == [], name
        assert dataset.PatientID == dataset.PatientName == person.pseudonym
        assert dataset.StudyDate == person.date(PLANTED["StudyDate"]) == dataset.InstanceCreationDate
        assert dataset.StudyInstanceUID == person.uid(datasets[0].StudyInstanceUID)
        assert name in ("sr", "ko") or dataset.FrameOfReferenceUID == person.uid(datasets[0].FrameOfReferenceUID)
        assert dataset.LongitudinalTemporalInformationModified == "MODIFIED"
    codes = {name: {one.CodeValue for one in of.DeidentificationMethodCodeSequence} for name, of in files.items()}
    assert codes["sr"] - codes["seg"] == {"113104"}
    assert codes["rtstruct"] - codes["seg"] == {"113105"}

    sources = {one.sop_instance_uid for one in find_instances(result.folder / "source").instances}
    assert sources == {person.uid(one.SOPInstanceUID) for one in datasets}
    (series,) = files["seg"].ReferencedSeriesSequence
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == sources
    record = json.loads((result.folder / "result.json").read_text())
    assert record["deidentified"] == {"key": ONE.pseudonyms.fingerprint, "sources": len(sources)}
    assert record["outputs"]["seg"] == "seg.dcm"
    assert record["sop_instance_uids"]["seg"] == files["seg"].SOPInstanceUID
    assert ONE.pseudonyms.salt not in (result.folder / "result.json").read_text()


@pytest.mark.peer("dciodvfy")
def test_no_new_errors_in_the_object_definitions(tmp_path: Path, bundle: Bundle) -> None:
    study(tmp_path / "in")
    plain = made(tmp_path / "in", tmp_path / "plain", bundle, None, frozenset(DICOM))
    unnamed = made(tmp_path / "in", tmp_path / "out", bundle, ONE, frozenset(DICOM))
    for path in unnamed.folder.rglob("*.dcm"):
        name = path.relative_to(unnamed.folder)
        assert name.parts[0] == "source" or set(dciodvfy(path)) <= set(dciodvfy(plain.folder / name)), name


def test_finished_work_is_known_and_another_key_is_another_result(tmp_path: Path, bundle: Bundle) -> None:
    study(tmp_path / "in")
    formats = frozenset({Format.SEG})
    first = made(tmp_path / "in", tmp_path / "out", bundle, ONE, formats)
    again = made(tmp_path / "in", tmp_path / "out", bundle, ONE, formats)
    assert again.up_to_date and again.record == first.record
    for request in (OTHER, None):
        with pytest.raises(OutputExists):
            made(tmp_path / "in", tmp_path / "out", bundle, request, formats)
    next((first.folder / "source").iterdir()).unlink()
    assert not made(tmp_path / "in", tmp_path / "out", bundle, ONE, formats).up_to_date
    other = made(tmp_path / "in", tmp_path / "other", bundle, OTHER, formats)
    mine, theirs = (dcmread(one.folder / "seg.dcm") for one in (first, other))
    uids = [
        {str(element.value) for element in one.iterall() if element.VR == "UI" and "10008" not in str(element.value)}
        for one in (mine, theirs)
    ]
    assert not uids[0] & uids[1]
    assert mine.PixelData == theirs.PixelData
    assert not (other.folder / "source").exists()


def test_the_time_of_the_run_tells_nothing(tmp_path: Path, bundle: Bundle) -> None:
    study(tmp_path / "in", StudyDate="", StudyTime="")
    result = made(tmp_path / "in", tmp_path / "out", bundle, ONE, frozenset({Format.SEG}))
    now = f"{datetime.now():%Y%m%d}"
    assert now.encode() not in (result.folder / "seg.dcm").read_bytes()


def test_refusals_name_nobody(tmp_path: Path, bundle: Bundle) -> None:
    datasets = study(tmp_path / "in", BurnedInAnnotation="YES")
    uid = str(datasets[0].SeriesInstanceUID)
    asked = StudyTask([[bundle]], Settings(device="cpu", engine="torch"), explicit=True, deidentify=ONE)
    (one,) = do_study(asked, plan_study(asked, read_series(tmp_path / "in")), tmp_path / "out")
    assert isinstance(one, WithoutResult) and not one.failed
    assert one.refused.error.code == "burned_in"
    assert ONE.pseudonyms.uid(uid) in str(one.refused.error) and uid not in str(one.refused.record())
    assert not (tmp_path / "out").exists()
    allowed = replace(asked, deidentify=Deidentify(ONE.pseudonyms, allow_burned_in=True))
    (made,) = do_study(allowed, plan_study(allowed, read_series(tmp_path / "in")), tmp_path / "out")
    assert isinstance(made, Outcome)

    study(tmp_path / "mr", Modality="MR")
    (one,) = do_study(asked, plan_study(asked, read_series(tmp_path / "mr")), tmp_path / "out")
    assert isinstance(one, WithoutResult)
    assert one.refused.error.code == "does_not_fit"
    assert uid not in str(one.refused.record()) and "lancaster" not in str(one.refused.record())
