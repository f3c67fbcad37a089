"""Sending an iterator of text that may block for hours as a chunked reply.

Decided here and only here: that each stream has a thread of its own (so that a hundred followers do not occupy the
threads that answer requests), how many there may be, how much is buffered for a slow reader, that a reader who
goes away ends the stream, and that a server which ends sends what is there and breaks the reply off behind it: whoever
reads sees that the text was not at its end.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from casstore.errors import CasstoreError, ServiceError

__all__ = ["stream"]

MAX_STREAMS = 256
_MAX_BUFFERED = 1 << 20
_slots = threading.BoundedSemaphore(MAX_STREAMS)
_log = logging.getLogger(__name__)


def stream(
    make: Callable[[Callable[[], bool]], Iterator[bytes]],
    ending: threading.Event | None = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> StreamingResponse:
    """A reply of the text that ``make(stop)`` gives in pieces. Once ``stop()`` is true it is to give what is there,
    and return: that is so for a reader who is gone, and for all once ``ending`` is set.

    Raises ``ServiceError`` when there are too many already.
    """
    if not _slots.acquire(blocking=False):
        raise ServiceError(f"More than {MAX_STREAMS} logs are being followed", hint="Close some, and try again.")
    try:
        return _Reply(_Pump(make, ending or threading.Event()), headers)
    except BaseException:
        _slots.release()
        raise


class _Reply(StreamingResponse):
    """A reply that is left without its end when the server ends before the text does."""

    def __init__(self, pump: _Pump, headers: Mapping[str, str] | None) -> None:
        super().__init__(pump.blocks(), media_type="text/plain; charset=utf-8", headers=headers)
        self._pump = pump

    async def stream_response(self, send: Send) -> None:
        """Send all of it."""

        async def unless_cut(message: Message) -> None:
            if not self._pump.cut or message.get("more_body", True):
                await send(message)

        await super().stream_response(unless_cut)


class _Pump:
    """Moves text from a thread that may block to the event loop, in blocks."""

    def __init__(self, make: Callable[[Callable[[], bool]], Iterator[bytes]], ending: threading.Event) -> None:
        self.cut = False
        """Whether there may be more than was given."""
        self._make = make
        self._ending = ending
        self._context = contextvars.copy_context()
        self._condition = threading.Condition()
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._done = False
        self._stopped = False

    async def blocks(self) -> AsyncIterator[bytes]:
        """The text, as much at a time as there is."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        thread = threading.Thread(target=self._context.run, args=(self._run, loop, ready), name="stream", daemon=True)
        thread.start()
        try:
            while True:
                await ready.wait()
                ready.clear()
                block, done = self._take()
                if block:
                    yield block
                if done:
                    return
        finally:
            with self._condition:
                self._stopped = True
                self._condition.notify_all()

    def _ends(self) -> bool:
        if self._ending.is_set():
            self.cut = True
        return self.cut or self._stopped

    def _take(self) -> tuple[bytes, bool]:
        with self._condition:
            block, self._buffer, self._buffered = b"".join(self._buffer), [], 0
            self._condition.notify_all()
            return block, self._done

    def _run(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Event) -> None:
        def announce() -> None:
            try:
                loop.call_soon_threadsafe(ready.set)
            except RuntimeError:  # the loop is closed: the server ends
                self._stopped = True

        try:
            for data in self._make(self._ends):
                if not data:
                    continue
                with self._condition:
                    self._condition.wait_for(lambda: self._buffered < _MAX_BUFFERED or self._stopped)
                    if self._stopped:
                        return
                    first = not self._buffer
                    self._buffer.append(data)
                    self._buffered += len(data)
                if first:
                    announce()
        except CasstoreError as exc:
            _log.warning("a stream ended early: %s", exc.message)
        except Exception:  # noqa: BLE001  # the reply has begun: all that is left is to end it
            _log.exception("a stream failed")
        finally:
            _slots.release()
            with self._condition:
                self._done = True
            announce()
