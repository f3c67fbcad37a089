"""The user's configuration as far as the server needs it: buckets, the default bucket, pools.

Decided here and only here: that ``config.yaml`` is read again when it changes, and that a wrong one never
stops a running server: the last good one stays in force, and whoever asks for something new is told what is
wrong.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from casstore import safeyaml
from casstore.errors import UsageError
from casstore.repo.references import allowed_prefixes
from casstore_orchestrator.pools import Machine, Pool, parse_pools
from casstore_server.options import resolve

__all__ = ["BucketConfig", "ServerConfig", "Watched", "database_setting", "server_section"]

DEFAULT_BUCKET = "default"


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """One declared bucket."""

    name: str
    url: str
    description: str = ""
    mode: str = "read-write"
    declared: bool = True

    @property
    def writable(self) -> bool:
        """Whether new versions may be stored."""
        return self.mode != "read-only"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What the file says, with the bucket and the pool that exist without being declared."""

    default_bucket: str
    buckets: Mapping[str, BucketConfig]
    pools: Mapping[str, Pool]
    references: tuple[str, ...] = ()
    """URLs below which references of stores may lead."""


class Watched:
    """``config.yaml``, read again whenever it is another file or was changed."""

    def __init__(self, path: Path, data_dir: Path, machine: Machine) -> None:
        self._path = path
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

    def pools(self) -> Mapping[str, Pool]:
        """The pools of ``last_good``."""
        return self.last_good().pools

    def _refresh(self) -> None:
        try:
            found = os.stat(self._path)
            stamp: object = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError as exc:
            stamp = exc.errno
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._config = self._parse(self._read())
            self._problem = None
            for told in self._listeners:
                told()
        except UsageError as exc:
            self._problem = exc

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
        return ServerConfig(str(default), buckets, pools, allowed)


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
