"""A server as tests of the wire use it: with an executor that runs nothing, and real stores of datasets."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from casstore.testing.http import Http
from casstore_orchestrator.logs import LogStore
from casstore_orchestrator.pools import this_machine
from casstore_orchestrator.scheduler import Scheduler
from casstore_orchestrator.testing import FakeData, FakeExecutor, ThreadAgents, ThreadMachine
from casstore_orchestrator.urls import StorageUrls
from casstore_server.api.app import create_app
from casstore_server.config import Watched
from casstore_server.configs.stored import StoredConfigs
from casstore_server.credentials import UserCredentials
from casstore_server.db.configs import ConfigRows
from casstore_server.db.location import open_state
from casstore_server.db.sessions import SessionRows
from casstore_server.db.vault import SealedVault
from casstore_server.run import answering
from casstore_server.secrets import Key, SecretBox
from casstore_server.services.configs import seed
from casstore_server.services.context import Configs, Services
from casstore_server.services.jobs import Jobs
from casstore_server.services.sessions import Sessions
from casstore_server.settings import Settings
from casstore_server.stores import Stores

KEY = Key(bytes(32))
HELLO = """
workflow:
  name: hello
  tasks:
  - name: one
    image: ubuntu
    command: [echo, hi]
"""


@dataclass
class Server:
    client: Http
    port: int
    executor: FakeExecutor
    data: FakeData
    services: Services
    scheduler: Scheduler
    config_file: Path

    def submit(self, text: str = HELLO, *, status: int = 200, pool: str = "default", **query: Any) -> dict[str, Any]:
        reply = self.client.post(f"/api/pool/{pool}/workflow", params=query, json={"file": text})
        assert reply.status_code == status, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def get(self, path: str, *, status: int = 200, **query: Any) -> Any:
        reply = self.client.get(path, params=query)
        assert reply.status_code == status, reply.text
        return reply.json()

    def finish(self, workflow_id: str, group: str = "one-group", code: int = 0) -> None:
        gang = self.gang(workflow_id, group)
        for task in gang.tasks.values():
            assert task.started.wait(30)
            task.exit(code)
        self.wait(workflow_id)

    def gang(self, workflow_id: str, group: str = "one-group") -> Any:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for key, gangs in list(self.executor.gangs.items()):
                if workflow_id in key and group in key:
                    return gangs[0]
            time.sleep(0.01)
        raise AssertionError(f"no gang of {workflow_id} among {list(self.executor.gangs)}")

    def wait(self, workflow_id: str) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.services.database.load(workflow_id).status.finished:
                return
            time.sleep(0.01)
        raise AssertionError(f"{workflow_id} does not end")


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server; its state is in PostgreSQL for whoever asks for that with ``indirect``."""
    config_file = tmp_path / "config.yaml"
    settings = Settings(
        socket_path=tmp_path / "s",
        state_dir=tmp_path,
        config_file=config_file,
        data_dir=tmp_path / "data",
        cache_dir=tmp_path / "cache",
        user="ada",
    )
    settings.workflows.mkdir()
    url = request.getfixturevalue("postgres")() if getattr(request, "param", "") == "postgres" else ""
    database = open_state(settings, url)
    executor, data = FakeExecutor(), FakeData()
    box = SecretBox(lambda: [KEY])
    rows = ConfigRows(database, box)
    seed(rows, settings.user)
    stored = StoredConfigs(lambda: rows)
    watched = Watched(config_file, settings.data_dir, this_machine(), stored)
    machine = ThreadMachine.over(executor, data, settings.workflows, file_urls=True)
    scheduler = Scheduler(database, ThreadAgents(machine), watched.pools, LogStore(settings.workflows))
    vault = SealedVault(lambda: database, box)
    credentials = UserCredentials(config_file, settings.user, lambda: vault)
    jobs = Jobs()
    stores = Stores(watched, settings, credentials.storage(settings.user))
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
        roles=watched.roles,
        sessions=Sessions(SessionRows(database, box)),
        urls=StorageUrls(credentials.storage),
        config=watched,
        isolation=executor.describe(),
        started=time.time(),
    )
    scheduler.start()
    with answering(create_app(services), settings.socket_path, port=0) as port:
        client = Http(str(settings.socket_path))
        yield Server(client, port, executor, data, services, scheduler, config_file)
    for gangs in list(executor.gangs.values()):
        for gang in gangs:
            gang.close()
    scheduler.stop()
    machine.close()
    jobs.close()
    services.index.close()
    stores.close()
    database.close()
