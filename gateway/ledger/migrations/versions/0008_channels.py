"""Jobs and results of several series of a study, and what is waited for there."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

LIVE = "state IN ('waiting', 'held', 'queued', 'running')"


def upgrade() -> None:
    op.create_table(
        "job_channel",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("series_uid", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("volume", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_channel_job_id")),
        sa.ForeignKeyConstraint(
            ["study_uid", "series_uid"],
            ["series.study_uid", "series.series_uid"],
            name=op.f("fk_job_channel_study_uid_series_uid"),
        ),
        sa.PrimaryKeyConstraint("job_id", "place", name=op.f("pk_job_channel")),
    )
    op.create_index("ix_job_channel_study_uid", "job_channel", ["study_uid", "series_uid"])
    op.create_table(
        "gathering",
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column("since_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=True),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.Column("whole", sa.Integer(), nullable=False),
        sa.Column("said", sa.Text(), server_default="{}", nullable=False),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("study_uid", "bundle", name=op.f("pk_gathering")),
    )
    due = sa.text("due_at IS NOT NULL")
    op.create_index("ix_gathering_due_at", "gathering", ["due_at"], sqlite_where=due, postgresql_where=due)
    if op.get_bind().dialect.name == "sqlite":
        # Rows that refer to one of these tables miss it until it is filled again.
        op.execute("PRAGMA defer_foreign_keys = ON")
        for table in ("job", "result"):
            _let_be_of_a_study(table)
    else:
        for table in ("job", "result"):
            op.alter_column(table, "series_uid", nullable=True)
    _unique("uq_job_live_study", "job", f"series_uid IS NULL AND {LIVE}")
    _unique("uq_result_first_study", "result", "series_uid IS NULL AND predecessor_id IS NULL")


def _unique(name: str, table: str, condition: str) -> None:
    where = sa.text(condition)
    columns = ["study_uid", "bundle"]
    op.create_index(name, table, columns, unique=True, sqlite_where=where, postgresql_where=where)


def _let_be_of_a_study(table: str) -> None:
    """Make a table again with what is in it: SQLite lets no column of one that is there be empty from then on.

    Ids that were given to rows that are gone are not given again.
    """
    db = op.get_bind()
    found = "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type = 'index'"
    table_sql, *indexes = db.exec_driver_sql(found, (table,)).scalars()
    named = "series_uid TEXT NOT NULL"
    if table_sql.count(named) != 1:
        raise RuntimeError(f"the table {table} is not as this migration expects it")
    last = db.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).scalar()
    for sql in (
        f"CREATE TEMPORARY TABLE kept AS SELECT * FROM {table}",
        f"DROP TABLE {table}",
        table_sql.replace(named, "series_uid TEXT"),
        *indexes,
        f"INSERT INTO {table} SELECT * FROM kept",
        "DROP TABLE kept",
    ):
        db.exec_driver_sql(sql)
    if last is not None:
        db.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        db.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last))
