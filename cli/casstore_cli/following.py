"""Following the log or the events of a workflow, whatever becomes of the server meanwhile.

Decided here and only here: which requests are made. What is given was given by the server together with its place, so
that nothing comes twice and nothing is left out when another reply, of another server even, goes on from there. A
server that tells no places (OSMO's own) can't go on: with it the text ends where the server does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from typing import Literal

from casstore.wire.following import Marked, Resume
from casstore_cli.client import Client, ConnectionLostError, Stream, Value, quoted
from casstore_cli.patience import persistently

__all__ = ["Kind", "follow"]

Kind = Literal["logs", "error_logs", "events"]


def follow(
    client: Client, workflow_id: str, kind: Kind, query: Mapping[str, Value] | None = None
) -> Generator[bytes, None, None]:
    """Pieces of the text as they come, until the workflow ends. The first request is made at once.

    ``ServiceError`` when the server goes away for good.
    """
    path = f"workflow/{quoted(workflow_id)}/{kind}"
    first = client.stream(f"api/{path}", query)
    return _rest(client, first, path, query or {}) if first.marked else first.pieces


def _rest(client: Client, stream: Stream, path: str, query: Mapping[str, Value]) -> Generator[bytes, None, None]:
    marked = Marked()
    _, workflow_id, kind = path.split("/")
    command = f"{'events' if kind == 'events' else 'logs'} {workflow_id}"
    again = {name: value for name, value in query.items() if name != "last_n_lines"}

    def resume() -> Stream:
        if not marked.places:  # nothing came: it is as if nobody had asked
            return client.stream(f"api/{path}", query)
        return client.stream(f"api/v1/{path}", again, body=Resume(places=marked.places))

    while True:
        try:
            with contextlib.closing(stream.pieces) as pieces:
                for piece in pieces:
                    if text := marked.feed(piece):
                        yield text
        except ConnectionLostError:
            marked.cut()
        else:
            if text := marked.rest():
                yield text
            return
        stream = persistently(client, resume, hint=f"What runs goes on. Ask again: osmo workflow {command}")
