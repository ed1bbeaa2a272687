"""Studies and volumes are found in whatever layout they lie."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import nibabel
import numpy as np
import pytest
from pydicom import Dataset

from medseg.cohort.items import CohortItem, named_by_inputs, with_own_names
from medseg.cohort.scan import hold_several, is_cohort, scan
from medseg.dicom.phantom import make_series, write_series
from medseg.dicom.sources import read_candidates
from medseg.errors import MedsegError, UnsafeArchive

SHAPE = (3, 8, 8)


def series(seed: int = 0) -> list[Dataset]:
    return make_series(shape=SHAPE, seed=seed)


def study(folder: Path, seed: int = 0) -> str:
    datasets = series(seed)
    write_series(datasets, folder)
    return str(datasets[0].StudyInstanceUID)


def volume(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 3), np.int16), np.eye(4)), path)
    return path


def zipped(folder: Path, archive: Path) -> Path:
    with ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))
    shutil.rmtree(folder)
    return archive


def images(item: CohortItem) -> int:
    return len(read_candidates(item.candidates(), item.absent).instances)


def named(items: Sequence[CohortItem]) -> list[str]:
    return [item.name for item in with_own_names(items)]


def test_a_study_may_lie_in_folders_and_archives_all_over(tmp_path: Path) -> None:
    datasets = series()
    write_series(datasets[:1], tmp_path / "a" / "b")
    write_series(datasets[1:2], tmp_path / "c")
    write_series(datasets[2:], tmp_path / "d" / "inside")
    other = study(tmp_path / "c" / "other", seed=1)
    zipped(tmp_path / "d", tmp_path / "d.zip")
    (tmp_path / "notes.txt").write_text("no image")
    found = scan([tmp_path])
    assert {item.study_uid: images(item) for item in found.items} == {datasets[0].StudyInstanceUID: 3, other: 3}
    assert found.passed_over == 1
    assert is_cohort(tmp_path)


def test_one_study_is_no_cohort(tmp_path: Path) -> None:
    study(tmp_path / "study" / "deep")
    assert not is_cohort(tmp_path / "study")
    assert not is_cohort(volume(tmp_path / "brain.nii.gz"))
    assert is_cohort(tmp_path)


def test_volumes_are_named_by_their_files(tmp_path: Path) -> None:
    for name in ("a/t1.nii.gz", "b/t1.nii.gz", "c.nii", "c.nii.gz"):
        volume(tmp_path / name)
    names = named(scan([tmp_path]).items)
    assert names[:2] == ["a_t1", "b_t1"]
    assert [name.partition("~")[0] for name in names[2:]] == ["c", "c"]
    assert len(set(names)) == 4


def test_channels_are_one_volume(tmp_path: Path) -> None:
    for name in ("x_0000.nii.gz", "x_0001.nii.gz", "y_0001.nii.gz"):
        volume(tmp_path / name)
    assert named(scan([tmp_path], channels=2).items) == ["x", "y_0001"]
    assert named(scan([tmp_path]).items) == ["x_0000", "x_0001", "y_0001"]


def test_what_cannot_be_read_is_of_the_study_beside_it_or_an_item_of_its_own(tmp_path: Path) -> None:
    uid = study(tmp_path / "whole")
    (tmp_path / "whole" / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cut.dcm").write_bytes(b"\0" * 128 + b"DICM")
    found = {item.name: item for item in scan([tmp_path]).items}
    assert set(found) == {uid, "broken"}
    assert images(found[uid]) == 3
    assert [Path(one.name).name for one in read_candidates(found[uid].candidates()).skipped] == ["cut.dcm"]


def test_the_output_is_not_looked_into(tmp_path: Path) -> None:
    uid = study(tmp_path / "in" / "study")
    study(tmp_path / "in" / "out" / "old", seed=1)
    assert [item.study_uid for item in scan([tmp_path / "in"], leave=tmp_path / "in" / "out").items] == [uid]


def test_a_bad_archive_and_a_path_that_is_not_there_do_not_stop_the_others(tmp_path: Path) -> None:
    study(tmp_path / "study")
    with ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr("../outside.dcm", b"x")
    found = scan([tmp_path / "bad.zip", tmp_path / "gone", tmp_path / "study"])
    assert len(found.items) == 1
    assert isinstance(found.unreadable[0][1], UnsafeArchive)
    assert all(isinstance(error, MedsegError) for _, error in found.unreadable)


@pytest.mark.parametrize("change", ["content", "gone", "more"])
def test_a_stamp_changes_with_the_files(tmp_path: Path, change: str) -> None:
    study(tmp_path / "study")
    (item,) = scan([tmp_path]).items
    before = item.stamp()
    assert item.stamp() == before
    first = min((tmp_path / "study").iterdir())
    if change == "content":
        first.write_bytes(first.read_bytes() + b"\0\0")
    elif change == "gone":
        first.unlink()
    else:
        shutil.copy(first, first.with_name("again.dcm"))
        (item,) = scan([tmp_path]).items
    assert item.stamp() != before


def test_what_a_path_holds_alone_has_its_name(tmp_path: Path) -> None:
    study(tmp_path / "a" / "deep", 1)
    zipped((tmp_path / "b", study(tmp_path / "b", 2))[0], tmp_path / "b.zip")
    uids = [study(tmp_path / "many" / name, seed) for seed, name in enumerate("xy", 3)]
    one = volume(tmp_path / "c.nii")
    torn = series(5)
    write_series(torn[:1], tmp_path / "d")
    write_series(torn[1:], tmp_path / "e")
    paths = [tmp_path / "a", tmp_path / "b.zip", tmp_path / "many", one, tmp_path / "d", tmp_path / "e"]
    items = named_by_inputs(scan(paths).items, {path: f"named {path.stem}" for path in paths})
    torn_uid = str(torn[0].StudyInstanceUID)
    assert {item.name for item in items} == {"named a", "named b", "named c", *uids, torn_uid}


def test_several_studies_are_in_one_path_or_in_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "again")
    study(tmp_path / "b", 2)
    one = volume(tmp_path / "c.nii")
    assert hold_several([tmp_path / "a", tmp_path / "b"])
    assert hold_several([tmp_path / "a", one])
    assert not hold_several([tmp_path / "a", tmp_path / "again", tmp_path / "nowhere"])
    assert not hold_several([one, Path("c.nii")])


def test_what_lies_in_two_paths_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uid = study(tmp_path / "in" / "a")
    volume(tmp_path / "in" / "v" / "one.nii")
    for paths in (
        ["in", "in/a", "in/v/one.nii"],
        ["in/v/one.nii", "in/a", "in"],
        [tmp_path / "in", "in", "./in/../in/v"],
    ):
        found = scan(map(Path, paths))
        assert not found.unreadable
        (series,) = (item for item in found.items if item.study_uid)
        assert (series.study_uid, images(series)) == (uid, SHAPE[0])
        assert len(found.items) == 2
    study(tmp_path / "other", 1)
    assert len(scan(map(Path, ["in", "in/../other"])).items) == 3
