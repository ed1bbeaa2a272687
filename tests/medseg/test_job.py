"""A series followed while it arrives: the same files as from the whole, or the whole after all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from medseg.bundle.bundle import Bundle, PixelCheck
from medseg.bundle.catalog import extent_mm, fits
from medseg.bundle.load import load_bundle
from medseg.dicom.geometry import classify
from medseg.dicom.instance import Instance, Slice
from medseg.dicom.phantom import Ellipsoid, make_series, write_series
from medseg.dicom.series import Series
from medseg.dicom.slices import expand
from medseg.dicom.sources import find_instances, instance_digest, to_series
from medseg.errors import DoesNotFit, GeometryRefused, UndecodablePixels
from medseg.inference.settings import Settings
from medseg.job.folder import Format
from medseg.job.follow import follow
from medseg.job.plan import plan
from medseg.job.prefer import with_preferred
from medseg.job.run import Outcome, run
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


class Here(Arriving):
    """All has come."""

    def __iter__(self) -> Iterator[Slice | None]:
        return (one for one in super().__iter__() if one is not None)


def only_for(bundle: Bundle, **expects: object) -> Bundle:
    return replace(bundle, expects=replace(bundle.expects, **expects))  # type: ignore[arg-type]


ANY = (0.0, 1000.0)
#: The phantom is 48 mm wide and deep, and 30 slices of 2 mm high.
UNFIT_AT_ONCE = {
    "too wide": {"fov_mm": ((10.0, 40.0), ANY, ANY)},
    "too narrow": {"fov_mm": (ANY, (60.0, 90.0), ANY)},
    "another modality": {"modality": ("MR",)},
    "another body part": {"body_part": ("HEAD",)},
}
UNFIT_IN_THE_END = {
    "too few slices": {"min_slices": 31},
    "too short": {"fov_mm": (ANY, ANY, (61.0, 90.0))},
    "too tall": {"fov_mm": (ANY, ANY, (10.0, 57.0))},
}


@pytest.mark.parametrize("explicit", [True, False], ids=["named", "chosen"])
@pytest.mark.parametrize("how", UNFIT_AT_ONCE)
def test_what_the_first_slices_rule_out_is_not_begun(
    bundle: Bundle, tmp_path: Path, windows: list[int], how: str, explicit: bool
) -> None:
    unlike = only_for(bundle, **UNFIT_AT_ONCE[how])
    series = phantom()
    for one in series:
        one.BodyPartExamined = "ABDOMEN"
    source = Arriving(instances(tmp_path / "study", series))
    at: list[int] = []
    done = follow(source, [unlike], lambda _: at.append(source.given), explicit=explicit, settings=SETTINGS)
    assert at == [3] and not windows
    assert isinstance(done.plan.refused[0].error, DoesNotFit)


@pytest.mark.parametrize("how", [*UNFIT_AT_ONCE, *UNFIT_IN_THE_END])
def test_nothing_is_computed_for_a_whole_series_that_no_bundle_fits(
    bundle: Bundle, tmp_path: Path, windows: list[int], how: str
) -> None:
    unlike = only_for(bundle, **(UNFIT_AT_ONCE | UNFIT_IN_THE_END)[how])
    series = phantom()
    for one in series:
        one.BodyPartExamined = "ABDOMEN"
    unfit: list[bool] = []
    given = instances(tmp_path / "study", series)
    done = follow(Here(given), [unlike], lambda _: unfit.append(True), settings=SETTINGS)
    assert not windows and not unfit and not done.plan.jobs
    assert isinstance(done.plan.refused[0].error, DoesNotFit)


def test_slices_that_reach_too_far_end_what_was_begun(bundle: Bundle, tmp_path: Path, windows: list[int]) -> None:
    """A few rows of windows are there before the 17th slice reaches beyond 30 mm, and none after it."""
    given = instances(tmp_path / "study", phantom(70))
    follow(Arriving(given), [bundle], explicit=True, settings=SETTINGS)
    whole = sum(windows)
    windows.clear()
    unlike = only_for(bundle, fov_mm=(ANY, ANY, (10.0, 30.0)))
    done = follow(Arriving(given), [unlike], settings=SETTINGS)
    assert sum(windows) < whole / 3
    assert isinstance(done.plan.refused[0].error, DoesNotFit)


def test_no_window_is_computed_once_the_whole_shows_that_the_bundle_does_not_fit(
    bundle: Bundle, tmp_path: Path, windows: list[int]
) -> None:
    """Here the first row waits for the last slice: it is never run."""
    given = instances(tmp_path / "study", phantom(6))
    done = follow(Arriving(given), [only_for(bundle, min_slices=7)], settings=SETTINGS)
    assert not windows and not done.plan.jobs


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_first_slices_rule_out_a_bundle_that_fits_the_whole(bundle: Bundle, data: st.DataObject) -> None:
    """Whichever slices come first, of whatever extents the bundle was made for."""
    shape = data.draw(st.tuples(st.integers(3, 12), st.integers(8, 16), st.integers(8, 16)))
    spacing_mm = data.draw(st.tuples(*[st.sampled_from([0.5, 1.25, 3.0])] * 3))
    orientation = data.draw(st.sampled_from(["axial", "coronal", "sagittal"]))
    series = to_series(
        [
            Instance(one, lambda: BytesIO(), str(number))
            for number, one in enumerate(make_series(spacing_mm=spacing_mm, shape=shape, orientation=orientation))
        ]
    )
    (stack,) = classify(series).stacks
    fov_mm = tuple(
        data.draw(st.sampled_from([(extent, extent), (0.0, extent), (extent, 500.0)])) for extent in extent_mm(stack)
    )
    made_for = only_for(bundle, fov_mm=fov_mm, min_slices=len(stack.slices))
    assert not fits(stack, made_for)
    some = data.draw(st.sets(st.integers(0, len(stack.slices) - 1), min_size=3))
    for part in classify(series, [stack.slices[number] for number in some]).stacks:
        assert not fits(part, made_for, whole=False)


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
        run(done.plan.jobs[0], tmp_path / "out" / "results", BOTH, settings=SETTINGS)
    assert not (tmp_path / "out").exists()  # no folder is left that was made for the result


def test_pixels_that_a_bundle_was_not_made_for_are_flagged_or_refused(bundle: Bundle, tmp_path: Path) -> None:
    given = instances(tmp_path / "study", phantom(16))
    check = PixelCheck(air=(0.9, 1.0), air_below=-900.0)
    (flagged, refused) = (only_for(bundle, pixels=replace(check, refuse=refuse)) for refuse in (False, True))
    flags = from_the_whole(given, flagged, tmp_path / "flagged").record["flags"]
    assert [one["code"] for one in flags].count("unexpected_pixels") == 1
    with pytest.raises(DoesNotFit, match="of the voxels below -900, expected 90% to 100%"):
        from_the_whole(given, refused, tmp_path / "refused")
    assert not (tmp_path / "refused").exists() or not any((tmp_path / "refused").iterdir())


def test_of_series_that_fit_the_preferred_is_meant(bundle: Bundle, tmp_path: Path) -> None:
    thick, thin = phantom(16), make_series(spacing_mm=(1.0, 1.5, 1.5), shape=(20, 32, 32), number=2)
    for dataset in thin:
        dataset.StudyInstanceUID = thick[0].StudyInstanceUID
    series = [to_series(instances(tmp_path / name, one)) for name, one in (("thick", thick), ("thin", thin))]
    both = plan(series, [bundle])
    assert len(both.jobs) == len(with_preferred(both).jobs) == 2
    chosen = with_preferred(plan(series, [only_for(bundle, prefer=("thinnest",))]))
    assert [job.stack.series.number for job in chosen.jobs] == [2]
    (passed_over,) = chosen.refused
    assert f"by thinnest series {thin[0].SeriesInstanceUID} of its study goes before it" in str(passed_over.error)
    alike = plan(series, [only_for(bundle, prefer=("latest",))])  # neither says when it was made
    assert len(with_preferred(alike).jobs) == 2
