"""Files, folders, archives, directories: what is found, what is left out and why, what is refused."""

from __future__ import annotations

import io
import os
import random
import stat
import tracemalloc
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.fileset import FileSet
from pydicom.uid import ExplicitVRLittleEndian

from medseg.dicom.archive import ArchiveLimits, open_archive
from medseg.dicom.candidates import SkipReason
from medseg.dicom.geometry import classify
from medseg.dicom.phantom import make_series, write_series
from medseg.dicom.sources import find_instances, instance_digest, read_series
from medseg.errors import EmptyInput, Interrupted, NoSuchInput, UndecodablePixels, UnsafeArchive
from medseg.progress import Progress
from tests.medseg.dicom.made import instance_of, to_bytes

SHAPE = (4, 6, 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_series(make_series(shape=SHAPE), tmp_path / "study")
    return tmp_path / "study"


def reasons(path: Path) -> dict[str, SkipReason]:
    return {Path(one.name).name: one.code for one in find_instances(path).skipped}


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target


def test_folder_file_zip_and_dicomdir_give_the_same_series(folder: Path, tmp_path: Path) -> None:
    archive = zipped(folder, tmp_path / "study.zip")
    medium = FileSet()
    for path in folder.iterdir():
        medium.add(path)
    medium.write(tmp_path / "medium")
    digests = {
        tuple(sorted(instance_digest(instance) for instance in read_series(path)[0].instances))
        for path in (folder, archive, tmp_path / "medium" / "DICOMDIR", tmp_path / "medium")
    }
    assert len(digests) == 1
    (series,) = read_series(folder / "00000.dcm")
    assert len(series.instances) == 1
    (series,) = read_series(archive)
    stack = classify(series).stacks[0]
    assert {float(value) for one in stack.slices for value in set(one.read().ravel())} <= {-1000.0, 100.0}


def test_series_carry_what_rules_ask_for(tmp_path: Path) -> None:
    write_series(make_series(shape=SHAPE, number=7, description="T1 head", modality="MR"), tmp_path)
    (series,) = read_series(tmp_path)
    assert (series.modality, series.number, series.description) == ("MR", 7, "T1 head")
    assert series.body_part == "WHOLEBODY"


def test_one_series_uid_in_two_studies_is_two_series(tmp_path: Path) -> None:
    datasets = make_series(shape=SHAPE)
    datasets[3].StudyInstanceUID = "1.2.3"
    write_series(datasets, tmp_path)
    assert sorted(len(series.instances) for series in read_series(tmp_path)) == [1, 3]


def test_files_that_are_no_images_are_named_with_a_reason(folder: Path) -> None:
    (folder / "notes.txt").write_text("nothing")
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "inner.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "cut.dcm").write_bytes((folder / "00000.dcm").read_bytes()[:900])
    report = make_series(shape=(1, 4, 4))[0]
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.34"
    del report.Rows, report.PixelData
    report.SOPInstanceUID = "1.2.3.4"
    report.save_as(folder / "report.dcm")
    assert reasons(folder) == {
        "notes.txt": SkipReason.UNREADABLE,
        "empty.dcm": SkipReason.UNREADABLE,
        "cut.dcm": SkipReason.UNREADABLE,
        "inner.zip": SkipReason.NESTED_ARCHIVE,
        "report.dcm": SkipReason.NOT_AN_IMAGE,
    }
    found = find_instances(folder)
    assert (len(found.instances), found.looked_at) == (4, 9)
    said = {Path(one.name).name: one.why for one in found.skipped}
    assert said["empty.dcm"] == "empty file"
    assert "cut short" in said["cut.dcm"]
    assert said["report.dcm"] == "Comprehensive 3D SR Storage: not an image to segment"


def test_a_data_set_without_preamble_is_read(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])  # file meta, without preamble
    assert len(read_series(folder)[0].instances) == 4
    bare = folder / "00001.dcm"
    dataset = dcmread(bare, force=True)
    plain = Dataset(dict(dataset.items()))
    plain.save_as(bare, implicit_vr=True, little_endian=True)  # no file meta at all
    (series,) = read_series(folder)
    (stack,) = classify(series).stacks
    assert len(stack.slices) == 4
    assert stack.slices[1].read().max() == 100


def test_a_group_length_or_text_that_looks_like_dicom_is_not(tmp_path: Path) -> None:
    (tmp_path / "fake").write_bytes(b"\x08\x00\x05\x00" + b"nothing at all" * 40)
    with pytest.raises(EmptyInput, match="1 files looked at"):
        read_series(tmp_path)


def test_the_same_object_twice_counts_once(folder: Path) -> None:
    (folder / "again.dcm").write_bytes((folder / "00002.dcm").read_bytes())
    found = find_instances(folder)
    assert len(found.instances) == 4
    assert [(one.code, Path(one.name).name) for one in found.skipped] == [(SkipReason.DUPLICATE, "again.dcm")]
    assert classify(found.series()[0]).verdict == "accepted"


def test_different_objects_under_one_uid_are_refused(folder: Path) -> None:
    other = dcmread(folder / "00002.dcm")
    other.PixelData = b"\x07" * len(other.PixelData)
    other.save_as(folder / "again.dcm")
    verdict = classify(read_series(folder)[0])
    assert [refusal.reason.value for refusal in verdict.refusals] == ["conflicting_instances"]


def test_emptied_uids_are_completed_and_told(folder: Path) -> None:
    def emptied(path: Path) -> None:
        dataset = dcmread(path)
        dataset.SOPClassUID = dataset.SOPInstanceUID = dataset.StudyInstanceUID = dataset.SeriesInstanceUID = ""
        dataset.save_as(path)

    before = {instance.sop_instance_uid for instance in find_instances(folder).instances}
    for path in folder.iterdir():
        emptied(path)
    (series,) = read_series(folder)
    assert {instance.sop_instance_uid for instance in series.instances} == before
    assert series.series_uid.startswith("2.25.")
    (stack,) = classify(series).stacks
    assert [finding.code for finding in stack.findings] == ["assumed_uid", "assumed_uid"]


def test_missing_and_empty_inputs(tmp_path: Path) -> None:
    with pytest.raises(NoSuchInput):
        read_series(tmp_path / "nowhere")
    with pytest.raises(EmptyInput, match="0 files"):
        read_series(tmp_path)


def test_links_are_followed_once_and_pipes_left_alone(folder: Path) -> None:
    (folder / "round").symlink_to(folder)
    (folder / "gone.dcm").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe")
    assert len(find_instances(folder).instances) == 4
    assert reasons(folder) == {"gone.dcm": SkipReason.UNREADABLE}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_that_may_not_be_read_are_named(folder: Path) -> None:
    (folder / "00001.dcm").chmod(0)
    assert reasons(folder) == {"00001.dcm": SkipReason.UNREADABLE}


def test_progress_counts_files_and_cancelling_stops(folder: Path) -> None:
    seen: list[Progress] = []
    find_instances(folder, on_progress=seen.append)
    assert [(one.done, one.total) for one in seen] == [(k, 4) for k in range(1, 5)]
    with pytest.raises(Interrupted):
        find_instances(folder, cancelled=lambda: True)


def test_dicomdir_names_missing_files_and_stays_in_its_folder(folder: Path, tmp_path: Path) -> None:
    medium = FileSet()
    for path in folder.iterdir():
        medium.add(path)
    medium.write(tmp_path / "medium")
    victim = next(
        path for path in sorted((tmp_path / "medium").rglob("*")) if path.is_file() and "DIR" not in path.name
    )
    victim.unlink()
    found = find_instances(tmp_path / "medium" / "DICOMDIR")
    assert len(found.instances) == 3
    assert [one.code for one in found.skipped] == [SkipReason.MISSING]
    directory = dcmread(tmp_path / "medium" / "DICOMDIR")
    for record in directory.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = ["..", "study", "00000.dcm"]
    directory.save_as(tmp_path / "medium" / "DICOMDIR")
    assert not find_instances(tmp_path / "medium" / "DICOMDIR").instances


def test_dicomdir_names_in_another_case(folder: Path, tmp_path: Path) -> None:
    medium = FileSet()
    for path in folder.iterdir():
        medium.add(path)
    medium.write(tmp_path / "medium")
    for path in sorted((tmp_path / "medium").rglob("*"), reverse=True):
        if path.name != "DICOMDIR":
            path.rename(path.with_name(path.name.lower()))
    assert len(read_series(tmp_path / "medium" / "DICOMDIR")[0].instances) == 4


def entry(name: str, mode: int = 0o644, content: bytes = b"x") -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, content


ESCAPES = [
    "../evil.dcm",
    "a/../../evil.dcm",
    "/etc/evil.dcm",
    "C:/evil.dcm",
    "C:evil.dcm",
    "..\\evil.dcm",
    "a\\..\\..\\evil.dcm",
    "\\\\server\\share\\evil.dcm",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_archive_names_that_leave_their_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(*entry("good.dcm"))
        archive.writestr(*entry(name))
    with pytest.raises(UnsafeArchive, match="leaves its folder"):
        read_series(path)


def test_archive_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "links.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(*entry("link", stat.S_IFLNK | 0o777, b"/etc/passwd"))
    with pytest.raises(UnsafeArchive, match="symbolic link"):
        read_series(path)


def test_encrypted_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.dcm", b"x" * 50)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(UnsafeArchive, match="encrypted"):
        read_series(path)


BOMBS = [
    (ArchiveLimits(entries=2), "3 entries, more than 2"),
    (ArchiveLimits(entry_bytes=999), "1000000 bytes, more than 999"),
    (ArchiveLimits(total_bytes=1_500_000), "3000000 bytes, more than 1500000"),
    (ArchiveLimits(small_bytes=1_000_000), "times its size"),
]


@pytest.mark.parametrize(("limits", "said"), BOMBS)
def test_archives_that_unpack_without_end_are_refused(tmp_path: Path, limits: ArchiveLimits, said: str) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.dcm", bytes(1_000_000))
    with pytest.raises(UnsafeArchive, match=said):
        open_archive(path, limits)
    assert len(open_archive(path)) == 3


def test_an_entry_that_lies_about_its_size_gives_no_more_than_it_says(tmp_path: Path) -> None:
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(1_000_000))
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = (500).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(EmptyInput):
        read_series(path)


def test_a_file_that_only_starts_like_a_zip_is_not_one(tmp_path: Path) -> None:
    path = tmp_path / "broken.zip"
    path.write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(EmptyInput):
        read_series(path)


def test_damaged_archive_entries_are_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x03\x04") + 30 + 9 + 300] ^= 0xFF  # in the header of the first file: its CRC is wrong
    path.write_bytes(content)
    (series,) = read_series(path)
    assert len(series.instances) >= 3


def test_digest_ignores_preamble_and_file_meta_only(tmp_path: Path) -> None:
    dataset = make_series(shape=(1, 4, 4))[0]
    first = instance_digest(instance_of(dataset))
    dataset.file_meta.SourceApplicationEntityTitle = "ELSEWHERE"
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.PrivateInformation = b"\1\2\3\4"
    dataset.preamble = b"\7" * 128
    assert instance_digest(instance_of(dataset)) == first
    dataset.PatientName = "Other^"
    assert instance_digest(instance_of(dataset)) != first


def test_digest_tells_transfer_syntaxes_apart() -> None:
    """The same bytes under another transfer syntax are another object."""
    content = to_bytes(make_series(shape=(1, 4, 4))[0])
    renamed = content.replace(ExplicitVRLittleEndian.encode() + b"\0", b"1.2.840.10008.1.2.2\0")
    assert len(renamed) == len(content)
    header = instance_of(content)
    header.header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
    assert instance_digest(header) != instance_digest(instance_of(content))


def test_digest_of_a_data_set_without_file_meta(tmp_path: Path) -> None:
    content = to_bytes(make_series(shape=(1, 4, 4))[0])
    meta = dcmread(io.BytesIO(content), stop_before_pixels=True).file_meta
    start = 132 + 12 + int(meta.FileMetaInformationGroupLength)
    assert instance_digest(instance_of(content[start:])) == instance_digest(instance_of(content))


EXPECTED_REAL = {
    "no_meta.dcm": SkipReason.UNREADABLE,
    "README.txt": SkipReason.UNREADABLE,
    "badVR.dcm": SkipReason.NOT_AN_IMAGE,
    "rtdose.dcm": SkipReason.NOT_AN_IMAGE,
    "liver.dcm": SkipReason.NOT_AN_IMAGE,
    "liver_1frame.dcm": SkipReason.NOT_AN_IMAGE,
    "liver_expb.dcm": SkipReason.NOT_AN_IMAGE,
}


def test_every_pydicom_file_is_read_or_named(shared_data: Path) -> None:
    root = shared_data / "dicom" / "pydicom_files"
    found = find_instances(root)
    skipped = {Path(one.name).name: one.code for one in found.skipped if "DICOMDIR" not in one.name}
    assert skipped == EXPECTED_REAL
    assert len(found.instances) + len(found.skipped) == found.looked_at == 72


@pytest.mark.parametrize(
    "name", ["DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-nooffset", "DICOMDIR-reordered"]
)
def test_every_dicomdir_finds_its_images(shared_data: Path, name: str) -> None:
    found = find_instances(shared_data / "dicom" / "pydicom_files" / "dicomdirtests" / name)
    assert len(found.instances) == 31
    assert not found.skipped


VERDICTS = {
    ("pydicom_files", "SmartScore - Gated 0.5 sec"): ("accepted", "5", ""),
    ("pydicom_files", "Routine Brain"): ("refused", "", "missing_slices"),
    ("pydicom_files", "Scout"): ("refused", "", "localizer"),
    ("pydicom_files", "ANGIO Projected from   C"): ("refused", "", "mixed_orientation"),
    ("mr_siemens_hfs_t1_sag", "t1_fl2d_sag"): ("accepted", "35", ""),
    ("mr_siemens_hfs_mosaic_dwi", "ep2d_diff_mddw_20_p2"): ("refused", "", "mosaic"),
    ("ct_totalseg_j2k", "CT Body 3.0"): ("accepted", "20", ""),
    ("ct_ircadb01_17/PATIENT_DICOM.zip", ""): ("refused", "", "no_frame_of_reference"),
    ("dcmqi", "Image 24x38x3"): ("refused", "", "ct_not_hu"),
    ("dcmqi", "Multiframe image 24x38x3"): ("refused", "", "ct_not_hu"),
}


@pytest.mark.parametrize("where", VERDICTS, ids=str)
def test_verdicts_of_real_series(shared_data: Path, where: tuple[str, str]) -> None:
    folder, description = where
    (series,) = [one for one in read_series(shared_data / "dicom" / folder) if one.description == description]
    verdict = classify(series)
    stacks = "+".join(str(len(stack.slices)) for stack in verdict.stacks)
    refused = "+".join(refusal.reason for refusal in verdict.refusals)
    assert (verdict.verdict, stacks, refused) == VERDICTS[where]


def test_ircadb_ct_with_an_assumed_frame_of_reference(shared_data: Path) -> None:
    (series,) = read_series(shared_data / "dicom" / "ct_ircadb01_17" / "PATIENT_DICOM.zip")
    (stack,) = classify(series, assume_frame_of_reference=True).stacks
    assert stack.shape == (119, 512, 512)
    assert stack.spacing_mm == pytest.approx((1.6, 0.743, 0.743), abs=1e-3)


def test_ircadb_masks_are_three_series_of_their_own(shared_data: Path) -> None:
    series = read_series(shared_data / "dicom" / "ct_ircadb01_17" / "MASKS_DICOM.zip")
    assert Counter(len(one.instances) for one in series) == {119: 3}


def test_enhanced_ct_without_hu_is_refused_and_its_frames_counted(shared_data: Path) -> None:
    (series,) = read_series(shared_data / "dicom" / "pydicom_files" / "eCT_Supplemental.dcm")
    (refusal,) = classify(series).refusals
    assert (refusal.reason.value, refusal.slices) == ("ct_not_hu", 2)


def test_enhanced_legacy_converted_ct_expands_like_its_classic_source(shared_data: Path) -> None:
    """dcmqi's pair of one image, in three classic instances and in one of three frames; RescaleType US made HU."""
    base = shared_data / "dicom" / "dcmqi" / "segmentations" / "24x38x3"
    affines = []
    for part in ("image", "multiframe"):
        (series,) = read_series(base / part)
        for instance in series.instances:
            _say_hu(instance.header)
        (stack,) = classify(series, assume_frame_of_reference=True).stacks
        affines.append((stack.affine.round(4).tolist(), [float(one.read().sum()) for one in stack.slices]))
    assert affines[0] == affines[1]


def _say_hu(dataset: Dataset) -> None:
    for inner in dataset.iterall():
        if inner.keyword == "RescaleType":
            inner.value = "HU"


def test_file_dataset_is_not_kept_open(folder: Path) -> None:
    (instance, *_) = find_instances(folder).instances
    assert isinstance(instance.header, FileDataset)
    assert instance.header.buffer is None
    assert isinstance(instance.header.file_meta, FileMetaDataset)


REAL = ["pydicom_files", "dcmqi", "mr_siemens_hfs_t1_sag", "mr_siemens_hfs_mosaic_dwi", "ct_totalseg_j2k"]


@pytest.mark.parametrize("name", REAL)
def test_every_real_series_has_a_verdict_and_pixels_or_a_reason(shared_data: Path, name: str) -> None:
    for series in find_instances(shared_data / "dicom" / name).series():
        verdict = classify(series, assume_frame_of_reference=True, min_slices=1)
        assert verdict.stacks or verdict.refusals
        assert all(refusal.detail and refusal.slices for refusal in verdict.refusals)
        for stack in verdict.stacks:
            try:
                assert stack.slices[0].read().shape == stack.shape[1:]
            except UndecodablePixels as error:
                assert error.why


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "liver_expb.dcm"])
def test_damaged_files_raise_nothing_unforeseen(shared_data: Path, tmp_path: Path, name: str) -> None:
    whole = (shared_data / "dicom" / "pydicom_files" / name).read_bytes()
    chance = random.Random(name)
    path = tmp_path / "damaged.dcm"
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 2, 20])):
            damaged[chance.randrange(128, min(len(whole), 5000))] = chance.choice([0, 255, chance.randrange(256)])
        path.write_bytes(damaged)
        for series in find_instances(path).series():
            for stack in classify(series, assume_frame_of_reference=True, min_slices=1).stacks:
                with suppress(UndecodablePixels):
                    stack.slices[0].read()


def test_what_slices_say_alike_is_kept_once(tmp_path: Path) -> None:
    datasets = make_series(shape=(60, 4, 4))
    kept = []
    for slices in (30, 60):
        folder = tmp_path / str(slices)
        write_series(datasets[:slices], folder)
        classify(read_series(folder)[0])  # what is made once
        tracemalloc.start()
        (series,) = read_series(folder)
        verdict = classify(series)
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert len(verdict.stacks[0].slices) == slices
    assert (kept[1] - kept[0]) / 30 < 16_000  # bytes; converted in each slice, values would take as much again
