"""A server of buckets alone, for tests of what goes through it: real stores, real connections, users made up.

Decided here and only here: that a user is who they say they are, and has the rights that the test gives them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI

from casstore.backend.served import Http, ServedBackend
from casstore.dataset import Bucket
from casstore.remote.credentials import CredentialSource
from casstore.repo.store import Store
from casstore.wire.protocol import USER_HEADER
from casstore_orchestrator.pools import this_machine
from casstore_server.api import transfer, versions
from casstore_server.api.authenticate import Door
from casstore_server.api.edge import Edge, handle_errors
from casstore_server.config import Watched
from casstore_server.identity.actions import EVERYTHING, Grants, Policy
from casstore_server.identity.caller import Caller
from casstore_server.identity.failures import LoginError
from casstore_server.identity.keys import Key
from casstore_server.identity.settings import IdentitySettings
from casstore_server.run import answering
from casstore_server.services.v1.plane import Plane
from casstore_server.settings import Settings
from casstore_server.stores import Stores

__all__ = ["Serving", "may", "serving"]


def may(*actions: str, buckets: tuple[str, ...] = ("bucket/*",)) -> Grants:
    """Rights to do these in these buckets."""
    return Grants(policies=(Policy(actions, buckets),))


@dataclass
class Serving:
    """A server that runs. ``grants`` are those of users; others have all."""

    url: str
    services: Any
    folder: Path
    grants: dict[str, Grants] = field(default_factory=dict)
    changed: list[tuple[str, str]] = field(default_factory=list)

    def who(self, asking: Any) -> Caller:
        name = asking.headers.get(USER_HEADER, "")
        if not name:
            raise LoginError("No user")
        return Caller(name, grants=self.grants.get(name, EVERYTHING))

    def anybody(self, asking: Any) -> None:
        """Ask as often as you like."""

    def http(self, user: str, **options: Any) -> Http:
        return Http(self.url, lambda: {USER_HEADER: user}, **options)

    @contextlib.contextmanager
    def backend(self, user: str, bucket: str, **options: Any) -> Iterator[ServedBackend]:
        found = ServedBackend(self.http(user, **options), bucket)
        try:
            yield found
        finally:
            found.close()

    @contextlib.contextmanager
    def bucket(self, user: str, bucket: str, **options: Any) -> Iterator[Bucket]:
        with self.backend(user, bucket, **options) as backend, Store.open(backend) as store:
            yield Bucket(store, name=bucket, user=user, state_dir=str(self.folder / f"state-{user}"))

    def store(self, bucket: str) -> Store:
        """The store of a bucket as the server has it open."""
        found: Store = self.services.stores.open(bucket, "").store
        return found


class OneKey:
    """What a server signs with that has no database."""

    def __init__(self) -> None:
        self._key = Key("1", ec.generate_private_key(ec.SECP256R1()))

    def signing(self) -> Key:
        return self._key

    def find(self, kid: str) -> Key | None:
        return self._key if kid == self._key.kid else None


@contextlib.contextmanager
def serving(
    folder: Path, buckets: dict[str, str], credentials: CredentialSource | None = None, *, make: bool = True
) -> Iterator[Serving]:
    """Serve buckets, by their names and URLs; ``make`` makes a store in each."""
    from casstore.backend.registry import open_backend

    config = folder / "config.yaml"
    declared = {name: {"url": url} for name, url in buckets.items()}
    config.write_text(yaml.safe_dump({"casstore": {"buckets": declared, "default_bucket": next(iter(buckets))}}))
    for url in buckets.values() if make else ():
        Store.open(open_backend(url, create=True, credentials=credentials), create=True).close()
    settings = Settings(
        socket_path=folder / "s",
        state_dir=folder,
        config_file=config,
        data_dir=folder / "data",
        cache_dir=folder / "cache",
        user="root",
    )
    stores = Stores(Watched(config, settings.data_dir, this_machine()), settings, credentials)
    services = SimpleNamespace(settings=settings, stores=stores, plane=Plane(), keys=OneKey(), config=stores._config)
    app = FastAPI(openapi_url=None)
    app.include_router(transfer.router)
    app.include_router(versions.router)
    handle_errors(app)
    found = Serving("", services, folder)
    services.index = SimpleNamespace(changed=lambda bucket, dataset: found.changed.append((bucket, dataset)))
    app.state.services, app.state.logins = services, found
    edge = Edge(app, Door(IdentitySettings(), "127.0.0.1"))
    try:
        with answering(edge, settings.socket_path, port=0) as port:
            found.url = f"http://127.0.0.1:{port}"
            yield found
    finally:
        stores.close()
