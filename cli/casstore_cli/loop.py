"""Coroutines of a command, run to their end.

Decided here and only here: that Ctrl-C cancels them and comes out as ``KeyboardInterrupt`` once they have cleaned up.
``asyncio`` sees to it only where Python's own handler is set; with the command's, the exception would come up inside
whatever callback runs at that moment, and leave connections open.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in a new event loop of the main thread."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, as in the background of a shell: it stays so
        return asyncio.run(work)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return asyncio.run(work)
    finally:
        signal.signal(signal.SIGINT, before)
