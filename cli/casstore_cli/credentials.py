"""The credentials of object storage that this user has configured.

Decided here and only here: that they come from ``auth.data`` of ``config.yaml``, and what is said when others can
read that file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from casstore.config import Config, load_config
from casstore_cli import output
from casstore_cli.config import change_raw_config

if TYPE_CHECKING:
    from casstore.remote.configured import ConfiguredCredentials
    from casstore.remote.credentials import StorageCredential

__all__ = ["ConfigCredentials", "forget_data", "keep_data", "local_profiles", "others_can_read"]


class ConfigCredentials:
    """Implements ``casstore.remote.credentials.CredentialSource`` over the user's ``config.yaml``.

    ``config`` is what was read already (from ``file``, if not from the usual place); by default it is read when a
    credential is first asked for. A file whose secrets others can read is used, and ``warn`` is told once.
    """

    def __init__(
        self, config: Config | None = None, *, file: str | None = None, warn: Callable[[str], None] = output.warn
    ) -> None:
        self._config = config
        self._file = file
        self._warn = warn
        self._source: ConfiguredCredentials | None = None

    def find(self, profile: str) -> StorageCredential | None:
        """The credential of a profile such as ``s3://bucket``; None where nothing is configured."""
        if self._source is None:
            self._source = self._read()
        return self._source.find(profile)

    def _read(self) -> ConfiguredCredentials:
        from casstore.remote.configured import ConfiguredCredentials

        config = self._config or load_config()
        file = self._file or config.paths.config_file
        source = ConfiguredCredentials(config.raw, file)
        if source.profiles and others_can_read(file):
            self._warn(f"other users can read the secrets in {output.escape(file)}: chmod 600 it")
        return source


def others_can_read(path: str) -> bool:
    """Whether the mode of a file lets anybody but its owner read or change it."""
    try:
        return bool(stat.S_IMODE(os.stat(path).st_mode) & 0o077)
    except OSError:
        return False


def keep_data(profile: str, credential: StorageCredential) -> None:
    """Keep a credential in ``config.yaml``, in place of the one that the profile had."""
    from casstore.remote.configured import profile_key, stored_form

    def change(raw: dict[str, Any]) -> None:
        data = _data(raw)
        for name in [name for name in data if profile_key(str(name)) == profile_key(profile)]:
            del data[name]
        data[profile_key(profile)] = stored_form(credential)

    change_raw_config(change)


def forget_data(profile: str) -> bool:
    """Remove the credential of a profile from ``config.yaml``; whether there was one."""
    from casstore.remote.configured import profile_key

    found: list[str] = []

    def change(raw: dict[str, Any]) -> None:
        data = _data(raw)
        found.extend(name for name in data if profile_key(str(name)) == profile_key(profile))
        for name in found:
            del data[name]

    if profile_key(profile) in local_profiles():
        change_raw_config(change)
    return bool(found)


def local_profiles(config: Config | None = None) -> list[str]:
    """The profiles that ``config.yaml`` has a credential for."""
    from casstore.remote.configured import ConfiguredCredentials

    config = config or load_config()
    return ConfiguredCredentials(config.raw, config.paths.config_file).profiles


def _data(raw: dict[str, Any]) -> dict[str, Any]:
    """``auth.data``, made where it is missing."""
    auth = raw["auth"] = dict(raw.get("auth") or {})
    auth["data"] = dict(auth.get("data") or {})
    data: dict[str, Any] = auth["data"]
    return data
