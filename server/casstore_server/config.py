"""The configuration as far as the server needs it: ``config.yaml``, and the configs in the database on top of it.

Decided here and only here: that ``config.yaml`` is read again when it changes, and that a wrong one never
stops a running server: the last good one stays in force, and whoever asks for something new is told what is
wrong.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from casstore import safeyaml
from casstore.errors import UsageError
from casstore.repo.references import allowed_prefixes
from casstore_orchestrator.pools import Machine, Pool, parse_pools
from casstore_server.configs.effect import NONE, Stored, lay_over
from casstore_server.configs.model import DEFAULT_BUCKET, BucketConfig, Declared, ServerConfig
from casstore_server.identity.actions import Role
from casstore_server.options import resolve

__all__ = ["DEFAULT_BUCKET", "BucketConfig", "ServerConfig", "Watched", "database_setting", "server_section"]

_log = logging.getLogger(__name__)


class Watched:
    """``config.yaml``, read again whenever it is another file or was changed."""

    def __init__(
        self, path: Path, data_dir: Path, machine: Machine, stored: Callable[[], Stored] = lambda: NONE
    ) -> None:
        """``stored``: see ``configs.stored``; it is asked each time."""
        self._path = path
        self._stored = stored
        self._file: tuple[dict[str, Any], ServerConfig] | None = None
        self._told: tuple[str, ...] = ()
        self._data_dir = data_dir
        self._machine = machine
        self._lock = threading.Lock()
        self._stamp: object = ()
        self._config: ServerConfig | None = None
        self._problem: UsageError | None = None
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, told: Callable[[], None]) -> None:
        """Call ``told`` whenever a changed file was read; it must be quick and not ask for the configuration."""
        self._listeners.append(told)

    def current(self) -> ServerConfig:
        """What the file says now. Raises ``UsageError`` when it is wrong."""
        with self._lock:
            self._refresh()
            if self._problem is not None:
                raise UsageError(self._problem.message, hint=self._problem.hint)
            if self._config is None:
                raise UsageError(f"{self._path} was never read")
            return self._config

    def last_good(self) -> ServerConfig:
        """What the file said when it was last right: for work that goes on whatever happens to the file."""
        with self._lock:
            self._refresh()
            return self._config if self._config is not None else self._parse({})

    def trial(self, stored: Stored) -> ServerConfig:
        """What it would be with other configs in the database. Raises ``UsageError`` when these can't be used."""
        with self._lock:
            self._refresh()
            raw, file = self._file or ({}, self._parse({}))
        pools = _mapping(raw.get("pools"), "casstore.pools", self._path)
        return lay_over(file, pools, stored, self._machine, strict=True)

    def roles(self) -> Mapping[str, Role]:
        """The roles that are declared besides those that are built in."""
        return self.last_good().roles

    def pools(self) -> Mapping[str, Pool]:
        """The pools of ``last_good``."""
        return self.last_good().pools

    def _refresh(self) -> None:
        try:
            found = os.stat(self._path)
            stamp: object = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError as exc:
            stamp = exc.errno
        stored = self._stored()
        if (stamp, stored.stamp) == self._stamp:
            return
        fresh = not isinstance(self._stamp, tuple) or self._stamp[:1] != (stamp,)
        self._stamp = (stamp, stored.stamp)
        try:
            if fresh:
                raw = self._read()
                self._file, self._problem = (raw, self._parse(raw)), None
        except UsageError as exc:
            self._problem = exc
        self._lay_over(stored)

    def _lay_over(self, stored: Stored) -> None:
        raw, file = self._file or ({}, self._parse({}))
        pools = _mapping(raw.get("pools"), "casstore.pools", self._path)
        self._config = lay_over(file, pools, stored, self._machine)
        if self._config.problems != self._told:
            self._told = self._config.problems
            for problem in self._told:
                _log.warning("a config in the database is left out: %s", problem)
        for told in self._listeners:
            told()

    def _read(self) -> dict[str, Any]:
        return _own(self._path)

    def _parse(self, own: dict[str, Any]) -> ServerConfig:
        url = "file://" + quote(str(self._data_dir / "store"))
        store = BucketConfig(DEFAULT_BUCKET, url, declared=False)
        buckets = {store.name: store}
        for name, value in _mapping(own.get("buckets"), "casstore.buckets", self._path).items():
            fields = _mapping(value, f"casstore.buckets.{name}", self._path)
            if not isinstance(fields.get("url"), str):
                raise UsageError(f"{self._path}: casstore.buckets.{name}.url must be a URL")
            buckets[str(name)] = BucketConfig(
                str(name),
                fields["url"],
                description=str(fields.get("description", "")),
                mode=str(fields.get("mode", "read-write")),
            )
        default = own.get("default_bucket", DEFAULT_BUCKET)
        if default not in buckets:
            raise UsageError(f"{self._path}: casstore.default_bucket names {default!r}, which is not declared")
        try:
            pools = parse_pools(own.get("pools"), self._machine)
        except UsageError as exc:
            raise UsageError(f"{self._path}: casstore.{exc.message}", hint=exc.hint) from None
        references = own.get("references") or []
        if not isinstance(references, list):
            raise UsageError(f"{self._path}: casstore.references must be a list of URLs")
        try:
            allowed = allowed_prefixes(map(str, references))
        except UsageError as exc:
            raise UsageError(f"{self._path}: casstore.references: {exc.message}", hint=exc.hint) from None
        given = own.get("default_bucket")
        declared = Declared(
            pools=_mapping(own.get("pools"), "casstore.pools", self._path),
            buckets=_mapping(own.get("buckets"), "casstore.buckets", self._path),
            default_bucket=None if given is None else str(given),
        )
        return ServerConfig(str(default), buckets, pools, allowed, declared)


def server_section(path: Path) -> dict[str, Any]:
    """``casstore.server`` of the file, its values not checked. It may hold a password."""
    return _mapping(_own(path).get("server"), "casstore.server", path)


def database_setting(path: Path) -> str:
    """The URL of the server's database, as the file has it; empty when it has none. It may hold a password."""
    setting = resolve({}, {}, server_section(path), path)["database"]
    return str(setting.value)


def _own(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror}") from exc
    raw = safeyaml.load(text, what=str(path))
    return _mapping(_mapping(raw, "the file", path).get("casstore"), "casstore", path)


def _mapping(value: object, where: str, path: Path) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {where} must be a mapping of keys to values")
    return value
