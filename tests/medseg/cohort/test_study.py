"""Items of a cohort with what is bad about them: each is its own failure, and nothing that was there is lost."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from medseg.cohort.finished import Finished, Output
from medseg.cohort.items import CohortItem, with_own_names
from medseg.cohort.scan import scan
from medseg.cohort.study import Task, do_item, try_plan
from medseg.cohort.worker import settings_of
from medseg.inference.settings import Settings
from tests.acceptance.test_geometry import threshold_bundle
from tests.acceptance.test_results_places import study, volume


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return threshold_bundle(tmp_path_factory.mktemp("bundle") / "threshold")


def task_of(folder: Path, *bundles: Path) -> Task:
    return Task((tuple(map(str, bundles)),), Settings(device="cpu", engine="torch"), None, folder, len(bundles) == 1)


def do(task: Task, item: CohortItem) -> Finished:
    return do_item(task, item, try_plan(task, item), settings_of(task, item)[0])


def test_a_study_that_lies_twice_is_one(bundle: Path, tmp_path: Path) -> None:
    first, again = study(tmp_path / "in" / "a"), tmp_path / "in" / "copies" / "b"
    shutil.copytree(first, again)
    for number, file in enumerate(sorted(again.iterdir())):
        file.rename(file.with_name(f"copy{number}.dcm"))
    (item,) = scan([tmp_path / "in", first]).items
    done = do(task_of(tmp_path / "out", bundle), item)
    (alone,) = scan([first]).items
    single = do(task_of(tmp_path / "single", bundle), alone)
    assert not done.failures
    assert done.results[0]["result_key"] == single.results[0]["result_key"]
    (left_out,) = done.results[0]["left_out"]
    assert (left_out["code"], left_out["lost"]) == ("duplicate", False)


def test_two_bundles_that_fit_are_a_refusal_of_that_study(bundle: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bundle, tmp_path / "bundles" / "like_it")
    task = task_of(tmp_path / "out", bundle, other)
    done = do(task, CohortItem("one", nifti=volume(tmp_path / "one.nii", 5)))
    (failure,) = done.failures
    assert (failure.code, failure.exit_code) == ("ambiguous_bundle", 2)
    assert "2 bundles fit (threshold, like_it) and none is the default" in failure.message
    named = do(task, CohortItem("two", nifti=volume(tmp_path / "two.nii", 6), bundle=str(other)))
    assert named.results[0]["bundle"] == "like_it" and not named.failures


def test_a_disk_that_is_full_is_that_items_failure_which_is_tried_again(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(tmp_path / "out", bundle)
    items = with_own_names(scan([volume(tmp_path / "in" / f"v{n}.nii", n + 1).parent for n in range(3)]).items)
    assert [item.name for item in items] == ["v0", "v1", "v2"]
    before = do(task, items[0])
    real = Path.replace

    def full(path: Path, target: Path) -> Path:
        if path.name.endswith("result.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        failed = do(task, items[1])
    (failure,) = failed.failures
    assert (failure.code, failure.exit_code, failure.kind) == ("output_not_writable", 5, "failed")
    assert "No space left on device" in failure.message and not failed.lasting
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["v0"]  # and no half of the other
    assert Output(tmp_path / "out").holds(before)
    assert not do(task, items[1]).failures and not do(task, items[2]).failures


def test_a_bundle_that_changed_leaves_what_the_old_one_made(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundles" / "threshold")
    item = CohortItem("one", nifti=volume(tmp_path / "one.nii", 5))
    task = task_of(tmp_path / "out", copy)
    (made,) = do(task, item).results
    record = (tmp_path / "out" / made["folder"] / "result.json").read_bytes()
    changed = threshold_bundle(tmp_path / "changed" / "threshold", {"_target_": "EnsureTyped", "keys": "image"})
    other = task_of(tmp_path / "out", changed)
    done = do(other, item)
    (failure,) = done.failures
    assert (failure.code, failure.exit_code) == ("output_exists", 2)
    assert (tmp_path / "out" / made["folder"] / "result.json").read_bytes() == record
    assert do(replace(other, overwrite=True), item).results[0]["result_key"] != made["result_key"]
