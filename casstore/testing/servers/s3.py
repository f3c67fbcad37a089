"""moto's S3 server on the loopback interface.

Decided here and only here: how it is started and stopped, in this process or in one of its own. The latter is for
measurements: a server shares no interpreter with the client that is measured.

``python -m casstore.testing.servers.s3 [RATE]`` runs one until its standard input ends; ``RATE`` is that of its line.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from casstore.remote.credentials import StorageCredential

__all__ = ["S3Server", "moto_s3", "moto_s3_process"]


class S3Server(msgspec.Struct, frozen=True):
    """A server that runs. moto takes any key; this one is shown to it."""

    endpoint: str
    access_key_id: str = "testing"
    access_key: str = "testing-secret"
    region: str = "us-east-1"

    @property
    def credential(self) -> StorageCredential:
        """What a client needs to know."""
        return StorageCredential(
            access_key_id=self.access_key_id,
            access_key=self.access_key,
            region=self.region,
            override_url=self.endpoint,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.access_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }

    def boto3(self) -> Any:
        """Return a plain client of boto3, to look behind the back of ours. To be closed."""
        import boto3.session  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.access_key,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def bucket(self, name: str = "") -> str:
        """Make a bucket, under a new name unless one is given; returns its name."""
        name = name or f"test-{uuid.uuid4().hex[:12]}"
        # A client of boto3 takes longer to make than most tests run, and moto asks for no signature.
        address = urlsplit(self.endpoint)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        try:
            connection.request("PUT", f"/{name}")
            status = connection.getresponse().status
        finally:
            connection.close()
        if status != 200:
            raise RuntimeError(f"moto answered {status}")
        return name


class OneAtATime:
    """Makes moto's conditional writes atomic: it looks at the object and writes in two steps.

    (32 threads that put one key with ``If-None-Match: *``, by boto3 alone, had two winners in 2 of 60 rounds with
    ``sys.setswitchinterval(1e-6)``.) A request's body is received before it waits for its turn.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Answer one request."""
        if environ["REQUEST_METHOD"] not in {"PUT", "POST"} or not (
            {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & set(environ)
        ):
            return self._application(environ, start_response)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with self._lock:
            return self._application(environ, start_response)


class Line:
    """Sends answers at ``rate`` bytes a second, those of all requests together, as a network between would."""

    STEP = 64 << 10
    """Bytes that leave at once."""
    AHEAD = 0.02
    """Seconds for which the line takes what it has not sent yet."""

    def __init__(self, application: Any, rate: float) -> None:
        self._application = application
        self._rate = rate
        self._lock = threading.Lock()
        self._free = time.monotonic()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        """Answer one request."""
        answer = self._application(environ, start_response)
        try:
            for part in answer:
                for at in range(0, len(part), self.STEP):
                    piece = memoryview(part)[at : at + self.STEP]
                    self._wait(len(piece))
                    yield bytes(piece)
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()

    def _wait(self, size: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now) + size / self._rate
            early = self._free - now - self.AHEAD
        if early > 0:
            time.sleep(early)


@contextlib.contextmanager
def moto_s3(rate: float = 0.0) -> Iterator[S3Server]:
    """Run the server in threads of this process. ``rate``: bytes a second of all that it sends; 0: no limit."""
    # The address is given because the default listens to the whole network.
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer  # noqa: PLC0415

    log = logging.getLogger("werkzeug")
    level = log.level
    log.setLevel(logging.ERROR)  # it has a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        application = OneAtATime(server._server.app)  # type: ignore[union-attr]  # noqa: SLF001 - no other way
        server._server.app = Line(application, rate) if rate else application  # type: ignore[union-attr]  # noqa: SLF001
        host, port = server.get_host_and_port()
        yield S3Server(f"http://{host}:{port}")
    finally:
        server.stop()
        if (inner := server._server) is not None:  # noqa: SLF001 - it has no method that closes its socket
            inner.server_close()
        log.setLevel(level)


@contextlib.contextmanager
def moto_s3_process(rate: float = 0.0) -> Iterator[S3Server]:
    """Run the server in a process of its own, which ends with this one. ``rate`` as above."""
    with subprocess.Popen(
        [sys.executable, "-m", "casstore.testing.servers.s3", str(rate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        try:
            yield S3Server(process.stdout.readline().strip())  # type: ignore[union-attr]  # they are pipes
        finally:
            process.stdin.close()  # type: ignore[union-attr]
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _serve() -> None:
    with moto_s3(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0) as server:
        sys.stdout.write(server.endpoint + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    _serve()
