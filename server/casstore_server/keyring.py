"""The key for secrets at the start of a server.

Decided here and only here: that a server with a database of its own makes its key when there is none and nothing is
sealed yet, that servers which share a database are given theirs, and what happens to the file in which credentials
were kept before there was a database for them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from casstore.errors import NotFoundError, UsageError
from casstore.vault import Vault
from casstore_server.db import sealed
from casstore_server.db.location import VARIABLE, find_url, open_state
from casstore_server.db.store import Database
from casstore_server.db.vault import SealedVault
from casstore_server.private import Private, box_of
from casstore_server.secrets import (
    KEY_VARIABLE,
    Key,
    KeyFile,
    SecretBox,
    make_key_file,
    new_key,
    parse_keys,
    replace_key_file,
)
from casstore_server.settings import Order, Settings

__all__ = ["find_private", "line", "open_box", "rekey", "take_up"]

_log = logging.getLogger(__name__)


def find_private(settings: Settings) -> Private:
    """From the environment, where it is then no more (nothing that the server starts gets it), and the configuration.

    Raises ``UsageError``.
    """
    url = os.environ.pop(VARIABLE, "") or find_url(settings.config_file)
    text = os.environ.pop(KEY_VARIABLE, "")
    keys = tuple(key.line() for key in parse_keys(text, KEY_VARIABLE)) if text else ()
    return Private(database=url, keys=keys, key_file=settings.secret_key_file or str(settings.own_key_file))


def open_box(private: Private, settings: Settings, database: Database) -> SecretBox:
    """The box that opens what is sealed in the database. Raises ``UsageError`` when a key must be given and is not,
    ``NotFoundError`` when it is gone, and ``AccessError`` when it is the wrong one, or others can read it.
    """
    box = box_of(private, settings)
    if not private.keys:
        _have_file(Path(private.key_file), settings, database)
    sealed.check(database, box)
    return box


def _have_file(path: Path, settings: Settings, database: Database) -> None:
    if path.exists() or path != settings.own_key_file:
        return  # whether it is right is seen when it is read
    if database.shared:
        raise UsageError(
            f"Servers on a PostgreSQL need a key for the secrets in it: set secret_key_file or {KEY_VARIABLE}",
            hint="Make one for all of them, once: osmo server new-key > secret.key (and keep a copy elsewhere)",
        )
    if sealed.is_sealed(database):
        raise NotFoundError(
            f"The key for the secrets in the server's database is gone: {path} does not exist",
            hint="Put it back. If it is lost, give up what it opens: osmo server rekey --new --discard",
        )
    make_key_file(path)
    _log.info("made a key for secrets, %s: without it nobody can read them, so keep a copy elsewhere", path)


def line() -> str:
    """A new key, as it is written in a file."""
    return new_key().line()


def rekey(order: Order) -> sealed.Resealed:
    """Seal everything in the database with the first key, or with a new one in the file of the key (``order.new``), in
    which the others are then no more. Servers may run. ``order.discard``: give up what can't be opened.

    Raises ``UsageError`` when the key is in no file, and as ``open_box`` and ``reseal`` do.
    """
    settings = order.settings
    private = find_private(settings)
    path = Path(private.key_file)
    if order.new and private.keys:
        raise UsageError(
            f"The key is given by {KEY_VARIABLE}, so that no new one can be put into its file",
            hint="Give every server a new one before the one they have, and: osmo server rekey",
        )
    database = open_state(settings, private.database)
    try:
        if not private.keys and not (order.new and order.discard):
            _have_file(path, settings, database)
        if order.new:
            replace_key_file(path, [new_key(), *_keys_in(path)])
        box = box_of(private, settings)
        if not order.discard:
            sealed.check(database, box)
        done = sealed.discard(database, box) if order.discard else sealed.reseal(database, box)
        if order.new:
            replace_key_file(path, box.keys[:1])
        return done
    finally:
        database.close()


def _keys_in(path: Path) -> tuple[Key, ...]:
    return KeyFile(path)() if path.exists() else ()


def take_up(folder: Path, vault: SealedVault) -> int:
    """Take the credentials of the file in ``folder`` into the database and remove the file; how many there were.

    What is in it is newer: a command writes it only where no server can be installed.
    """
    file = Vault(str(folder))
    found = [(user, name, one) for user, own in file.all().items() for name, one in own.items()]
    for user, name, credential in found:
        vault.put(user, name, credential)
    if found:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.path)
        _log.info("%d credentials of %s are in the database now, sealed; the file is gone", len(found), file.path)
    return len(found)
