"""How every command ends: one line for whatever went wrong, and the exit code that goes with it.

Decided here and only here: what the user sees of an error. A ``CasstoreError`` is told in OSMO's form, on
standard output; wrong usage as click tells it, on standard error; anything unexpected as one line with the
path of the log file that holds the traceback. A traceback never reaches the user.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TextIO

import click

from casstore.errors import CancelledError, CasstoreError
from casstore_cli import output

EXIT_USAGE = 2
EXIT_PIPE = 141  # what a shell reports for a program that ended because nobody reads its output any more
_LOG_SIZE = 10_000_000
_LOG_COUNT = 5


def guarded(run: Callable[[], int], ctx: Callable[[], click.Context | None]) -> int:
    """Call ``run`` and return the exit code. ``ctx`` gives the root context, once there is one."""
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_PIPE
    except BaseException as error:  # noqa: BLE001 - the one place where everything ends
        return _report_somewhere(error, ctx())
    return code


def _report_somewhere(error: BaseException, ctx: click.Context | None) -> int:
    """Report on standard output, as OSMO does, or where that fails (a full disk) on standard error."""
    as_json = output.is_json(ctx)
    try:
        code = report(error, as_json=as_json, stream=sys.stderr if output.end_array(ctx) else None)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _abandon_stdout()
        return EXIT_PIPE
    except OSError:
        _abandon_stdout()
    try:
        return report(error, as_json=as_json, stream=sys.stderr)
    except OSError:
        return EXIT_USAGE


def report(error: BaseException, *, as_json: bool = False, stream: TextIO | None = None) -> int:
    """Tell the user about ``error``, on standard output unless ``stream`` is given, and return the exit code."""
    tell = partial(_tell, as_json=as_json, stream=stream or sys.stdout)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, click.UsageError):
        if not as_json:
            error.show()
        else:
            where = error.ctx.command_path if error.ctx else "osmo"
            tell(error.format_message(), 400, "usage", f"see: {where} --help")
        return EXIT_USAGE
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        error = CancelledError("interrupted")
    if isinstance(error, click.ClickException):
        tell(error.format_message(), 1, "usage", None)
        return EXIT_USAGE
    if isinstance(error, CasstoreError):
        if isinstance(error, CancelledError) and not as_json:
            sys.stderr.write(f"{output.escape(error.message)}\n")
        else:
            tell(error.message, error.http_status, error.kind.value, error.hint)
        return error.exit_code
    path = _log(error)
    where = f"; details are in {path}" if path else ""
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        shown = f"{os.fsdecode(name)}: " if isinstance(name, (str, bytes)) else ""
        tell(f"{shown}{error.strerror}{where}", 1, "source", None)
        return EXIT_USAGE
    if isinstance(error, MemoryError):
        tell(f"out of memory{where}", 1, "internal", None)
        return EXIT_USAGE
    tell(f"internal error: {type(error).__name__}: {error}{where}", 1, "internal", None)
    return EXIT_USAGE


def as_object(error: CasstoreError) -> dict[str, object]:
    """The JSON form of an error."""
    return {"message": error.message, "code": error.http_status, "kind": error.kind.value, "hint": error.hint}


def _tell(message: str, code: int, kind: str, hint: str | None, *, as_json: bool, stream: TextIO) -> None:
    if as_json:
        output.document({"message": message, "code": code, "kind": kind, "hint": hint}, stream=stream)
        return
    lines = [f"Error message: {output.escape(message)}", f"Error code: {code}"]
    if hint:
        lines.append("Hint: " + "\n".join(output.escape(line) for line in hint.split("\n")))  # a hint may be a table
    stream.write("\n".join(lines) + "\n")


def _abandon_stdout() -> None:
    """Nobody reads any more: make sure that the interpreter does not complain about it at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                os.dup2(devnull, stream.fileno())
            except (OSError, ValueError):
                continue
    os.close(devnull)


def _log(error: BaseException) -> str | None:
    """Append the traceback to the log and return its path; None when it can't be written."""
    import traceback
    from datetime import UTC, datetime

    from casstore.config import find_paths

    entry = "".join(traceback.format_exception(error))
    try:
        path = os.path.join(find_paths().logs, "client.log")
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        _rotate(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{datetime.now(UTC).isoformat()} pid {os.getpid()}\n{entry}\n")
    except (OSError, CasstoreError):
        return None
    return path


def _rotate(path: str) -> None:
    try:
        if os.stat(path).st_size < _LOG_SIZE:
            return
    except FileNotFoundError:
        return
    for number in range(_LOG_COUNT - 1, 0, -1):
        older = path if number == 1 else f"{path}.{number - 1}"
        if os.path.exists(older):
            os.replace(older, f"{path}.{number}")
