"""The first tables: workflows, their tasks, tags and events, the counters behind their numbers, profiles."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "workflow",
        sa.Column("id", sa.String(96), primary_key=True),
        sa.Column("uuid", sa.String(32), nullable=False, unique=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("user", sa.String(255), nullable=False),
        sa.Column("pool", sa.String(255), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("priority", sa.String(16), nullable=False),
        sa.Column("submit_time", sa.Float, nullable=False),
        sa.Column("start_time", sa.Float),
        sa.Column("end_time", sa.Float),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("spec_text", sa.Text, nullable=False),
        sa.Column("template_text", sa.Text),
        sa.UniqueConstraint("name", "number", name="workflow_name_number"),
    )
    op.create_index("workflow_by_time", "workflow", ["submit_time"])
    op.create_index("workflow_by_status", "workflow", ["status", "submit_time"])
    op.create_index("workflow_by_user", "workflow", ["user", "submit_time"])
    op.create_table(
        "counter",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("last", sa.Integer, nullable=False),
    )
    op.create_table(
        "workflow_tag",
        sa.Column("workflow_id", sa.String(96), sa.ForeignKey("workflow.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("tag", sa.String(255), primary_key=True),
    )
    op.create_index("workflow_tag_by_tag", "workflow_tag", ["tag"])
    op.create_table(
        "task",
        sa.Column("workflow_id", sa.String(96), sa.ForeignKey("workflow.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("retry_id", sa.Integer, primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("node", sa.String(255)),
        sa.Column("start_time", sa.Float),
        sa.Column("end_time", sa.Float),
        sa.Column("cpu", sa.Float, nullable=False),
        sa.Column("memory", sa.Float, nullable=False),
        sa.Column("storage", sa.Float, nullable=False),
        sa.Column("gpu", sa.Integer, nullable=False),
    )
    op.create_index("task_by_status", "task", ["status"])
    op.create_table(
        "event",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("workflow_id", sa.String(96), nullable=False),
        sa.Column("task", sa.String(64), nullable=False),
        sa.Column("retry_id", sa.Integer, nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_index("event_by_workflow", "event", ["workflow_id", "id"])
    op.create_table(
        "profile",
        sa.Column("user", sa.String(255), primary_key=True),
        sa.Column("bucket", sa.String(255)),
        sa.Column("pool", sa.String(255)),
        sa.Column("email_notification", sa.Integer, nullable=False),
        sa.Column("slack_notification", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    """Remove the tables."""
    for name in ("profile", "event", "task", "workflow_tag", "counter", "workflow"):
        op.drop_table(name)
