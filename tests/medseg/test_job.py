"""A series followed while it arrives: the same files as from the whole, or the whole after all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from medseg.bundle.bundle import Bundle
from medseg.bundle.load import load_bundle
from medseg.dicom.instance import Instance, Slice
from medseg.dicom.phantom import Ellipsoid, make_series, write_series
from medseg.dicom.series import Series
from medseg.dicom.slices import expand
from medseg.dicom.sources import find_instances, instance_digest, to_series
from medseg.errors import DoesNotFit, GeometryRefused, UndecodablePixels
from medseg.inference.segment import Settings
from medseg.job import Format, Outcome, follow, plan, run
from tests.medseg.bundle.zoo import spleen_like

SETTINGS = Settings()
BOTH = frozenset({Format.SEG, Format.SR})


class Arriving:
    """Instances as they come, with a pause after each."""

    expected = None

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.instances, self.given = instances, 0

    @property
    def series(self) -> Series:
        return to_series(self.instances[: self.given])

    def __iter__(self) -> Iterator[Slice | None]:
        for instance in self.instances:
            self.given += 1
            yield from expand(instance)
            yield None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "spleen"
    return load_bundle(spleen_like(folder, window=(16, 16, 16), smooth=True))


def phantom(slices: int = 30) -> list[Dataset]:
    organ = Ellipsoid((0.0, 0.0, 0.0), (20.0, 20.0, 15.0), 90.0)
    return make_series(spacing_mm=(2.0, 1.5, 1.5), shape=(slices, 32, 32), objects=[organ])


def instances(folder: Path, datasets: Sequence[Dataset]) -> list[Instance]:
    """As read from files, from the feet up."""
    write_series(datasets, folder)
    found = find_instances(folder).instances
    return sorted(found, key=lambda one: float(one.header.ImagePositionPatient[2]))


def from_the_whole(given: Sequence[Instance], bundle: Bundle, out: Path) -> Outcome:
    (job,) = plan([to_series(given)], [bundle], explicit=True).jobs
    return run(job, out, BOTH, settings=SETTINGS)


def same(one: Outcome, other: Outcome) -> bool:
    facts = ("result_key", "segments", "flags", "sop_instance_uids")
    pixels = [dcmread(outcome.record["outputs"]["seg"]).pixel_array for outcome in (one, other)]
    return np.array_equal(*pixels) and all(one.record[fact] == other.record[fact] for fact in facts)


def test_a_series_that_was_followed_gives_the_files_of_the_whole(bundle: Bundle, tmp_path: Path) -> None:
    given = instances(tmp_path / "study", phantom())
    done = follow(Arriving(given), [bundle], explicit=True, settings=SETTINGS)
    (job,) = done.plan.jobs
    assert done.found is not None and done.found.result.streamed
    assert [done.digest(one) for one in given] == [instance_digest(one) for one in given]
    followed = run(job, tmp_path / "followed", BOTH, settings=SETTINGS, found=done.found, digest=done.digest)
    assert same(followed, from_the_whole(given, bundle, tmp_path / "whole"))
    assert json.loads((followed.folder / "result.json").read_text())["streamed"] is True


def test_two_volumes_are_segmented_after_all(bundle: Bundle, tmp_path: Path) -> None:
    first, second = phantom(16), phantom(16)
    for one in second:
        one.SOPInstanceUID += ".2"
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    for number, series in enumerate((first, second), 1):
        for one in series:
            one.AcquisitionNumber = number
    given = [*instances(tmp_path / "one", first), *instances(tmp_path / "two", second)]
    done = follow(Arriving(given), [bundle], explicit=True, settings=SETTINGS)
    assert done.found is None
    assert len(done.plan.jobs) == 2


def test_what_only_the_whole_shows_decides_in_the_end(bundle: Bundle, tmp_path: Path) -> None:
    """A bundle for tall series only is begun with; that it does not fit is known when the last slice has come."""
    tall = replace(bundle, expects=replace(bundle.expects, min_slices=40))
    given = instances(tmp_path / "study", phantom())
    done = follow(Arriving(given), [tall], settings=SETTINGS)
    assert done.found is None and not done.plan.jobs
    assert isinstance(done.plan.refused[0].error, DoesNotFit)


def test_refusals_are_those_of_the_plan(bundle: Bundle, tmp_path: Path) -> None:
    given = instances(tmp_path / "study", phantom())
    done = follow(Arriving([*given[:20], *given[26:]]), [bundle], explicit=True, settings=SETTINGS)
    assert done.found is None and not done.plan.jobs
    assert isinstance(done.plan.refused[0].error, GeometryRefused)


def test_a_slice_without_pixels_fails_when_the_jobs_are_run(bundle: Bundle, tmp_path: Path) -> None:
    series = phantom()
    series[25].PixelData = series[25].PixelData[:100]
    given = instances(tmp_path / "study", series)
    done = follow(Arriving(given), [bundle], explicit=True, settings=SETTINGS)
    assert done.found is None
    with pytest.raises(UndecodablePixels):
        run(done.plan.jobs[0], tmp_path / "out", BOTH, settings=SETTINGS)
