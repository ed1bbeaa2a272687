"""Results that are no segmentation: why nothing was segmented, and that one is withdrawn."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

CHECKS = {
    "ck_result_kind": "kind IN ('segmented', 'reason', 'withdrawal')",
    "ck_result_job": "(kind = 'segmented') = (job_id IS NOT NULL)",
    "ck_result_rule": "(kind = 'reason') = (rule IS NOT NULL)",
    "ck_result_replaced": "replaced_at IS NULL OR kind = 'reason'",
}
FIRST = "series_uid IS NULL AND predecessor_id IS NULL AND kind <> 'reason'"
CURRENT = "kind = 'reason' AND replaced_at IS NULL"


def upgrade() -> None:
    op.create_table(
        "unanswered",
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.Column("bundles", sa.Text(), nullable=False),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("study_uid", "rule", name=op.f("pk_unanswered")),
    )
    op.drop_index("uq_result_first_study", "result")
    op.add_column("result", sa.Column("kind", sa.Text(), nullable=False, server_default="segmented"))
    op.add_column("result", sa.Column("rule", sa.Text(), nullable=True))
    op.add_column("result", sa.Column("replaced_at", sa.Double(), nullable=True))
    if op.get_bind().dialect.name == "sqlite":
        _make_again()
    else:
        op.alter_column("result", "job_id", nullable=True)
        for name, check in CHECKS.items():
            op.create_check_constraint(op.f(name), "result", check)
    _unique("uq_result_first_study", ["study_uid", "bundle"], FIRST)
    _unique("uq_result_reason", ["study_uid", "rule"], CURRENT)


def _unique(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, "result", columns, unique=True, sqlite_where=where, postgresql_where=where)


def _make_again() -> None:
    """Make the table again with what is in it: SQLite adds no check to one that is there, and lets no column be empty
    from then on."""
    db = op.get_bind()
    # Rows that refer to the table miss it until it is filled again.
    op.execute("PRAGMA defer_foreign_keys = ON")
    found = "SELECT sql FROM sqlite_master WHERE tbl_name = 'result' AND sql IS NOT NULL ORDER BY type = 'index'"
    table_sql, *indexes = db.exec_driver_sql(found).scalars()
    named = "job_id INTEGER NOT NULL"
    if table_sql.count(named) != 1 or not table_sql.endswith(")"):
        raise RuntimeError("the table of results is not as this migration expects it")
    checks = "".join(f", CONSTRAINT {name} CHECK ({check})" for name, check in CHECKS.items())
    for sql in (
        "CREATE TEMPORARY TABLE kept AS SELECT * FROM result",
        "DROP TABLE result",
        f"{table_sql.replace(named, 'job_id INTEGER')[:-1].rstrip()}{checks}\n)",
        *indexes,
        "INSERT INTO result SELECT * FROM kept",
        "DROP TABLE kept",
    ):
        db.exec_driver_sql(sql)
