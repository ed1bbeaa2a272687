"""Jobs and deliveries are claimed once, in order, and each move is fenced."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import Connection, insert, text

from gateway.ledger import deliveries, instances, jobs, tables
from gateway.ledger import series as series_rows
from gateway.ledger.claims import Claim
from gateway.ledger.ledger import Ledger
from tests.gateway.ledger.rows import add_job, stored, table


def test_jobs_are_claimed_once_in_order_and_fenced(ledger: Ledger) -> None:
    ledger.write(instances.file_instance, stored())
    for due, bundle in ((30, "late"), (10, "early"), (20, "middle")):
        add_job(ledger, due=due, bundle=bundle)
    add_job(ledger, due=0, bundle="not yet", ready_at=100)
    claims = [ledger.write(jobs.claim_job, "w", now=50, until=60) for _ in range(4)]
    assert claims[3] is None
    order = [table(ledger, f"SELECT bundle FROM job WHERE id = {claim.id}")[0][0] for claim in claims if claim]
    assert order == ["early", "middle", "late"]
    old = claims[0]
    assert old is not None
    assert ledger.write(jobs.renew_job, old, until=61)
    new = ledger.write(jobs.claim_job, "other", now=60.5, until=90)  # one whose lease ran out
    assert new is not None
    assert new.id != old.id
    new = ledger.write(jobs.claim_job, "other", now=61.5, until=90)
    assert new is not None
    assert (new.id, new.attempt) in {(old.id, 2), (claims[2].id, 2)}
    stale = Claim(new.id, 1)
    assert not ledger.write(jobs.renew_job, stale, until=99)
    assert not ledger.write(jobs.end_job, stale, "done", 70, code=None, error=None)
    assert not ledger.write(jobs.requeue_job, stale, 70, code="x", error="x")
    assert ledger.write(jobs.requeue_job, new, 80, code="out_of_memory", error="no memory")
    assert not ledger.write(jobs.end_job, new, "done", 70, code=None, error=None)


def test_a_job_on_a_series_that_is_arriving_comes_last_and_is_put_back_as_it_was(ledger: Ledger) -> None:
    ledger.write(instances.file_instance, stored())
    add_job(ledger, due=20, bundle="complete")
    add_job(ledger, due=0, bundle="arriving")
    arriving = "UPDATE job SET revision = 0, state = 'waiting' WHERE bundle = 'arriving'"
    ledger.write(lambda db: db.execute(text(arriving)))
    assert ledger.write(lambda db: jobs.awaited(db, 1, arriving=True) and jobs.awaited(db, 1, arriving=False))
    first, second, none = (ledger.write(jobs.claim_job, "w", 1, 10) for _ in range(3))
    assert first and second and none is None
    assert table(ledger, f"SELECT bundle FROM job WHERE id = {first.id}") == [("complete",)]
    assert not ledger.write(lambda db: jobs.awaited(db, 1, arriving=True) or jobs.awaited(db, 1, arriving=False))
    assert ledger.write(jobs.give_way, second, 5)
    assert not ledger.write(jobs.give_way, second, 5)
    assert ledger.write(jobs.claim_job, "w", 4, 10) is None
    again = ledger.write(jobs.claim_job, "w", 6, 10)
    assert again == Claim(second.id, 2)
    assert ledger.write(jobs.requeue_job, again, 7, code="x", error="x")
    assert ledger.write(jobs.requeue_job, first, 7, code="x", error="x")
    assert sorted(table(ledger, "SELECT bundle, state, failures FROM job")) == [
        ("arriving", "waiting", 1),
        ("complete", "queued", 1),
    ]


def test_a_job_for_whose_series_more_has_come_waits_for_the_decision(ledger: Ledger) -> None:
    ledger.write(instances.file_instance, stored())
    add_job(ledger, due=1)
    ledger.write(instances.file_instance, stored("b", sop="1.4"))
    assert not ledger.write(jobs.awaited, 2, arriving=False)
    assert ledger.write(jobs.claim_job, "w", 2, 10) is None
    assert ledger.write(series_rows.complete_series, "1.2", "1.3", 2, "quiet", 3)
    assert ledger.write(jobs.claim_job, "w", 4, 10) == Claim(1, 1)


def test_parallel_workers_never_share_a_job(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    claimed: list[int] = []
    with Ledger(url) as ledger:
        ledger.write(instances.file_instance, stored())
        for number in range(20):
            add_job(ledger, due=number, bundle=str(number))

        def work(number: int) -> None:
            with Ledger(url) as mine:
                while claim := mine.write(jobs.claim_job, f"w{number}", 1, 1e9):
                    claimed.append(claim.id)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(claimed) == len(set(claimed)) == 20


def test_deliveries_wait_give_up_and_are_fenced(ledger: Ledger) -> None:
    ledger.write(instances.file_instance, stored())
    add_job(ledger, due=1)

    def prepare(db: Connection) -> None:
        result = {"id": 1, "job_id": 1, "result_key": "k", "study_uid": "1.2", "series_uid": "1.3", "bundle": "b"}
        db.execute(insert(tables.result), result | {"bundle_version": "1", "facts": "{}", "created_at": 1.0})
        thing = {"id": 1, "result_id": 1, "kind": "seg", "sop_class_uid": "1", "sop_instance_uid": "2", "path": "p"}
        db.execute(insert(tables.result_object), thing | {"size_bytes": 1, "sha256": "x"})
        for destination in ("pacs", "other"):
            facts = {"object_id": 1, "destination": destination, "state": "queued", "ready_at": 0.0, "attempt": 0}
            db.execute(insert(tables.delivery), facts | {"created_at": 0.0})

    ledger.write(prepare)
    claim = ledger.write(deliveries.claim_delivery, "pacs", "s", 1, 10)
    assert claim is not None
    assert ledger.write(deliveries.claim_delivery, "pacs", "s", 2, 10) is None
    assert ledger.write(deliveries.requeue_delivery, claim, 20, status=0xA700, code="peer", error="full")
    assert ledger.write(deliveries.claim_delivery, "pacs", "s", 19, 30) is None
    again = ledger.write(deliveries.claim_delivery, "pacs", "s", 20, 30)
    assert again == Claim(claim.id, 2)
    assert not ledger.write(deliveries.end_delivery, claim, 0, 21)
    assert ledger.write(deliveries.end_delivery, again, 0, 21)
    other = ledger.write(deliveries.claim_delivery, "other", "s", 1, 10)
    assert other is not None
    assert ledger.write(deliveries.requeue_delivery, other, None, status=0x0122, code="refused", error="no SEG")
    assert table(ledger, "SELECT destination, state FROM delivery ORDER BY id") == [
        ("pacs", "stored"),
        ("other", "dead"),
    ]
