"""What is sealed in the database: that its key is the right one, and how everything gets another one.

Decided here and only here: which columns hold sealed values, that each is sealed for its table and the key of its row
(so that it opens in no other), and that nothing is sealed while everything is sealed anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Table, delete, select, update

from casstore.errors import AccessError, CasstoreError, IntegrityError
from casstore_server.db import schema
from casstore_server.db.store import Database
from casstore_server.db.transactions import upsert
from casstore_server.secrets import SecretBox, key_of

__all__ = ["Resealed", "check", "context_of", "discard", "hold", "is_sealed", "reseal"]

_TABLES: Final = (schema.credential, schema.config_secret, schema.signing_key)
_ROW: Final = 1
_TEXT: Final = b"casstore"


class Resealed(NamedTuple):
    """``secrets`` values are sealed with ``key`` now, ``changed`` of them were with another one, ``lost`` are gone."""

    key: str
    secrets: int
    changed: int
    lost: int = 0


def context_of(table: Table, *key: object) -> tuple[str, ...]:
    """For what a value is sealed that is in the row of this key."""
    return (str(table.name), *map(str, key))


def hold(connection: Connection) -> None:
    """Keep everything from being sealed anew until this transaction ends, which seals a value: call it first."""
    connection.execute(select(schema.seal.c.id).with_for_update(read=True))


def is_sealed(database: Database) -> bool:
    """Whether anything was ever sealed there."""
    with database.reading() as connection:
        return connection.execute(select(schema.seal.c.id)).first() is not None


def check(database: Database, box: SecretBox) -> None:
    """See that ``box`` opens what is sealed there, or is the first one there. Raises ``AccessError`` when it does not.

    A key that is known but not the first one any more is fine: that is how keys are changed.
    """
    with database.writing() as connection:
        row = (_ROW, box.seal(_TEXT, *context_of(schema.seal, _ROW)))
        made = upsert(connection, schema.seal).values(id=row[0], sealed=row[1]).on_conflict_do_nothing()
        connection.execute(made)
        sealed = connection.execute(select(schema.seal.c.sealed).where(schema.seal.c.id == _ROW)).scalar_one()
    wanted = key_of(sealed)
    try:
        box.open(sealed, *context_of(schema.seal, _ROW))
    except (AccessError, IntegrityError):
        given = ", ".join(key.id for key in box.keys)
        raise AccessError(
            f"The secrets in the database were sealed with another key: {wanted}, not {given}",
            hint="Give the server the key it had (secret_key_file, CASSTORE_SECRET_KEY). If it is lost: "
            "osmo server rekey --discard",
        ) from None


def reseal(database: Database, box: SecretBox) -> Resealed:
    """Seal everything with the first key of ``box``. Raises ``AccessError`` when it does not open something: nothing is
    changed then.
    """
    with database.writing() as connection:
        _lock(connection)
        secrets = changed = 0
        for table, sealed, key in _rows(connection):
            secrets += table is not schema.seal
            if key_of(sealed) == box.key_id:
                continue
            context = context_of(table, *key.values())
            try:
                opened = box.open(sealed, *context)
            except CasstoreError as error:
                what = f"{table.name} {' '.join(map(str, key.values()))}"
                raise type(error)(
                    f"{what}: {error.message}",
                    hint="Give its key besides the new one; to give up what can't be opened: --discard",
                ) from None
            changed += table is not schema.seal
            connection.execute(update(table).where(*_where(table, key)).values(sealed=box.seal(opened, *context)))
        return Resealed(box.key_id, secrets, changed)


def discard(database: Database, box: SecretBox) -> Resealed:
    """Give up what ``box`` does not open, and seal the rest with its first key."""
    lost = 0
    with database.writing() as connection:
        _lock(connection)
        for table, sealed, key in _rows(connection):
            try:
                box.open(sealed, *context_of(table, *key.values()))
            except CasstoreError:
                lost += table is not schema.seal
                connection.execute(delete(table).where(*_where(table, key)))
    check(database, box)
    return reseal(database, box)._replace(lost=lost)


def _lock(connection: Connection) -> None:
    connection.execute(select(schema.seal.c.id).with_for_update())


def _rows(connection: Connection) -> Iterator[tuple[Table, bytes, dict[str, Any]]]:
    """Every row with a sealed value, and its key."""
    for table in (*_TABLES, schema.seal):
        columns = list(table.primary_key.columns)
        keys = [tuple(row) for row in connection.execute(select(*columns).order_by(*columns))]
        for found in keys:
            key = {column.name: value for column, value in zip(columns, found, strict=True)}
            row = connection.execute(select(table.c.sealed).where(*_where(table, key))).one()
            yield table, row.sealed, key


def _where(table: Table, key: Mapping[str, Any]) -> list[Any]:
    return [table.c[name] == value for name, value in key.items()]
