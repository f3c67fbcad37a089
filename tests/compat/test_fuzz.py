"""Requests that nobody would send, by schemathesis and hypothesis: no reply is a failure of the server's, or one that
its document does not have, and no websocket ends in another way than it says.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished

from casstore.testing.http import Http

if TYPE_CHECKING:
    from tests.compat.conftest import Server

KNOWN: dict[str, list[Any]] = {
    "workflow_id": ["hello-1", "hello-2"],
    "name": ["robots", "pair", "train", "hub"],
    "bucket": ["default"],
    "pool": ["default"],
    "task": ["one"],
    "task_name": ["one"],
    "group": ["one-group"],
    "tag": ["1", "2", "golden", "latest"],
    "command": ['name = "robots"', "metadata.quality.score > 1 ORDER BY name ASC"],
}
"""Names of what there is, so that not everything ends with 404."""


def config(examples: int, seed: int, user: str) -> SchemathesisConfig:
    bound = {name: {"dictionary": name, "probability": 0.4} for name in KNOWN}
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "headers": {"x-osmo-user": user},
            "continue-on-failure": True,
            "dictionaries": {name: {"values": values} for name, values in KNOWN.items()},
            "parameters": {f"{place}.{name}": value for name, value in bound.items() for place in ("path", "query")},
            "generation": {"max-examples": examples, "database": "none", "no-shrink": True, "mode": "all"},
            "phases": {"stateful": {"max-steps": 6}},
            "checks": {
                "not_a_server_error": {"expected-statuses": ["2xx", "4xx"]},
                # What fits the schema may still be wrong; what does not fit is never anything else.
                "positive_data_acceptance": {"enabled": False},
                # It tries other names in the header of the development login, which is there to take any.
                "ignored_auth": {"enabled": False},
            },
            # Its body is not read when a workflow is submitted again by its ID.
            "operations": [
                {"include-operation-id": "workflows_submit", "checks": {"negative_data_rejection": {"enabled": False}}}
            ],
            "output": {"truncation": {"enabled": False}},
        }
    )


@pytest.fixture
def filled(server: Server, tmp_path: Path) -> Iterator[Server]:
    """A server with something of each kind: workflows that have ended, datasets, a collection, an app, a credential."""
    for code in (0, 3):
        server.finish(server.submit()["name"], code=code)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"first")
    bucket = server.services.stores.open("default", "ada")
    bucket.upload("robots", [str(folder)], metadata={"quality": {"score": 1}}, labels={"team": "x"}, tag="golden")
    bucket.upload("arms", [str(folder)])
    http = Http(server.port, {"x-osmo-user": "ada"})
    assert (
        http.post("/api/bucket/default/dataset/pair/collect", json={"datasets": [{"name": "arms"}]}).status_code == 200
    )
    assert http.post("/api/app/user/train", {"description": "x"}, json="workflow:\n  name: train\n").status_code == 200
    body = {"generic_credential": {"credential": {"token": "t"}}}
    assert http.post("/api/credentials/hub", json=body).status_code == 200
    stopped = threading.Event()

    def end_everything() -> None:
        while not stopped.wait(0.02):
            for gang in [gang for gangs in list(server.executor.gangs.values()) for gang in gangs]:
                for task in list(gang.tasks.values()):
                    if task.started.is_set():
                        task.exit(0)

    ending = threading.Thread(target=end_everything)  # whoever follows a log of what was submitted gets its end
    ending.start()
    yield server
    stopped.set()
    ending.join()


@pytest.mark.slow
def test_no_request_makes_the_server_fail_or_say_what_it_does_not_document(filled: Server) -> None:
    run(filled, 3)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_nor_do_those_of_somebody_without_rights(filled: Server) -> None:
    http = Http(filled.port, {"x-osmo-user": "ada"})
    assert http.post("/api/auth/user", json={"id": "eve", "roles": ["osmo-viewer"]}).status_code == 200
    run(filled, 20, random.randrange(2**32), user="eve")


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("server", ["sqlite", "postgres"], indirect=True)
def test_nor_do_very_many(filled: Server) -> None:
    run(filled, 200, random.randrange(2**32))


def run(server: Server, examples: int, seed: int = 1, user: str = "ada") -> None:
    schema = schemathesis.openapi.from_url(
        f"http://127.0.0.1:{server.port}/api/openapi.json",
        config=config(examples, seed, user),
        headers={"x-osmo-user": "ada"},
    )
    problems: dict[str, str] = {}
    for event in from_schema(schema).execute():
        if isinstance(event, FatalError):
            raise event.exception
        if isinstance(event, NonFatalError):
            problems[f"{event.label}: {event.info}"] = ""
        elif isinstance(event, ScenarioFinished) and event.status in {Status.FAILURE, Status.ERROR}:
            for case_id, checks in event.recorder.checks.items():
                for check in checks:
                    if check.failure_info is not None:
                        failure = check.failure_info.failure
                        case = event.recorder.cases[case_id].value
                        problems.setdefault(
                            f"{check.name}: {case.operation.label}: {failure.title}",
                            f"{failure.message}\n{case.as_curl_command()[:600]}",
                        )
    assert not problems, f"{len(problems)} with the seed {seed}\n\n" + "\n\n".join(
        f"{key}\n{value}" for key, value in problems.items()
    )
