"""Leases of schedulers, what they are told by other servers, and which workflows they have to do with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UNFINISHED = ("PENDING", "RUNNING", "WAITING")


def upgrade() -> None:
    """Make the tables, and mark what has not ended."""
    op.create_table(
        "lease",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )
    op.create_table(
        "news",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("pool", sa.String(255), nullable=False),
        sa.Column("workflow_id", sa.String(96), nullable=False),
    )
    op.create_index("news_by_pool", "news", ["pool", "id"])
    op.add_column("workflow", sa.Column("live", sa.Integer, nullable=False, server_default="0"))
    op.create_index("workflow_by_live", "workflow", ["live", "pool", "submit_time"])
    workflow = sa.table("workflow", sa.column("status", sa.String), sa.column("live", sa.Integer))
    op.execute(workflow.update().where(workflow.c.status.in_(_UNFINISHED)).values(live=1))
