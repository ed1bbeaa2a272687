"""Where the results of each input go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.job.places import result_folders


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs: str, out: str | None = None) -> list[str]:
    folders = result_folders([Path(one) for one in inputs], None if out is None else Path(out))
    return [os.path.relpath(folder) for folder in folders]


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ("study", "study-medseg"),
        ("a/study/", "a/study-medseg"),
        ("ct.zip", "ct-medseg"),
        ("brain.nii.gz", "brain-medseg"),
        ("BRAIN.NII.GZ", "BRAIN-medseg"),
        ("1.2.840.5", "1.2.840.5-medseg"),  # a file named by its UID has no ending
        (".nii.gz", ".nii.gz-medseg"),
        ("disc/DICOMDIR", "disc-medseg"),
        ("a b/étude", "a b/étude-medseg"),
    ],
)
def test_results_lie_beside_what_was_named(given: str, folder: str) -> None:
    assert names(given) == [folder]


def test_a_folder_with_a_dot_keeps_its_name(here: Path) -> None:
    (here / "study.zip").mkdir()
    assert names("study.zip") == ["study.zip-medseg"]


def test_links_are_not_followed(here: Path) -> None:
    (here / "store" / "far").mkdir(parents=True)
    (here / "data").mkdir()
    (here / "data" / "near").symlink_to("../store/far")
    assert names("data/near") == ["data/near-medseg"]
    (here / "data" / "scan.nii.gz").symlink_to("../store/far/MD5E-s1.nii.gz")
    assert names("data/scan.nii.gz") == ["data/scan-medseg"]


def test_the_working_folder_is_named_as_it_was_entered(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "far").mkdir()
    (here / "near").symlink_to("far")
    monkeypatch.chdir(here / "near")
    monkeypatch.setenv("PWD", str(here / "near"))
    assert result_folders([Path()]) == [here / "near-medseg"]
    monkeypatch.setenv("PWD", "/usr")  # of another process
    assert result_folders([Path()]) == [here / "far-medseg"]
    assert result_folders([Path("..")]) == [here.with_name(f"{here.name}-medseg")]


def test_nothing_lies_beside_the_root(here: Path) -> None:
    assert result_folders([Path("/")]) == [here / "root-medseg"]


def test_files_that_differ_by_their_ending_have_a_folder_each(here: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "b.zip"):
        (here / name).touch()
    (here / "b").mkdir()
    apart = ["a.nii-medseg", "a.nii.gz-medseg", "b.zip-medseg", "b-medseg"]
    assert names("a.nii", "a.nii.gz", "b.zip", "b") == apart
    assert [names(name)[0] for name in ("a.nii", "a.nii.gz", "b.zip", "b")] == apart  # each by itself, too


def test_a_file_beside_notes_of_its_name_keeps_the_short_one(here: Path) -> None:
    for name in ("a.nii.gz", "a.json", "a-medseg", "ab.nii.gz"):
        (here / name).touch()
    assert names("a.nii.gz") == ["a-medseg"]


def test_one_input_is_written_to_the_folder_asked_for() -> None:
    assert names("a.nii.gz", out="r") == ["r"]
    assert names("a.nii.gz", "./a.nii.gz", out="r") == ["r", "r"]


@pytest.mark.parametrize(
    ("inputs", "folders"),
    [
        (("one.nii.gz", "two.nii.gz"), ["one", "two"]),
        (("a/t1.nii.gz", "b/t1.nii.gz"), ["a_t1.nii.gz", "b_t1.nii.gz"]),
        (("a.nii", "a.nii.gz"), ["a.nii", "a.nii.gz"]),
        (("d/study", "e/study", "e/other"), ["d_study", "e_study", "other"]),
        (("a/DICOMDIR", "b/DICOMDIR"), ["a", "b"]),
        (("x.nii", "x.nii"), ["x", "x"]),
    ],
)
def test_several_inputs_have_a_folder_each(inputs: tuple[str, ...], folders: list[str]) -> None:
    named = inputs if len(set(inputs)) > 1 else (*inputs, "y.nii")
    assert names(*named, out="r")[: len(folders)] == [f"r/{name}" for name in folders]


parts = st.sampled_from(["a", "A", "b", "a_b", "a.nii", "a.nii.gz", "..", "x.zip", "DICOMDIR", "\udce9", "a b", "1_s"])
paths = st.lists(parts, min_size=1, max_size=3).map(lambda some: Path(*some)).filter(lambda path: path.name != "..")


@given(st.lists(paths, min_size=2, max_size=6), st.booleans())
def test_no_two_inputs_share_a_folder(inputs: list[Path], beside: bool) -> None:
    out = None if beside else Path("r")
    folders = result_folders(inputs, out)
    by_input = {path.absolute(): folder for path, folder in zip(inputs, folders, strict=True)}
    assert len({str(folder).casefold() for folder in by_input.values()}) == len(by_input)
    if out is not None and len(by_input) > 1:
        assert all(folder.parent == out for folder in folders)
    backwards = result_folders(inputs[::-1], out)[::-1]
    assert backwards == folders
