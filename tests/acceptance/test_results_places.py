"""Each input has its own result, beside what was named, whatever its name; none ends the others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from medseg.dicom.phantom import Box, make_series, write_series
from medseg.job import plan
from tests.acceptance.conftest import Medseg, Ran
from tests.acceptance.test_geometry import threshold_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_bundle(tmp_path_factory.mktemp("bundle") / "threshold")


def volume(path: Path, voxels: int) -> Path:
    """A NIfTI volume of air, and so many voxels above it."""
    values = np.full((8, 8, 4), -1000, np.int16)
    values.reshape(-1)[:voxels] = 100
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 2.0, 1.0])), path)
    return path


def study(folder: Path, side_mm: float = 4.0, **how: int) -> Path:
    box = Box((0.0, 0.0, 0.0), (4.0, side_mm, 4.0), 100.0)
    write_series(make_series(shape=(5, 12, 12), spacing_mm=(2.0, 1.0, 1.0), objects=[box], **how), folder)
    return folder


def voxels(ran: Ran) -> list[int]:
    return [record["segments"][0]["voxels"] for record in ran.records if "segments" in record]


def folders(ran: Ran) -> list[Path]:
    return [Path(next(iter(record["outputs"].values()))).parent for record in ran.records if "outputs" in record]


def as_told(ran: Ran) -> bool:
    """Whether each record is that of its own folder."""
    kept = [json.loads((folder / "result.json").read_text("utf-8")) for folder in folders(ran)]
    return kept == [record for record in ran.records if "outputs" in record]


@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize(
    "names",
    [("one.nii.gz", "two.nii.gz"), ("a.nii", "a.nii.gz"), ("x/t1.nii.gz", "y/t1.nii.gz")],
    ids=["names", "endings", "folders"],
)
def test_every_volume_keeps_its_result(
    medseg: Medseg, bundle: Path, tmp_path: Path, names: Sequence[str], options: list[str]
) -> None:
    for number, name in enumerate(names, 1):
        volume(tmp_path / name, 10 * number)
    for _ in range(2):
        ran = medseg("infer", *names, "--bundle", bundle, "--json", *options)
        assert ran.code == 0
        assert voxels(ran) == [10, 20]
        assert len(set(folders(ran))) == 2 and as_told(ran)
        assert all(
            Path(name).name.split(".")[0] in str(folder) for name, folder in zip(names, folders(ran), strict=True)
        )
    again = medseg("infer", *names, "--bundle", bundle, *options)
    assert again.out.count("up to date") == 2


@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=["plain", "overwrite"])
def test_two_folders_of_one_study_whose_series_have_one_number(
    medseg: Medseg, bundle: Path, tmp_path: Path, options: list[str]
) -> None:
    first, second = study(tmp_path / "a" / "s"), study(tmp_path / "b" / "s", 2.0, seed=5)
    for path in second.iterdir():  # of the same study
        image = dcmread(path)
        image.StudyInstanceUID = dcmread(first / path.name).StudyInstanceUID
        image.save_as(path)
    for _ in range(2):
        ran = medseg("infer", "a/s", "b/s", "-o", "results", "--bundle", bundle, "--json", *options)
        assert ran.code == 0
        one, two = voxels(ran)
        assert one == 2 * two
        assert len(set(folders(ran))) == 2 and as_told(ran)


def test_the_same_input_twice_is_done_once(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    volume(tmp_path / "a.nii", 10)
    ran = medseg("infer", "a.nii", "./a.nii", "--bundle", bundle, "-o", "results")
    assert ran.code == 0
    assert ran.out.count("up to date") == 1
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_one_series_of_many_goes_where_it_went_with_the_others(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    study(tmp_path / "s" / "one")
    study(tmp_path / "s" / "two", 2.0, seed=0, number=1)
    for number, path in enumerate(sorted((tmp_path / "s" / "two").iterdir())):
        image = dcmread(path)
        image.SeriesInstanceUID = "1.2.3"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        image.save_as(path)
    whole = medseg("infer", "s", "--bundle", bundle, "--json")
    uid = whole.records[1]["series_uid"]
    alone = medseg("infer", "s", "--bundle", bundle, "--json", "--series", uid, "--overwrite")
    assert folders(alone) == folders(whole)[1:]
    assert len(list((tmp_path / "s-medseg").iterdir())) == 2


def test_results_lie_beside_links(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    store = volume(tmp_path / "data" / ".store" / "aa" / "KEY.nii.gz", 10)
    study(tmp_path / "archive" / "4711")
    (tmp_path / "data" / "t1.nii.gz").symlink_to(store.relative_to(tmp_path / "data"))
    (tmp_path / "data" / "study").symlink_to("../archive/4711")
    assert medseg("infer", "data/t1.nii.gz", "data/study", "--bundle", bundle).code == 0
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        ".store", "t1.nii.gz", "study", "t1-medseg", "study-medseg",
    }  # fmt: skip
    assert [path.name for path in store.parent.iterdir()] == ["KEY.nii.gz"]
    assert [path.name for path in (tmp_path / "archive").iterdir()] == ["4711"]


POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "words"])
def test_names_that_are_no_text(bundle: Path, tmp_path: Path, options: list[str]) -> None:
    """In a process of its own, and a locale of ASCII; its output is bytes."""
    names = [b"\xe9tude", "étude".encode(), "検査.zip".encode()]
    made = study(tmp_path / "plain")
    for name in names[:2]:
        shutil.copytree(made, tmp_path / os.fsdecode(name))
    shutil.make_archive(str(tmp_path / "packed"), "zip", made)
    (tmp_path / "packed.zip").rename(tmp_path / os.fsdecode(names[2]))
    command = [sys.executable, "-m", "medseg", "infer", *names, "--bundle", str(bundle), *options]
    ran = subprocess.run(command, cwd=tmp_path, env=os.environ | POSIX, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert b"Traceback" not in ran.stderr
    assert len(ran.stdout.decode("utf-8").splitlines()) == 3
    for name, shown in zip(names, ["\\xe9tude-medseg", "étude-medseg", "検査-medseg"], strict=True):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name.removesuffix(b".zip") + b"-medseg"))
        (result,) = folder.iterdir()
        record = json.loads((result / "result.json").read_bytes().decode("utf-8"))
        assert record["segments"][0]["voxels"] > 0
        record["outputs"]["seg"].encode("utf-8")
        assert f"/{shown}/" in record["outputs"]["seg"]


def test_a_name_that_is_no_text_here(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xe9tude")
    study(tmp_path / name)
    (record,) = medseg("infer", name, "--bundle", bundle, "--json").records
    record["outputs"]["seg"].encode("utf-8")
    assert "up to date" in medseg("infer", name, "--bundle", bundle).out
    assert (tmp_path / f"{name}-medseg" / "1_threshold" / "seg.dcm").is_file()


def test_a_name_as_long_as_names_may_be(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    study(tmp_path / ("é" * 127))
    ran = medseg("infer", "é" * 127, "--bundle", bundle, "--json")
    assert ran.code == 0
    assert folders(ran)[0].is_dir() and folders(ran)[0].parent.name.startswith("ééé")
    assert "up to date" in medseg("infer", "é" * 127, "--bundle", bundle).out


class TestOneBadPath:
    def test_never_ends_the_others(self, medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
        volume(tmp_path / "good.nii", 10)
        study(tmp_path / "study")
        (tmp_path / "bad.nii").write_bytes(b"\0" * 400)
        (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04" + bytes(100))
        (tmp_path / "empty").mkdir()
        (tmp_path / "loop").symlink_to("loop")
        bad = ["bad.nii", "bad.zip", "empty", "loop", "nowhere", "x" * 300, "study/nothing/below"]
        ran = medseg("infer", *bad, "good.nii", "study", "--bundle", bundle, "--json")
        assert ran.code == 1
        assert len(voxels(ran)) == 2
        errors = [record for record in ran.records if "error" in record]
        assert len(errors) == len(bad)
        assert all(error["study_uid"] is None for error in errors)

    def test_not_even_by_an_error_of_ours(
        self, medseg: Medseg, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study(tmp_path / "a")
        study(tmp_path / "b", seed=3)
        classify = plan.classify
        failing = iter([True])

        def fails_once(*arguments: Any, **named: Any) -> Any:
            if next(failing, False):
                raise KeyError("Doe^Jane")
            return classify(*arguments, **named)

        monkeypatch.setattr(plan, "classify", fails_once)
        ran = medseg("infer", "a", "b", "--bundle", bundle, "--json")
        assert ran.code == 1
        assert len(voxels(ran)) == 1
        (error,) = [record["error"] for record in ran.records if "error" in record]
        assert error["code"] == "unforeseen"
        assert "KeyError at test_results_places.py" in error["message"]
        assert "Doe" not in ran.out + ran.err

    def test_but_an_interrupt_does(
        self, medseg: Medseg, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study(tmp_path / "a")

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(plan, "classify", stop)
        ran = medseg("infer", "a", "a", "--bundle", bundle)
        assert ran.code == 130
        assert not (tmp_path / "a-medseg").exists()
