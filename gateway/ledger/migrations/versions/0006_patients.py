"""Whose an image is, versions that are compared first, and what a result was made of."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BEFORE = "state IN ('current', 'conflict', 'superseded', 'missing')"
NOW = "state IN ('current', 'conflict', 'superseded', 'missing', 'pending', 'copy')"


def upgrade() -> None:
    op.add_column("instance", sa.Column("patient", sa.Text(), nullable=True))
    op.add_column("job", sa.Column("may_lack", sa.Integer(), server_default="0", nullable=False))
    op.add_column("result", sa.Column("sources", sa.Text(), server_default="[]", nullable=False))
    op.create_table(
        "study_patient",
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("patient", sa.Text(), nullable=False),
        sa.Column("calling_ae", sa.Text(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("study_uid", "patient", name=op.f("pk_study_patient")),
    )
    op.create_table(
        "patient_conflict",
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("winner", sa.Text(), nullable=True),
        sa.Column("since_at", sa.Double(), nullable=False),
        sa.Column("settled_at", sa.Double(), nullable=True),
        sa.CheckConstraint("(state = 'merged') = (winner IS NOT NULL)", name=op.f("ck_patient_conflict_winner")),
        sa.CheckConstraint("(state = 'open') = (settled_at IS NULL)", name=op.f("ck_patient_conflict_settled")),
        sa.CheckConstraint("state IN ('open', 'merged', 'split')", name=op.f("ck_patient_conflict_state")),
        sa.PrimaryKeyConstraint("study_uid", name=op.f("pk_patient_conflict")),
    )
    if op.get_bind().dialect.name == "sqlite":
        _widen_check()
    else:
        op.drop_constraint(op.f("ck_instance_state"), "instance")
        op.create_check_constraint(op.f("ck_instance_state"), "instance", NOW)
    op.create_index(
        "ix_instance_pending",
        "instance",
        ["study_uid", "series_uid"],
        unique=False,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )


def _widen_check() -> None:
    """Make the table again with what is in it: SQLite changes no check of one that is there."""
    db = op.get_bind()
    found = "SELECT sql FROM sqlite_master WHERE tbl_name = 'instance' AND sql IS NOT NULL ORDER BY type = 'index'"
    table_sql, *indexes = db.exec_driver_sql(found).scalars()
    if BEFORE not in table_sql:
        raise RuntimeError("the table of instances is not as this migration expects it")
    for sql in (
        "CREATE TEMPORARY TABLE kept AS SELECT * FROM instance",
        "DROP TABLE instance",
        table_sql.replace(BEFORE, NOW),
        *indexes,
        "INSERT INTO instance SELECT * FROM kept",
        "DROP TABLE kept",
    ):
        db.exec_driver_sql(sql)
