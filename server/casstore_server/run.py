"""Putting the server together and running it until a signal arrives.

Decided here and only here: which parts there are, the order in which they start and stop, and how the server listens:
on a unix socket that only its owner can reach, and on 127.0.0.1 when a port was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from casstore.errors import ServiceError, UsageError
from casstore.structs import settle
from casstore.wire.local import READY
from casstore.wire.router import MAX_MESSAGE
from casstore_orchestrator.data import BucketData
from casstore_orchestrator.logs import LogStore
from casstore_orchestrator.scheduler import Scheduler
from casstore_orchestrator.urls import StorageUrls
from casstore_server.agent import local_agents
from casstore_server.api.app import create_app
from casstore_server.api.connection import CheckedProtocol, CheckedWebSocket
from casstore_server.db.location import open_state
from casstore_server.db.sessions import SessionRows
from casstore_server.db.store import Database
from casstore_server.executor import LocalExecutor
from casstore_server.keyring import find_private, open_box, take_up
from casstore_server.logs import set_up
from casstore_server.metrics import Metrics, available
from casstore_server.observing import Observers, RequestLog
from casstore_server.parts import open_parts
from casstore_server.private import Private
from casstore_server.secrets import SecretBox
from casstore_server.services.configs import seed
from casstore_server.services.context import Configs, Services
from casstore_server.services.jobs import Jobs
from casstore_server.services.sessions import Sessions
from casstore_server.settings import Settings
from casstore_server.supervision import notify
from casstore_server.tls import Certificate
from casstore_server.traces import tracing, wanted

__all__ = ["answering", "serve"]

DRAIN_S = 5.0
"""How long open replies may take to an end once the server is told to end, unless the settings say otherwise."""
_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Tells whoever started it that it answers, and open replies that it ends."""

    ready_fd: int | None = None
    ending: threading.Event | None = None
    certificate: Certificate | None = None
    _watching: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await self._listen(sockets or [])
        if self.started and self.ready_fd is not None:
            fd, self.ready_fd = self.ready_fd, None
            with contextlib.suppress(OSError):  # the command that started us is gone
                os.write(fd, READY)
            os.close(fd)
        if self.started:
            notify("READY=1")

    async def _listen(self, sockets: list[socket.socket]) -> None:
        """TLS is for whom the kernel does not know: on the unix socket there is none."""
        if self.certificate is None:
            await super().startup(sockets=sockets)
            return
        await super().startup(sockets=[one for one in sockets if one.family == socket.AF_UNIX])

        def protocol() -> CheckedProtocol:
            return CheckedProtocol(self.config, self.server_state, self.lifespan.state)

        loop = asyncio.get_running_loop()
        for one in sockets:
            if one.family != socket.AF_UNIX:
                self.servers.append(await loop.create_server(protocol, sock=one, ssl=self.certificate.context))
        self._watching = loop.create_task(self.certificate.watch())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin nothing new; what was written before reaches everybody who follows it."""
        notify("STOPPING=1")
        if self._watching is not None:
            self._watching.cancel()
        if self.ending is not None:
            self.ending.set()
        await super().shutdown(sockets=sockets)


def serve(settings: Settings) -> None:
    """Run the server; returns after SIGTERM or SIGINT, with everything stopped."""
    set_up(settings.log_format, settings.log_level)
    settle()
    with contextlib.ExitStack() as stack:
        traces = stack.enter_context(tracing(wanted(os.environ)))
        private = find_private(settings)
        database = open_state(settings, private.database)
        stack.callback(database.close)
        if settings.instance and not database.shared:
            raise UsageError("Servers of several instances need a PostgreSQL that they share")
        tls = settings.identity
        certificate = Certificate(Path(tls.tls_cert), Path(tls.tls_key)) if tls.tls else None
        sockets = stack.enter_context(_listening(settings.socket_path, settings.port, settings.host))
        if settings.port is not None:
            settings = replace(settings, port=sockets[1].getsockname()[1])
            _say_who(settings)
        observers = Observers([traces] if traces else [])
        if settings.log_requests:
            observers.add(RequestLog())
        box = open_box(private, settings, database)
        services = stack.enter_context(_parts(settings, database, observers, box, private))
        server = _Server(_config(create_app(services), settings.drain))
        server.ready_fd, server.ending = settings.ready_fd, services.ending
        server.certificate = certificate
        # uvicorn raises the signal that ended it once more when it is done: that must not end us before the rest.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        _log.info("server of %s, process %d, on %s", settings.user, os.getpid(), settings.socket_path)
        asyncio.run(server.serve(sockets=sockets))
    _log.info("the server ended")


@contextlib.contextmanager
def answering(
    app: ASGIApp, socket_path: Path, port: int | None = None, *, certificate: Certificate | None = None
) -> Iterator[int]:
    """Answer requests from a thread for the length of the block; gives the port (0 without one)."""
    with _listening(socket_path, port) as sockets:
        server = _Server(_config(app))
        server.certificate = certificate
        thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=sockets),), daemon=True)
        thread.start()
        try:
            yield 0 if port is None else sockets[1].getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def _config(app: ASGIApp, drain: float = DRAIN_S) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=CheckedProtocol,
        ws=CheckedWebSocket,
        ws_max_size=MAX_MESSAGE,
        ws_ping_interval=20,
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whose word counts is decided by `api.authenticate`
        timeout_graceful_shutdown=math.ceil(drain),
        timeout_keep_alive=5,
    )


@contextlib.contextmanager
def _listening(path: Path, port: int | None, host: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """The sockets; requests wait in them until somebody answers."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_unix_socket(path))]
        stack.callback(_remove_socket, path, path.stat().st_ino)
        if port is not None:
            sockets.append(stack.enter_context(_loopback_socket(host, port)))
        for listener in sockets:
            listener.listen(128)
        yield sockets


@contextlib.contextmanager
def _parts(
    settings: Settings, database: Database, observers: Observers, box: SecretBox, private: Private
) -> Iterator[Services]:
    """Everything below the routes, started; stopped at the end."""
    settings.workflows.mkdir(mode=0o700, exist_ok=True)
    rows, stored, watched, vault, credentials, stores = open_parts(settings, database, box)
    seed(rows, settings.user)
    take_up(settings.config_file.parent, vault)
    data = BucketData(stores.open)
    watched.on_change(data.forget)
    executor = LocalExecutor(settings, watched)
    urls = StorageUrls(credentials.storage)
    agents = local_agents(settings, private)
    scheduler = Scheduler(
        database,
        agents,
        watched.pools,
        LogStore(settings.workflows),
        host=executor.host,
        credentials=credentials,
        alone=not database.shared,
        lease=settings.lease,
        on_pass=observers.placed,
    )
    metrics = Metrics(scheduler.figures) if settings.metrics and available() else None
    if metrics is not None:
        observers.add(metrics)
    observers.watch(database.engine)
    with contextlib.ExitStack() as stack:
        stack.callback(stores.close)
        jobs = Jobs()
        stack.callback(jobs.close)
        stack.callback(scheduler.stop)
        scheduler.start()
        services = Services(
            settings=settings,
            database=database,
            scheduler=scheduler,
            logs=scheduler.logs,
            data=data,
            stores=stores,
            storage=credentials.storage,
            jobs=jobs,
            credentials=credentials,
            box=box,
            configs=Configs(rows, stored),
            sessions=Sessions(SessionRows(database, box), shared=database.shared),
            urls=urls,
            config=watched,
            roles=watched.roles,
            isolation=executor.describe(),
            started=time.time(),
            agents=agents,
            observers=observers,
            metrics=metrics,
        )
        stack.callback(services.index.close)
        database.on_change(services.index.workflow_changed)
        services.index.start()
        yield services


def _unix_socket(path: Path) -> socket.socket:
    """Listen on ``path``; what is there already belongs to a server that is gone: ours holds the lock."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener.bind(str(path))  # the umask of the process makes it 0600
        path.chmod(0o600)
    except OSError as exc:
        listener.close()
        raise ServiceError(f"The server can't listen on {path}: {exc.strerror or exc}") from exc
    return listener


def _loopback_socket(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # asyncio sets it on sockets that name their protocol, which accepted ones don't: a reply in two parts would wait
    # for the client's kernel, 40 ms. Connections have it from the listener.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as exc:
        listener.close()
        raise ServiceError(f"The server can't listen on {host}:{port}: {exc}") from exc
    return listener


def _say_who(settings: Settings) -> None:
    """Log where it listens, and who may come."""
    if settings.identity.allows_dev(settings.host):
        _log.warning("listening on %s: everybody on this machine can run workflows as you through it", settings.url)
    else:
        _log.info("listening on %s, for those who log in", settings.url)


def _remove_socket(path: Path, inode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()
