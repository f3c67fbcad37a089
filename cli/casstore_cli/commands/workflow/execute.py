"""``osmo workflow exec``: run a program in a running task.

Decided here and only here: when the program gets a terminal (when this command has one at both ends), what its exit
code becomes, and what is said when the connection or the task ends before the program.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click
import msgspec

from casstore.errors import CancelledError, UsageError
from casstore.wire.racing import first_of
from casstore.wire.router import ERRORS, RESIZE, RouterReply, WindowSize
from casstore_cli import console, login, output
from casstore_cli.client import Client, quoted
from casstore_cli.loop import run
from casstore_cli.terminal import harmless

if TYPE_CHECKING:
    from casstore_cli.sockets import ClientConnection

RETRY_SECONDS = 10.0
"""How long --keep-alive waits before it connects again; OSMO's."""
_SHELLS = ("bash", "sh", "zsh", "fish", "tcsh", "csh", "ksh")
_LOST = 255
"""The exit code when the connection is lost: no program's own, as with ssh."""


@click.command("exec")
@click.argument("workflow_id")
@click.argument("task", required=False)
@click.option("-g", "--group", help="Run it in every running task of this group, without input.")
@click.option("--entry", default="/bin/bash", show_default=True, help="The program and its arguments, as one string.")
@click.option(
    "--connect-timeout", type=click.FloatRange(min=1), default=60, show_default=True, help="Seconds to wait for it."
)
@click.option("--keep-alive", is_flag=True, help="When the connection is lost, connect and run it again.")
@click.pass_context
def exec_(
    ctx: click.Context,
    workflow_id: str,
    task: str | None,
    group: str | None,
    entry: str,
    connect_timeout: float,
    keep_alive: bool,
) -> None:
    """Run a program in a running TASK: a shell, or whatever --entry says.

    It runs where the task's command runs, with the same files, environment, credentials and limits, until it or the
    task ends. The exit code is the program's. Without a terminal, standard input, output and error are passed on as
    they are: echo hello | osmo workflow exec WORKFLOW_ID TASK --entry cat
    """
    if (task is None) == (group is None):
        raise click.UsageError("Name a task, or a group with --group.")
    client = login.connect()
    if group is not None:
        words = entry.split()
        if keep_alive or (words and words[-1].endswith(_SHELLS)):
            raise UsageError("A group can't share a shell", hint="Name the command to run with --entry.")
        ctx.exit(run(_in_group(client, workflow_id, group, entry, connect_timeout)))
    while True:
        path = f"api/workflow/{quoted(workflow_id)}/exec/task/{quoted(task or '')}"
        found = client.post(path, RouterReply, {"entry_command": entry})
        code = run(_interactive(client, workflow_id, found, connect_timeout))
        if code is not None:
            ctx.exit(code)
        if not keep_alive:
            _lost()
        output.message(f"The connection to the server was lost; running it again in {RETRY_SECONDS:g} seconds.")
        _pause(client)


def _lost() -> NoReturn:
    sys.stderr.write(
        "The connection to the server was lost, and the program in the task was hung up. The task goes on.\n"
        "Hint: Run the command again; --keep-alive does that by itself.\n"
    )
    sys.exit(_LOST)


def _pause(client: Client) -> None:
    import time

    while True:
        time.sleep(RETRY_SECONDS)
        if client.probe() is not None:
            return


async def _interactive(client: Client, workflow_id: str, found: RouterReply, seconds: float) -> int | None:
    """Run the program on our own streams; its exit code, None when the connection was lost."""
    from casstore_cli.sockets import ConnectionClosed, ConnectionLostError, ended, failure, open_socket

    terminal = console.is_terminal()
    if not terminal and not found.pipes:
        raise UsageError("This server runs programs on terminals only", hint="Run the command on a terminal.")
    async with open_socket(client, found, "exec", workflow_id, seconds=seconds) as ws:
        try:
            if terminal:
                await _on_terminal(ws)
            else:
                await ws.send(_window(pipes=True))
                await _on_pipes(ws)
        except ConnectionClosed as closed:
            error = failure(closed)
            if isinstance(error, ConnectionLostError):
                return None
            if error is not None:
                raise error from None
            end = ended(closed)
            if end.with_task:
                output.message("The task ended, and the program with it.")
            return end.exit
    return None


def _window(*, pipes: bool = False) -> bytes:
    rows, columns = console.window_size()
    term = os.environ.get("TERM", "xterm")
    if pipes:
        return msgspec.json.encode(WindowSize(pipes=True))
    return msgspec.json.encode({"Rows": rows, "Cols": columns, "Term": term})


async def _on_terminal(ws: ClientConnection) -> None:
    changed = asyncio.Event()
    ending = asyncio.Event()

    async def sizes() -> None:
        while True:
            await changed.wait()
            changed.clear()
            await ws.send(RESIZE + _window())

    async def typed() -> None:
        async for data in console.read_input():
            await ws.send(data)
        await asyncio.Event().wait()  # the terminal is gone: SIGHUP tells

    async def shown() -> None:
        async for message in ws:
            if message:
                await console.write_output(1, message if isinstance(message, bytes) else message.encode())
        await ws.recv()  # raises how it was closed

    async def told_to_end() -> None:
        await ending.wait()
        raise CancelledError("ended by a signal")

    await ws.send(_window())
    with console.raw(ending.set, changed.set):
        await first_of(sizes(), typed(), shown(), told_to_end())


async def _on_pipes(ws: ClientConnection) -> None:
    from casstore_cli.sockets import ConnectionClosed

    async def given() -> None:
        try:
            async for data in console.read_input():
                await ws.send(data)
            await ws.send(b"")
        except ConnectionClosed:
            pass  # whoever reads learns why

    sending = asyncio.ensure_future(given())
    try:
        async for message in ws:
            data = message if isinstance(message, bytes) else message.encode()
            await console.write_output(2 if data[:1] == ERRORS else 1, data[1:])
        await ws.recv()  # raises how it was closed
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _in_group(client: Client, workflow_id: str, group: str, entry: str, seconds: float) -> int:
    path = f"api/workflow/{quoted(workflow_id)}/exec/group/{quoted(group)}"
    found = client.post(path, dict[str, RouterReply], {"entry_command": entry})
    codes = await asyncio.gather(
        *(_one_of_group(client, workflow_id, task, reply, seconds) for task, reply in found.items())
    )
    return max(codes, default=0)


async def _one_of_group(client: Client, workflow_id: str, task: str, found: RouterReply, seconds: float) -> int:
    from casstore_cli.sockets import ConnectionClosed, ended, failure, open_socket

    rests = {1: b"", 2: b""}

    def say(fd: int, data: bytes) -> None:
        *lines, rests[fd] = (rests[fd] + data).split(b"\n")
        for line in lines:
            _line(fd, task, line)

    async with open_socket(client, found, "exec", workflow_id, seconds=seconds) as ws:
        await ws.send(_window(pipes=found.pipes))
        if found.pipes:
            await ws.send(b"")
        try:
            while True:
                message = await ws.recv()
                data = message if isinstance(message, bytes) else message.encode()
                say(2 if found.pipes and data[:1] == ERRORS else 1, data[1:] if found.pipes else data)
        except ConnectionClosed as closed:
            for fd, rest in rests.items():
                if rest:
                    _line(fd, task, rest)
            error = failure(closed)
            if error is not None:
                _line(2, task, error.message.encode())
                return _LOST
            return ended(closed).exit


def _line(fd: int, task: str, line: bytes) -> None:
    stream = sys.stderr if fd == 2 else sys.stdout
    if stream.isatty():
        stream.write(f"[{task}] {harmless(line.decode('utf-8', 'replace'))}\n")
    else:
        stream.buffer.write(b"[" + task.encode() + b"] " + line + b"\n")
    stream.flush()
