"""Whatever a value of data is, nothing is created outside the folder that was given: every writer, watched in process.

The interpreter's own audit events say what is created or opened to write; each test's docstring counts its examples.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from gateway.dimse.demo_pacs import SmallPacs
from gateway.files import sync
from gateway.receive import reconcile
from gateway.receive.identity import Identity
from gateway.receive.spool import instance_path
from medseg.bundle.load import load_bundle
from medseg.dicom.dicomdir import resolve
from medseg.dicom.phantom import Box, make_series, write_series
from medseg.dicom.series import StackSource
from medseg.dicom.sources import find_instances, read_series
from medseg.errors import MedsegError
from medseg.inference.engines import cache
from medseg.inference.planes import LabelSpool
from medseg.inference.segment import segment
from medseg.inference.settings import Settings
from medseg.job.folder import Format
from medseg.job.follow import Segmented
from medseg.job.places import result_folders
from medseg.job.plan import Job, match, plan
from medseg.job.run import run
from medseg.names import uid_name
from tests.acceptance.conftest import Medseg
from tests.acceptance.test_geometry import threshold_bundle
from tests.gateway.spooling import Inbox, inbox
from tests.writing import hostile, outside, writes

EVERY = frozenset(Format)
FEW = frozenset({Format.SEG, Format.SR, Format.NIFTI, Format.PNG})


@pytest.fixture(autouse=True)
def engines(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines' cache is a folder of its own."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path_factory.mktemp("engines")))


quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def nothing_outside(given: Path) -> Iterator[None]:
    """What happens within creates nothing that is not below a folder, or the engines' own, whose names are digests.

    Temporary files are no matter; one without a name opens their folder itself.
    """
    scratch, engines = tempfile.gettempdir(), os.environ[cache.VARIABLE]
    with writes() as paths:
        yield
    others = [path for path in paths if scratch not in (path, os.path.dirname(path)) and not path.startswith(engines)]  # noqa: PTH120
    wrong = outside(others, given)
    assert not wrong, wrong


def small(**how: Any) -> list[Dataset]:
    """Four slices, and a box of four voxels in them."""
    box = Box((0.0, 0.0, 0.0), (2.0, 2.0, 2.0), 100.0)
    return make_series(shape=(4, 8, 8), spacing_mm=(2.0, 1.0, 1.0), objects=[box], **how)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_bundle(tmp_path_factory.mktemp("bundle") / "threshold")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> tuple[Job, Segmented]:
    folder = tmp_path_factory.mktemp("study")
    write_series(small(), folder)
    (job,) = plan(read_series(folder), [load_bundle(bundle)], explicit=True).jobs
    labels = LabelSpool()
    return job, Segmented(segment(StackSource(job.stack), job.bundle, labels, settings=Settings()), labels)


@given(hostile, hostile, hostile, st.integers(-(10**400), 10**400))
@settings(quick, max_examples=200)
def test_results(done: tuple[Job, Segmented], study: str, series: str, name: str, number: int) -> None:
    """200: what is written for a study, of any UIDs, bundle's name and series number."""
    job, found = done
    with tempfile.TemporaryDirectory() as base:
        out = Path(base) / "a" / "b" / "out"
        out.mkdir(parents=True)
        of = replace(job.stack.series, study_uid=study, series_uid=series, number=number)
        stack, named = replace(job.stack, series=of), replace(job.bundle, name=name)
        with nothing_outside(out):
            (planned,) = match([stack], [named], explicit=True).jobs
            of_stack = replace(found, result=replace(found.result, stack=stack))
            with suppress(MedsegError, ValueError, OverflowError):  # UIDs and names that no DICOM object can hold
                formats = EVERY if number % 32 == 5 else FEW  # no value names a file of the others
                run(planned, out / uid_name(study), formats, settings=Settings(), found=of_stack)
        assert [path.name for path in (Path(base) / "a" / "b").iterdir()] == ["out"]
        kept = [path for path in out.rglob("*") if path.is_file()]
        assert not [path for path in kept if len(path.relative_to(out).parts) != 3 + (path.parent.name == "sc")]


NASTY = ("", "../../field")
AS_NASTY = (".", "..", "/", "/tmp/absolute", "C:\\x", "1.2\0/../x", "~", "A")


@pytest.mark.parametrize("value", [*NASTY, *(pytest.param(one, marks=pytest.mark.slow) for one in AS_NASTY)])
def test_the_command(medseg: Medseg, bundle: Path, tmp_path: Path, value: str) -> None:
    """A study by each of the nasty values beside one as it should be: that one is done, with the right voxels."""
    right, wrong = small(seed=1), small(seed=2)
    for image in wrong:
        image.StudyInstanceUID = value
    write_series(right, tmp_path / "in" / "right")
    for number, image in enumerate(wrong):
        (tmp_path / "in" / "wrong").mkdir(exist_ok=True)
        image.save_as(tmp_path / "in" / "wrong" / f"{number}.dcm")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with nothing_outside(tmp_path / "deep" / "er" / "out"):
        ran = medseg("infer", "in", "-o", "deep/er/out", "--bundle", bundle, "--json", "--format", "nifti")
    uid = str(right[0].StudyInstanceUID)
    (record,) = [record for record in ran.records if record["study_uid"] == uid]
    (segment,) = record["segments"]
    assert segment["voxels"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"in", "deep"}


@given(st.lists(st.binary(min_size=1, max_size=200).map(os.fsdecode), min_size=2, max_size=4, unique=True))
@settings(quick, max_examples=300)
def test_inputs_of_any_name(names: list[str]) -> None:
    """300: the folders of inputs whose names are any bytes that a file's name may be."""
    names = [name for name in names if "/" not in name and "\0" not in name and name not in (".", "..")]
    for folder in result_folders([Path("/data", name) for name in names], Path("/out")) if len(names) > 1 else ():
        assert folder.parent == Path("/out")
        assert folder.name not in ("", ".", "..")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inbox]:
    with inbox(tmp_path_factory.mktemp("deep")) as one:
        yield one


@given(hostile, hostile, hostile)
@settings(quick, max_examples=200)
def test_the_spool(box: Inbox, study: str, series: str, instance: str) -> None:
    """200: instances of any UIDs are named and published."""
    part = box.spool.incoming / "1.part"
    with nothing_outside(box.folder):
        part.write_bytes(b"data")
        path = instance_path(Identity("1.2", instance, study, series), "f" * 16)
        box.spool.publish(str(part), path)
        sync(box.folder)
    assert len(Path(path).parts) == 4
    assert (box.folder / path).read_bytes() == b"data"


@given(st.lists(st.binary(min_size=1, max_size=250).map(os.fsdecode), min_size=1, max_size=3))
@settings(quick, max_examples=100)
def test_quarantine(box: Inbox, names: list[str]) -> None:
    """100: strangers of any name, in any folder of the spool, are put aside, and none takes another's place."""
    strange = [name for name in names if "/" not in name and "\0" not in name and name not in (".", "..")]
    if not strange:
        return
    place = box.spool.studies.joinpath("1.2", *strange[:-1])
    place.mkdir(parents=True, exist_ok=True)
    before = len(list(box.spool.quarantine.iterdir()))
    for name in {strange[-1], strange[-1][:9]}:
        if not (place / name).exists():
            (place / name).write_bytes(b"not DICOM")
    with nothing_outside(box.folder):
        found = reconcile.reconcile(box.spool, box.ledger)
    assert len(list(box.spool.quarantine.iterdir())) == before + len(found.quarantined)
    assert not [path for path in box.spool.studies.joinpath("1.2").rglob("*") if path.is_file()]


@given(hostile)
@settings(quick, max_examples=200)
def test_the_small_pacs(pacs: SmallPacs, tmp_path_factory: pytest.TempPathFactory, uid: str) -> None:
    """200: where it keeps an object."""
    assert pacs.file(uid).parent == pacs.file("1.2").parent
    assert pacs.file(uid) != pacs.file("1.2") or uid == "1.2"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallPacs]:
    with SmallPacs(tmp_path_factory.mktemp("pacs"), "PACS") as one:
        yield one


@given(st.lists(hostile | st.sampled_from(["up", "loop", "in", "image"]), min_size=1, max_size=4).map("/".join))
@settings(quick, max_examples=500)
def test_a_directory_reads_nothing_outside(disc: Path, name: str) -> None:
    """500: references of a DICOMDIR, through links of the medium, too."""
    file = resolve(disc, name)
    assert file is None or (file.is_file() and Path(os.path.realpath(file)).is_relative_to(os.path.realpath(disc)))


@pytest.fixture(scope="module")
def disc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("media")
    (base / "secret").write_text("not on the disc")
    (base / "image").write_text("not on the disc")
    disc = base / "disc"
    (disc / "in").mkdir(parents=True)
    (disc / "image").write_text("on the disc")
    (disc / "in" / "image").write_text("on the disc")
    (disc / "up").symlink_to("..")
    (disc / "loop").symlink_to("loop")
    return disc


def test_links_lead_a_directory_to_its_own_files_alone(disc: Path) -> None:
    assert resolve(disc, "IN/IMAGE") == disc / "in" / "image"
    assert resolve(disc, "in/../image") is None
    assert resolve(disc, "up/image") is None
    assert resolve(disc, "up/secret") is None
    assert resolve(disc, "up/disc/image") == disc / "up" / "disc" / "image"  # it is on the disc, after all
    assert resolve(disc, "loop") is None
    assert resolve(disc, "a" * 5000) is None
    assert resolve(disc, "") is None


def test_a_device_among_the_files_is_not_read(tmp_path: Path) -> None:
    write_series(small(), tmp_path / "study")
    (tmp_path / "study" / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "study" / "pipe")
    (tmp_path / "study" / "piped").symlink_to("pipe")
    found = find_instances(tmp_path / "study")
    assert len(found.instances) == 4
    assert {Path(one.name).name: one.why for one in found.skipped} == {
        "zero": "a link to what is no file",
        "piped": "a link to what is no file",
    }
    assert dcmread(found.instances[0].name).Rows == 8


def test_nifti_of_any_name(medseg: Medseg, bundle: Path, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.full((8, 8, 4), 100, np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]))
    names = [b"a b.nii", b"\xe9.nii", b"..nii", b"-rf.nii", b"x" * 200 + b".nii", b"CON.nii", b"a\n.nii"]
    for name in names:
        nibabel.save(image, tmp_path / os.fsdecode(name))
    (tmp_path / "out").mkdir()
    inputs = [f"./{os.fsdecode(name)}" for name in names]
    with nothing_outside(tmp_path / "out"):
        ran = medseg("infer", *inputs, "-o", "out", "--bundle", bundle, "--json")
    assert ran.code == 0
    assert [record["segments"][0]["voxels"] for record in ran.records] == [256] * len(names)
    assert len({record["outputs"]["nifti"] for record in ran.records}) == len(names)
    assert len(list((tmp_path / "out").rglob("labels.nii.gz"))) == len(names)
    assert (tmp_path / "out" / "results.csv").read_bytes().count(b",256,") == len(names)  # several are a cohort
    with nothing_outside(tmp_path):
        assert medseg("infer", *inputs, "--bundle", bundle).code == 0  # beside each
    assert len(list(tmp_path.glob("*-medseg/*/labels.nii.gz"))) == len(names)
