"""The credentials of the users of this server.

Decided here and only here: which of them tasks may name (GENERIC ones; the others are used by themselves), and where a
user's credential for object storage is looked for: first in the vault, then, for the owner of the server alone, in
``config.yaml``; otherwise the environment and the identity of the machine decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from casstore import safeyaml
from casstore.errors import AccessError, UsageError
from casstore.remote.configured import ConfiguredCredentials
from casstore.remote.credentials import CredentialSource, StorageCredential
from casstore.vault import Vault
from casstore.wire.credentials import DATA, GENERIC

__all__ = ["UserCredentials"]


class UserCredentials:
    """Implements ``casstore_orchestrator.ports.Credentials``. Files are read at each call: what changed is seen."""

    def __init__(self, config_file: Path, owner: str) -> None:
        self._config_file = config_file
        self._owner = owner
        self.vault = Vault(str(config_file.parent))

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
        """The credential of a user for a profile, None to use the ambient identity."""
        kept = self.vault.by_profile(user, DATA, profile)
        if kept is not None and kept.payload:
            return kept.storage()
        if user != self._owner:
            return None
        return self._configured().find(profile)

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


class _Storage:
    """Implements ``CredentialSource`` for one user."""

    def __init__(self, credentials: UserCredentials, user: str) -> None:
        self._credentials = credentials
        self._user = user

    def find(self, profile: str) -> StorageCredential | None:
        """See ``CredentialSource``."""
        return self._credentials.find(self._user, profile)
