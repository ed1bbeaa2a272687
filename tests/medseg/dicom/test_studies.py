"""The studies of an input: none is mixed with another, and what may be lost of a series stays known."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.dicom.phantom import make_series, write_series
from medseg.dicom.studies import read_studies, read_study
from medseg.errors import EmptyInput, NoSuchInput, UsageError

SHAPE = (4, 6, 5)


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    """Study 0 with series 1 and 2, study 1 with series 1."""
    for seed, number in ((0, 2), (0, 1), (1, 1)):
        write_series(make_series(shape=SHAPE, seed=seed, number=number), tmp_path / f"{seed}-{number}")
    return tmp_path


def test_series_by_study(disc: Path) -> None:
    studies = read_studies(disc)
    assert list(studies) == sorted(studies)
    assert sorted([one.number for one in series] for series in studies.values()) == [[1], [1, 2]]
    for uid, series in studies.items():
        assert {one.study_uid for one in series} == {uid}
        assert all(len(one.instances) == SHAPE[0] for one in series)


def test_the_only_study(disc: Path) -> None:
    (series,) = read_study(str(disc / "1-1"))
    assert read_study(disc, series.study_uid)[0].series_uid == series.series_uid


def test_one_of_several_must_be_named(disc: Path) -> None:
    with pytest.raises(UsageError, match=r"expected one study, found 2 \(2\.25\.\d+, 2\.25\.\d+\): name one"):
        read_study(disc)


def test_a_study_that_is_not_there(disc: Path) -> None:
    with pytest.raises(UsageError, match=r"no study 1\.2\.3, found 2"):
        read_study(disc, "1.2.3")


def test_a_file_that_is_cut_short_is_told_by_its_series(disc: Path) -> None:
    path = disc / "1-1" / "00002.dcm"
    path.write_bytes(path.read_bytes()[:300])
    (series,) = read_study(disc / "1-1")
    assert [(one.count, one.lost) for one in series.left_out] == [(1, True)]


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not DICOM")
    with pytest.raises(EmptyInput, match="1 files looked at"):
        read_study(tmp_path)
    with pytest.raises(NoSuchInput):
        read_study(tmp_path / "absent")
