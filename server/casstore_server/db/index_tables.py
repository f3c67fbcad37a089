"""The tables of the index: what the buckets say of their datasets, so that it can be listed and searched.

Decided here and only here: what is a column. Everything in these tables is a copy of what is in a bucket, and made
again from it; nothing else refers to them. Moments are whole microseconds since the epoch, so that nothing is rounded.
Text is compared by its bytes in every database. The keys of labels and metadata are those of ``db.attributes``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table, Text
from sqlalchemy import UniqueConstraint as Unique

from casstore_server.db.schema import metadata

__all__ = [
    "ALL", "LONGEST", "bucket", "collection_member", "dataset", "dataset_label", "dataset_tag", "dataset_user", "name",
    "text", "version", "version_metadata",
]  # fmt: skip

LONGEST = 255
"""Characters of the name of a user; what is longer is cut."""

_ROWS = BigInteger().with_variant(Integer, "sqlite")


def _bytewise(length: int) -> Any:
    return String(length).with_variant(String(length, collation="C"), "postgresql")


def _part_of(table: str) -> Column[Any]:
    """The column that leads to the row which this one goes with."""
    return Column(table, _ROWS, ForeignKey(f"index_{table}.id", ondelete="CASCADE"), primary_key=True)


bucket = Table(
    "index_bucket",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("address", String(2048), nullable=False, unique=True),
    Column("url", Text, nullable=False),
    Column("store", String(64), nullable=False),
    Column("looked_at", Float),
    Column("cost", Float, nullable=False),
    Column("round", Integer, nullable=False),
    Column("round_at", Float),
)
"""A bucket by its declared address. ``looked_at``: all that happened in it before is here; NULL while that was never
so. ``cost``: seconds of the last look. ``round`` counts rebuilds; ``round_at`` is when the one that is unfinished was
begun. Seconds since the epoch.
"""

name = Table(
    "index_name",
    metadata,
    Column("bucket", Integer, ForeignKey("index_bucket.id", ondelete="CASCADE"), primary_key=True),
    Column("name", _bytewise(200), primary_key=True),
    Column("mark", String(255), nullable=False),
    Column("key", String(22)),
    Column("head_mark", String(255), nullable=False),
    Column("etag", String(255), nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("objects", BigInteger, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("round", Integer, nullable=False),
    Column("problem", String(500)),
    Index("index_name_by_problem", "bucket", "problem"),
)
"""A name in a bucket, free ones (``key`` NULL) included, and the state of its records that the other tables hold.

``mark`` and ``head_mark`` are states as listings have them, empty when they have to be looked at again; ``etag`` is
that of the head. ``last`` is the number up to which every version is settled, ``objects`` how many version records
there are. ``generation`` grows with each change of what is known of the name. ``problem``: what of it can't be read.
"""

dataset = Table(
    "index_dataset",
    metadata,
    Column("id", _ROWS, primary_key=True),
    Column("bucket", Integer, ForeignKey("index_bucket.id", ondelete="CASCADE"), nullable=False),
    Column("name", _bytewise(200), nullable=False),
    Column("key", _bytewise(22), nullable=False),
    Column("type", String(16), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("created_at", String(64), nullable=False),
    Column("created_by", _bytewise(LONGEST), nullable=False),
    Column("last_version", BigInteger),
    Column("last_created", BigInteger),
    Column("last_created_at", String(64)),
    Column("stored_size", BigInteger, nullable=False),
    Column("labels", Text, nullable=False),
    Unique("bucket", "name", name="index_dataset_name"),
    Index("index_dataset_by_time", "bucket", "last_created", "name"),
    Index("index_dataset_by_key", "bucket", "key"),
)
"""A dataset or collection; ``key`` is its id in the bucket. ``last_created`` is NULL for what lists leave out."""

dataset_user = Table(
    "index_user",
    metadata,
    _part_of("dataset"),
    Column("user", _bytewise(LONGEST), primary_key=True),
    Index("index_user_by_user", "user", "dataset"),
)
"""Who uploaded a version that is ready, or made the collection."""

dataset_label = Table(
    "index_label",
    metadata,
    _part_of("dataset"),
    Column("key", LargeBinary, primary_key=True),
    Column("bucket", Integer, nullable=False),
    Index("index_label_by_key", "bucket", "key", "dataset"),
    sqlite_with_rowid=False,
)

dataset_tag = Table(
    "index_tag",
    metadata,
    _part_of("dataset"),
    Column("tag", _bytewise(200), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Index("index_tag_by_number", "dataset", "number"),
    sqlite_with_rowid=False,
)

collection_member = Table(
    "index_member",
    metadata,
    _part_of("dataset"),
    Column("member", _bytewise(22), primary_key=True),
    Column("bucket", Integer, nullable=False),
    Column("number", BigInteger, nullable=False),
    Index("index_member_by_member", "bucket", "member", "number"),
    sqlite_with_rowid=False,
)
"""``dataset`` is the collection, ``member`` the id of a dataset in the bucket."""

version = Table(
    "index_version",
    metadata,
    Column("id", _ROWS, primary_key=True),
    Column("bucket", Integer, nullable=False),
    Column("dataset", _ROWS, ForeignKey("index_dataset.id", ondelete="CASCADE"), nullable=False),
    Column("name", _bytewise(200), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("ready", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("created_by", _bytewise(LONGEST), nullable=False),
    Column("stored", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("record", Text, nullable=False),
    Unique("dataset", "number", name="index_version_number"),
    Index("index_version_by_name", "bucket", "ready", "name", "number"),
    Index("index_version_by_time", "bucket", "ready", "created", "name", "number"),
    Index("index_version_by_user", "bucket", "ready", "created_by", "name", "number"),
)
"""``name`` is the dataset's, here once more so that an index has the order of lists. ``record`` and ``state`` are the
``VersionRecord``, with the metadata as last edited and of its provenance what replies show, and the ``VersionState``.
"""

version_metadata = Table(
    "index_metadata",
    metadata,
    _part_of("version"),
    Column("key", LargeBinary, primary_key=True),
    Column("bucket", Integer, nullable=False),
    Index("index_metadata_by_key", "bucket", "key", "version"),
    sqlite_with_rowid=False,
)

text = Table(
    "index_text",
    metadata,
    Column("bucket", Integer, ForeignKey("index_bucket.id", ondelete="CASCADE"), primary_key=True),
    Column("key", LargeBinary, primary_key=True),
    Column("text", LargeBinary, nullable=False),
)
"""The texts behind keys of labels and metadata, each once. Some may be there that nothing has any more."""

ALL = (
    bucket, name, dataset, dataset_user, dataset_label, dataset_tag, collection_member, version, version_metadata, text,
)  # fmt: skip
