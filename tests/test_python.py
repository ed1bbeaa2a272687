"""What a program imports: names that are loaded when they are asked for, and a document whose examples run."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import gateway
import medseg
from medseg.dicom.phantom import Ellipsoid, make_affine, make_series, paint, write_series
from tests.gateway.pacs import FakePacs, listening
from tests.medseg.bundle.zoo import threshold

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "python.md"
HEAVY = {"torch", "monai", "numpy", "pydicom", "pynetdicom", "sqlalchemy", "highdicom", "nibabel", "scipy", "typer"}

SHAPE = (16, 48, 40)
SPACING_MM = (2.0, 1.0, 1.0)
# In no place that a mirror image would share with it.
OBJECT = Ellipsoid((5.0, -9.0, 4.0), (6.0, 8.0, 7.0))


@pytest.mark.parametrize("package", [medseg, gateway], ids=lambda package: package.__name__)
class TestFace:
    def test_every_name_is_there(self, package: Any) -> None:
        assert len(set(package.__all__)) == len(package.__all__)
        for name in package.__all__:
            value = getattr(package, name)
            assert name == "__version__" or value.__doc__, name
        assert set(package.__all__) <= set(dir(package))

    def test_type_checkers_see_what_programs_get(self, package: Any) -> None:
        tree = ast.parse(Path(package.__file__).read_text("utf-8"))
        block = next(node for node in tree.body if isinstance(node, ast.If))
        seen = {
            alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        assert seen == package._HOMES
        assert set(package.__all__) - {"__version__"} == set(seen)

    def test_no_other_name_is(self, package: Any) -> None:
        with pytest.raises(AttributeError, match="no_such_name"):
            package.no_such_name  # noqa: B018

    def test_no_name_hides_a_module(self, package: Any) -> None:
        folder = Path(package.__file__).parent
        modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir()}
        assert not set(package.__all__) & modules

    def test_importing_it_loads_nothing_heavy(self, package: Any) -> None:
        program = f"import sys, {package.__name__}; print(sorted({HEAVY!r} & set(sys.modules)))"
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert out.stdout.strip() == "[]"


def test_functions_and_the_modules_of_their_names() -> None:
    program = (
        "import medseg.job.plan, medseg.job.run\n"
        "from medseg import errors, plan, run\n"
        "import medseg.inference.segment\n"
        "from medseg import segment\n"
        "print(plan is medseg.job.plan.plan, run is medseg.job.run.run, segment is medseg.inference.segment.segment)\n"
        "print(errors is medseg.errors, medseg.plan is plan)\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["True"] * 5
    assert import_module("medseg.job.plan").plan is medseg.plan


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with listening(FakePacs()) as peer:
        yield peer


def write_inputs(folder: Path) -> None:
    """What the document's examples are given, under the names that it uses."""
    slices = make_series("axial", SPACING_MM, SHAPE, [OBJECT], number=3)
    shuffled = [slices[k] for k in np.random.default_rng(0).permutation(len(slices))]
    write_series(shuffled, folder / "study" / "ct")
    write_series(make_series("axial", SPACING_MM, SHAPE, modality="MR", number=4), folder / "study" / "mr")
    shutil.copytree(folder / "study", folder / "two" / "a")
    write_series(make_series("axial", SPACING_MM, SHAPE, [OBJECT], seed=1), folder / "two" / "b")
    shutil.make_archive(str(folder / "archive"), "zip", folder / "two")
    threshold(folder / "my_bundle")
    affine = make_affine("axial", SPACING_MM, SHAPE)
    array = paint(affine, SHAPE, [OBJECT], -1000.0).transpose(2, 1, 0)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]
    for part in ("images", "labels"):
        (folder / "cases" / part).mkdir(parents=True)
    image = nibabel.Nifti1Image(array.astype(np.int16), ras)
    nibabel.save(image, folder / "volume.nii.gz")
    nibabel.save(image, folder / "cases" / "images" / "first.nii.gz")
    nibabel.save(nibabel.Nifti1Image((array > 0).astype(np.uint8), ras), folder / "cases" / "labels" / "first.nii.gz")


def expected() -> np.ndarray:
    """Where the object is, (slices, rows, columns)."""
    return paint(make_affine("axial", SPACING_MM, SHAPE), SHAPE, [OBJECT], -1000.0) > 0


def test_the_examples_of_the_document(
    tmp_path: Path, pacs: FakePacs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.S)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks, start=1):
        program = block.replace("pacs.example:104", f"127.0.0.1:{pacs.port}")
        exec(compile(program, f"{DOCUMENT.name}, example {number}", "exec"), names)  # our own document
    told = capsys.readouterr().out

    assert "modality MR, expected CT" in told, "the series that does not fit is told of"
    assert re.search(r"^object [0-9.]+ ml$", told, re.M)
    result = {path.name for path in (tmp_path / "results" / "3_my_bundle").iterdir()}
    assert result == {"seg.dcm", "sr.dcm", "result.json"}
    assert "['nifti', 'png', 'seg']" in told
    assert len(list((tmp_path / "cohort").glob("*/*/seg.dcm"))) == 2

    volume, true = names["volume"], expected()
    assert volume.array.dtype == np.uint8
    assert np.array_equal(volume.array == 1, true)
    assert volume.affine == pytest.approx(make_affine("axial", SPACING_MM, SHAPE), abs=1e-6)
    assert names["centre_mm"] == pytest.approx(OBJECT.centre_mm, abs=0.5)
    assert names["result"].measured[0].voxels == true.sum()

    labels = nibabel.load(tmp_path / "nifti" / next((tmp_path / "nifti").iterdir()).name / "labels.nii.gz")
    assert np.array_equal(np.asarray(labels.dataobj), true.transpose(2, 1, 0))
    assert names["evaluation"].summaries["object"]["dice"].mean == 1.0

    assert not names["sending"].not_stored
    assert len(pacs.got) == 2
    assert [Path(error.name).name for error in names["sending"].left_out] == ["result.json"]


def test_every_name_is_in_the_document_or_of_a_value_in_it() -> None:
    text = DOCUMENT.read_text("utf-8")
    types = {"Bundle", "Evaluation", "Job", "Outcome", "Refused", "SegmentationResult", "Sending", "Sent", "Series"}
    types |= {"Stack", "StudyPlan", "__version__"}
    assert not [name for name in {*medseg.__all__, *gateway.__all__} - types if not re.search(rf"\b{name}\b", text)]
