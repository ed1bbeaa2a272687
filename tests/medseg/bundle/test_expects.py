"""What a bundle may expect of a series: conditions in the language of rules, what is preferred, what pixels show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from medseg.bundle.bundle import Bundle, Expects, PixelCheck
from medseg.bundle.catalog import fits, not_known
from medseg.bundle.expects import read_expects
from medseg.bundle.load import load_bundle
from medseg.bundle.pixel_check import Values, differences, dim_share
from medseg.bundle.schema import Reader
from medseg.dicom.geometry import classify
from medseg.dicom.phantom import make_series, write_series
from medseg.dicom.series import Stack
from medseg.dicom.sources import read_series
from medseg.errors import InvalidBundle
from tests.medseg.bundle import zoo


def read(**expects: Any) -> Expects:
    return read_expects(Reader("b", "medseg", {"expects": expects}), None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(zoo.spleen_like(tmp_path_factory.mktemp("expects") / "b"))


def stack_of(folder: Path, orientation: str = "axial", **tags: Any) -> Stack:
    datasets = make_series(orientation=orientation, shape=(8, 12, 12), spacing_mm=(3.0, 1.0, 1.0), modality="CT")
    for dataset in datasets:
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
    write_series(datasets, folder)
    (stack,) = classify(read_series(folder)[0]).stacks
    return stack


def region(code: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "SCT", "a region"
    return [item]


@pytest.mark.parametrize(
    ("expects", "tags", "reasons", "unknown"),
    [
        ({"plane": "axial 5"}, {}, (), ()),
        ({"plane": ["sagittal", "coronal"]}, {}, ('plane axial, expected "sagittal" or "coronal"',), ()),
        ({"contrast": "given"}, {"ContrastBolusAgent": "Gadovist"}, (), ()),
        ({"contrast": "given"}, {"ContrastBolusAgent": "NONE"}, ('contrast none, expected "given"',), ()),
        ({"contrast": "given"}, {}, (), ("contrast not known",)),  # it neither fits nor bars
        ({"not": {"contrast": "given"}}, {}, (), ("not expected: contrast not known",)),
        ({"slice_thickness_mm": [None, 2]}, {"SliceThickness": "3"}, ("slice_thickness_mm 3, expected <=2",), ()),
        ({"slice_thickness_mm": "<=2"}, {"SliceThickness": "1.5"}, (), ()),
        ({"slices": ">=9"}, {}, ("slices 8, expected >=9",), ()),
        (
            {"not": {"SeriesDescription": "*scout*"}},
            {"SeriesDescription": "Scout 2"},
            ("not expected: SeriesDescription Scout 2",),
            (),
        ),
        ({"any": [{"KVP": [80, 140]}, {"plane": "coronal"}]}, {"KVP": "120"}, (), ()),
        (
            {"any": [{"KVP": [80, 100]}, {"plane": "coronal"}]},
            {"KVP": "120"},
            ('KVP 120, expected 80..100; or plane axial, expected "coronal"',),
            (),
        ),
        ({"any": [{"KVP": [80, 100]}, {"plane": "coronal"}]}, {"KVP": ""}, (), ("KVP not known",)),
        ({"body_part": ["SCT:818981001"]}, {"AnatomicRegionSequence": region("113345001")}, (), ()),
        (
            {"body_part": ["SCT:818981001"]},
            {"BodyPartExamined": "HEAD"},
            ("body part HEAD\\SCT:69536005, expected \"SCT:818981001\"",),
            (),
        ),
        ({"body_part": ["ABDOMEN"]}, {}, (), ("body part not known",)),
        ({"StudyDate": ">=2020"}, {"StudyDate": "20190203"}, ("StudyDate the value, expected what is asked for",), ()),
        ({"ImageType": "present"}, {"ImageType": ["ORIGINAL", "PRIMARY"]}, (), ()),
        ({"SeriesDescription": ["t?_*"]}, {"SeriesDescription": "T1_x"}, (), ()),
    ],
)  # fmt: skip
def test_conditions(
    expects: dict[str, Any],
    tags: dict[str, Any],
    reasons: tuple[str, ...],
    unknown: tuple[str, ...],
    bundle: Bundle,
    tmp_path: Path,
) -> None:
    given = {"BodyPartExamined": "", "SliceThickness": "", "ContrastBolusAgent": "", "SeriesDescription": ""} | tags
    stack, asked = stack_of(tmp_path, **given), replace(bundle, expects=read(**expects))
    assert (fits(stack, asked), not_known(stack, asked)) == (reasons, unknown)


@pytest.mark.parametrize(
    ("expects", "key"),
    [
        ({"PatientName": "x"}, "expects::PatientName"),
        ({"AccessionNumber": "1"}, "expects::AccessionNumber"),
        ({"PatientBirthDate": ">=2000"}, "expects::PatientBirthDate"),
        ({"plane": "diagonal"}, "expects::plane"),
        ({"plane": "axial 90"}, "expects::plane"),
        ({"contrast": True}, "expects::contrast"),
        ({"slice_thickness_mm": [3, 1]}, "expects::slice_thickness_mm"),
        ({"not": {}}, "expects::not"),
        ({"any": [{"KVP": "high"}]}, "expects::any::0::KVP"),
        ({"prefer": ["newest"]}, "expects::prefer"),
        ({"contrasts": "given"}, "did you mean"),
        ({"pixels": {}}, "expects::pixels"),
        ({"pixels": {"air": [0.5, 2]}}, "expects::pixels::air"),
        ({"pixels": {"dim": [-0.1, 1]}}, "expects::pixels::dim"),
        ({"pixels": {"air": [0, 1], "else": "stop"}}, "expects::pixels::else"),
        ({"pixels": {"air": [0, 1], "hair": 1}}, "expects::pixels::hair"),
    ],
)
def test_refused_by_its_key(expects: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidBundle, match=key) as caught:
        read(**expects)
    assert "\n" not in str(caught.value)


def test_what_pixels_show(tmp_path: Path) -> None:
    stack = stack_of(tmp_path)
    check = PixelCheck((-1100, 3000), ((0, 500), (0, 500), (20, 30)), (0.1, 0.9))
    assert differences(stack, check, Values(-1000, 900, 0.3)) == ()
    assert differences(stack, check, Values(-2000, 900, 0.95)) == (
        "1st and 99th percentile -2000 and 900, expected -1100 to 3000",
        "95% of the voxels below -500, expected 10% to 90%",
    )
    assert differences(stack, replace(check, fov_mm=((0, 9), (0, 99), (0, 99))), Values(0, 1, 0.5)) == (
        "field of view 12 mm left-right, expected 0 to 9 mm",
    )
    assert differences(stack, PixelCheck(dim=(0.08, 1)), Values(0, 1, dim=0.015)) == (
        "1.5% of what is no background is dim, expected 8% to 100%",
    )


def test_a_head_without_its_skull_has_nothing_dim() -> None:
    """Whatever the background is, and however much of it there is."""
    random = np.random.default_rng(0)
    brain, skull = random.normal(500, 90, 9000), random.uniform(0, 400, 5000)
    for air in (0.0, -3.0, 900.0):
        for voxels in (0, 20_000):
            cut = np.concatenate([brain, np.full(2000 + voxels, 0.0)]) + air
            assert dim_share(cut.astype(np.float32)) < 0.01
            assert dim_share(np.concatenate([cut, skull + air]).astype(np.float32)) > 0.08
    assert dim_share(np.zeros(9, np.float32)) == 0.0


def test_air_has_a_value_of_its_own_unless_stated() -> None:
    assert np.isclose(read(pixels={"air": [0.1, 0.9]}).pixels.air_below, -500)  # type: ignore[union-attr]
