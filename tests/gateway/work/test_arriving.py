"""The worker on series that are still arriving, in this process: what it begins, drops, finishes and files."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import Dataset, dcmread
from sqlalchemy import Connection
from torch import Tensor

from gateway.dimse.store import Ending
from gateway.ledger import series as series_rows
from gateway.serve.processes import LedgerContext
from gateway.settings.current import Live
from gateway.settings.model import GatewaySettings
from gateway.settings.read import read_settings
from gateway.work import worker as work
from gateway.work.worker import Worker
from medseg.bundle.load import load_bundle
from medseg.dicom.phantom import write_series
from medseg.dicom.sources import read_series
from medseg.inference.engines.engine import Engine
from medseg.inference.regions import look as regions
from medseg.inference.settings import Settings
from medseg.job.folder import Format
from medseg.job.plan import plan
from medseg.job.run import run
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.phantoms import phantom
from tests.gateway.spooling import Inbox, inbox
from tests.medseg.bundle.zoo import rewrite, spleen_like
from tests.waiting import wait_for

SLICES = 40
QUIET_S = 0.5
QUIET = "[complete]\n" + "".join(f"quiet_{key}s = {QUIET_S}\n" for key in ("", "gap_", "open_", "abort_", "late_"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spleen_like(tmp_path_factory.mktemp("bundles") / "spleen_test", window=(16, 16, 16), smooth=True)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Inbox]:
    with inbox(tmp_path) as opened:
        yield opened


class Room:
    """An inbox, a director, and a worker in a thread of its own."""

    def __init__(self, box: Inbox, folder: Path, rule: str) -> None:
        # The worker goes by the time it is: it waits for what the director made in a future of this clock.
        self.box, self.clock = box, Clock(time.time())
        settings = read_settings(f"{QUIET}[[rule]]\n{rule}\n", folder)
        self.settings: GatewaySettings = replace(settings, gateway=replace(settings.gateway, spool=box.folder))
        self.director = Director(box.ledger, box.folder, self.settings)
        self.stop = threading.Event()
        self.worker = Worker(
            box.ledger, box.folder, LedgerContext(box.ledger, Live(self.settings)), self.stop, owner="worker"
        )
        self.peer = box.open()

    def store(self, series: Sequence[Dataset]) -> None:
        """Over an association that stays open."""
        self.box.store(self.peer, series)
        self.box.compare()
        self.director.step(*self.clock.after(0))

    def complete(self) -> None:
        self.box.spool.closed(self.peer, Ending.RELEASED)
        self.peer = self.box.open()
        self.director.step(*self.clock.after(0.1))
        self.director.step(*self.clock.after(1.2 * QUIET_S))

    @contextmanager
    def working(self) -> Iterator[None]:
        thread = threading.Thread(target=self.worker.run)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join(60)
            assert not thread.is_alive()

    def jobs(self) -> list[tuple[str, int]]:
        return [(job.state, job.revision) for job in self.box.rows("job")]

    def wait_for_jobs(self, what: str, found: Callable[[list[tuple[str, int]]], bool]) -> None:
        wait_for(what, lambda: found(self.jobs()))

    def records(self) -> list[dict[str, Any]]:
        return [record for row in self.box.rows("result") for record in json.loads(row.facts)]


def by_infer(series: Sequence[Dataset], bundle: Path, folder: Path) -> tuple[dict[str, Any], Dataset | None]:
    """What `medseg infer` makes of the series: the record, and the SEG."""
    write_series(series, folder / "study")
    (job,) = plan(read_series(folder / "study"), [load_bundle(bundle)], explicit=True).jobs
    formats = frozenset({Format.SEG, Format.SR})
    outcome = run(job, folder / "out", formats, settings=Settings())
    seg = outcome.record["outputs"].get("seg")
    return dict(outcome.record), None if seg is None else dcmread(seg)


def assert_as_infer(here: Room, series: Sequence[Dataset], bundle: Path, folder: Path) -> None:
    """The latest result is what `medseg infer` makes of the series, to the bit."""
    record, expected = by_infer(series, bundle, folder)
    found = here.records()[-1]
    assert found["result_key"] == record["result_key"]
    assert found["segments"] == record["segments"] and found["flags"] == record["flags"]
    assert expected is not None
    seg = dcmread(found["outputs"]["seg"])
    assert seg.SOPInstanceUID == expected.SOPInstanceUID
    assert np.array_equal(seg.pixel_array, expected.pixel_array) and seg.pixel_array.any()


@pytest.mark.parametrize("announced", [40, 50])
def test_windows_run_while_the_series_arrives(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int], announced: int
) -> None:
    here, series = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(slices=SLICES, ImagesInAcquisition=announced)
    here.store(series[:1])
    assert here.jobs() == [("waiting", 0)]
    with here.working():
        here.store(series[1:30])
        wait_for("windows over the first slices", lambda: windows)
        assert here.jobs() == [("running", 0)] and not box.rows("result")
        here.store(series[30:])
        here.complete()
        here.wait_for_jobs("the result", lambda jobs: jobs == [("done", 40)])
    (record,) = here.records()
    assert record["streamed"], record["streamed_reason"]
    assert [row["count"] for row in record["left_out"]] == ([10] if announced == 50 else [])
    assert box.rows("job")[0].attempt == 1
    assert_as_infer(here, series, bundle, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "why"),
    [
        (lambda series: series[::-1], "end where the last windows lie"),
        (lambda series: series[::2] + series[1::2], "another order"),
    ],
    ids=["backwards", "in two strands"],
)
def test_other_orders_wait_and_give_the_same(
    box: Inbox, tmp_path: Path, bundle: Path, order: Callable[[list[Dataset]], list[Dataset]], why: str
) -> None:
    here, series = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(slices=SLICES)
    with here.working():
        here.store(order(series)[:30])
        here.wait_for_jobs("a worker", lambda jobs: jobs == [("running", 0)])
        here.store(order(series)[30:])
        here.complete()
        here.wait_for_jobs("the result", lambda jobs: jobs == [("done", 40)])
    assert why in here.records()[0]["streamed_reason"]
    assert_as_infer(here, series, bundle, tmp_path)


def test_slices_that_contradict_the_first_ones_restart_it(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int]
) -> None:
    """The 35th slice is missing, which shows when the last have come: it is bridged, as for the whole series."""
    here, series = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(slices=SLICES)
    series = [one for k, one in enumerate(series) if k != 35]
    with here.working():
        here.store(series[:30])
        wait_for("windows over the first slices", lambda: windows)
        here.store(series[30:])
        here.complete()
        here.wait_for_jobs("the result", lambda jobs: jobs == [("done", 39)])
    assert not here.records()[0]["streamed"]
    assert_as_infer(here, series, bundle, tmp_path)


@pytest.mark.slow
def test_a_corrected_image_counts_as_it_was_sent_last(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int]
) -> None:
    here, series = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(slices=SLICES)
    with here.working():
        here.store(series[:30])
        wait_for("windows over the first slices", lambda: windows)
        series[20].PixelData = series[0].PixelData
        here.store([series[20], *series[30:]])
        here.complete()
        here.wait_for_jobs("the result", lambda jobs: jobs == [("done", 41)])
    assert_as_infer(here, series, bundle, tmp_path)


def test_what_is_complete_goes_before_what_is_arriving(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int]
) -> None:
    here, slow, quick = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(1, SLICES), phantom(2, slices=16)
    with here.working():
        here.store(slow[:30])
        wait_for("windows over the first slices", lambda: windows)
        box.send(quick)
        here.director.step(*here.clock.after(0.1))
        for _ in range(4):  # slices go on coming, so that only the other is quiet
            here.store([slow[0]])
            here.director.step(*here.clock.after(0.3 * QUIET_S))
        here.wait_for_jobs("the complete one's result", lambda jobs: jobs[1][0] == "done")
        assert here.jobs()[0] in (("waiting", 0), ("running", 0))
        here.store(slow[30:])
        here.complete()
        here.wait_for_jobs("the result", lambda jobs: jobs[0] == ("done", 40))
    slow_job, _ = box.rows("job")
    assert (slow_job.attempt, slow_job.failures) == (2, 0)
    assert here.records()[-1]["series_uid"] == slow[0].SeriesInstanceUID
    assert_as_infer(here, slow, bundle, tmp_path)


@pytest.mark.slow
def test_a_silent_series_gives_way_to_one_that_arrives(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, silent, other = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(1, SLICES), phantom(2, SLICES)
    with here.working():
        here.store(silent[:30])
        wait_for("windows over the first slices", lambda: windows)
        monkeypatch.setattr(work, "SILENCE_S", 0.0)
        here.store(other[:30])
        here.wait_for_jobs("the change", lambda jobs: jobs == [("waiting", 0), ("running", 0)])
        here.store(silent[30:])
        here.store(other[30:])
        here.complete()
        here.wait_for_jobs("both results", lambda jobs: jobs == [("done", 40), ("done", 40)])


@pytest.mark.parametrize(
    "change", ["rules", "header"], ids=["the rules say otherwise by now", "the slices are too few for the rule"]
)
def test_a_job_that_no_rule_wants_is_cancelled(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int], change: str
) -> None:
    here, series = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(slices=SLICES)
    with here.working():
        here.store(series[:30])
        wait_for("windows over the first slices", lambda: windows)
        when = 'modality = "MR"' if change == "rules" else 'slices = "99"'
        here.director.settings = replace(
            here.settings, rules=read_settings(f"[[rule]]\nwhen = {{ {when} }}\n", tmp_path).rules
        )
        here.complete()
        here.wait_for_jobs("its end", lambda jobs: jobs == [("cancelled", 0)])
    assert not box.rows("result")
    assert {event.kind for event in box.rows("event")} >= {"series.passed_over"}


@pytest.mark.slow
def test_images_that_come_between_completion_and_its_being_seen_are_left_to_the_next_job(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, series = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(slices=SLICES)
    gate = threading.Event()
    look = series_rows.series_row

    def late(db: Connection, *of: str) -> Any:
        if threading.current_thread() is not threading.main_thread() and windows:
            gate.wait(60)
        return look(db, *of)

    with here.working():
        here.store(series[:30])
        wait_for("windows over the first slices", lambda: windows)
        monkeypatch.setattr(series_rows, "series_row", late)
        here.complete()
        here.store(series[30:])
        gate.set()
        here.wait_for_jobs("the end of the first", lambda jobs: jobs == [("queued", 30)])
        here.complete()
        here.wait_for_jobs("the result", lambda jobs: jobs == [("cancelled", 30), ("done", 40)])
    assert len(here.records()) == 1
    assert_as_infer(here, series, bundle, tmp_path)


@pytest.mark.slow
def test_a_series_that_no_bundle_fits_is_not_waited_for(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEG_BUNDLES", str(bundle))
    here, ultrasound, other = Room(box, tmp_path, 'name = "any"'), phantom(1, SLICES, Modality="PT"), phantom(2, SLICES)
    with here.working():
        here.store(ultrasound[:30])
        here.wait_for_jobs("a look", lambda jobs: jobs == [("waiting", 0)] and box.rows("job")[0].attempt == 1)
        assert box.rows("job")[0].error_code == "does_not_fit"
        here.store(other[:30])
        wait_for("windows over the other", lambda: windows)
        here.store([*ultrasound[30:], *other[30:]])
        here.complete()
        here.wait_for_jobs("both ends", lambda jobs: jobs == [("cancelled", 40), ("done", 40)])
    assert box.rows("job")[0].error_code == "does_not_fit"


@pytest.mark.slow
def test_a_stopped_worker_loses_nothing_of_what_it_followed(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int]
) -> None:
    here, series = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(slices=SLICES)
    with here.working():
        here.store(series[:30])
        wait_for("windows over the first slices", lambda: windows)
    (job,) = box.rows("job")
    assert (job.state, job.revision, job.failures) == ("waiting", 0, 0)
    here.store(series[30:])
    here.complete()
    assert here.jobs() == [("queued", 40)]
    here.stop.clear()
    with here.working():
        here.wait_for_jobs("the result", lambda jobs: jobs == [("done", 40)])
    assert_as_infer(here, series, bundle, tmp_path)


def test_late_images_supersede_and_the_new_result_names_the_old(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int]
) -> None:
    here, series = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(slices=SLICES)
    with here.working():
        here.store(series[:30])
        here.complete()
        here.wait_for_jobs("the first result", lambda jobs: jobs == [("done", 30)])
        here.store(series[30:])
        here.complete()
        here.wait_for_jobs("the second", lambda jobs: jobs == [("done", 30), ("done", 40)])
    old, new = here.records()
    first, second = (dcmread(record["outputs"]["seg"]) for record in (old, new))
    (named,) = second.ReferencedImageSequence
    assert named.ReferencedSOPInstanceUID == first.SOPInstanceUID
    report = dcmread(new["outputs"]["sr"])
    (study,) = report.PredecessorDocumentsSequence
    (document,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert document.ReferencedSOPInstanceUID == dcmread(old["outputs"]["sr"]).SOPInstanceUID
    assert "PredecessorDocumentsSequence" not in dcmread(old["outputs"]["sr"])


@pytest.mark.parametrize(
    "failing",
    [pytest.param(1, marks=pytest.mark.slow, id="once"), pytest.param(2, id="twice"), pytest.param(99, id="always")],
)
def test_a_device_out_of_memory_is_tried_smaller_then_on_the_cpu_then_given_up(
    box: Inbox, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Other studies go on. The device says so at the engine's interface: whatever it is asked, in so many attempts."""
    forward, attempts = Engine._forward, set()

    def exhausted(self: Engine, given: Tensor) -> Tensor:
        if given.shape[-1] == 16 and box.rows("job")[0].state == "running":
            attempts.add(box.rows("job")[0].attempt)
            if len(attempts) <= failing:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, given)

    monkeypatch.setattr(Engine, "_forward", exhausted)
    here, large, other = Room(box, tmp_path, f'bundle = "{bundle}"'), phantom(1, SLICES), phantom(2, slices=16)
    here.store(large)
    here.complete()
    box.send(other)
    here.director.step(*here.clock.after(0))
    here.director.step(*here.clock.after(1.2 * QUIET_S))
    with here.working():
        here.wait_for_jobs("an end", lambda jobs: {state for state, _ in jobs} <= {"done", "failed"})
    first, second = box.rows("job")
    assert second.state == "done"
    if failing > 2:
        assert (first.state, first.error_code, first.failures) == ("failed", "out_of_memory", 3)
        return
    assert (first.state, first.failures) == ("done", failing)
    (record,) = (one for one in here.records() if one["series_uid"] == large[0].SeriesInstanceUID)
    assert any("out of memory before: now one window at a time" in said for said in record["warnings"])


def with_region(bundle: Path, folder: Path, least: float) -> Path:
    """The bundle, looking where there are such values."""
    made = Path(shutil.copytree(bundle, folder / "somewhere"))
    region = {"first_pass": {"threshold": [least, None]}, "mode": "windows", "margin_mm": 4}
    return rewrite(made, lambda metadata: metadata.update(medseg={"region": region}), "metadata.json")


def test_the_first_pass_runs_while_the_series_arrives(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int]
) -> None:
    bundle, series = with_region(bundle, tmp_path, 60.0), phantom(slices=SLICES)
    here = Room(box, tmp_path, f'bundle = "{bundle}"')
    with here.working():
        here.store(series[:30])
        wait_for("windows of the first pass", lambda: windows)
        here.store(series[30:])
        here.complete()
        here.wait_for_jobs("the result", lambda jobs: jobs == [("done", 40)])
    (record,) = here.records()
    assert record["region"]["found"] and 0 < record["region"]["share"] < 0.5
    assert_as_infer(here, series, bundle, tmp_path)


def test_a_region_that_is_not_found_ends_the_job_after_one_look(
    box: Inbox, tmp_path: Path, bundle: Path, windows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    look = regions.look_first
    monkeypatch.setattr(regions, "look_first", lambda *given: looks.append("") or look(*given))
    series = phantom(slices=SLICES)
    here = Room(box, tmp_path, f'bundle = "{with_region(bundle, tmp_path, 3000.0)}"')
    with here.working():
        here.store(series[:30])
        wait_for("windows of the first pass", lambda: windows)
        here.store(series[30:])
        here.complete()
        here.wait_for_jobs("its end", lambda jobs: jobs[0][0] == "failed")
    (job,) = box.rows("job")
    assert (job.error_code, job.failures, len(looks)) == ("region_not_found", 1, 1)
    assert not box.rows("result")
