"""An HTTP server that says what a test tells it to: throttling, refusals, answers that lie about their length.

Decided here and only here: how an answer is written down. It is sent as it stands: nothing is added but what is given.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import threading
from collections.abc import Callable, Mapping
from typing import Self

import msgspec

__all__ = ["Asked", "Says", "ScriptedServer"]


class Asked(msgspec.Struct, frozen=True):
    """One request that came; the names of its headers in small letters."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Says(msgspec.Struct, frozen=True):
    """One answer. Without ``length`` the length of ``body`` is announced; ``drop`` sends nothing and hangs up.

    ``every``: seconds from one byte of the body to the next.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    length: int | None = None
    drop: bool = False
    every: float = 0.0


class ScriptedServer:
    """Answers with ``answer(request)``; ``asked`` has what came."""

    def __init__(self, answer: Callable[[Asked], Says]) -> None:
        self.asked: list[Asked] = []
        self._stopped = threading.Event()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 1 << 16

            def log_message(self, *_: object) -> None:
                """Nothing."""

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Asked(self.command, self.path, headers, body)
                owner.asked.append(request)
                said = answer(request)
                self.close_connection = said.drop or said.length is not None or self.close_connection
                if said.drop:
                    return
                self.send_response_only(said.status)
                length = len(said.body) if said.length is None else said.length
                for name, value in {"Content-Length": str(length), **said.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                body = b"" if self.command == "HEAD" else said.body
                _send(self.wfile, body, said.every, owner._stopped)

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the server."""
        self._stopped.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _send(out: io.BufferedIOBase, body: bytes, every: float, stopped: threading.Event) -> None:
    try:
        for piece in [body[at : at + 1] for at in range(len(body))] if every else [body]:
            out.write(piece)
            out.flush()
            if every and stopped.wait(every):
                break
    except OSError:  # whoever asked has gone
        with contextlib.suppress(OSError):
            out.close()
