"""The first ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "association",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("calling_ae", sa.Text(), nullable=False),
        sa.Column("called_ae", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("ending", sa.Text(), nullable=True),
        sa.CheckConstraint("ending IN ('released', 'aborted', 'lost')", name=op.f("ck_association_ending")),
        sa.CheckConstraint("(ended_at IS NULL) = (ending IS NULL)", name=op.f("ck_association_ended")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_association")),
    )
    op.create_index(
        "ix_association_open",
        "association",
        ["calling_ae"],
        unique=False,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "series",
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("series_uid", sa.Text(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("expected", sa.Integer(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("complete_at", sa.Double(), nullable=True),
        sa.Column("complete_by", sa.Text(), nullable=True),
        sa.CheckConstraint("(state = 'complete') = (complete_at IS NOT NULL)", name=op.f("ck_series_complete")),
        sa.CheckConstraint("state IN ('arriving', 'complete', 'held')", name=op.f("ck_series_state")),
        sa.CheckConstraint("instances >= 0 AND revision >= 1", name=op.f("ck_series_counts")),
        sa.PrimaryKeyConstraint("study_uid", "series_uid", name=op.f("pk_series")),
    )
    op.create_index(
        "ix_series_arriving",
        "series",
        ["last_at"],
        unique=False,
        sqlite_where=sa.text("state = 'arriving'"),
        postgresql_where=sa.text("state = 'arriving'"),
    )
    op.create_table(
        "instance",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("series_uid", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("offset_bytes", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("calling_ae", sa.Text(), nullable=False),
        sa.Column("association_id", sa.Text(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.CheckConstraint("state IN ('current', 'conflict', 'superseded', 'missing')", name=op.f("ck_instance_state")),
        sa.CheckConstraint(
            "size_bytes > 0 AND offset_bytes > 0 AND length(sha256) = 64", name=op.f("ck_instance_bytes")
        ),
        sa.ForeignKeyConstraint(["association_id"], ["association.id"], name=op.f("fk_instance_association_id")),
        sa.ForeignKeyConstraint(
            ["study_uid", "series_uid"],
            ["series.study_uid", "series.series_uid"],
            name=op.f("fk_instance_study_uid_series_uid"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint("path", name=op.f("uq_instance_path")),
        sa.UniqueConstraint(
            "study_uid", "series_uid", "sop_instance_uid", "sha256", "transfer_syntax_uid", name="uq_instance_version"
        ),
    )
    op.create_index("ix_instance_sop_instance_uid", "instance", ["sop_instance_uid"], unique=False)
    op.create_index(
        "uq_instance_counting",
        "instance",
        ["study_uid", "series_uid", "sop_instance_uid"],
        unique=True,
        sqlite_where=sa.text("state IN ('current', 'conflict')"),
        postgresql_where=sa.text("state IN ('current', 'conflict')"),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("series_uid", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("due", sa.Double(), nullable=False),
        sa.Column("ready_at", sa.Double(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name=op.f("ck_job_lease")),
        sa.CheckConstraint(
            "(state IN ('done', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name=op.f("ck_job_finished")
        ),
        sa.CheckConstraint("mode IN ('on', 'shadow')", name=op.f("ck_job_mode")),
        sa.CheckConstraint(
            "state IN ('waiting', 'held', 'queued', 'running', 'done', 'failed', 'cancelled')",
            name=op.f("ck_job_state"),
        ),
        sa.ForeignKeyConstraint(
            ["study_uid", "series_uid"],
            ["series.study_uid", "series.series_uid"],
            name=op.f("fk_job_study_uid_series_uid"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    op.create_index(
        "ix_job_claimable",
        "job",
        ["due", "id"],
        unique=False,
        sqlite_where=sa.text("state IN ('queued', 'running')"),
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_index(
        "uq_job_live",
        "job",
        ["study_uid", "series_uid", "bundle"],
        unique=True,
        sqlite_where=sa.text("state IN ('waiting', 'held', 'queued', 'running')"),
        postgresql_where=sa.text("state IN ('waiting', 'held', 'queued', 'running')"),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.Text(), nullable=True),
        sa.Column("series_uid", sa.Text(), nullable=True),
        sa.Column("sop_instance_uid", sa.Text(), nullable=True),
        sa.Column("job_id", sa.Integer(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_event_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index("ix_event_study_uid", "event", ["study_uid", "at"], unique=False)
    op.create_table(
        "result",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("result_key", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("series_uid", sa.Text(), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.Column("bundle_version", sa.Text(), nullable=False),
        sa.Column("predecessor_id", sa.Integer(), nullable=True),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.CheckConstraint("predecessor_id <> id", name=op.f("ck_result_predecessor")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_result_job_id")),
        sa.ForeignKeyConstraint(["predecessor_id"], ["result.id"], name=op.f("fk_result_predecessor_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result")),
        sa.UniqueConstraint("job_id", name=op.f("uq_result_job_id")),
        sa.UniqueConstraint("predecessor_id", name=op.f("uq_result_predecessor_id")),
        sa.UniqueConstraint("result_key", name=op.f("uq_result_result_key")),
    )
    op.create_index(
        "uq_result_first",
        "result",
        ["study_uid", "series_uid", "bundle"],
        unique=True,
        sqlite_where=sa.text("predecessor_id IS NULL"),
        postgresql_where=sa.text("predecessor_id IS NULL"),
    )
    op.create_table(
        "result_object",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("result_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["result_id"], ["result.id"], name=op.f("fk_result_object_result_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result_object")),
        sa.UniqueConstraint("path", name=op.f("uq_result_object_path")),
        sa.UniqueConstraint("result_id", "kind", name=op.f("uq_result_object_result_id_kind")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_result_object_sop_instance_uid")),
    )
    op.create_table(
        "delivery",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("object_id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("ready_at", sa.Double(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("tried_from", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=True),
        sa.Column("asked", sa.Integer(), server_default="0", nullable=False),
        sa.Column("transaction_uid", sa.Text(), nullable=True),
        sa.Column("confirmed_at", sa.Double(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("(state = 'confirmed') = (confirmed_at IS NOT NULL)", name=op.f("ck_delivery_confirmed")),
        sa.CheckConstraint("(state = 'sending') = (lease_until IS NOT NULL)", name=op.f("ck_delivery_lease")),
        sa.CheckConstraint(
            "state IN ('queued', 'sending', 'stored', 'confirmed', 'dead', 'cancelled')", name=op.f("ck_delivery_state")
        ),
        sa.CheckConstraint(
            "state NOT IN ('stored', 'confirmed') OR stored_at IS NOT NULL", name=op.f("ck_delivery_stored")
        ),
        sa.ForeignKeyConstraint(["object_id"], ["result_object.id"], name=op.f("fk_delivery_object_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint("object_id", "destination", name=op.f("uq_delivery_object_id_destination")),
    )
    op.create_index(
        "ix_delivery_claimable",
        "delivery",
        ["destination", "ready_at", "id"],
        unique=False,
        sqlite_where=sa.text("state IN ('queued', 'sending')"),
        postgresql_where=sa.text("state IN ('queued', 'sending')"),
    )
    op.create_index(
        "ix_delivery_unconfirmed",
        "delivery",
        ["destination", "ready_at", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'stored'"),
        postgresql_where=sa.text("state = 'stored'"),
    )
    # ### end Alembic commands ###
