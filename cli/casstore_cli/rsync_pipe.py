"""What ``rsync`` runs to reach a task: its standard input and output become a connection to the daemon there.

Decided here and only here: that rsync gets no port on this machine, which others could use, but a program. Run as
``python -m casstore_cli.rsync_pipe WORKFLOW TASK``.
"""

from __future__ import annotations

import asyncio
import os
import sys

from casstore.errors import CasstoreError
from casstore.wire.racing import first_of
from casstore.wire.router import RouterReply
from casstore_cli import console, login
from casstore_cli.client import Client, ConnectionLostError, quoted
from casstore_cli.commands.workflow.sync import COMPLAINT_FD, LOST
from casstore_cli.sockets import ConnectionClosed, failure
from casstore_cli.tunnel import Control


async def connect(client: Client, workflow_id: str, task: str) -> str:
    """Carry one connection; gives what the daemon complained of."""

    def ask() -> RouterReply:
        return client.post(f"api/workflow/{quoted(workflow_id)}/rsync/task/{quoted(task)}", RouterReply)

    def tell(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    control = Control(client, "rsync", workflow_id, ask, tell)
    running = asyncio.ensure_future(control.run(ask()))
    complaint = ""

    async def exchange() -> None:
        nonlocal complaint
        async with control.connection() as ws:

            async def up() -> None:
                async for data in console.read_input():
                    await ws.send(data)
                await ws.send(b"")
                await asyncio.Event().wait()

            async def down() -> None:
                while True:
                    data = await ws.recv()
                    await console.write_output(1, data if isinstance(data, bytes) else data.encode())

            try:
                await first_of(up(), down())
            except ConnectionClosed as closed:
                if (error := failure(closed)) is not None:
                    raise error from None
                complaint = closed.rcvd.reason if closed.rcvd is not None else ""

    await first_of(exchange(), running)
    return complaint


def main() -> int:
    """Connect; errors go to standard error, where rsync's own go."""
    _, workflow_id, task = sys.argv
    try:
        said = asyncio.run(connect(login.connect(), workflow_id, task))
    except ConnectionLostError:
        _tell(LOST)
        return 1
    except CasstoreError as error:
        sys.stderr.write(f"{error.message}\n" + (f"Hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    except (BrokenPipeError, KeyboardInterrupt):
        return 1
    if said:
        _tell(said.replace("\0", ""))
    return 0


def _tell(text: str) -> None:
    if (fd := os.environ.get(COMPLAINT_FD, "")).isdigit():
        os.write(int(fd), text.encode())


if __name__ == "__main__":
    sys.exit(main())
