"""The back end over every service keeps the contract, as its clients come: with retries, within limits.

A folder and Ceph's gateway are real systems: how races end there counts. The others are doubles, which are atomic by a
lock or a single thread (moto by ``OneAtATime``): they show that our requests and errors are the right ones.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.base import Absent, Backend, Condition, Matches
from casstore.backend.objects import ObjectBackend
from casstore.backend.probe import probe
from casstore.errors import PreconditionError
from casstore.remote.azure import AzureClient
from casstore.remote.base import ObjectClient
from casstore.remote.gcs import GcsClient
from casstore.remote.limit import LimitClient
from casstore.remote.local import LocalClient
from casstore.remote.retry import RetryClient
from casstore.remote.s3 import S3Client
from casstore.testing.backend_contract import BackendContract
from casstore.testing.faults import Fault, FaultClient, FaultPlan
from casstore.testing.servers.azurite import ACCOUNT, Azurite
from casstore.testing.servers.ceph import CephS3
from casstore.testing.servers.gcs import GcsServer
from casstore.testing.servers.s3 import moto_s3


class Kept:
    """A client that stays open: making one takes longer than most tests."""

    def __init__(self, inner: ObjectClient) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def close(self) -> None:
        pass


class OfService(BackendContract):
    """Over a service, each test below a prefix of its own."""

    OPEN = 30  # a service has no open objects

    @pytest.fixture
    def backend(self, service: ObjectClient) -> Iterator[Backend]:
        prefix = os.urandom(8).hex()
        kept: Any = Kept(service)
        found = ObjectBackend(RetryClient(LimitClient(kept)), prefix)
        yield found
        found.close()

    def test_lost_replies_are_no_conflicts(self, service: ObjectClient) -> None:
        """T9: the write lands, its reply is cut. Neither a false conflict, nor a false success."""
        prefix = os.urandom(8).hex()
        outcomes: Counter[str] = Counter()

        def contend(number: int, step: int, condition: Condition) -> None:
            kept: Any = Kept(service)
            losing = FaultClient(kept, FaultPlan(at=1, fault=Fault.LOST, operations=frozenset({"put"})))
            backend = ObjectBackend(RetryClient(losing, sleep=lambda _: None), prefix)
            try:
                backend.put("head", [b"%d by %d" % (step, number)], condition=condition)
            except PreconditionError:
                outcomes["refused"] += 1
            else:
                outcomes[f"won {step}"] += 1
                assert losing.hits == 1

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            condition: Condition = Absent()
            for step in range(4):
                list(pool.map(contend, range(8), [step] * 8, [condition] * 8))
                condition = Matches(ObjectBackend(service, prefix).get("head").etag)
        assert outcomes == {f"won {step}": 1 for step in range(4)} | {"refused": 28}

    def test_a_probe_finds_it_sound(self, backend: Backend) -> None:
        report = probe(backend)
        assert report.conditional, report.lines
        assert report.usable, report.lines
        assert list(backend.list("")) == []


class TestFolder(OfService):
    """file://, where races are those of a real system: no double is asked."""

    @pytest.fixture
    def service(self, tmp_path: Path) -> Iterator[ObjectClient]:
        client = LocalClient(str(tmp_path), durable=False)
        yield client
        client.close()


@pytest.fixture(scope="module")
def s3_service() -> Iterator[ObjectClient]:
    # Its conditional writes are made atomic: see ``OneAtATime`` there for how moto itself is not.
    with moto_s3() as server:
        bucket = server.bucket()
        client = S3Client(bucket, url=f"s3://{bucket}", credential=server.credential)
        yield client
        client.close()


@pytest.mark.slow
class TestS3(OfService):
    @pytest.fixture
    def service(self, s3_service: ObjectClient) -> ObjectClient:
        return s3_service


@pytest.fixture(scope="module")
def ceph_service(ceph: CephS3) -> Iterator[ObjectClient]:
    bucket = ceph.bucket()
    client = S3Client(bucket, url=f"s3://{bucket}", credential=ceph.server.credential)
    yield client
    client.close()


@pytest.mark.slow
class TestCeph(OfService):
    """A real S3 server: its races are no double's."""

    @pytest.fixture
    def service(self, ceph_service: ObjectClient) -> ObjectClient:
        return ceph_service


@pytest.fixture(scope="module")
def azure_service(azurite: Azurite) -> Iterator[ObjectClient]:
    container = azurite.container()
    client = AzureClient(ACCOUNT, container, url=f"azure://{ACCOUNT}/{container}", credential=azurite.credential)
    yield client
    client.close()


@pytest.mark.slow
class TestAzure(OfService):
    @pytest.fixture
    def service(self, azure_service: ObjectClient) -> ObjectClient:
        return azure_service


@pytest.fixture(scope="module")
def gcs_service(gcs_server: GcsServer) -> Iterator[ObjectClient]:
    bucket = gcs_server.bucket()
    client = GcsClient(bucket, url=f"gs://{bucket}", credential=gcs_server.credential)
    yield client
    client.close()


@pytest.mark.slow
class TestGcs(OfService):
    @pytest.fixture
    def service(self, gcs_service: ObjectClient) -> ObjectClient:
        return gcs_service
