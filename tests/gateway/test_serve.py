"""The whole way: a series sent to `medseg serve`, its results at the peer; with processes killed and started again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import keyword_for_tag
from typer.testing import CliRunner

from medseg.cli.app import make_app
from medseg.dicom.phantom import write_series
from tests.gateway.pacs import FakePacs, listening
from tests.gateway.phantoms import phantom
from tests.gateway.receiving import CT, RawPeer, associate_request, encode, store_message
from tests.gateway.running import Serving, serving
from tests.medseg.bundle.zoo import spleen_like
from tests.waiting import wait_for

SLICES = 16


@pytest.fixture(scope="module")
def pacs() -> Iterator[FakePacs]:
    with listening(FakePacs()) as peer:
        yield peer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spleen_like(tmp_path_factory.mktemp("bundles") / "spleen_test", smooth=True)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, pacs: FakePacs, bundle: Path) -> Iterator[Serving]:
    settings = f"""
[complete]
quiet_s = 0.5
quiet_late_s = 1
quiet_gap_s = 1
quiet_abort_s = 1
[deliver]
commitment = false
first_retry_s = 0.2
longest_retry_s = 2
[[peer]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {pacs.port}
[[rule]]
name = "held"
when = {{ series_description = "*hold*" }}
bundle = "{bundle}"
send_to = ["pacs"]
mode = "hold"
[[rule]]
name = "spleen"
when = {{ modality = "CT" }}
bundle = "{bundle}"
send_to = ["pacs"]
"""
    with serving(tmp_path_factory.mktemp("serve"), settings) as running:
        yield running


def of_series(pacs: FakePacs, modality: str, series: list[Dataset]) -> list[Dataset]:
    return [one for one in pacs.of(modality) if one.StudyInstanceUID == series[0].StudyInstanceUID]


def results_at(pacs: FakePacs, series: list[Dataset], count: int = 1) -> tuple[list[Dataset], list[Dataset]]:
    def both() -> tuple[list[Dataset], list[Dataset]] | None:
        found = of_series(pacs, "SEG", series), of_series(pacs, "SR", series)
        return found if min(map(len, found)) >= count else None

    return wait_for(f"{count} results at the peer", both)  # type: ignore[no-any-return]


def test_a_series_that_is_sent_comes_back_as_infer_would_write_it(
    service: Serving, pacs: FakePacs, bundle: Path, tmp_path: Path
) -> None:
    series = phantom(1, SLICES)
    service.send(series)
    (seg,), (report,) = results_at(pacs, series)

    write_series(series, tmp_path / "study")
    (record,) = infer(bundle, tmp_path / "out", tmp_path / "study")
    expected = dcmread(record["outputs"]["seg"])
    assert seg.PixelData == expected.PixelData and seg.pixel_array.any()
    assert not differing(seg, expected) - OF_TIME
    assert not differing(report, dcmread(record["outputs"]["sr"])) - OF_TIME
    (row,) = service.rows(f"SELECT * FROM result WHERE study_uid = '{series[0].StudyInstanceUID}'")
    (fact,) = json.loads(row.facts)
    assert {name: fact[name] for name in record if name not in OF_JOB} == {
        name: record[name] for name in record if name not in OF_JOB
    }


@pytest.mark.slow
def test_gateway_cohort_and_single_run_give_the_same(
    service: Serving, pacs: FakePacs, bundle: Path, tmp_path: Path
) -> None:
    """To the bytes of pixels, and in all that is said of them."""
    studies = [phantom(number, SLICES) for number in (31, 32)]
    for number, series in enumerate(studies):
        service.send(series)
        write_series(series, tmp_path / "cohort" / str(number))
    together = infer(bundle, tmp_path / "out", tmp_path / "cohort", "--jobs", "1")
    assert len(together) == 2 and (tmp_path / "out" / "results.csv").exists()
    for number, series in enumerate(studies):
        (seg,), (report,) = results_at(pacs, series)
        (of_cohort,) = (one for one in together if one["study_uid"] == series[0].StudyInstanceUID)
        (alone,) = infer(bundle, tmp_path / f"alone {number}", tmp_path / "cohort" / str(number))
        assert {name for name in alone if alone[name] != of_cohort[name]} <= OF_JOB
        for record in (of_cohort, alone):
            written = dcmread(record["outputs"]["seg"])
            assert written.PixelData == seg.PixelData and written.pixel_array.any()
            assert not differing(written, seg) - OF_TIME
            assert not differing(dcmread(record["outputs"]["sr"]), report) - OF_TIME


#: What differs between two results of the same images, bundle and settings: where and when they were made.
OF_JOB = {"outputs", "timings_s", "peak_rss_mb", "device", "engine", "streamed", "streamed_reason", "warnings"}
OF_TIME = {"ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime", "ContributionDateTime"}


def infer(bundle: Path, out: Path, *inputs: object) -> list[dict[str, Any]]:
    command = ["infer", *map(str, inputs), "--bundle", str(bundle), "-o", str(out), "--json"]
    done = CliRunner().invoke(make_app(), command)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def differing(one: Dataset, other: Dataset) -> set[str]:
    """Keywords of elements that one of two data sets lacks, or has another value of, items of sequences included."""
    found = set()
    for tag in {*one.keys(), *other.keys()}:
        if tag not in one or tag not in other:
            found.add(keyword_for_tag(tag))
        elif one[tag].VR == "SQ" and len(one[tag].value) == len(other[tag].value):
            items = zip(one[tag].value, other[tag].value, strict=True)
            found |= {keyword for mine, its in items for keyword in differing(mine, its)}
        elif one[tag].value != other[tag].value:
            found.add(keyword_for_tag(tag))
    return found


def test_a_worker_killed_in_the_middle_still_gives_one_result(service: Serving, pacs: FakePacs) -> None:
    series = phantom(2, slices=24)
    service.send(series)
    study = series[0].StudyInstanceUID
    wait_for("a running job", lambda: service.rows(f"SELECT 1 FROM job WHERE study_uid='{study}' AND state='running'"))
    os.kill(service.pid_of("worker") or 0, signal.SIGKILL)
    results_at(pacs, series)
    (job,) = service.rows(f"SELECT * FROM job WHERE study_uid = '{study}'")
    assert (job.state, job.attempt) == ("done", 2)
    assert len(service.rows(f"SELECT 1 FROM result WHERE study_uid = '{study}'")) == 1
    assert len(of_series(pacs, "SEG", series)) == 1


def test_a_worker_killed_while_the_series_arrives_loses_nothing(service: Serving, pacs: FakePacs) -> None:
    """Windows have run over the first slices; the worker that comes next begins with them again."""
    series = phantom(17, slices=40)
    study = series[0].StudyInstanceUID
    running = f"SELECT 1 FROM job WHERE study_uid='{study}' AND state='running' AND revision=0 AND attempt="
    with service.sending() as send:
        send(series[:30])
        wait_for("a job on the first slices", lambda: service.rows(running + "1"))
        os.kill(service.pid_of("worker") or 0, signal.SIGKILL)
        wait_for("the job with the next worker", lambda: service.rows(running + "2"))
        send(series[30:])
    (seg,), _ = results_at(pacs, series)
    (job,) = service.rows(f"SELECT * FROM job WHERE study_uid = '{study}'")
    assert (job.state, job.revision, job.failures) == ("done", 40, 1)
    (result,) = service.rows(f"SELECT facts FROM result WHERE study_uid = '{study}'")
    assert json.loads(result.facts)[0]["streamed"]
    referenced = {one.ReferencedSOPInstanceUID for one in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {one.SOPInstanceUID for one in series}


def test_a_held_job_waits_for_its_release(service: Serving, pacs: FakePacs) -> None:
    series = phantom(5, SLICES)
    for one in series:
        one.SeriesDescription = "please hold"
    service.send(series)
    study = series[0].StudyInstanceUID
    (job,) = wait_for(
        "a held job", lambda: service.rows(f"SELECT id FROM job WHERE study_uid = '{study}' AND state = 'held'")
    )
    service.medseg("jobs", "release", str(job.id))
    results_at(pacs, series)


@pytest.mark.parametrize(
    ("seed", "number"),
    [
        pytest.param(6, signal.SIGKILL, id="killed"),
        pytest.param(10, signal.SIGTERM, id="stopped", marks=pytest.mark.slow),
    ],
)
def test_a_service_that_ended_goes_on_where_it_was(
    service: Serving, pacs: FakePacs, seed: int, number: signal.Signals
) -> None:
    series = phantom(seed, SLICES)
    service.send(series[:8])
    assert service.stop(number) == (0 if number == signal.SIGTERM else -number)
    service.start()
    service.send(series[8:])
    whole = f"SELECT 1 FROM job WHERE study_uid = '{series[0].StudyInstanceUID}' AND revision = 16 AND state = 'done'"
    wait_for("the job on all slices", lambda: service.rows(whole))
    results_at(pacs, series)
    left = "SELECT 1 FROM delivery WHERE state NOT IN ('stored', 'cancelled')"
    wait_for("everything delivered", lambda: not service.rows(left))
    counts = json.loads(service.medseg("status", "--json"))
    assert set(counts["delivery"]) <= {"stored", "cancelled"} and set(counts["job"]) <= {"done", "cancelled"}
    current = service.rows(
        f"SELECT * FROM result WHERE study_uid = '{series[0].StudyInstanceUID}'"
        " AND id NOT IN (SELECT predecessor_id FROM result WHERE predecessor_id IS NOT NULL)"
    )
    assert len(current) == 1
    (facts,) = json.loads(current[0].facts)
    assert len(service.rows(f"SELECT 1 FROM instance WHERE study_uid = '{series[0].StudyInstanceUID}'")) == 16
    assert facts["result_key"] == current[0].result_key


def test_a_study_that_is_purged_while_it_is_segmented_comes_to_nothing(service: Serving, pacs: FakePacs) -> None:
    series = phantom(7, slices=24)
    service.send(series)
    study = str(series[0].StudyInstanceUID)
    running = f"SELECT 1 FROM job WHERE study_uid = '{study}' AND state = 'running' AND revision > 0"
    wait_for("a running job", lambda: service.rows(running))
    worker = service.pid_of("worker") or 0
    os.kill(worker, signal.SIGSTOP)  # the purge finds it in the middle of its work
    try:
        assert service.rows(running)
        assert "24 instances, 1 job" in service.medseg("purge", study, "--yes")
    finally:
        os.kill(worker, signal.SIGCONT)
    assert not (service.folder / "spool" / "studies" / study).exists()
    marker = phantom(8, SLICES)
    service.send(marker)
    results_at(pacs, marker)
    for table in ("series", "instance", "job", "result"):
        assert not service.rows(f"SELECT 1 FROM {table} WHERE study_uid = '{study}'")
    assert not of_series(pacs, "SEG", series)
    filed = {row.path.split("/")[1] for row in service.rows("SELECT path FROM result_object")}
    assert {folder.name for folder in (service.folder / "spool" / "results").iterdir()} == filed
    service.send(series)  # a new study
    results_at(pacs, series)


@pytest.mark.slow
def test_a_service_goes_on_from_a_backup(service: Serving, pacs: FakePacs, tmp_path: Path) -> None:
    series = phantom(9, SLICES)
    for one in series:
        one.SeriesDescription = "please hold"
    service.send(series)
    study = series[0].StudyInstanceUID
    held = f"SELECT id FROM job WHERE study_uid = '{study}' AND state = 'held'"
    (job,) = wait_for("a held job", lambda: service.rows(held))
    assert "verified" in service.medseg("backup", str(tmp_path / "saved"))
    service.medseg("purge", str(study), "--yes")

    rules = (tmp_path / "saved" / "medseg.toml").read_text().partition("disk_free_gb = 0\n")[2]
    with serving(tmp_path / "saved", rules) as restored:  # on ports of its own
        restored.medseg("jobs", "release", str(job.id))
        results_at(pacs, series)


def test_a_receiver_that_is_killed_takes_only_its_own_associations_along(service: Serving) -> None:
    """The others go on, who calls meanwhile is not refused, and it is started again alone."""
    series, beats = phantom(7, SLICES), service.folder / "spool" / "processes"
    asked = "SELECT receiver, ending FROM association WHERE calling_ae LIKE 'P%' ORDER BY opened_at"
    peers: list[RawPeer] = []

    def both_have_some() -> bool:
        peers.append(stack.enter_context(RawPeer(service.port, associate_request(calling=f"P{len(peers)}"))))
        return {row.receiver for row in service.rows(asked)} == {"receiver", "receiver-2"}

    with ExitStack() as stack:
        wait_for("both receivers", lambda: all(one.stat().st_mtime for one in beats.glob("receiver*")))
        assert any(both_have_some() for _ in range(20))
        receivers = [row.receiver for row in service.rows(asked)]
        killed = json.loads((beats / "receiver-2").read_text())["pid"]
        os.kill(killed, signal.SIGKILL)
        for peer, receiver, one in zip(peers, receivers, series, strict=False):
            if receiver == "receiver":
                peer.send(store_message(CT, str(one.SOPInstanceUID), encode(one)))
                assert peer.read_status() == 0
            else:
                assert peer.read_pdu() == (None, b"")
        service.send(series)
        lost = [None if name == "receiver" else "lost" for name in receivers]
        wait_for("the end of the associations", lambda: [row.ending for row in service.rows(asked)] == lost)
        again = beats / "receiver-2"
        wait_for("another receiver", lambda: json.loads(again.read_text() or "{}").get("pid", killed) != killed)
