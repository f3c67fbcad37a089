"""Indexes in which a page of a list is found without its rows."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_LISTED = ["submit_time", "id", "status", "user", "pool", "priority", "app_uuid", "app_version"]


def upgrade() -> None:
    """Make them in place of those that have the order alone."""
    for name in ("time", "status", "user"):
        op.drop_index(f"workflow_by_{name}", "workflow")
    op.create_index("workflow_by_time", "workflow", _LISTED)
    for name in ("status", "user"):
        op.create_index(f"workflow_by_{name}", "workflow", [name, *(other for other in _LISTED if other != name)])
    columns = ["workflow_id", "position", "status", "node", "start_time", "name", "retry_id"]
    op.create_index("task_listed", "task", columns)
    op.create_index("task_by_node", "task", ["node"])
