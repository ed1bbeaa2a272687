"""Logs: one object a line, in UTC, of UIDs and our own words, whoever writes them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gateway.logs import EventCounts, JsonLines, Lines, said
from medseg.errors import GeometryRefused

NAME = "Quork^Zyxwv"
FORMS = (JsonLines("worker"), Lines("worker"))


def record(message: str, *args: object, logger: str = "gateway.somewhere", **extra: object) -> logging.LogRecord:
    return logging.getLogger(logger).makeRecord(logger, logging.WARNING, __file__, 1, message, args, None, extra=extra)


def test_a_record_is_an_object_with_its_facts() -> None:
    one = record("job %d failed", 7, event="job.error", job=7, series="1.2.3")
    told = json.loads(JsonLines("worker").format(one))
    assert datetime.fromisoformat(told.pop("time")).utcoffset() == timedelta(0)
    assert abs(datetime.fromtimestamp(one.created, UTC).timestamp() - one.created) < 1
    assert told == {
        "level": "warning",
        "process": "worker",
        "pid": one.process,
        "logger": "gateway.somewhere",
        "event": "job.error",
        "message": "job 7 failed",
        "job": 7,
        "series": "1.2.3",
    }


@given(st.text(), st.text(), st.text())
def test_a_record_is_one_line_whatever_stands_in_it(message: str, fact: str, logger: str) -> None:
    one = record("%s", message, logger=f"gateway.{logger}", event="association.opened", calling_ae=fact)
    as_json, as_text = (form.format(one) for form in FORMS)
    assert as_json.isascii() and len(as_json.splitlines()) == 1
    told = json.loads(as_json)
    assert told["message"] == message and told.get("calling_ae") == fact
    assert as_text.isprintable()


def test_errors_that_are_not_ours_tell_their_type_and_place_only() -> None:
    try:
        try:
            raise ValueError(f"could not convert {NAME}")
        except ValueError as error:
            raise GeometryRefused("1.2.3", "tilt", "tilted") from error
    except GeometryRefused as error:
        one = record("series %s: %s", "1.2.3", error.__cause__, event="x")
        one.exc_info = (type(error), error, error.__traceback__)
    for form in FORMS:
        assert NAME not in form.format(one) and "series 1.2.3: tilted" in form.format(one)
    told = json.loads(FORMS[0].format(one))
    assert [found["error"].split(" at ")[0] for found in told["error"]] == ["series 1.2.3: tilted", "ValueError"]
    assert "test_telemetry.py" in told["error"][0]["stack"][0]


def test_what_the_operating_system_says_is_told_without_the_file() -> None:
    assert said(FileNotFoundError(2, "No such file or directory", f"/{NAME}")) == "No such file or directory"
    assert said(OSError(NAME)) == "OSError"


def test_other_libraries_are_told_by_place_and_unnamed_facts_not_at_all() -> None:
    for form in FORMS:
        assert NAME not in form.format(record("Invalid value: '%s'", NAME, logger="pydicom.valuerep"))
        assert NAME not in form.format(record("opened", event="x", patient=NAME))
        assert "pydicom.valuerep" in form.format(record(NAME, logger="pydicom.valuerep"))


def test_records_are_counted_by_event_and_level_until_they_are_taken() -> None:
    counts = EventCounts()
    for one in (record("a", event="x"), record("b", event="x"), record(NAME), record(NAME, logger="pydicom")):
        counts.handle(one)
    taken = counts.take()
    assert taken == {("x", "warning"): 2, ("other", "warning"): 1, ("library", "warning"): 1}
    counts.handle(record("c", event="x"))
    counts.give_back(taken)
    assert counts.take()["x", "warning"] == 3 and not counts.take()


def test_warnings_and_dying_threads_of_a_process_are_lines_too() -> None:
    program = f"""
import threading, warnings
from pydicom.uid import UID
from gateway import logs
logs.configure("receiver")
warnings.warn("The value {NAME} is not valid")
UID("1..2")  # pydicom warns, as often as a peer names such a UID
def die(): raise ValueError("{NAME}")
thread = threading.Thread(target=die); thread.start(); thread.join()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    warned, died = map(json.loads, run.stderr.splitlines())
    assert NAME not in run.stderr
    assert (warned["event"], died["event"]) == ("library", "thread.died")
    assert "UserWarning" in warned["message"] and died["error"][0]["error"].startswith("ValueError")
