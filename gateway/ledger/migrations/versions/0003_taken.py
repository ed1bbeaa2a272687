"""What a decision took, and ids that are never given again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("series", sa.Column("taken_at", sa.Double(), nullable=True))
    op.add_column("series", sa.Column("taken_id", sa.Integer(), nullable=True))
    # What is arriving now is decided upon as a whole: which of it was taken before, its revision does not tell.
    latest = "SELECT max(id) FROM instance WHERE study_uid = series.study_uid AND series_uid = series.series_uid"
    op.execute(f"UPDATE series SET taken_at = complete_at, taken_id = ({latest}) WHERE state = 'complete'")
    if op.get_bind().dialect.name == "sqlite":
        # Rows that refer to one of these tables miss it until it is filled again.
        op.execute("PRAGMA defer_foreign_keys = ON")
        for table in ("job", "delivery", "commitment"):
            _number_anew(table)


def _number_anew(table: str) -> None:
    """Make a table again with what is in it: SQLite adds AUTOINCREMENT to none that is there."""
    db = op.get_bind()
    found = "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type = 'index'"
    table_sql, *indexes = db.exec_driver_sql(found, (table,)).scalars()
    numbered = table_sql.replace("id INTEGER NOT NULL", "id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT", 1)
    numbered = numbered.replace(f"CONSTRAINT pk_{table} PRIMARY KEY (id), ", "")
    for sql in (
        f"CREATE TEMPORARY TABLE kept AS SELECT * FROM {table}",
        f"DROP TABLE {table}",
        numbered,
        *indexes,
        f"INSERT INTO {table} SELECT * FROM kept",
        "DROP TABLE kept",
    ):
        db.exec_driver_sql(sql)
