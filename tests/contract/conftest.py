"""Servers that several modules share; each is started once in a worker, when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.testing.servers.azurite import Azurite
from casstore.testing.servers.ceph import CephS3
from casstore.testing.servers.gcs import GcsServer

SERVERS = Path(__file__).parents[1] / "servers"


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    with Azurite(SERVERS / "azurite") as server:
        yield server


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    with GcsServer() as server:
        yield server


@pytest.fixture(scope="session")
def ceph() -> Iterator[CephS3]:
    with CephS3() as cluster:
        yield cluster
