"""Result keys and the UIDs made of them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import UID

from medseg.dicom.nifti import read_nifti
from medseg.results.identity import ResultKey, result_key, stack_digests, stack_key
from tests.medseg.results.stacks import make_stack, to_stack

DIGESTS = ["aa", "bb", "cc"]
SETTINGS = {"precision": "fp32", "overlap": None}


@given(st.permutations(DIGESTS))
def test_the_order_of_instances_does_not_matter(order: list[str]) -> None:
    assert result_key(order, "b", SETTINGS) == result_key(DIGESTS, "b", SETTINGS)


@pytest.mark.parametrize(
    "other",
    [
        result_key(DIGESTS[:2], "b", SETTINGS),
        result_key([*DIGESTS, "cc"], "b", SETTINGS),
        result_key(DIGESTS, "other bundle", SETTINGS),
        result_key(DIGESTS, "b", {"precision": "bf16", "overlap": None}),
        result_key(DIGESTS, "b", SETTINGS, part="EchoNumbers=2"),
        result_key(DIGESTS, "b", SETTINGS, schema="next"),
    ],
)
def test_everything_that_makes_a_result_counts(other: ResultKey) -> None:
    assert other != result_key(DIGESTS, "b", SETTINGS)


@given(st.text(min_size=1), st.text(min_size=1))
def test_uids_are_valid_and_differ_by_role(one: str, two: str) -> None:
    key = result_key(DIGESTS, "b", SETTINGS)
    assert key.uid(one) == key.uid(one)
    assert (key.uid(one) == key.uid(two)) == (one == two)
    uid = key.uid(one)
    assert uid.is_valid
    assert uid.startswith("2.25.")
    assert int(uid.removeprefix("2.25.")) < 2**128


def test_a_known_key_stays_what_it_is() -> None:
    # results already delivered carry these UIDs: change SCHEMA, not the form
    assert result_key(["aa"], "b", {"precision": "fp32"}).uid("seg") == UID(
        "2.25.28634874363626781580847925931415310179"
    )


def test_the_key_does_not_see_files_order_or_meta() -> None:
    stack = make_stack()
    files = [instance.open().read() for instance in stack.series.instances]

    def stored_by_an_archive(data: bytes) -> bytes:
        dataset = pydicom.dcmread(io.BytesIO(data))
        dataset.file_meta.SourceApplicationEntityTitle = "PACS"
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        return buffer.getvalue()

    other = to_stack([stored_by_an_archive(data) for data in reversed(files)])
    assert stack_key(other, "b", SETTINGS) == stack_key(stack, "b", SETTINGS)


def test_one_changed_voxel_is_another_result() -> None:
    def other_voxel(dataset: Dataset) -> None:
        if dataset.InstanceNumber == 3:
            dataset.PixelData = b"\1\0" + dataset.PixelData[2:]

    assert stack_key(make_stack(other_voxel), "b", {}) != stack_key(make_stack(), "b", {})


def test_the_frame_of_reference_is_part_of_a_result() -> None:
    stack = make_stack()
    assert stack_key(replace(stack, frame_of_reference_uid="1.2.3"), "b", {}) != stack_key(stack, "b", {})


def test_nifti_planes_count_by_value_and_place(tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    digests = set()
    for number, (array, affine) in enumerate(
        [(voxels, np.eye(4)), (voxels + 1, np.eye(4)), (voxels, np.diag([2, 1, 1, 1])), (voxels, np.eye(4))]
    ):
        path = tmp_path / f"{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        digests.add(stack_digests(read_nifti(path)))
    assert len(digests) == 3
