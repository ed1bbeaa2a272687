"""Cases on disk and the split by patient."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.training.data import HeldOut, LabelledCase, digest, find_cases, split


def case(number: int) -> LabelledCase:
    return LabelledCase(f"hippocampus_{number:03d}", Path("images"), Path("labels"))


def test_split_is_stable_and_by_id() -> None:
    cases = [case(n) for n in range(200)]
    training, aside = split(cases, HeldOut())
    assert {c.id for c in training} | {c.id for c in aside} == {c.id for c in cases}
    assert not {c.id for c in training} & {c.id for c in aside}
    assert 20 <= len(aside) <= 60  # about one in five
    again = split(reversed(cases[::3]), HeldOut())[1]
    assert {c.id for c in again} == {c.id for c in aside} & {c.id for c in cases[::3]}


def test_split_keeps_its_word_over_versions() -> None:
    # these must never change: published scores were measured on them
    assert [n for n in range(1, 31) if HeldOut()(f"hippocampus_{n:03d}")] == [3, 4, 20]


def test_pairs_by_name(tmp_path: Path) -> None:
    given = {"images": ["b.nii.gz", "a.nii", "only.nii", "._a.nii"], "labels": ["a.nii.gz", "b.nii.gz"]}
    for part, names in given.items():
        (tmp_path / part).mkdir()
        for name in names:
            (tmp_path / part / name).write_bytes(part.encode())
    assert [(c.id, c.image.name, c.label.name) for c in find_cases(tmp_path)] == [
        ("a", "a.nii", "a.nii.gz"),
        ("b", "b.nii.gz", "b.nii.gz"),
    ]


def test_no_such_folder_has_no_cases(tmp_path: Path) -> None:
    assert find_cases(tmp_path) == []


@pytest.mark.parametrize("part", ["images", "labels"])
def test_digest_sees_images_and_labels(tmp_path: Path, part: str) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii").write_bytes(b"before")
    before = digest(find_cases(tmp_path))
    assert before == digest(find_cases(tmp_path))
    (tmp_path / part / "a.nii").write_bytes(b"after")
    assert digest(find_cases(tmp_path)) != before
