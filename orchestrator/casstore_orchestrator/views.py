"""Inputs that tasks see without a copy being made of them.

Decided here and only here: which inputs those are (versions of datasets, also those of which a pattern chooses files,
and kept outputs of tasks without one), who shares a mount (the tasks of a group that read the same), and why another
input is copied. A task may change what it sees: a layer of its own lies over it, made together with the task's
sandbox, so that whoever ends the sandbox ends the layer. Only the versions below are mounts of the host, and last as
long as the group.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from casstore.errors import CancelledError, CasstoreError

from .ports import DatasetVersion, Executor, InputLayer, VersionMounts
from .spec import TaskSpec
from .transfers import Stop

__all__ = ["View", "Views"]

View = InputLayer | str
"""A layer, or why there is none: the empty text where none was wanted."""

_PATTERN = "only files that match a pattern are wanted, and it is a folder of this machine"


class Views:
    """The views of the tasks of one group. ``lay_*`` and ``close`` are called by one thread; ``find`` by any."""

    def __init__(self, executor: Executor, mounts: VersionMounts | None, folder: Path) -> None:
        """``folder`` is where versions are mounted, made when it is needed; ``mounts`` None: nowhere."""
        self._executor = executor
        self._mounts = mounts
        self._folder = folder
        self._paths: dict[tuple[str, str, str], Path] = {}
        self._found: dict[tuple[Path, str], View] = {}

    def find(self, home: Path, at: str) -> View:
        """What came of an input, by the home of the attempt and the place among its inputs."""
        return self._found.get((home, at), "")

    def layers(self, home: Path) -> tuple[InputLayer, ...]:
        """The layers of an attempt."""
        return tuple(view for (owner, _), view in self._found.items() if owner == home and not isinstance(view, str))

    def lay_version(
        self, task: TaskSpec, home: Path, at: str, version: DatasetVersion, stop: Stop, *, regex: str = ""
    ) -> None:
        """Mount a version that is an input, or its files that match, or note why not."""
        if self._mounts is None or task.download_type == "download":
            return
        reason = self._mounts.why_not() or self._executor.why_no_layer(home, home / "data")
        if not reason:
            try:
                self._lay(home, at, self._mounted(self._mounts, version, regex, task.cache_size, stop))
                return
            except CancelledError:
                raise
            except (CasstoreError, OSError) as error:
                reason = error.message if isinstance(error, CasstoreError) else str(error)
        self._found[home, at] = reason

    def lay_folder(self, task: TaskSpec, home: Path, at: str, source: Path) -> None:
        """Show a folder of the host, which nobody changes any more."""
        if task.download_type != "download":
            self._lay(home, at, source)

    def refuse(self, task: TaskSpec, home: Path, at: str, reason: str = _PATTERN) -> None:
        """Note why an input is not shown."""
        if task.download_type != "download" and self._mounts is not None:
            self._found[home, at] = reason

    def close(self) -> tuple[str, ...]:
        """End all mounts; gives what went wrong with them. The tasks must have ended."""
        problems: list[str] = []
        for path in self._paths.values():
            if self._mounts is not None:
                problems += self._mounts.unmount(path)
            # Never more than the folders themselves: something may still be mounted there.
            with contextlib.suppress(OSError):
                path.rmdir()
        with contextlib.suppress(OSError):
            self._folder.rmdir()
            self._folder.parent.rmdir()
        return tuple(problems)

    def _lay(self, home: Path, at: str, source: Path) -> None:
        reason = self._executor.why_no_layer(home, source)
        if not reason:
            (home / "data" / "input" / at).mkdir(parents=True, exist_ok=True)
        self._found[home, at] = reason or InputLayer(at, source)

    def _mounted(
        self, mounts: VersionMounts, version: DatasetVersion, regex: str, cache_size: int | None, stop: Stop
    ) -> Path:
        key = (version.bucket, version.manifest, regex)
        path = self._paths.setdefault(key, self._folder / str(len(self._paths)))
        path.mkdir(parents=True, exist_ok=True)
        mounts.mount(version, path, regex=regex, cache_size=cache_size, stop=stop)
        return path
