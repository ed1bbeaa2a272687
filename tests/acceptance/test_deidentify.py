"""`medseg infer --deidentify` as its user meets it: what was planted in files and their names is found nowhere."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from pyarrow import parquet
from pydicom import dcmread

from medseg.deidentify.key import read_key
from medseg.deidentify.pseudonyms import Pseudonyms
from medseg.dicom.phantom import Box, make_series, write_series
from tests.acceptance.conftest import Medseg
from tests.acceptance.test_geometry import threshold_bundle
from tests.acceptance.test_results_places import volume
from tests.medseg.deidentify.judge import complaints

PLANTED = {
    "PatientName": "Plantagenet^Henry",
    "PatientID": "MRN-4711",
    "AccessionNumber": "ACC-0815",
    "StudyDescription": "head of plantagenet",
    "SeriesDescription": "for dr lancaster",
    "ReferringPhysicianName": "Lancaster^John",
    "PatientBirthDate": "19540802",
}
DAYS = ("20190314", "20190321")
WORDS = ("plantagenet", "lancaster", "mrn-4711", "acc-0815", "19540802", *DAYS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_bundle(tmp_path_factory.mktemp("bundle") / "threshold")


def make_cohort(folder: Path) -> set[str]:
    """Two studies of a patient, one that is burned in, one that does not fit, a volume, a broken file; all UIDs."""
    uids = set()
    kinds = [{"StudyDate": day} for day in DAYS]
    kinds += [{"BurnedInAnnotation": "YES"}, {"Modality": "MR"}]
    for number, values in enumerate(kinds):
        box = Box((0.0, 0.0, 0.0), (4.0, 4.0, 4.0), 100.0)
        datasets = make_series(shape=(4, 12, 12), spacing_mm=(2.0, 1.0, 1.0), objects=[box], seed=number)
        for dataset in datasets:
            for keyword, value in (PLANTED | {"StudyDate": DAYS[0]} | values).items():
                setattr(dataset, keyword, value)
            uids |= {str(dataset[one].value) for one in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
        write_series(datasets, folder / "Plantagenet_MRN-4711" / f"lancaster{number}")
    volume(folder / "plantagenet.nii.gz", 5)
    (folder / "lancaster").mkdir()
    (folder / "lancaster" / "plantagenet.dcm").write_bytes(b"\0" * 128 + b"DICM")
    return uids


def leaks(texts: Iterable[str], *files: tuple[str, bytes]) -> list[str]:
    found = []
    for name, content in files:
        whole = content + (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else b"") + name.encode()
        found += [f"{text} in {name}" for text in texts if text.encode() in whole.lower()]
    return found


def everything(out: Path) -> list[tuple[str, bytes]]:
    return [
        (str(path.relative_to(out)).lower(), path.read_bytes() if path.is_file() else b"") for path in out.rglob("*")
    ]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_cohort_names_nobody(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    uids, out, key = make_cohort(tmp_path / "in"), tmp_path / "out", tmp_path / "my.key"
    command = ["infer", tmp_path / "in", "--bundle", bundle, "-o", out, "--jobs", 1, "--deidentify", key]
    assert "no such key file" in medseg(*command).err
    ran = medseg(*command, "--new-key", "--copy-sources", "--format", "seg,sr,png", "--engine", "torch")
    assert ran.code == 1, ran.err
    assert key.stat().st_mode & 0o777 == 0o600
    secret = key.read_text().strip()
    said = [("stdout", ran.out.lower().encode()), ("stderr", ran.err.lower().encode())]
    assert leaks([*WORDS, *uids, secret], *everything(out), *said) == []
    table = parquet.read_table(out / "results.parquet").to_pylist()
    assert leaks([*WORDS, *uids], ("parquet", str(table).lower().encode())) == []

    names = Pseudonyms(read_key(key))
    results = rows(out / "results.csv")
    assert len(results) == 2
    assert {row["patient"] for row in results} == {names.patient_id("MRN-4711")}
    assert abs(int(results[0]["day"]) - int(results[1]["day"])) == 7
    codes = {row["item"]: row["code"] for row in rows(out / "failures.csv")}
    assert sorted(codes.values()) == ["burned_in", "does_not_fit", "no_study", "unreadable_instance"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["deidentified"]["key"] == names.fingerprint
    assert set(manifest["command"]) >= {"--deidentify", "--new-key"}
    for row in results:
        folder = out / row["folder"]
        assert row["folder"].startswith(row["study_uid"])
        seg = dcmread(folder / "seg.dcm")
        assert seg.PatientID == row["patient"] and seg.StudyInstanceUID == row["study_uid"]
        copies = {path.stem: dcmread(path) for path in (folder / "source").iterdir()}
        (series,) = seg.ReferencedSeriesSequence
        assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == set(copies)
        assert {str(one.FrameOfReferenceUID) for one in copies.values()} == {str(seg.FrameOfReferenceUID)}
        assert [complaint for one in (seg, *copies.values()) for complaint in complaints(one)] == []

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.dcm")}
    again = medseg(*command, "--copy-sources", "--format", "seg,sr,png", "--engine", "torch")
    assert again.code == 1
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.dcm")} == before
    other = tmp_path / "other.key"
    refused = medseg(*command[:-1], other, "--new-key", "--overwrite")
    assert refused.code == 2 and "holds de-identified results, under another key" in refused.err
    refused = medseg(*command[:-2], "--overwrite")
    assert refused.code == 2 and "and this run asks for none" in refused.err
    assert leaks([*WORDS, *uids], *everything(out)) == []

    listed = medseg(*command, "--dry-run")
    assert leaks([*WORDS, *uids], ("out", listed.out.lower().encode()), ("err", listed.err.lower().encode())) == []


def test_single_studies_name_nobody(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    uids, out, key = make_cohort(tmp_path / "in"), tmp_path / "out", tmp_path / "my.key"
    one = tmp_path / "in" / "Plantagenet_MRN-4711" / "lancaster0"
    asked = ["--bundle", bundle, "--deidentify", key, "--engine", "torch"]
    assert medseg("infer", one, *asked, "--new-key").code == 2  # the usual folder would be called by the input
    assert medseg("infer", one, "-o", out, "--new-key").code == 2
    assert "handed on" in medseg("infer", one, "-o", out, "--deidentify", out / "k").err
    inputs = {one: 0, tmp_path / "in" / "plantagenet.nii.gz": 0, tmp_path / "in" / "lancaster": 3}
    inputs |= {one.with_name("lancaster2"): 3, one.with_name("lancaster3"): 3}
    for number, (path, code) in enumerate(inputs.items()):
        ran = medseg("infer", path, *asked, "-o", out / str(number), "--new-key", "--json")
        assert ran.code == code, ran.err
        said = [("stdout", ran.out.lower().encode()), ("stderr", ran.err.lower().encode())]
        assert leaks([*WORDS, *uids], *said) == []
    assert leaks([*WORDS, *uids], *everything(out)) == []
    assert len(list(out.rglob("result.json"))) == 2
    again = medseg("infer", tmp_path / "in" / "plantagenet.nii.gz", *asked, "-o", out / "1", "--copy-sources")
    assert "up to date" in again.out  # of NIfTI there are no copies


@pytest.mark.slow
def test_a_bids_dataset_names_nobody(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    uids, out, key = make_cohort(tmp_path / "in"), tmp_path / "out", tmp_path / "my.key"
    (tmp_path / "in" / "plantagenet.nii.gz").rename(tmp_path / "in" / "sub-lancaster_ses-20190314_T1w.nii.gz")
    asked = ["--bundle", bundle, "-o", out, "--jobs", 1, "--deidentify", key, "--new-key", "--layout", "bids"]
    assert medseg("infer", tmp_path / "in", *asked, "--engine", "torch").code == 1
    assert len(list(out.glob("sub-*/**/*_dseg.nii.gz"))) == 3
    assert leaks([*WORDS, *uids], *everything(out)) == []
    names = Pseudonyms(read_key(key))
    assert (out / f"sub-{names.patient_id('MRN-4711')}").is_dir()


@pytest.mark.slow
def test_results_that_name_patients_are_not_mixed_with_others(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    volume(tmp_path / "in" / "one.nii.gz", 5)
    assert medseg("infer", tmp_path / "in", "--bundle", bundle, "-o", "out", "--jobs", 1).code == 0
    table = (tmp_path / "out" / "results.csv").read_bytes()
    ran = medseg("infer", tmp_path / "in", "--bundle", bundle, "-o", "out", "--deidentify", "k", "--new-key")
    assert ran.code == 2 and "say who they are of" in ran.err
    assert (tmp_path / "out" / "results.csv").read_bytes() == table
