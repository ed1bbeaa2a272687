"""Folders of nnU-Net that look at regions, and that find them: by the same folders, run over what is cut out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.bundle.load import load_bundle
from medseg.dicom.phantom import make_affine
from medseg.dicom.series import StackSource
from medseg.errors import InvalidBundle
from medseg.inference.labels import SegmentationResult
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import segment
from tests.medseg.inference.test_nnunet import labels_of, noise, stack_of
from tests.medseg.nnunet_folders import described, plans, rewrite, write

SHAPE = (16, 22, 26)
AFFINE = make_affine("axial", (2.0, 1.0, 1.0), SHAPE)
SEGMENTS = [{"number": number, "label": f"part {number}"} for number in range(1, 5)]


def looking(root: Path, region: dict[str, Any], **others: Any) -> Path:
    rewrite(root / "configs/metadata.json", lambda content: content["medseg"].update(region=region, **others))
    return root


def looked(root: Path, values: NDArray[np.float64]) -> tuple[SegmentationResult, NDArray[np.uint8]]:
    spool = LabelSpool()
    result = segment(StackSource(stack_of(values, AFFINE)), load_bundle(root), spool)
    return result, np.stack(list(spool))


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_box_is_a_case_of_its_own(mirrored: bool, tmp_path: Path) -> None:
    root = described(write(tmp_path / "model", plans(spacing=[1.5, 1.3, 1.2]), channels=("MRI",)), step=0.5)
    values = noise(SHAPE)
    values[6:10, 8:13, 9:14] = 3000
    view = {"label": 1, "mirror": "LR", "labels": {"1": 3, "2": 4}}
    region: dict[str, Any] = {"first_pass": {"threshold": [2000, None]}, "spacing_mm": 1, "margin_mm": 4}
    looking(root, region | ({"views": [view]} if mirrored else {}), segments=SEGMENTS[: 4 if mirrored else 2])
    result, labels = looked(root, values)
    assert result.region is not None
    (box,) = result.region.boxes
    place = tuple(slice(low, high + 1) for low, high in (box.slices, box.rows, box.columns))
    cut = values[place][..., ::-1] if mirrored else values[place]
    expected = labels_of(write(tmp_path / "plain", plans(spacing=[1.5, 1.3, 1.2]), channels=("MRI",)), cut, AFFINE)
    assert len(np.unique(expected)) == 3
    expected = np.array([0, 3, 4])[expected][..., ::-1] if mirrored else expected
    assert np.array_equal(labels[place], expected)
    assert np.count_nonzero(labels) == np.count_nonzero(expected)
    assert all(found.confidence for found in result.measured if found.voxels)


def test_a_folder_finds_where_merged_models_look(tmp_path: Path) -> None:
    root = tmp_path / "whole"
    write(root / "one", channels=("MRI",))
    write(root / "two", labels={"background": 0, "vessel": 1, "bone": 2}, channels=("MRI",), seed=1)
    parts = [{"folder": "one", "labels": {"organ": 2, "2": 3}}, {"folder": "two", "labels": {"bone": 5}}]
    described(root, parts=parts)
    expected = labels_of(root, noise(SHAPE), AFFINE)
    first = write(root / "first", plans(spacing=[2.5, 2.5, 2.5]), channels=("MRI",), seed=2)
    found = labels_of(first, noise(SHAPE), AFFINE)
    least = float(np.bincount(found.ravel())[1:].max()) * 0.002 / 3
    region = {"first_pass": {"bundle": "first"}, "min_volume_ml": least, "most": 1}
    result, labels = looked(looking(root, region), noise(SHAPE))
    assert result.region is not None and result.region.first_pass == "bundle first"
    assert result.region.boxes and set(np.unique(labels)) <= {0, 2, 3, 5} and labels.any()
    assert expected.any()


def test_nnunet_has_no_windows_of_its_own(tmp_path: Path) -> None:
    root = described(write(tmp_path / "model"), step=0.5)
    with pytest.raises(InvalidBundle, match="region::mode: windows cannot run by themselves"):
        load_bundle(looking(root, {"first_pass": "body", "mode": "windows"}))
    with pytest.raises(InvalidBundle, match="region::statistics: those of the image are not known"):
        load_bundle(looking(root, {"first_pass": "body", "statistics": "image"}))
    assert json.loads((root / "configs/metadata.json").read_text())["medseg"]["nnunet"] == {"step": 0.5}
