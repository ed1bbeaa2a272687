"""What things are called in a BIDS dataset, and files that never take another's place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg.bundle.bundle import Code, Segment
from medseg.cohort import bids, study
from medseg.cohort.bids_names import ORDER, all_labels, labels_of, own_word, told_apart, word
from medseg.cohort.finished import Finished, Output
from medseg.cohort.items import CohortItem, with_labels
from medseg.cohort.study import Task
from medseg.inference.settings import Settings
from medseg.job.folder import RECORD

TISSUE = Code("SCT", "85756007", "Tissue")


def stems(*items: tuple[str, str | None]) -> list[str]:
    """Paths of items, given as a name and a NIfTI file."""
    given = [
        (name, None if file is None else Path(file), f"{number}2345678") for number, (name, file) in enumerate(items)
    ]
    return [labels.stem() for labels in all_labels(given)]


@pytest.mark.parametrize(
    ("name", "file", "stem"),
    [
        ("x", "/d/sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_space-T1w"),
        ("x", "/d/sub-1/dwi/sub-1_dir-AP_run-2_b0.nii", "sub-1/dwi/sub-1_dir-AP_run-2_space-b0"),
        ("x", "/d/sub-1/pet/sub-1_trc-FDG_run-2_pet.nii", "sub-1/anat/sub-1_run-2_space-pet"),
        ("x", "/d/sub-1/anat/sub-1_space-MNI_desc-p_T1w.nii", "sub-1/anat/sub-1_space-MNI"),
        ("x", "/flat/sub-1_acq-a_T1w.nii", "sub-1/anat/sub-1_acq-a_space-T1w"),
        ("sub-9_ses-b", "/d/any.nii", "sub-9/ses-b/anat/sub-9_ses-b_space-orig"),
        ("case7", "/d/case7.nii", "sub-case7/anat/sub-case7_space-orig"),
    ],
)
def test_labels_of_files(name: str, file: str, stem: str) -> None:
    assert stems((name, file)) == [stem]
    keys = [part.split("-")[0] for part in stem.split("/")[-1].split("_")]
    assert keys == sorted(keys, key=ORDER.index)


@pytest.mark.parametrize("name", ["../../etc", "sub-../x", "a b", "Müller", "", "sub-01_T1w;rm", "x" * 200])
def test_no_name_comes_from_data_unchecked(name: str) -> None:
    labels, _ = labels_of(name, Path("/d") / f"{name or 'x'}.nii")
    assert labels.subject.isascii() and labels.subject.isalnum() and len(labels.subject) <= 40
    assert labels.subject != labels_of(f"{name}_", Path("/d/y.nii"))[0].subject


def test_a_file_links_to_its_dataset_only_where_it_lies_in_one() -> None:
    inside, _ = labels_of("x", Path("/d/sub-1/anat/sub-1_T1w.nii"))
    assert inside.source is not None
    assert (inside.source.root, inside.source.path) == (Path("/d"), "sub-1/anat/sub-1_T1w.nii")
    for elsewhere in ("/d/sub-2/anat/sub-1_T1w.nii", "/d/sub-1_T1w.nii"):
        assert labels_of("x", Path(elsewhere))[0].source is None


def test_no_two_items_share_a_name() -> None:
    of_two_datasets = ("a", "/a/sub-1/anat/sub-1_T1w.nii"), ("b", "/b/sub-1/anat/sub-1_T1w.nii")
    alike = ("c", "/c/sub-2/anat/sub-2_T1w.nii"), ("d", "/c/sub-2/anat/sub-2_T1w.nii.gz")
    files_and_ids = ("sub-3", "/d/x.nii"), ("e", "/c/sub-3/anat/sub-3_T1w.nii"), ("3", "/f/3.nii")
    named = stems(*of_two_datasets, *alike, *files_and_ids)
    assert len({stem.casefold() for stem in named}) == len(named)
    subjects = [stem.split("/")[0] for stem in named]
    assert subjects[0] != subjects[1] and subjects[2] == subjects[3] and len(set(subjects)) == 6
    assert subjects[4] == "sub-3"  # as the table says


def test_words() -> None:
    assert [word(text) for text in ("Left hippocampus", "brats_mri", "Ödem (T2)")] == [
        "LeftHippocampus",
        "bratsMri",
        "OdemT2",
    ]
    assert word("脑") and own_word("a_b") != own_word("ab") == "ab"
    assert told_apart(["a", "A", "b", "a"]) == ["a", "A2", "b", "a3"]


class Placed:
    """An output with the result of an item, whose bundle is a stand-in."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        segments = tuple(Segment(n, f"S {n}", TISSUE, TISSUE, None, None, (255, 0, n), None) for n in (1, 2))
        bundle = type("Bundle", (), {"name": "two_part", "segments": segments})
        monkeypatch.setattr(study, "_find", lambda name, *, trust: bundle)
        self.task = Task((("two",),), Settings(), None, folder, secret=Output(folder).secret, bids=True)

    def item(self, name: str, file: Path, labels: np.ndarray) -> tuple[CohortItem, Finished]:
        (item,) = with_labels([CohortItem(name, nifti=file)])
        folder = self.task.folder_of(item) / "0_two_part"
        folder.mkdir(parents=True)
        (folder / RECORD).touch()
        nibabel.save(
            nibabel.Nifti1Image(labels.astype(np.uint8), np.diag([-1.0, 1.0, 2.0, 1.0])), folder / "labels.nii.gz"
        )
        result: dict[str, Any] = dict.fromkeys(("study_uid", "series_uid", "phase"), "")
        result |= {"bundle": "two_part", "bundle_version": "1", "bundle_digest": "d", "result_key": name, "flags": []}
        result["folder"] = folder.relative_to(self.task.out).as_posix()
        return item, bids.placed(self.task, item, Finished(name, "", "", "", results=(result,)))


def test_masks_are_the_channels_of_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Placed(tmp_path / "out", monkeypatch)
    labels = np.random.default_rng(0).integers(0, 2, (3, 4, 5, 2))
    _, done = output.item("a", Path("/d/a.nii"), labels)
    assert list(bids.files_of(done)) == [
        f"sub-a/anat/sub-a_space-orig_label-S{n}_desc-twoPart_mask.nii.gz" for n in (1, 2)
    ]
    for channel, path in enumerate(bids.files_of(done)):
        assert np.array_equal(nibabel.load(output.task.out / path).dataobj, labels[..., channel])
    assert Output(output.task.out).holds(done)
    bids.take_away(output.task.out, done, Finished("a", "", "", ""))
    assert not [path for path in output.task.out.rglob("sub-*") if path.is_file()]
    assert not Output(output.task.out).holds(done)


def test_nothing_is_written_over_what_is_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Placed(tmp_path / "out", monkeypatch)
    owner, first = output.item("one", tmp_path / "a" / "sub-1" / "anat" / "sub-1_T1w.nii", np.ones((2, 2, 2)))
    (path,) = bids.files_of(first)
    before = (output.task.out / path).read_bytes()
    _, second = output.item("two", tmp_path / "b" / "sub-1" / "anat" / "sub-1_T1w.nii", np.zeros((2, 2, 2)))
    assert not second.results and second.lasting
    (failure,) = second.failures
    assert (failure.code, failure.exit_code) == ("bids_name_taken", 3)
    assert failure.message.startswith("two: sub-1/anat/sub-1_space-T1w_seg-twoPart_dseg is that of one,")
    assert (output.task.out / path).read_bytes() == before
    assert json.loads((output.task.out / path.replace(".nii.gz", ".json")).read_text())["Item"] == "one"
    assert bids.placed(output.task, owner, first) == first  # an item's own files are made anew


def test_what_cannot_be_written_is_a_failure_that_the_next_run_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Placed(tmp_path / "out", monkeypatch)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bids.shutil, "copyfile", full)
    _, done = output.item("a", Path("/d/a.nii"), np.ones((2, 2, 2)))
    assert not done.results and not done.lasting
    assert "No space left on device" in done.failures[0].message
    assert not list(output.task.out.rglob("*.nii.gz.*")) and not list((output.task.out / ".medseg").glob(".part-*"))
