"""Alembic's environment and the revisions, run at the start of the server."""
