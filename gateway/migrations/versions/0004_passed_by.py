"""What of a series is passed by; and what is passed over is no failure."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("series", sa.Column("passed_by", sa.Text(), nullable=False, server_default="{}"))
