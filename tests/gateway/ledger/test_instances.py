"""Versions of an instance, associations that brought them, and lists of what was asked for."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from gateway.ledger import associations, commitments, instances, tables
from gateway.ledger.commitments import Item
from gateway.ledger.instances import Filed, StoredInstance
from gateway.ledger.ledger import Ledger
from tests.gateway.ledger.rows import stored, table


def test_versions_of_an_instance(ledger: Ledger) -> None:
    def file(new: StoredInstance) -> Filed:
        return ledger.write(instances.file_instance, new)

    assert file(stored("a", at=1)) is Filed.NEW
    assert file(stored("a", at=2)) is Filed.DUPLICATE
    assert file(stored("b", at=3)) is Filed.CONFLICT
    assert file(stored("a", at=4)) is Filed.DUPLICATE
    assert file(stored("c", at=5)) is Filed.CONFLICT
    assert file(stored("a", series="1.4", at=6)) is Filed.NEW
    states = "SELECT series_uid, substr(sha256, 1, 1), state FROM instance ORDER BY id"
    assert table(ledger, states) == [
        ("1.3", "a", "superseded"),
        ("1.3", "b", "superseded"),
        ("1.3", "c", "conflict"),
        ("1.4", "a", "current"),
    ]
    assert table(ledger, "SELECT series_uid, instances, revision, first_at, last_at FROM series") == [
        ("1.3", 1, 3, 1.0, 5.0),
        ("1.4", 1, 1, 6.0, 6.0),
    ]
    assert len(table(ledger, "SELECT * FROM event WHERE kind = 'instance.conflict'")) == 2


def test_a_lost_file_counts_for_nothing_until_it_comes_again(ledger: Ledger) -> None:
    first, again = stored("a", at=1), stored("a", at=2)
    ledger.write(instances.file_instance, first)
    assert ledger.write(instances.lose_instance, first.path, 1.5)
    assert not ledger.write(instances.lose_instance, first.path, 1.6)
    assert table(ledger, "SELECT instances FROM series") == [(0,)]
    assert ledger.write(instances.file_instance, again) is Filed.RESTORED
    assert table(ledger, "SELECT path, state FROM instance") == [(again.path, "current")]
    assert table(ledger, "SELECT instances, revision FROM series") == [(1, 3)]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=12))
def test_exactly_one_version_counts_whatever_comes(steps: list[tuple[str, bool]]) -> None:
    with create_engine("sqlite://").connect() as db:
        with db.begin():
            tables.metadata.create_all(db)
        for at, (content, lose) in enumerate(steps):
            new = stored(content, at=float(at))
            with db.begin():
                instances.file_instance(db, new)
                if lose:
                    instances.lose_instance(db, new.path, float(at))
            with db.begin():
                counting = db.execute(
                    text("SELECT count(*) FROM instance WHERE state IN ('current', 'conflict')")
                ).scalar()
                told = db.execute(text("SELECT instances FROM series")).scalar()
                contents = db.execute(text("SELECT count(*) = count(DISTINCT sha256) FROM instance")).scalar()
            assert counting == told
            assert counting in (0, 1)
            assert contents == 1


def test_associations_end_once(ledger: Ledger) -> None:
    names = {"calling_ae": "A", "called_ae": "B", "host": "h"}
    for one in ("one", "two", "three"):
        ledger.write(associations.open_association, one, **names, receiver=f"of {one}", at=1.0)
    assert ledger.write(associations.open_by_caller) == {"A": 3}
    assert ledger.write(associations.end_association, "one", "released", 2.0)
    assert not ledger.write(associations.end_association, "one", "aborted", 3.0)
    assert ledger.write(associations.lose_open_associations, 4.0, "of two") == 1
    assert ledger.write(associations.open_by_caller) == {"A": 1}
    assert ledger.write(associations.lose_open_associations, 5.0) == 1
    found = table(ledger, "SELECT id, ending, ended_at FROM association ORDER BY ended_at")
    assert found == [("one", "released", 2.0), ("two", "lost", 4.0), ("three", "lost", 5.0)]


def test_a_list_that_is_asked_for_again_is_a_new_one(ledger: Ledger) -> None:
    item = Item("1.2.840.10008.5.1.4.1.1.2", "1.1")
    ledger.write(commitments.ask, "CT", "1.9", "first", [item], 1.0)
    with ledger.read() as db:
        (heard,) = commitments.lists_after(db, 0)
    ledger.write(commitments.ask, "CT", "1.9", "second", [item], 2.0)
    with ledger.read() as db:
        assert [row.association_id for row in commitments.lists_after(db, heard.id)] == ["second"]
