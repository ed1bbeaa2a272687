"""Several bundles of a rule on one series: jobs of their own, done one after the other, each slice decoded once."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from gateway.decide import settle
from gateway.ledger import jobs
from medseg.dicom import slices
from tests.gateway.phantoms import phantom
from tests.gateway.spooling import Inbox, inbox
from tests.gateway.work import test_arriving as arriving
from tests.gateway.work import test_whose as whose
from tests.gateway.work import test_worker as whole
from tests.medseg.bundle.zoo import rewrite, spleen_like
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return (
        spleen_like(folder / "one", window=(16, 16, 16), smooth=True),
        spleen_like(folder / "two", window=(24, 24, 16), smooth=True, seed=5),
    )


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Inbox]:
    with inbox(tmp_path) as opened:
        yield opened


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each instance was decoded."""
    counted: Counter[str] = Counter()
    real = slices.read_plane

    def read(instance: Any, *rest: Any) -> Any:
        counted[instance.sop_instance_uid] += 1
        return real(instance, *rest)

    monkeypatch.setattr(slices, "read_plane", read)
    return counted


def rule(*bundles: Path, more: str = "") -> str:
    return f"bundle = {json.dumps([str(one) for one in bundles])}\n{more}"


def records(box: Inbox) -> dict[str, dict[str, Any]]:
    return {record["bundle"]: record for row in box.rows("result") for record in json.loads(row.facts)}


def states(box: Inbox) -> list[tuple[str, str]]:
    return [(Path(job.bundle).name, job.state) for job in box.rows("job")]


def test_results_are_those_of_single_runs_and_slices_are_decoded_once(
    box: Inbox, tmp_path: Path, bundles: tuple[Path, Path], decoded: Counter[str]
) -> None:
    here, series = whole.room(box, tmp_path, rule(*bundles)), phantom(slices=16)
    here.make_job(series)
    assert states(box) == [("one", "queued"), ("two", "queued")]
    assert here.worker.step() and not here.worker.step()
    assert states(box) == [("one", "done"), ("two", "done")]
    assert len(decoded) == 16 and set(decoded.values()) == {1}
    found = records(box)
    assert [found[name]["decoded"] for name in ("one", "two")] == [16, 0]
    assert len(box.rows("delivery")) == len(box.rows("result_object")) == 4
    for bundle in bundles:
        record, expected = arriving.by_infer(series, bundle, tmp_path / bundle.name)
        mine = found[bundle.name]
        assert all(mine[key] == record[key] for key in ("result_key", "segments", "flags", "sop_instance_uids"))
        assert expected is not None and expected.pixel_array.any()
        assert dcmread(mine["outputs"]["seg"]).PixelData == expected.PixelData


def test_while_the_series_arrives(
    box: Inbox, tmp_path: Path, bundles: tuple[Path, Path], decoded: Counter[str]
) -> None:
    here, series = arriving.Room(box, tmp_path, rule(*bundles)), phantom(slices=arriving.SLICES)
    here.store(series[:1])
    assert here.jobs() == [("waiting", 0), ("waiting", 0)]
    with here.working():
        here.store(series[1:30])
        wait_for("slices decoded", lambda: len(decoded) > 10)
        here.store(series[30:])
        here.complete()
        here.wait_for_jobs("the results", lambda found: found == [("done", 40), ("done", 40)])
    assert len(decoded) == 40 and set(decoded.values()) == {1}
    found = records(box)
    assert found["one"]["streamed"] and sum(one["decoded"] for one in found.values()) == 40
    for bundle in bundles:
        record, expected = arriving.by_infer(series, bundle, tmp_path / bundle.name)
        assert found[bundle.name]["result_key"] == record["result_key"]
        assert expected is not None
        assert np.array_equal(dcmread(found[bundle.name]["outputs"]["seg"]).pixel_array, expected.pixel_array)


def test_one_that_fails_or_does_not_fit_leaves_the_others(
    box: Inbox, tmp_path: Path, bundles: tuple[Path, Path]
) -> None:
    unfit, broken = (spleen_like(tmp_path / name, window=(16, 16, 16)) for name in ("unfit", "broken"))
    rewrite(unfit, lambda content: content.update(medseg={"expects": {"modality": ["MR"]}}), "metadata.json")
    (broken / "models" / "model.pt").write_bytes(b"no weights")
    here = whole.room(box, tmp_path, rule(unfit, broken, bundles[0]))
    here.make_job(phantom())
    while here.worker.step():
        pass
    assert states(box) == [("unfit", "cancelled"), ("broken", "failed"), ("one", "done")]
    assert [row.bundle for row in box.rows("result")] == ["one"]
    failed = box.rows("job")[1]
    assert box.ledger.write(jobs.retry_job, failed.id, time.time()) == ""  # the other's job is not in its way


def test_each_is_recovered_by_itself_when_the_worker_dies(
    box: Inbox, tmp_path: Path, bundles: tuple[Path, Path]
) -> None:
    here = whole.room(box, tmp_path, rule(*bundles))
    here.make_job(phantom())
    now = time.time()
    assert box.ledger.write(jobs.claim_job, "killed", now, now - 1) is not None
    while here.worker.step():
        pass
    assert states(box) == [("one", "done"), ("two", "done")]
    assert [job.attempt for job in box.rows("job")] == [2, 1]


def test_images_that_come_late_replace_each_result(box: Inbox, tmp_path: Path, bundles: tuple[Path, Path]) -> None:
    here, series = whole.room(box, tmp_path, rule(*bundles)), phantom(slices=8)
    here.make_job(series[:7])
    while here.worker.step():
        pass
    here.make_job(series[7:])
    here.director.step(here.clock.after(here.settings.complete.quiet_late_s)[0], time.time())
    while here.worker.step():
        pass
    rows = box.rows("result")
    assert [(row.bundle, row.predecessor_id) for row in rows] == [
        ("one", None), ("two", None), ("one", rows[0].id), ("two", rows[1].id),
    ]  # fmt: skip


def test_a_study_that_is_settled_has_each_result_made_anew(
    box: Inbox, tmp_path: Path, bundles: tuple[Path, Path]
) -> None:
    here = whole.room(box, tmp_path, rule(*bundles, more='results = ["sr"]'))
    mine = phantom(1, PatientID="A")
    whose.handle(here, mine)
    whose.handle(here, whose.other_series(phantom(2, PatientID="B"), mine[0].StudyInstanceUID))
    assert len(whose.current(here)) == 2
    box.ledger.write(settle.merge, mine[0].StudyInstanceUID, "B", time.time())
    whose.handle(here, [])
    found = {(row.series_uid, row.bundle) for row in whose.current(here)}
    assert len(found) == len(whose.current(here)) == 4  # two bundles on two series
    assert {report.PatientID for report in whose.reports(here)[-4:]} == {"B"}
