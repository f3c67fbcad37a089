"""The agents of this server's groups: what they are made of, and the process that they are forked from.

Decided here and only here: where the runs of groups are kept, which parts an agent has, and what it is told on its
command line: where the files of the server are. What is secret it is handed apart (``private``), and users' credentials
it reads from the database itself, when a task needs them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from casstore_orchestrator.agent.fence import Cleaner
from casstore_orchestrator.agent.folder import RunFolder, Runs, Start
from casstore_orchestrator.agent.host import ProcessAgents
from casstore_orchestrator.agent.nursery import Nursery, raise_agents
from casstore_orchestrator.agent.runner import Services
from casstore_orchestrator.agent.serve import serve
from casstore_orchestrator.data import BucketData
from casstore_orchestrator.executors.cgroups import sweep_groups
from casstore_orchestrator.executors.probe import probe
from casstore_orchestrator.homes import Homes
from casstore_orchestrator.logwriter import LogWriter
from casstore_orchestrator.pools import this_machine
from casstore_orchestrator.ports import RunKey
from casstore_orchestrator.urls import StorageUrls
from casstore_server.config import Watched
from casstore_server.credentials import Joined
from casstore_server.executor import LocalExecutor, registry_login
from casstore_server.mounts import ServerMounts
from casstore_server.private import Private, handed, received
from casstore_server.settings import Settings
from casstore_server.stores import Stores

__all__ = ["local_agents"]


_PATIENCE = 120.0
"""Seconds that an agent waits for a database with credentials: a task's results are worth a while."""


def local_agents(settings: Settings, private: Private | None = None) -> ProcessAgents:
    """The agents of this machine, for a scheduler."""
    private = private or Private()
    # ``-P`` keeps the current folder out of the module path.
    told = msgspec.json.encode(settings, enc_hook=str).decode()
    command = [sys.executable, "-P", "-m", "casstore_server.agent", told]
    executor = LocalExecutor(settings, Joined(settings, private).config())

    def sweep(run: RunKey) -> None:
        sweep_groups(probe().bases)
        executor.sweep(f"{run.workflow_id}/{run.group}")

    cleaner = Cleaner(Homes(settings.workflows), ServerMounts(settings, private), sweep)
    return ProcessAgents(_runs(settings), Nursery(command, lambda: handed(private)), cleaner)


def _runs(settings: Settings) -> Runs:
    return Runs(settings.state_dir / "runs")


@contextlib.contextmanager
def _services(settings: Settings, private: Private, start: Start, hold: int) -> Iterator[Services]:
    """What the runner of a group needs."""
    joined = Joined(settings, private, patience=_PATIENCE)
    config, credentials = joined.config(), joined.credentials
    stores = Stores(config, settings, credentials.storage(settings.user))
    mounts = ServerMounts(settings, private, config)
    executor = LocalExecutor(
        settings,
        config,
        pool=start.record.pool,
        login_for=partial(registry_login, credentials, start.record.user),
        hold=hold,
    )
    data = BucketData(stores.open)
    config.on_change(data.forget)
    with contextlib.ExitStack() as stack:
        stack.callback(stores.close)
        stack.callback(mounts.close)
        yield Services(
            executor=executor,
            default_mounts=executor.default_mounts,
            data=data,
            homes=Homes(settings.workflows),
            logs=LogWriter(settings.workflows),
            credentials=credentials,
            file_urls=True,
            urls=StorageUrls(credentials.storage),
            mounts=mounts,
        )


def main(args: Sequence[str]) -> int:
    """What the process runs: settings, the descriptor by which the server speaks to it, and one of what is secret."""
    settings = msgspec.json.decode(args[0], type=Settings, dec_hook=_decoded)
    private = received(int(args[2]))

    def open_services(start: Start, hold: int) -> contextlib.AbstractContextManager[Services]:
        return _services(settings, private, start, hold)

    def run(folder: RunFolder) -> int:
        return serve(folder, open_services)

    return raise_agents(int(args[1]), _runs(settings), lambda: _warm(settings), run)


def _warm(settings: Settings) -> None:
    """Find out what the machine gives, and load what is loaded when it is first used."""
    import casstore_server.db.vault  # noqa: F401, PLC0415  # for all agents at once

    probe()
    Watched(settings.config_file, settings.data_dir, this_machine(settings.state_dir)).last_good()


def _decoded(kind: type[Any], value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
