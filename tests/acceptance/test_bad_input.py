"""Whatever is wrong with an input, a bundle or a folder: one clear sentence, the exit code that fits, nothing partial.

Where a study also holds a series that is right, that one is still done.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from medseg.dicom.phantom import make_series, write_series
from medseg.inference.engines.engine import Engine
from tests.acceptance.conftest import Medseg, left_over
from tests.medseg.bundle.zoo import spleen_like

SHAPE = (12, 32, 32)


def ct(folder: Path, **how: object) -> Path:
    write_series(make_series(shape=SHAPE, **how), folder)  # type: ignore[arg-type]
    return folder


def changed(folder: Path, change: Callable[[int, Dataset], None]) -> Path:
    """A series in `folder`, each instance changed by `change(number, dataset)`."""
    images = make_series(shape=SHAPE, number=2)
    for number, image in enumerate(images):
        change(number, image)
    write_series(images, folder)
    return folder


def without(*keywords: str) -> Callable[[int, Dataset], None]:
    def change(_: int, image: Dataset) -> None:
        for keyword in keywords:
            delattr(image, keyword)

    return change


def with_values(**values: object) -> Callable[[int, Dataset], None]:
    def change(_: int, image: Dataset) -> None:
        for keyword, value in values.items():
            setattr(image, keyword, value)

    return change


def turned(number: int, image: Dataset) -> None:
    """No two neighbours look the same way, and no way has slices enough."""
    angle = 0.05 * (number // 2)
    image.ImageOrientationPatient = [1, 0, 0, 0, round(math.cos(angle), 6), round(math.sin(angle), 6)]


def same_place(number: int, image: Dataset) -> None:
    image.ImagePositionPatient = [0, 0, 2.0 * (number // 2)]


def gap(number: int, image: Dataset) -> None:
    x, y, z = image.ImagePositionPatient
    image.ImagePositionPatient = [x, y, float(z) + (8.0 if number > 5 else 0.0)]


def undecodable(_: int, image: Dataset) -> None:
    image.file_meta.TransferSyntaxUID = JPEG2000Lossless
    image.PixelData = encapsulate([b"junk"])
    image["PixelData"].is_undefined_length = True


# what is wrong with the second series, its code, and what the sentence says
SERIES = [
    pytest.param(gap, "missing_slices", "missing", id="missing slices"),
    pytest.param(same_place, "duplicate_positions", "position", id="duplicate slices"),
    pytest.param(turned, "mixed_orientation", "apart", id="mixed orientations"),
    pytest.param(with_values(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer", "localizer", id="localizer"),
    pytest.param(with_values(Modality="MR", ImageType=["PRIMARY", "MOSAIC"]), "mosaic", "mosaic", id="mosaic"),
    pytest.param(with_values(Modality="MR"), "does_not_fit", "modality MR, expected CT", id="wrong modality"),
    pytest.param(without("RescaleSlope", "RescaleIntercept"), "ct_without_rescale", "Rescale", id="CT without rescale"),
    pytest.param(with_values(RescaleType="US"), "ct_not_hu", "HU", id="CT not in HU"),
    pytest.param(without("FrameOfReferenceUID"), "no_frame_of_reference", "no FrameOfReferenceUID", id="no FoR"),
    pytest.param(undecodable, "undecodable_pixels", "cannot be decoded", id="undecodable pixels"),
]


@pytest.mark.parametrize(("change", "code", "says"), SERIES)
def test_a_series_with_a_flaw_is_named_and_the_others_are_done(
    medseg: Medseg, spleen: Path, tmp_path: Path, change: Callable[[int, Dataset], None], code: str, says: str
) -> None:
    ct(tmp_path / "study" / "right")
    changed(tmp_path / "study" / "wrong", change)
    ran = medseg("infer", "study", "--bundle", spleen, "--json")
    errors = [record["error"] for record in ran.records if "error" in record]
    assert {error["code"] for error in errors} == {code}
    assert all(says in error["message"] for error in errors)
    assert [record["outputs"].keys() for record in ran.records if "error" not in record] == [{"seg", "sr"}]
    assert ran.code == (1 if code == "undecodable_pixels" else 0)
    assert [path.name for path in (tmp_path / "study-medseg").iterdir()] == ["1_spleen"]


@pytest.mark.parametrize(("change", "code", "says"), SERIES)
def test_a_series_with_a_flaw_alone_ends_in_exit_code_3(
    medseg: Medseg, spleen: Path, tmp_path: Path, change: Callable[[int, Dataset], None], code: str, says: str
) -> None:
    changed(tmp_path / "study", change)
    ran = medseg("infer", "study", "--bundle", spleen)
    assert ran.code == 3
    assert says in ran.error
    assert not [name for name in left_over(tmp_path) if name != "study-medseg"]


def test_an_option_that_helps_is_named(medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
    changed(tmp_path / "study", without("FrameOfReferenceUID"))
    for command in ("infer", "inspect"):
        ran = medseg(command, "study")
        assert "--assume-frame-of-reference derives one" in ran.out + ran.err


def test_gantry_tilt_is_done_and_told(medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
    ct(tmp_path / "study", tilt_deg=12.0)
    ran = medseg("infer", "study", "--bundle", spleen, "--json")
    assert ran.code == 0
    assert "tilt" in json.dumps(ran.records[0])


def test_too_few_slices(medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
    write_series(make_series(shape=(2, 32, 32)), tmp_path / "study")
    ran = medseg("infer", "study", "--bundle", spleen)
    assert ran.code == 3
    assert "2 slices" in ran.error


def test_no_such_file(medseg: Medseg) -> None:
    ran = medseg("infer", "nowhere")
    assert ran.code == 3
    assert ran.error == "error: nowhere: no such file or folder"


def test_empty_folder(medseg: Medseg, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    ran = medseg("infer", "study")
    assert ran.code == 3
    assert "no DICOM image found" in ran.error


def test_other_files_among_dicom_are_passed_over_and_named(medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
    study = ct(tmp_path / "study")
    (study / "notes.txt").write_text("not an image")
    (study / "empty.dcm").touch()
    ran = medseg("infer", "study", "--bundle", spleen)
    assert ran.code == 0
    assert "notes.txt: not a DICOM file" in ran.err


def test_a_truncated_file_takes_its_slice_and_no_more(medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
    study = ct(tmp_path / "study")
    cut = sorted(study.iterdir())[5]
    cut.write_bytes(cut.read_bytes()[:-400])
    ran = medseg("infer", "study", "--bundle", spleen)
    assert ran.code == 3
    assert "cannot be decoded" in ran.error
    assert not [name for name in left_over(tmp_path) if name != "study-medseg"]


def test_zip_with_path_escape(medseg: Medseg, tmp_path: Path) -> None:
    study = ct(tmp_path / "study")
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        archive.write(next(study.iterdir()), "../../escaped.dcm")
    ran = medseg("infer", "study.zip")
    assert ran.code == 3
    assert "refused archive" in ran.error
    assert not (tmp_path.parent / "escaped.dcm").exists()


def test_zip_bomb(medseg: Medseg, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.dcm", bytes(1_000_000))
        archive.filelist[0].file_size = 10**12  # what the directory at the end will promise
    ran = medseg("infer", "bomb.zip")
    assert ran.code == 3
    assert "refused archive" in ran.error


def test_a_cohort_counts_its_failures(medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        ct(tmp_path / "cohort" / str(seed), seed=seed)
    broken = sorted((tmp_path / "cohort" / "2").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:-400])
    ran = medseg("infer", "cohort", "--bundle", spleen, "--json", "--jobs", 1)
    assert ran.code == 1
    assert len([record for record in ran.records if "error" not in record]) == 1
    done = next(record for record in ran.records if "error" not in record)
    assert (tmp_path / "cohort-medseg" / done["study_uid"] / "1_spleen" / "seg.dcm").is_file()


class TestOutput:
    def test_a_second_run_is_up_to_date(self, medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
        ct(tmp_path / "study")
        assert medseg("infer", "study", "--bundle", spleen).code == 0
        seg = tmp_path / "study-medseg" / "1_spleen" / "seg.dcm"
        before = seg.stat().st_mtime_ns
        again = medseg("infer", "study", "--bundle", spleen)
        assert again.code == 0
        assert "up to date" in again.out
        assert seg.stat().st_mtime_ns == before

    def test_another_result_there_is_an_error_unless_overwritten(
        self, medseg: Medseg, spleen: Path, tmp_path: Path
    ) -> None:
        ct(tmp_path / "study")
        there = tmp_path / "study-medseg" / "1_spleen"
        there.mkdir(parents=True)
        (there / "mine.txt").write_text("precious")
        ran = medseg("infer", "study", "--bundle", spleen)
        assert ran.code == 2
        assert "--overwrite" in ran.error
        assert (there / "mine.txt").read_text() == "precious"
        assert medseg("infer", "study", "--bundle", spleen, "--overwrite").code == 0
        assert (there / "seg.dcm").is_file()

    def test_a_file_where_the_folder_should_be(self, medseg: Medseg, spleen: Path, tmp_path: Path) -> None:
        ct(tmp_path / "study")
        (tmp_path / "taken").write_text("a file")
        ran = medseg("infer", "study", "--bundle", spleen, "-o", "taken")
        assert ran.code == 5
        assert "cannot write results" in ran.error

    def test_a_full_disk_leaves_nothing(
        self, medseg: Medseg, spleen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ct(tmp_path / "study")

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(medseg_job := __import__("medseg.job.run").job.run, "write_report", full)
        ran = medseg("infer", "study", "--bundle", spleen)
        assert medseg_job is not None
        assert ran.code == 5
        assert "No space left on device" in ran.error
        assert not [name for name in left_over(tmp_path) if name != "study-medseg"]


class TestBundle:
    def test_unknown(self, medseg: Medseg, tmp_path: Path) -> None:
        ct(tmp_path / "study")
        ran = medseg("infer", "study", "--bundle", "nothing")
        assert ran.code == 4
        assert "no bundle 'nothing'" in ran.error

    def test_without_configuration(self, medseg: Medseg, tmp_path: Path) -> None:
        (tmp_path / "bundle").mkdir()
        ran = medseg("infer", ".", "--bundle", "bundle")
        assert ran.code == 4

    def test_corrupt_configuration(self, medseg: Medseg, tmp_path: Path) -> None:
        bundle = spleen_like(tmp_path / "bundle")
        (bundle / "configs" / "inference.json").write_text("{broken")
        ran = medseg("infer", ".", "--bundle", bundle)
        assert ran.code == 4
        assert "configs/inference.json" in ran.error

    def test_weights_of_another_network(self, medseg: Medseg, tmp_path: Path) -> None:
        bundle = spleen_like(tmp_path / "bundle")
        torch.save({"conv.weight": torch.zeros(3)}, bundle / "models" / "model.pt")
        ct(tmp_path / "study")
        ran = medseg("infer", "study", "--bundle", bundle)
        assert ran.code == 4
        assert "weights do not fit" in ran.error


def test_out_of_memory(medseg: Medseg, spleen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ct(tmp_path / "study")

    def hungry(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Engine, "__call__", hungry)
    ran = medseg("infer", "study", "--bundle", spleen)
    assert ran.code == 5
    assert "memory" in ran.error
    assert not [name for name in left_over(tmp_path) if name != "study-medseg"]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_leaves_no_partial_result(spleen: Path, tmp_path: Path, number: signal.Signals) -> None:
    write_series(make_series(shape=(64, 256, 256)), tmp_path / "study")
    process = subprocess.Popen(
        [sys.executable, "-m", "medseg", "infer", "study", "--bundle", str(spleen)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:  # the pipeline is at work once it has said so
        if "prepare" in line:
            process.send_signal(number)
            break
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert not [name for name in left_over(tmp_path) if name != "study-medseg"]
