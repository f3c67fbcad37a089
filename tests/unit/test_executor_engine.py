"""Container engines that answer, do not answer, and answer later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.errors import NotFoundError
from casstore_orchestrator.executors import engine
from casstore_orchestrator.executors.engine import find_engine
from casstore_orchestrator.pools import this_machine
from casstore_server.config import Watched
from casstore_server.executor import LocalExecutor
from casstore_server.settings import Settings

CONFIG = """
casstore:
  pools:
    a: {executor: docker, platforms: {x: {cpu: 1}}}
    b: {executor: podman, platforms: {x: {cpu: 1}}}
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a docker whose daemon does not run, and a podman that writes down what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in (
        ("docker", f'[ -e {folder}/up ] || {{ echo "no daemon" >&2; exit 1; }}; echo 24.0'),
        ("podman", f'echo "$*" >> {folder}/asked; case $1 in info) echo 4.3 false;; esac'),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    engine._look.cache_clear()
    yield folder
    engine._look.cache_clear()


def test_an_engine_that_is_started_later_is_found(programs: Path) -> None:
    with pytest.raises(NotFoundError, match="no daemon"):
        find_engine("docker")
    (programs / "up").touch()
    assert find_engine("docker").version == "24.0"


def test_an_engine_that_does_not_answer_keeps_nobody_from_the_others(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    settings = Settings(
        socket_path=tmp_path / "s",
        state_dir=tmp_path / "state",
        config_file=tmp_path / "config.yaml",
        data_dir=tmp_path / "data",
        cache_dir=tmp_path / "cache",
        user="tester",
    )
    executor = LocalExecutor(settings, Watched(settings.config_file, settings.data_dir, this_machine()))
    with pytest.raises(NotFoundError, match="no daemon"):
        executor.sweep("flow-1/group")
    assert "ps --all" in (programs / "asked").read_text()
