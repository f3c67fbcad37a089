"""Apps and their versions, and which workflow ran by which."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "app",
        sa.Column("uuid", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("taken", sa.String(64), unique=True),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_time", sa.Float, nullable=False),
    )
    op.create_index("app_by_time", "app", ["created_time"])
    op.create_table(
        "app_version",
        sa.Column("app_uuid", sa.String(32), sa.ForeignKey("app.uuid", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.Column("created_time", sa.Float, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.add_column("workflow", sa.Column("app_uuid", sa.String(32)))
    op.add_column("workflow", sa.Column("app_version", sa.Integer))
    op.create_index("workflow_by_app", "workflow", ["app_uuid", "submit_time"])
