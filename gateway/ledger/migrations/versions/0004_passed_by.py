"""What of a series is passed by; and a series that cannot be segmented is passed over, which is no failure."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

PASSED_OVER = (
    "does_not_fit", "several_volumes", "localizer", "mosaic", "colour", "multiframe_without_geometry", "no_orientation",
    "bad_orientation", "no_position", "no_pixel_spacing", "malformed_header", "ct_without_rescale", "ct_not_hu",
    "conflicting_instances", "mixed_frame_of_reference", "mixed_size", "mixed_pixel_spacing",
    "mixed_orientation", "no_frame_of_reference", "too_few_slices", "duplicate_positions", "not_on_a_line",
    "missing_slices", "irregular_spacing",
)  # fmt: skip


def upgrade() -> None:
    op.add_column("series", sa.Column("passed_by", sa.Text(), nullable=False, server_default="{}"))
    codes = ", ".join(f"'{code}'" for code in PASSED_OVER)
    op.execute(f"UPDATE job SET state = 'cancelled' WHERE state = 'failed' AND error_code IN ({codes})")
