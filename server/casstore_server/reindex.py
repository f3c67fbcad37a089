"""``osmo server rebuild-index``: the index read from the buckets again, in a process of its own.

Decided here and only here: what is said while it goes on, and that an interrupt is heeded between two portions.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from typing import Any

import msgspec

from casstore.errors import CancelledError
from casstore.structs import settle
from casstore.wire.local import PROGRESS_PREFIX
from casstore_server.db.location import open_state
from casstore_server.keyring import find_private, open_box
from casstore_server.parts import open_parts
from casstore_server.services.index.rebuild import Rebuilt, rebuild
from casstore_server.settings import Order

__all__ = ["reindex"]

_TOLD_S = 0.2


def reindex(order: Order) -> dict[str, Any]:
    """Do it; what it did. ``CancelledError`` after an interrupt."""
    settle()
    settings, stop = order.settings, threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        private = find_private(settings)
        database = open_state(settings, private.database)
        stack.callback(database.close)
        parts = open_parts(settings, database, open_box(private, settings, database))
        stack.callback(parts.stores.close)
        last = 0.0

        def tell(state: Rebuilt) -> None:
            nonlocal last
            if time.monotonic() - last >= _TOLD_S or state.done == state.datasets:
                last = time.monotonic()
                sys.stderr.write(f"{PROGRESS_PREFIX}{msgspec.json.encode(state).decode()}\n")
                sys.stderr.flush()

        try:
            done = rebuild(database, parts.stores, parts.watched, order.buckets, anew=order.new, tell=tell, stop=stop)
        except CancelledError as error:
            raise CancelledError(
                f"The index is not rebuilt: {error.message}. Run osmo server rebuild-index again: it goes on from here"
            ) from None
    return {"buckets": msgspec.to_builtins(done)}
