"""What operators and retention need to know."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("terms", sa.Text(), server_default="{}", nullable=False))
    op.add_column("job", sa.Column("failures", sa.Integer(), server_default="0", nullable=False))
    op.add_column("job", sa.Column("tried_from", sa.Double(), nullable=True))
    op.add_column("series", sa.Column("deleted_at", sa.Double(), nullable=True))
    op.add_column("instance", sa.Column("deleted_at", sa.Double(), nullable=True))
    for name, condition in (("kept", "deleted_at IS NULL"), ("deleted", "deleted_at IS NOT NULL")):
        op.create_index(
            f"ix_series_{name}",
            "series",
            ["complete_at"],
            unique=False,
            sqlite_where=sa.text(f"state = 'complete' AND {condition}"),
            postgresql_where=sa.text(f"state = 'complete' AND {condition}"),
        )
    op.create_table(
        "doomed",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_doomed")),
    )
    op.create_index("ix_job_study_uid", "job", ["study_uid", "series_uid"], unique=False)
    op.create_index("ix_result_study_uid", "result", ["study_uid", "series_uid"], unique=False)
    op.create_index("ix_event_job_id", "event", ["job_id"], unique=False)
    op.add_column("job", sa.Column("started_at", sa.Double(), nullable=True))
    op.create_table(
        "tally",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", name=op.f("pk_tally")),
    )
    op.add_column("association", sa.Column("receiver", sa.Text(), server_default="receiver", nullable=False))
    op.drop_index("ix_job_claimable", "job")
    claimable = sa.text("state IN ('waiting', 'queued', 'running')")
    op.create_index(
        "ix_job_claimable", "job", ["due", "id"], unique=False, sqlite_where=claimable, postgresql_where=claimable
    )
    op.create_table(
        "commitment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("transaction_uid", sa.Text(), nullable=False),
        sa.Column("calling_ae", sa.Text(), nullable=False),
        sa.Column("association_id", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("known_at", sa.Double(), nullable=True),
        sa.Column("ready_at", sa.Double(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("reported_at", sa.Double(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("(state = 'waiting') = (known_at IS NULL)", name=op.f("ck_commitment_known")),
        sa.CheckConstraint("(state = 'reported') = (reported_at IS NOT NULL)", name=op.f("ck_commitment_reported")),
        sa.CheckConstraint("state IN ('waiting', 'known', 'reported', 'dead')", name=op.f("ck_commitment_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment")),
        sa.UniqueConstraint("calling_ae", "transaction_uid", name=op.f("uq_commitment_calling_ae_transaction_uid")),
    )
    op.create_index(
        "ix_commitment_open",
        "commitment",
        ["ready_at"],
        unique=False,
        sqlite_where=sa.text("state IN ('waiting', 'known')"),
        postgresql_where=sa.text("state IN ('waiting', 'known')"),
    )
    op.create_table(
        "commitment_item",
        sa.Column("commitment_id", sa.Integer(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("reason", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["commitment_id"], ["commitment.id"], name=op.f("fk_commitment_item_commitment_id")),
        sa.PrimaryKeyConstraint("commitment_id", "sop_instance_uid", name=op.f("pk_commitment_item")),
    )
    op.create_index("ix_commitment_item_sop_instance_uid", "commitment_item", ["sop_instance_uid"], unique=False)
    op.create_table(
        "count",
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("series_uid", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.Column("since_at", sa.Double(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.CheckConstraint("value >= 0", name=op.f("ck_count_value")),
        sa.PrimaryKeyConstraint("study_uid", "series_uid", "source", name=op.f("pk_count")),
    )
