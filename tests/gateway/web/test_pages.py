"""The pages: what is said of a study, and that nothing from outside becomes part of them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import Connection, insert

from gateway.ledger import deliveries, events, instances, jobs, tables
from gateway.ledger import series as series_rows
from gateway.ledger.jobs import NewJob
from gateway.retry import Fault
from gateway.settings.model import Deliver
from tests.gateway.ledger.rows import stored
from tests.gateway.phantoms import phantom
from tests.gateway.test_stages import SERIES, STUDY, pass_through
from tests.gateway.web.served import Page, Served, served

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "{{ 7 * 7 }}{% for x in y %}",
    "javascript:alert(1)//",
    "</style><b>",
    "a b?c=d#e&f%2F../..",
    "..",
    "/",
    "&lt;b&gt;",
)
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "a", "header", "nav", "p", "span", "main", "h1", "h2", "h3", "h4",
    "section", "article", "div", "dl", "dt", "dd", "ul", "li",
}  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as one:
        yield one


def hostile_study(db: Connection, value: str) -> None:
    """A study in which every text that is shown is hostile."""
    uids = {"study_uid": value, "series_uid": value}
    done = {"state": "complete", "complete_at": 20.0, "complete_by": value, "first_at": 1.0, "last_at": 9.0}
    db.execute(insert(tables.series), uids | done | {"instances": 1, "revision": 1, "expected": 2})
    job = uids | {"revision": 1, "bundle": value, "rule": value, "mode": "on", "state": "failed", "due": 0.0}
    job |= {"ready_at": 0.0, "attempt": 1, "created_at": 1.0, "finished_at": 9.0, "error_code": value, "error": value}
    job_id = db.execute(insert(tables.job).returning(tables.job.c.id), job).scalar_one()
    facts = json.dumps([{"flags": [{"message": value}], "timings_s": {value: 1.0}}])
    result = uids | {"job_id": job_id, "result_key": value, "bundle": value, "bundle_version": value, "facts": facts}
    result_id = db.execute(insert(tables.result).returning(tables.result.c.id), result | {"created_at": 9.0}).scalar()
    thing = {"result_id": result_id, "kind": value, "sop_class_uid": value, "sop_instance_uid": value, "path": value}
    made = insert(tables.result_object).returning(tables.result_object.c.id)
    object_id = db.execute(made, thing | {"size_bytes": 1, "sha256": value}).scalar()
    way = {"object_id": object_id, "destination": value, "state": "dead", "ready_at": 0.0, "attempt": 1}
    db.execute(insert(tables.delivery), way | {"created_at": 9.0, "error_code": value, "error": value, "failures": 3})
    passed = uids | {"series_uid": f"{value}.2", "state": "held", "instances": 1, "revision": 1}
    db.execute(insert(tables.series), passed | {"first_at": 1.0, "last_at": 9.0})
    events.record(db, "series.passed_over", 9.0, {"why": value}, study_uid=value, series_uid=f"{value}.2")


@pytest.mark.parametrize("value", HOSTILE)
def test_what_comes_from_outside_is_text_and_nothing_else(site: Served, value: str) -> None:
    site.box.ledger.write(hostile_study, value)
    front = Page(site.get("/").body)
    (link,) = (link for link in front.links if link.startswith("/studies/"))
    answer = site.get(link)
    assert answer.status == 200
    gone = f"/studies/{quote(value, safe='')}%00gone"
    for page in (front, Page(answer.body), Page(site.get(gone).body)):
        assert page.elements <= ELEMENTS
        assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
        assert all(one.startswith(("/", "?", "#")) for one in page.links)
        assert " ".join(value.split()) in page.text
    assert page.text.count("No such study") == 2 and site.get(gone).status == 404


def test_a_browser_uses_the_one_style_sheet_and_nothing_else(site: Served) -> None:
    for path, status in (("/", 200), ("/studies/1.2", 404), ("/nowhere", 404), ("/metrics", 200), ("/readyz", 200)):
        answer = site.get(path)
        assert answer.status == status
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff" and "server" not in answer.headers
        assert answer.headers["cache-control"] == "no-store"
    style = Page(site.get("/").body).style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert style and policy["style-src"] == f"'sha256-{digest}'"


def test_only_this_machine_is_named_and_nothing_is_changed(site: Served) -> None:
    for host, status in (("127.0.0.1", 200), ("localhost:8090", 200), ("evil.example", 400), ("", 400)):
        answer = site.get("/", Host=host)
        assert answer.status == status and "content-security-policy" in answer.headers
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert {site.get(path, method).status for path in ("/", "/studies/1.2", "/metrics", "/readyz")} == {405}


def test_a_study_is_told_from_its_first_image_to_its_delivery(site: Served) -> None:
    site.box.ledger.write(pass_through)
    text = Page(site.get(f"/studies/{STUDY}").body).text
    for said in (
        f"Study {STUDY}", f"Series {SERIES}", "3 instances", "complete : cap: a slice is missing", "done : spleen 1.0",
        "job 1, rule rule", "receive 5.0 s", "queue 2.0 s", "infer 20.0 s", "last image to SEG 26.0 s",
        "SEG 1.5.seg", "SEG to pacs: confirmed after 1.0 s, confirmed 9.0 s later",
    ):  # fmt: skip
        assert said in text


def test_what_went_wrong_comes_with_the_next_step(site: Served) -> None:
    def fail(db: Connection) -> None:
        pass_through(db)
        db.exec_driver_sql("UPDATE delivery SET state = 'queued', confirmed_at = NULL, stored_at = NULL")
        for out in deliveries.claim_outgoing(db, "pacs", "sender", 200.0, 300.0, 9):
            deliveries.fail(db, out, Fault.REJECTED, 210.0, Deliver(), 0.5, status=None, detail="PACS@1:1")
        instances.file_instance(db, stored(sop="1.9", series="1.8", at=300))
        assert series_rows.complete_series(db, STUDY, "1.8", 1, "quiet", 301.0)
        for state in ("held", "failed"):
            new = NewJob(STUDY, "1.8", 1, "", "rule", "on", "held" if state == "held" else "queued", 0.0)
            jobs.make_job(db, new, 301.0)
            if state == "failed":
                claim = jobs.claim_job(db, "worker", 302.0, 320.0)
                assert claim is not None
                jobs.end_job(db, claim, "failed", 303.0, code="no_such_bundle", error="no bundle 'x'")

    site.box.ledger.write(fail)
    text = Page(site.get("/").body).text
    assert "the peer rejects our associations: PACS@1:1" in text
    assert "`medseg echo` tries it; then `medseg outbox retry 1`" in text
    assert "no bundle 'x'" in text and "then `medseg jobs retry 3`" in text


def test_older_studies_are_a_link_away(site: Served) -> None:
    def file_many(db: Connection) -> None:
        for number in range(30):
            one = stored(sop=f"1.{number}", series=f"3.{number}", at=float(number))
            instances.file_instance(db, replace(one, study_uid=f"2.{number}"))

    site.box.ledger.write(file_many)
    front = Page(site.get("/").body)
    first = [link for link in front.links if link.startswith("/studies/")]
    (older,) = (link for link in front.links if "before" in link)
    rest = [link for link in Page(site.get(older).body).links if link.startswith("/studies/")]
    assert [*first, *rest] == [f"/studies/2.{number}" for number in reversed(range(30))]
    assert site.get("/?before=nonsense").status == 200


def test_before_anything_came_it_says_where_to_send(site: Served) -> None:
    assert "Send a study to AE title MEDSEG at 127.0.0.1:11112" in Page(site.get("/").body).text
    assert "http-equiv" in site.get("/").body and "http-equiv" not in site.get("/?refresh=0").body


def test_a_study_of_two_patients_is_shown_by_letters(site: Served) -> None:
    series = phantom(PatientID="SECRET-ONE", PatientName="Secret^One")
    site.box.send(series[:3])
    for one in series[3:]:
        one.PatientID, one.PatientName = "SECRET-TWO", "Secret^Two"
    site.box.send(series[3:])
    study = series[0].StudyInstanceUID
    for path in ("/", f"/studies/{study}"):
        page = site.get(path).body
        assert "Images of 2 patients" in page and "Patient A: 3 images" in page and "Patient B: 3 images" in page
        assert "medseg studies show" in page and "secret" not in page.lower()
    assert "medseg_patient_conflicts 1.0" in site.get("/metrics").body
