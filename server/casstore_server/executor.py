"""The executor of a pool on this machine, with everything hidden from tasks that is ours.

Decided here and only here: which executor a pool's declaration means, which folders no task may see (the server's state
and socket, the configuration with its credentials, the key for secrets, caches, and the stores of all buckets as they
are declared at the moment a group starts), and how a user's credential for a registry becomes a login.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from casstore.errors import CasstoreError
from casstore.wire.credentials import REGISTRY
from casstore_orchestrator.executors.container import ContainerExecutor, LoginFor
from casstore_orchestrator.executors.process import ProcessExecutor
from casstore_orchestrator.pools import DEFAULT_POOL
from casstore_orchestrator.ports import Executor, Gang, Isolation, Layout, LogSink, TaskLaunch
from casstore_server.config import Watched
from casstore_server.credentials import UserCredentials
from casstore_server.settings import Settings
from casstore_server.stores import local_folder

__all__ = ["LocalExecutor", "registry_login"]

_HUB = ("registry-1.docker.io", "docker.io", "index.docker.io")


class LocalExecutor(Executor):
    """Implements ``ports.Executor``; everything follows the configuration as it is now."""

    def __init__(
        self,
        settings: Settings,
        config: Watched,
        *,
        pool: str = DEFAULT_POOL,
        login_for: LoginFor | None = None,
        hold: int | None = None,
    ) -> None:
        """``hold``: see ``ProcessExecutor``; ``login_for``: see ``ContainerExecutor``."""
        self._settings = settings
        self._config = config
        self._pool = pool
        self._login_for = login_for
        self._hold = hold

    def describe(self) -> Isolation:
        """The isolation that tasks get here, and why."""
        return self._now().describe()

    def layout(self, launch_home: Path) -> Layout:
        """The paths of a task whose attempt has this home."""
        return self._now().layout(launch_home)

    def host(self, group_key: str, task: str) -> str:
        """A name that resolves to the task inside its group."""
        return self._now().host(group_key, task)

    def place_of(self, launch_home: Path, path: str) -> tuple[Path, str]:
        """Where on the host what the task sees at a path lies."""
        return self._now().place_of(launch_home, path)

    def why_no_layer(self, launch_home: Path, source: Path) -> str:
        """Why inputs can't be laid over ``source``; empty when they can."""
        return self._now().why_no_layer(launch_home, source)

    def prepare(self, group_key: str, launches: Sequence[TaskLaunch], log: LogSink) -> Gang:
        """Prepare all tasks or none."""
        return self._now().prepare(group_key, launches, log)

    def default_mounts(self, pool: str, platform: str) -> tuple[str, ...]:
        """What every task of a platform gets mounted."""
        found = self._config.pools().get(pool)
        place = None if found is None else found.platforms.get(platform)
        return () if place is None else place.default_mounts

    def sweep(self, group_key: str) -> None:
        """Remove what a group that nobody follows can have left in the engines that pools use. Raises what one of them
        answered, after all were asked.
        """
        failed: CasstoreError | None = None
        for name in sorted({pool.executor for pool in self._config.pools().values()} - {"process"}):
            try:
                _containers(self._settings, name).sweep(group_key)
            except CasstoreError as error:
                failed = error
        if failed is not None:
            raise failed

    def _now(self) -> Executor:
        settings = self._settings
        pool = self._config.pools().get(self._pool)
        egress = pool is None or pool.egress
        if pool is not None and pool.executor != "process":
            return _containers(settings, pool.executor, egress=egress, login_for=self._login_for, hold=self._hold)
        hidden = [
            settings.state_dir,
            settings.socket_path.parent,
            settings.config_file.parent,
            settings.data_dir,
            settings.cache_dir,
        ]
        if settings.secret_key_file:
            hidden.append(Path(settings.secret_key_file))
        folders = (local_folder(bucket.url) for bucket in self._config.last_good().buckets.values())
        hidden += [Path(folder) for folder in folders if folder]
        return ProcessExecutor(hidden=hidden, egress=egress, hold=self._hold)


def _containers(
    settings: Settings,
    name: str,
    *,
    egress: bool = True,
    login_for: LoginFor | None = None,
    hold: int | None = None,
) -> ContainerExecutor:
    engine = None if name == "container" else name
    return ContainerExecutor(settings.state_dir, engine=engine, egress=egress, login_for=login_for, hold=hold)


def registry_login(credentials: UserCredentials, user: str, image: str) -> str | None:
    """The login of a user for the registry of an image, as docker's ``config.json``; None when there is none."""
    first, slash, _ = image.partition("/")
    hub = not slash or not ("." in first or ":" in first or first == "localhost")
    for name in _HUB if hub else (first,):
        found = credentials.vault.by_profile(user, REGISTRY, name)
        if found is not None:
            payload = found.payload
            auth = base64.b64encode(f"{payload.get('username', '')}:{payload.get('auth', '')}".encode()).decode()
            where = "https://index.docker.io/v1/" if hub else first
            return json.dumps({"auths": {where: {"auth": auth}}})
    return None
