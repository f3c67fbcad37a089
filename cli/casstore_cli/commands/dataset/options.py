"""Options that several dataset commands share.

Decided here and only here: their names and meaning, and how a number of processes and threads becomes workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from casstore.errors import UsageError
from casstore_cli.multi import ManyOption

_F = TypeVar("_F", bound=Callable[..., Any])

_MOST_WORKERS = 64


def transfer_options(function: _F) -> _F:
    """``-p``, ``-T`` and ``-b`` of commands that move data."""
    for option in (
        click.option("-b", "--benchmark-out", metavar="DIR", help="Write measurements as JSON into DIR."),
        click.option("-T", "--threads", type=click.IntRange(1), help="Threads per process."),
        click.option("-p", "--processes", type=click.IntRange(1), help="Processes; times threads = workers."),
    ):
        function = option(function)
    return function


def tree_options(function: _F) -> _F:
    """``-m`` and ``-l`` of commands that make a version."""
    for option in (
        click.option("-l", "--labels", cls=ManyOption, metavar="FILE...", help="YAML files with labels."),
        click.option("-m", "--metadata", cls=ManyOption, metavar="FILE...", help="YAML files with metadata."),
    ):
        function = option(function)
    return function


def workers(processes: int | None, threads: int | None) -> int | None:
    """How many workers OSMO's two numbers ask for; None when neither was given.

    Work is done by threads of one process. Their useful number depends on the machine, so that a product like
    OSMO's default (CPUs times 20) is cut off.
    """
    if processes is None and threads is None:
        return None
    return min((processes or 1) * (threads or 1), _MOST_WORKERS, 4 * (os.cpu_count() or 1))


def count_option(default: int) -> Callable[[_F], _F]:
    """``-c``: at most so many."""
    return click.option(
        "-c", "--count", type=click.IntRange(1), default=default, show_default=True, help="Show at most so many."
    )


def order_option(function: _F) -> _F:
    """``-o``."""
    return click.option(
        "-o",
        "--order",
        type=click.Choice(("asc", "desc")),
        default="asc",
        show_default=True,
        help="Oldest or newest first.",
    )(function)


def regex_option(function: _F) -> _F:
    """``-x``: matched at the start of a file's path, as ``re.match`` does."""
    return click.option("-x", "--regex", metavar="REGEX", help="Only files whose path matches, from its start.")(
        function
    )


def reference_option(function: _F) -> _F:
    """``--reference``: of what is adopted."""
    return click.option("--reference", is_flag=True, help="Copy nothing: leave the data where it is.")(function)


def writable_folder(path: str | None) -> None:
    """Make the folder, if one is named, and check that it can be written to before any work is done."""
    if path is None:
        return
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't make the folder {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"can't write into {path}")


def existing_folder(path: str) -> str:
    """``path``, which must be a folder that is there."""
    if not os.path.isdir(path):
        what = "is not a folder" if os.path.lexists(path) else "does not exist"
        raise UsageError(f"{path} {what}", hint="" if os.path.lexists(path) else f"make it first: mkdir -p {path}")
    return path
