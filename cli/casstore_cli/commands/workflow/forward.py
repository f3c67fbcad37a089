"""``osmo workflow port-forward``: reach ports of a running task from this machine.

Decided here and only here: how ports are written, what is printed, and that Ctrl-C is the regular way to end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine
from functools import partial
from typing import Any

import click

from casstore.errors import UsageError
from casstore.wire.racing import first_of
from casstore.wire.router import RouterReply
from casstore_cli import login, output
from casstore_cli.client import Client, quoted
from casstore_cli.loop import run

__all__ = ["parse_ports", "port_forward"]

MAX_PORTS = 30


@click.command("port-forward")
@click.argument("workflow_id")
@click.argument("task")
@click.option(
    "-p", "--port", "ports", required=True, help="Such as 8000, 8000:80 (here:there), 8000-8010:9000-9010,8080."
)
@click.option("--host", default="localhost", show_default=True, help="The address to listen on here.")
@click.option("--udp", is_flag=True, help="Forward datagrams instead of connections.")
@click.option(
    "--connect-timeout", type=click.FloatRange(min=1), default=60, show_default=True, help="Seconds to wait for it."
)
def port_forward(workflow_id: str, task: str, ports: str, host: str, udp: bool, connect_timeout: float) -> None:
    """Reach ports of a running TASK as if they were ports of this machine, until Ctrl-C.

    Whatever listens on 127.0.0.1 or on all addresses in the task can be reached; --port 0:80 takes any port that is
    free here. When the server is restarted, the ports come back by themselves.
    """
    pairs = parse_ports(ports)
    client = login.connect()
    # SIGTERM cancels it, as Ctrl-C does.
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        run(_forward(client, workflow_id, task, pairs, host, udp=udp, seconds=connect_timeout))
    output.message("Ended.")


def parse_ports(text: str) -> list[tuple[int, int]]:
    """Pairs of a port here and a port there. Raises ``UsageError``."""
    pairs: list[tuple[int, int]] = []
    for part in text.split(","):
        here, colon, there = part.strip().partition(":")
        local = _range(here, part, zero=bool(colon))
        remote = _range(there, part) if colon else local
        if len(local) != len(remote):
            raise UsageError(f"'{part.strip()}' has {len(local)} ports here and {len(remote)} there")
        pairs += zip(local, remote, strict=True)
        if len(pairs) > MAX_PORTS:
            raise UsageError(f"More than {MAX_PORTS} ports can't be forwarded at a time")
    taken = [local for local, _ in pairs if local]
    if len(set(taken)) != len(taken):
        raise UsageError(f"'{text}' names a port twice")
    return pairs


def _range(text: str, part: str, *, zero: bool = False) -> range:
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first]
    if not all(number.isascii() and number.isdigit() and len(number) <= 5 for number in numbers):
        raise UsageError(f"'{part.strip()}' is not a port", hint="Such as 8000, 8000:80 or 8000-8010:9000-9010.")
    low, high = int(first), int(last) if dash else int(first)
    if dash and low >= high:
        raise UsageError(f"'{part.strip()}' ends before it begins")
    if high > 65535 or (low == 0 and not zero):
        raise UsageError(f"'{part.strip()}' is not between 1 and 65535")
    return range(low, high + 1)


async def _forward(
    client: Client, workflow_id: str, task: str, pairs: list[tuple[int, int]], host: str, *, udp: bool, seconds: float
) -> None:
    from casstore_cli.tunnel import Control, forward_datagrams, serve_stream

    def ask(ports: list[int]) -> list[RouterReply]:
        path = f"api/workflow/{quoted(workflow_id)}/portforward/{quoted(task)}"
        return client.post(path, list[RouterReply], {"task_ports": list(map(str, ports)), "use_udp": udp})

    def ask_one(port: int) -> RouterReply:
        return ask([port])[0]

    def show(remote: int, local: int) -> None:
        kind = "UDP port" if udp else "port"
        output.text(f"Forwarding {host}:{local} to {kind} {remote} of {task}")
        sys.stdout.flush()

    said: set[str] = set()

    def tell(line: str) -> None:
        """All ports lose the same server: say so once."""
        if line not in said:
            said.clear()
            said.add(line)
            output.message(line)

    found = ask([remote for _, remote in pairs])
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _interrupt, asyncio.current_task())
    async with contextlib.AsyncExitStack() as stack:
        running: list[Coroutine[Any, Any, None]] = []
        for (local, remote), reply in zip(pairs, found, strict=True):
            control = Control(client, "portforward", workflow_id, partial(ask_one, remote), tell, seconds)
            if udp:
                running.append(forward_datagrams(control, reply, host, local, partial(show, remote)))
                continue
            server = await serve_stream(control, host, local, tell)
            stack.callback(server.close)
            show(remote, server.sockets[0].getsockname()[1])
            running.append(control.run(reply))
        await first_of(*running)


def _interrupt(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
