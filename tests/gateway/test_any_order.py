"""The order in which the instances of a series come, and by how many associations, decides nothing."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom import Dataset

from gateway.settings.read import read_settings
from tests.gateway.beside import BESIDE, beside
from tests.gateway.clock import Clock
from tests.gateway.directing import Director
from tests.gateway.phantoms import phantom
from tests.gateway.spooling import inbox

#: Each asks for what some of the objects say otherwise than the slices.
RULES = """
[complete]
quiet_gap_s = 5
[[rule]]
name = "screen saves"
when = { modality = "OT" }
[[rule]]
name = "localizers"
when = { ImageType = "LOCALIZER" }
[[rule]]
name = "few"
when = { slices = "<6" }
[[rule]]
name = "many"
when = { slices = ">6" }
[[rule]]
name = "slices"
when = { modality = "CT", series_description = "Axial", ImageType = "AXIAL", slices = 6 }
"""

objects = st.lists(st.sampled_from(list(BESIDE)), unique=True, max_size=6)


def slices() -> list[Dataset]:
    return phantom(SeriesDescription="Axial", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])


def outcome(series: list[Dataset], cuts: set[int], restarts: set[int], rules: str = RULES) -> tuple[object, ...]:
    """What becomes of a series that comes in this order; an association ends at each cut, the director at a restart."""
    with tempfile.TemporaryDirectory() as name, inbox(Path(name)) as box:
        settings = read_settings(rules, Path(name))
        director, clock = Director(box.ledger, box.folder, settings), Clock()
        pending: list[Dataset] = []
        for number, one in enumerate(series, 1):
            pending.append(one)
            if number in cuts or number == len(series):
                box.send(pending)
                pending = []
                director.step(*clock.after(0.1))
            if number in restarts:
                director = Director(box.ledger, box.folder, settings)
        director.step(*clock.after(0.1))
        director.step(*clock.after(6))
        (row,) = box.rows("series")
        jobs = [(job.rule, job.state, job.revision) for job in box.rows("job") if job.revision]
        begun = [job.state for job in box.rows("job") if not job.revision]
        told = [json.loads(event.detail)["why"] for event in box.rows("event") if event.kind == "series.passed_over"]
        assert set(begun) <= {"cancelled"}
        return row.state, jobs, told, json.loads(row.passed_by)


@hypothesis_settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), objects)
def test_what_lies_beside_the_slices_decides_nothing_wherever_it_comes(data: st.DataObject, others: list[str]) -> None:
    made = slices()
    series = [*made, *(beside(made[0], what) for what in others)]
    order = data.draw(st.permutations(series))
    places = st.sets(st.integers(1, len(series)), max_size=4)
    found = outcome(list(order), data.draw(places), data.draw(places))
    expected = dict(sorted(Counter(what.strip() for what in others).items()))
    assert found == ("complete", [("slices", "queued", len(series))], [], expected)


@pytest.mark.parametrize("at", [0, 3, 6], ids=["first", "in the middle", "last"])
def test_each_thing_beside_the_slices(tmp_path: Path, at: int) -> None:
    """Each in a series of its own, over one association each."""
    with inbox(tmp_path) as box:
        director, clock = Director(box.ledger, box.folder, read_settings(RULES, tmp_path)), Clock()
        expected = {}
        for seed, what in enumerate(BESIDE):
            series = phantom(seed, SeriesDescription="Axial", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
            series.insert(at, beside(series[0], what))
            box.send(series[: at + 1])
            expected[str(series[0].SeriesInstanceUID)] = "slices", "queued", 7, {what.strip(): 1}
            director.step(*clock.after(0.1))
            box.send(series[at + 1 :])
        director.step(*clock.after(0.1))
        director.step(*clock.after(6))
        passed_by = {row.series_uid: json.loads(row.passed_by) for row in box.rows("series")}
        found = {
            job.series_uid: (job.rule, job.state, job.revision, passed_by[job.series_uid])
            for job in box.rows("job")
            if job.revision
        }
    assert found == expected


DIFFERING = """
[complete]
quiet_gap_s = 5
[[rule]]
name = "b"
when = { series_description = "B", ImageType = "AXIAL" }
[[rule]]
name = "a"
when = { series_description = "A" }
"""


@hypothesis_settings(deadline=None, max_examples=6)
@given(st.data(), st.integers(0, 6))
def test_what_slices_say_otherwise_is_decided_by_most_of_them(data: st.DataObject, of_a: int) -> None:
    """Of equally many the first in the order of the text."""
    series = slices()
    for number, one in enumerate(series):
        one.SeriesDescription = "A" if number < of_a else "B"
    order = list(data.draw(st.permutations(series)))
    places = st.sets(st.integers(1, 6), max_size=4)
    expected = "a" if of_a >= 3 else "b"
    found = outcome(order, data.draw(places), data.draw(places), DIFFERING)
    assert found == ("complete", [(expected, "queued", 6)], [], {})


def test_a_job_begun_on_what_most_slices_deny_is_dropped() -> None:
    series = slices()
    for number, one in enumerate(series):
        one.SeriesDescription = "A" if number < 2 else "B"
    with tempfile.TemporaryDirectory() as name, inbox(Path(name)) as box:
        director, clock = Director(box.ledger, box.folder, read_settings(DIFFERING, Path(name))), Clock()
        states = []
        for some in (series[:2], series[2:4], series[4:], []):
            box.send(some)
            director.step(*clock.after(0.1 if some else 6))
            states.append([(job.rule, job.state) for job in box.rows("job")])
    begun, dropped = ("a", "waiting"), ("a", "cancelled")
    assert states == [[begun], [begun], [dropped], [dropped, ("b", "queued")]]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_series_without_any_image_is_passed_over_whatever_comes_first(first: int) -> None:
    (slice_,) = phantom(slices=1)
    kinds = ["Key Object Selection Document Storage", "Basic Text SR Storage", "Secondary Capture Image Storage"]
    series = [beside(slice_, what) for what in kinds[first:] + kinds[:first]]
    state, jobs, (why,), passed_by = outcome(series, {1, 2}, set())
    assert (state, jobs, passed_by) == ("complete", [], dict.fromkeys(sorted(kinds), 1))
    assert "has no images to segment: its SOP class is Secondary Capture Image Storage" in why
