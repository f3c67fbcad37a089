"""Runs revisions on the connection that ``db.engine.migrate`` hands over; there is no other way to call it.

Decided here and only here: nothing; the file is what alembic asks for.
"""

from __future__ import annotations

from alembic import context

from casstore_server.db.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
