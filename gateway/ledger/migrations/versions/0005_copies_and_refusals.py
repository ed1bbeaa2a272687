"""How often an object was stored at a destination, and under which name; what was not taken from whom."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("delivery", sa.Column("copies", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("delivery", sa.Column("stored_as", sa.Text(), nullable=True))
    op.execute("UPDATE delivery SET copies = 1 WHERE stored_at IS NOT NULL")
    op.create_table(
        "refusal",
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("calling_ae", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.Double(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=True),
        sa.CheckConstraint("what IN ('instance', 'association', 'connection')", name=op.f("ck_refusal_what")),
        sa.CheckConstraint("count > 0", name=op.f("ck_refusal_count")),
        sa.PrimaryKeyConstraint("what", "calling_ae", "host", name=op.f("pk_refusal")),
    )
    op.create_index("ix_refusal_last_at", "refusal", ["last_at"])
