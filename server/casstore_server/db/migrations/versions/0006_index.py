"""The index of what is in the buckets; nothing in it is found in the database alone."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ROWS = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _bytewise(length: int) -> Any:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def _bucket(**options: Any) -> Any:
    return sa.Column("bucket", sa.Integer, sa.ForeignKey("index_bucket.id", ondelete="CASCADE"), **options)


def _part_of(table: str, **options: Any) -> Any:
    return sa.Column(table, _ROWS, sa.ForeignKey(f"index_{table}.id", ondelete="CASCADE"), **options)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "index_bucket",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("address", sa.String(2048), nullable=False, unique=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("store", sa.String(64), nullable=False),
        sa.Column("looked_at", sa.Float),
        sa.Column("cost", sa.Float, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("round_at", sa.Float),
    )
    op.create_table(
        "index_name",
        _bucket(primary_key=True),
        sa.Column("name", _bytewise(200), primary_key=True),
        sa.Column("mark", sa.String(255), nullable=False),
        sa.Column("key", sa.String(22)),
        sa.Column("head_mark", sa.String(255), nullable=False),
        sa.Column("etag", sa.String(255), nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("objects", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("problem", sa.String(500)),
    )
    op.create_index("index_name_by_problem", "index_name", ["bucket", "problem"])
    op.create_table(
        "index_dataset",
        sa.Column("id", _ROWS, primary_key=True),
        _bucket(nullable=False),
        sa.Column("name", _bytewise(200), nullable=False),
        sa.Column("key", _bytewise(22), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.String(64), nullable=False),
        sa.Column("created_by", _bytewise(255), nullable=False),
        sa.Column("last_version", sa.BigInteger),
        sa.Column("last_created", sa.BigInteger),
        sa.Column("last_created_at", sa.String(64)),
        sa.Column("stored_size", sa.BigInteger, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.UniqueConstraint("bucket", "name", name="index_dataset_name"),
    )
    op.create_index("index_dataset_by_time", "index_dataset", ["bucket", "last_created", "name"])
    op.create_index("index_dataset_by_key", "index_dataset", ["bucket", "key"])
    op.create_table(
        "index_user", _part_of("dataset", primary_key=True), sa.Column("user", _bytewise(255), primary_key=True)
    )
    op.create_index("index_user_by_user", "index_user", ["user", "dataset"])
    op.create_table(
        "index_label",
        _part_of("dataset", primary_key=True),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("bucket", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("index_label_by_key", "index_label", ["bucket", "key", "dataset"])
    op.create_table(
        "index_tag",
        _part_of("dataset", primary_key=True),
        sa.Column("tag", _bytewise(200), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("index_tag_by_number", "index_tag", ["dataset", "number"])
    op.create_table(
        "index_member",
        _part_of("dataset", primary_key=True),
        sa.Column("member", _bytewise(22), primary_key=True),
        sa.Column("bucket", sa.Integer, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("index_member_by_member", "index_member", ["bucket", "member", "number"])
    _versions()


def _versions() -> None:
    op.create_table(
        "index_version",
        sa.Column("id", _ROWS, primary_key=True),
        sa.Column("bucket", sa.Integer, nullable=False),
        _part_of("dataset", nullable=False),
        sa.Column("name", _bytewise(200), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("ready", sa.Integer, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("created_by", _bytewise(255), nullable=False),
        sa.Column("stored", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.UniqueConstraint("dataset", "number", name="index_version_number"),
    )
    op.create_index("index_version_by_name", "index_version", ["bucket", "ready", "name", "number"])
    op.create_index("index_version_by_time", "index_version", ["bucket", "ready", "created", "name", "number"])
    op.create_index("index_version_by_user", "index_version", ["bucket", "ready", "created_by", "name", "number"])
    op.create_table(
        "index_metadata",
        _part_of("version", primary_key=True),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("bucket", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("index_metadata_by_key", "index_metadata", ["bucket", "key", "version"])
    op.create_table(
        "index_text",
        _bucket(primary_key=True),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("text", sa.LargeBinary, nullable=False),
    )
