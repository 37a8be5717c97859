"""prices with currency and end, what nodes say of their machines, transfer prices, regions of models and clients"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "residency",
        sa.Column("client_region", sa.String(), nullable=False),
        sa.Column("regions", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("client_region"),
    )
    op.create_table(
        "transfer_prices",
        sa.Column("from_region", sa.String(), nullable=False),
        sa.Column("to_region", sa.String(), nullable=False),
        sa.Column("usd_per_gb", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("from_region", "to_region"),
    )
    # Columns are added one by one: SQLite then changes its schema alone and copies no rows.
    op.add_column("nodes", sa.Column("set_amount", sa.Float(), nullable=True))
    op.add_column("nodes", sa.Column("set_currency", sa.String(), nullable=True))
    op.add_column("nodes", sa.Column("set_until_s", sa.Float(), nullable=True))
    op.add_column("nodes", sa.Column("spot", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("nodes", sa.Column("machine_type", sa.String(), nullable=False, server_default=""))
    op.add_column("policies", sa.Column("regions", sa.JSON(), nullable=True))
    op.add_column("policies", sa.Column("regions_by_operator", sa.Boolean(), nullable=False, server_default=sa.false()))
