"""rollouts, and deployments to regions or to a number of nodes"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deployments", sa.Column("regions", sa.JSON()))
    op.add_column("deployments", sa.Column("replicas", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("deployments", sa.Column("nodes", sa.JSON()))
    op.add_column("deployments", sa.Column("rollout", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    only = sa.text("NOT ended")
    op.create_index(
        "one_rollout_at_a_time", "rollouts", ["model"], unique=True, sqlite_where=only, postgresql_where=only
    )
