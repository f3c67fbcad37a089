"""The tables.

Decided here and only here: what is a column of its own (whatever is filtered or sorted by) and what stays
inside the JSON of a record. A migration in ``migrations/versions`` accompanies every change; a test compares
the two.

Times are seconds since the epoch. ``workflow.record`` is a ``WorkflowRecord`` without its specification:
that never changes and can be large, so it has columns of its own and is written once.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = [
    "HEAD",
    "access_token",
    "app",
    "app_version",
    "audit",
    "config_head",
    "config_revision",
    "config_secret",
    "config_tag",
    "counter",
    "credential",
    "event",
    "identity_user",
    "lease",
    "metadata",
    "news",
    "profile",
    "seal",
    "session",
    "signing_key",
    "tag",
    "task",
    "user_role",
    "workflow",
]

HEAD = "0009"
"""The newest migration."""

metadata = MetaData()

_LISTED = ("submit_time", "id", "status", "user", "pool", "priority", "app_uuid", "app_version")
"""What lists of workflows filter and sort by: a page is found in one index, without the rows."""

workflow = Table(
    "workflow",
    metadata,
    Column("id", String(96), primary_key=True),
    Column("uuid", String(32), nullable=False, unique=True),
    Column("name", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("user", String(255), nullable=False),
    Column("pool", String(255), nullable=False),
    Column("status", String(32), nullable=False),
    Column("priority", String(16), nullable=False),
    Column("submit_time", Float, nullable=False),
    Column("start_time", Float),
    Column("end_time", Float),
    Column("live", Integer, nullable=False, server_default="0"),
    Column("record", Text, nullable=False),
    Column("spec", Text, nullable=False),
    Column("spec_text", Text, nullable=False),
    Column("template_text", Text),
    Column("app_uuid", String(32)),
    Column("app_version", Integer),
    UniqueConstraint("name", "number", name="workflow_name_number"),
    Index("workflow_by_app", "app_uuid", "submit_time"),
    Index("workflow_by_time", *_LISTED),
    Index("workflow_by_status", "status", *(name for name in _LISTED if name != "status")),
    Index("workflow_by_user", "user", *(name for name in _LISTED if name != "user")),
    Index("workflow_by_live", "live", "pool", "submit_time"),
)
"""``live`` is 1 while a scheduler has something to do for the workflow."""

counter = Table(
    "counter",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("last", Integer, nullable=False),
)
"""The highest number ever given to a workflow of this name."""

tag = Table(
    "workflow_tag",
    metadata,
    Column("workflow_id", String(96), ForeignKey("workflow.id", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(255), primary_key=True),
    Index("workflow_tag_by_tag", "tag"),
)

task = Table(
    "task",
    metadata,
    Column("workflow_id", String(96), ForeignKey("workflow.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("retry_id", Integer, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("status", String(32), nullable=False),
    Column("node", String(255)),
    Column("start_time", Float),
    Column("end_time", Float),
    Column("cpu", Float, nullable=False),
    Column("memory", Float, nullable=False),
    Column("storage", Float, nullable=False),
    Column("gpu", Integer, nullable=False),
    Index("task_by_status", "status"),
    Index("task_by_node", "node"),
    Index("task_listed", "workflow_id", "position", "status", "node", "start_time", "name", "retry_id"),
)
"""One row for each attempt: what lists of tasks filter by. ``memory`` and ``storage`` are bytes."""

event = Table(
    "event",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("workflow_id", String(96), nullable=False),
    Column("task", String(64), nullable=False),
    Column("retry_id", Integer, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("at", Float, nullable=False),
    Index("event_by_workflow", "workflow_id", "id"),
)

lease = Table(
    "lease",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("token", Integer, nullable=False),
    Column("until", Float, nullable=False),
)
"""Who does what nobody else may do at the same time; ``owner`` is empty when it was given back."""

news = Table(
    "news",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("pool", String(255), nullable=False),
    Column("workflow_id", String(96), nullable=False),
    Index("news_by_pool", "pool", "id"),
)
"""Workflows that another server than the holder of their pool's lease has changed."""

profile = Table(
    "profile",
    metadata,
    Column("user", String(255), primary_key=True),
    Column("bucket", String(255)),
    Column("pool", String(255)),
    Column("email_notification", Integer, nullable=False, default=0),
    Column("slack_notification", Integer, nullable=False, default=0),
)

app = Table(
    "app",
    metadata,
    Column("uuid", String(32), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("taken", String(64), unique=True),
    Column("owner", String(255), nullable=False),
    Column("description", Text, nullable=False),
    Column("created_time", Float, nullable=False),
    Index("app_by_time", "created_time"),
)
"""A workflow file under a name. ``taken`` is the name as long as it belongs to this app, then NULL."""

app_version = Table(
    "app_version",
    metadata,
    Column("app_uuid", String(32), ForeignKey("app.uuid", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("created_by", String(255), nullable=False),
    Column("created_time", Float, nullable=False),
    Column("status", String(16), nullable=False),
    Column("text", Text, nullable=False),
)

identity_user = Table(
    "identity_user",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("created", Float, nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("disabled", Integer, nullable=False, server_default="0"),
)
"""Users that the server was told of. Of those that the identity provider knows, only who has roles here too."""

user_role = Table(
    "user_role",
    metadata,
    Column("user", String(255), ForeignKey("identity_user.name", ondelete="CASCADE"), primary_key=True),
    Column("role", String(64), primary_key=True),
    Column("assigned_by", String(255), nullable=False, server_default=""),
    Column("assigned_at", Float, nullable=False, server_default="0"),
    Index("user_role_by_role", "role"),
)
"""``assigned_by`` is ``db.callers.PROVIDER`` for a role of a group, which lasts as long as the user is in that."""

access_token = Table(
    "access_token",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("user", String(255), ForeignKey("identity_user.name", ondelete="CASCADE"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("description", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("last_used", Float),
    Column("roles", Text, nullable=False),
    UniqueConstraint("user", "name", name="access_token_user_name"),
)
"""Personal tokens. ``hash`` is ``identity.tokens.digest`` of it, ``roles`` a JSON list: of its user's roles, those that
it has as well.
"""

audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", Float, nullable=False),
    Column("user", String(255), nullable=False),
    Column("token", String(128)),
    Column("action", String(64), nullable=False),
    Column("resource", String(512), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Index("audit_by_time", "at", "id"),
    Index("audit_by_user", "user", "id"),
)
"""Who changed what, and who was refused."""

signing_key = Table(
    "signing_key",
    metadata,
    Column("kid", String(64), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
    Column("retired", Float),
)
"""The keys that this server's ID tokens are signed with; ``sealed`` by ``secrets.SecretBox``. A retired one signs no
more, and is kept as long as something that it signed may be good.
"""

credential = Table(
    "credential",
    metadata,
    Column("user", String(255), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("type", String(16), nullable=False),
    Column("profile", Text),
    Column("sealed", LargeBinary, nullable=False),
    Column("changed", Float, nullable=False),
)
"""Credentials of users. ``sealed`` is the JSON of its keys and values, sealed by ``secrets.SecretBox``."""

seal = Table(
    "seal",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sealed", LargeBinary, nullable=False),
)
"""One row, 1, sealed as everything is: it shows at a start whether the key is the right one. It is locked while secrets
are sealed anew.
"""

session = Table(
    "session",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("until", Float, nullable=False),
    Index("session_by_time", "until"),
)
"""Keys of interactive connections, by their digests. They are good for minutes and are never sealed anew."""

config_head = Table(
    "config_head",
    metadata,
    Column("type", String(32), primary_key=True),
    Column("revision", Integer, nullable=False),
)
"""The newest revision of each type of config; its row is locked by whoever makes another."""

config_revision = Table(
    "config_revision",
    metadata,
    Column("type", String(32), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("name", String(255), nullable=False),
    Column("author", String(255), nullable=False),
    Column("created", Float, nullable=False),
    Column("description", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("deleted", Float),
    Column("deleted_by", String(255)),
    Index("config_revision_by_time", "created"),
)
"""All configs of a type as they were from then on, as JSON; ``name`` is the one that was changed, empty for all.
Secrets are not in it: it has their ids.
"""

config_tag = Table(
    "config_tag",
    metadata,
    Column("type", String(32), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("tag", String(255), primary_key=True),
)

config_secret = Table(
    "config_secret",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
)
"""Secrets in configs, of all revisions."""
