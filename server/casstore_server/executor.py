"""The executor of this machine, with everything hidden from tasks that is ours.

Decided here and only here: which folders no task may see: the server's state and socket, the configuration with its
credentials, caches, and the stores of all buckets as they are declared at the moment a group starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casstore_orchestrator.executors.process import ProcessExecutor
from casstore_orchestrator.ports import Executor, Gang, Isolation, Layout, LogSink, TaskLaunch
from casstore_server.config import Watched
from casstore_server.settings import Settings
from casstore_server.stores import local_folder

__all__ = ["LocalExecutor"]


class LocalExecutor(Executor):
    """Implements ``ports.Executor``; what is hidden follows the configuration."""

    def __init__(self, settings: Settings, config: Watched, *, hold: int | None = None) -> None:
        """``hold``: see ``ProcessExecutor``."""
        self._settings = settings
        self._config = config
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

    def _now(self) -> ProcessExecutor:
        settings = self._settings
        hidden = [
            settings.state_dir,
            settings.socket_path.parent,
            settings.config_file.parent,
            settings.data_dir,
            settings.cache_dir,
        ]
        folders = (local_folder(bucket.url) for bucket in self._config.last_good().buckets.values())
        hidden += [Path(folder) for folder in folders if folder]
        return ProcessExecutor(hidden=hidden, hold=self._hold)
