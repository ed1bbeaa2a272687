"""Series that were sent again after all was decided are found without a look at all the others."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

SENT_AGAIN = sa.text("state = 'complete' AND last_at > taken_at")


def upgrade() -> None:
    op.create_index("ix_series_sent_again", "series", ["last_at"], sqlite_where=SENT_AGAIN, postgresql_where=SENT_AGAIN)
