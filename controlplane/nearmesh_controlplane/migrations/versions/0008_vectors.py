"""nodes that keep vectors"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("keeps_vectors", sa.Boolean(), nullable=False, server_default=sa.false()))
