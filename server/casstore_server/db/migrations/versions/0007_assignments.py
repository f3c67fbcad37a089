"""Who gave a role to a user, and when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("user_role", sa.Column("assigned_by", sa.String(255), nullable=False, server_default=""))
    op.add_column("user_role", sa.Column("assigned_at", sa.Float, nullable=False, server_default="0"))
