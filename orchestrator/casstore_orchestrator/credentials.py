"""The credentials of a task: which there must be, and how they reach its command.

Decided here and only here: how the two forms of ``credentials`` in a specification become environment variables and
files, what is refused at submission, and which strings are secrets in a log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from casstore.errors import AccessError, CasstoreError

from .ports import Credentials, PlacedFile
from .spec import TaskSpec, WorkflowSpec

__all__ = ["NoCredentials", "check_credentials", "secret_values", "task_credentials"]

_FILE_MODE = 0o600


class NoCredentials:
    """A store of credentials that has none."""

    def lookup(self, user: str, name: str) -> Mapping[str, str] | None:
        """None: there is no such credential."""
        return None


def task_credentials(
    task: TaskSpec, user: str, credentials: Credentials
) -> tuple[dict[str, str], tuple[PlacedFile, ...]]:
    """The environment variables and files that a task's credentials become. ``AccessError`` for what is missing."""
    environment: dict[str, str] = {}
    files: list[PlacedFile] = []
    for name, wanted in task.credentials.items():
        values = _values(task, name, user, credentials)
        if isinstance(wanted, str):
            for key, value in values.items():
                path = f"{wanted.rstrip('/')}/{key}"
                if any(file.path == path for file in files):
                    msg = f"task {task.name}: two credentials would both be the file {path}"
                    raise AccessError(msg, hint="Give each of them a folder of its own.")
                files.append(PlacedFile(path, value.encode(), _FILE_MODE))
            continue
        for variable, key in wanted.items():
            if key not in values:
                msg = f"task {task.name}: credential {name!r} has no key {key!r}"
                raise AccessError(msg, hint=f"Its keys are: {', '.join(sorted(values))}.")
            if variable in environment:
                msg = f"task {task.name}: two credentials would both be the variable {variable}"
                raise AccessError(msg, hint="Give each of them a variable of its own.")
            environment[variable] = values[key]
    return environment, tuple(files)


def check_credentials(spec: WorkflowSpec, user: str, credentials: Credentials) -> None:
    """Refuse a workflow whose credentials its user does not have. ``AccessError``."""
    for task in spec.tasks:
        task_credentials(task, user, credentials)


def secret_values(spec: WorkflowSpec, user: str, credentials: Credentials) -> Iterator[str]:
    """Every value that must not appear in the workflow's logs."""
    for name in sorted({name for task in spec.tasks for name in task.credentials}):
        with contextlib.suppress(CasstoreError):  # the attempt that needs it says so
            yield from (credentials.lookup(user, name) or {}).values()


def _values(task: TaskSpec, name: str, user: str, credentials: Credentials) -> Mapping[str, str]:
    values = credentials.lookup(user, name)
    if values is None:
        msg = f"task {task.name}: there is no credential {name!r}"
        raise AccessError(msg, hint=f"Set it first: osmo credential set {name} --value -")
    return values
