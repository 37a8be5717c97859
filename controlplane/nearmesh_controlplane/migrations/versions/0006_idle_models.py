"""models that nobody asks for"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "idle",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("unload_after_s", sa.Float(), nullable=False),
        sa.Column("scale_to_zero_after_s", sa.Float(), nullable=False),
        sa.Column("keep", sa.Integer(), nullable=False),
        sa.Column("by_operator", sa.Boolean(), nullable=False),
        sa.Column("deployment", sa.Integer(), nullable=False),
        sa.Column("nodes", sa.JSON(), nullable=False),
        sa.Column("since_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("model"),
    )
