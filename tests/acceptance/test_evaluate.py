"""`medseg evaluate` on DICOM: a bundle scored against SEG objects."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

from medseg.dicom.phantom import Ellipsoid, make_series
from tests.acceptance.conftest import Medseg


def test_what_infer_found_is_what_evaluate_scores(medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, seed in (("a", 1), ("b", 2)):
        folder = data / name / "images"
        folder.mkdir(parents=True)
        objects = [Ellipsoid((0.0, 0.0, 0.0), (9.0, 7.0, 12.0))]
        for k, image in enumerate(make_series(shape=(12, 40, 36), objects=objects, seed=seed)):
            image.save_as(folder / f"{k}.dcm", enforce_file_format=True)
        assert medseg("infer", folder, "--bundle", spleen, "-o", tmp_path / name).code == 0
        (seg,) = (tmp_path / name).rglob("seg.dcm")
        shutil.copy(seg, data / name / "reference.dcm")
    scored = medseg("evaluate", spleen, "--data", data, "--all")
    assert scored.code == 0, scored.err
    rows = list(csv.DictReader(io.StringIO(scored.out)))
    assert [(row["case"], row["dice"], row["hausdorff95_mm"]) for row in rows[:2]] == [
        ("a", "1.0", "0.0"),
        ("b", "1.0", "0.0"),
    ]
    assert float(rows[0]["volume_ml"]) > 0

    wrong = medseg("evaluate", spleen, "--data", data, "--all", "--structure", "spleen=GTV*")
    assert (wrong.code, wrong.out) == (3, "")
    assert "case a: no structure 'GTV*' for segment 'spleen', found 'spleen': name its structure" in wrong.error
    assert medseg("evaluate", spleen, "--data", data, "--structure", "liver=GTV*").code == 2
    (data / "a/reference.dcm").unlink()
    assert "case a: expected a DICOM SEG or RTSTRUCT" in medseg("evaluate", spleen, "--data", data, "--all").error
