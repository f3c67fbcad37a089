"""The credentials of the users of this server.

Decided here and only here: which of them tasks may name (GENERIC ones; the others are used by themselves), and where a
user's credential for object storage is looked for: first in the database, then, for the owner of the server alone, in
``config.yaml``, and in the environment and the identity of the machine: with those everybody else would read and write
buckets in which they have no rights. Of one that ``config.yaml`` has just the same nothing but its name and profile is
kept, so that what is changed there counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from casstore import safeyaml
from casstore.errors import AccessError, UsageError
from casstore.remote.configured import ConfiguredCredentials
from casstore.remote.credentials import CredentialSource, StorageCredential
from casstore.wire.credentials import DATA, GENERIC, Credential
from casstore_orchestrator.pools import this_machine
from casstore_server.config import Watched
from casstore_server.private import Private, box_of
from casstore_server.settings import Settings

if TYPE_CHECKING:
    from casstore_server.db.store import Database
    from casstore_server.db.vault import SealedVault

__all__ = ["Joined", "UserCredentials"]


class UserCredentials:
    """Implements ``casstore_orchestrator.ports.Credentials``. Nothing is held: what changed is seen."""

    def __init__(self, config_file: Path, owner: str, vault: Callable[[], SealedVault]) -> None:
        """``vault`` is called when it is first needed."""
        self._config_file = config_file
        self._owner = owner
        self._vault = vault

    @property
    def vault(self) -> SealedVault:
        """Where they are kept."""
        return self._vault()

    def lookup(self, user: str, name: str) -> Mapping[str, str] | None:
        """The keys and values of a GENERIC credential; ``AccessError`` for one of another type."""
        found = self.vault.get(user, name)
        if found is None:
            return None
        if found.type != GENERIC:
            raise AccessError(
                f"credential {name!r} is a {found.type} credential, which tasks are not given",
                hint="It is used by itself where it is needed: leave it out of 'credentials:'.",
            )
        return found.payload

    def storage(self, user: str) -> CredentialSource:
        """The credentials that a user has for object storage."""
        return _Storage(self, user)

    def find(self, user: str, profile: str) -> StorageCredential | None:
        """The credential of a user for a profile; None, for the owner alone, to use the ambient identity.

        ``AccessError`` when somebody else has none.
        """
        kept = self.vault.by_profile(user, DATA, profile)
        storage = kept.storage() if kept is not None and kept.payload else None
        if user == self._owner:
            return self._configured().find(profile) if storage is None else storage
        if storage is None or not storage.access_key:
            raise AccessError(
                f"{user} has no credential for {profile}, and the identity of the server is not for its users",
                hint="Keep one on the server: osmo credential set NAME --type DATA --payload endpoint=URL ...",
            )
        return storage

    def keep(self, user: str, name: str, credential: Credential) -> list[str]:
        """Keep a credential; see ``SealedVault.put``."""
        storage, profile = credential.storage(), credential.profile
        if user == self._owner and profile is not None and storage == self._found_in_file(profile):
            credential = Credential(type=credential.type, profile=profile, payload={})
        return self.vault.put(user, name, credential)

    def _found_in_file(self, profile: str) -> StorageCredential | None:
        try:
            return self._configured().find(profile)
        except UsageError:  # a file that is wrong has nothing that counts
            return None

    def _configured(self) -> ConfiguredCredentials:
        file = str(self._config_file)
        try:
            raw = safeyaml.load(self._config_file.read_bytes(), what=file)
        except FileNotFoundError:
            raw = None
        except OSError as exc:
            raise UsageError(f"can't read {file}: {exc.strerror}") from None
        if raw is not None and not isinstance(raw, dict):
            raise UsageError(f"{file} must be a mapping of keys to values")
        return ConfiguredCredentials(raw or {}, file)


class Joined:
    """What a process of the server's own reads from its database, which it joins when it must."""

    def __init__(self, settings: Settings, private: Private, *, patience: float = 0.0) -> None:
        """``patience``: for how many seconds a database that can't be reached is waited for."""
        self._settings = settings
        self._private = private
        self._patience = patience
        self.credentials = UserCredentials(settings.config_file, settings.user, cache(self._vault))

    def config(self) -> Watched:
        """The configuration, with the configs in the database."""
        from casstore_server.configs.stored import StoredConfigs  # noqa: PLC0415  # heavy, and often not needed
        from casstore_server.db.configs import ConfigRows  # noqa: PLC0415  # as above

        @cache
        def rows() -> ConfigRows | None:
            database = self._database()
            return None if database is None else ConfigRows(database, box_of(self._private, self._settings))

        settings = self._settings
        machine = this_machine(settings.state_dir)
        stored = StoredConfigs(rows, patience=self._patience)
        return Watched(settings.config_file, settings.data_dir, machine, stored)

    def _vault(self) -> SealedVault:
        from casstore_server.db.vault import SealedVault  # noqa: PLC0415  # as above

        return SealedVault(self._database, box_of(self._private, self._settings), patience=self._patience)

    def _database(self) -> Database | None:
        from casstore_server.db.location import join_state  # noqa: PLC0415  # as above

        return join_state(self._settings, self._private.database)


class _Storage:
    """Implements ``CredentialSource`` for one user."""

    def __init__(self, credentials: UserCredentials, user: str) -> None:
        self._credentials = credentials
        self._user = user

    def find(self, profile: str) -> StorageCredential | None:
        """See ``CredentialSource``."""
        return self._credentials.find(self._user, profile)
