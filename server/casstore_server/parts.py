"""What everything that reaches buckets is made of: configs, credentials, stores.

Decided here and only here: how these depend on each other.
"""

from __future__ import annotations

from typing import NamedTuple

from casstore_orchestrator.pools import this_machine
from casstore_server.config import Watched
from casstore_server.configs.stored import StoredConfigs
from casstore_server.credentials import UserCredentials
from casstore_server.db.configs import ConfigRows
from casstore_server.db.store import Database
from casstore_server.db.vault import SealedVault
from casstore_server.secrets import SecretBox
from casstore_server.settings import Settings
from casstore_server.stores import Stores

__all__ = ["Parts", "open_parts"]


class Parts(NamedTuple):
    """Close ``stores``."""

    rows: ConfigRows
    stored: StoredConfigs
    watched: Watched
    vault: SealedVault
    credentials: UserCredentials
    stores: Stores


def open_parts(settings: Settings, database: Database, box: SecretBox) -> Parts:
    """The parts of a server with this database, whose secrets this box opens."""
    rows = ConfigRows(database, box)
    stored = StoredConfigs(lambda: rows)
    watched = Watched(settings.config_file, settings.data_dir, this_machine(settings.state_dir), stored)
    vault = SealedVault(lambda: database, box)
    credentials = UserCredentials(settings.config_file, settings.user, lambda: vault)
    stores = Stores(watched, settings, credentials.storage(settings.user))
    return Parts(rows, stored, watched, vault, credentials, stores)
