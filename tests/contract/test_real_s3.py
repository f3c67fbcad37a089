"""A real S3 server, Ceph's, keeps the contract, and has one winner a step when 32 writers race.

moto is no oracle for that: it looks at a condition and writes in two steps.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator

import pytest

from casstore.backend.base import Backend
from casstore.backend.objects import ObjectBackend
from casstore.backend.probe import probe
from casstore.errors import PreconditionError
from casstore.remote import s3_multipart
from casstore.remote.base import Absent, Condition, Matches, ObjectClient
from casstore.remote.retry import RetryClient
from casstore.remote.s3 import S3Client
from casstore.testing.client_contract import ClientContract
from casstore.testing.servers.ceph import CephS3

WRITERS = 32
STEPS = 20


@pytest.fixture
def client(ceph: CephS3) -> Iterator[ObjectClient]:
    bucket = ceph.bucket()
    # Of swaps at the same moment the gateway refuses some with a passing error.
    found = RetryClient(S3Client(bucket, url=f"s3://{bucket}", credential=ceph.server.credential))
    yield found
    found.close()


class TestCeph(ClientContract):
    THREADS = WRITERS
    LARGE = 20 << 20
    STREAM = 18 << 20

    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # All that is written stays in the memory of a process.
        monkeypatch.setattr(s3_multipart, "THRESHOLD", 16 << 20)
        monkeypatch.setattr(s3_multipart, "PART", 5 << 20)

    @pytest.fixture
    def client(self, client: ObjectClient) -> ObjectClient:
        return client


def race(
    client: ObjectClient, condition_of: dict[int, Condition], key_of: dict[int, str]
) -> list[list[tuple[int, str]]]:
    """Let all writers do every step at the same moment; return who won, and the tag."""
    barrier = threading.Barrier(WRITERS)
    won: list[list[tuple[int, str]]] = [[] for _ in key_of]

    def run(number: int) -> None:
        for step, key in key_of.items():
            barrier.wait(timeout=60)
            if step and step not in condition_of:
                condition: Condition = Matches(won[step - 1][0][1])
            else:
                condition = condition_of[step]
            try:
                tag = client.put(key, [b"step %d by writer %d" % (step, number)], condition=condition)
            except PreconditionError:
                pass
            else:
                won[step].append((number, tag))
            barrier.wait(timeout=60)

    with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(run, range(WRITERS)))
    return won


def test_of_32_writers_of_a_new_object_one_wins(client: ObjectClient) -> None:
    keys = {step: f"versions/{step}" for step in range(STEPS)}
    won = race(client, dict.fromkeys(keys, Absent()), keys)
    assert [len(winners) for winners in won] == [1] * STEPS
    for step, ((number, tag),) in enumerate(won):
        found = client.read(keys[step])
        assert (found.data, found.etag) == (b"step %d by writer %d" % (step, number), tag)


def test_of_32_writers_that_swap_one_wins(client: ObjectClient) -> None:
    tag = client.put("head", [b"start"])
    won = race(client, {0: Matches(tag)}, dict.fromkeys(range(STEPS), "head"))
    assert [len(winners) for winners in won] == [1] * STEPS
    assert client.read("head").etag == won[-1][0][1]


def test_the_probe_trusts_it(client: ObjectClient) -> None:
    backend: Backend = ObjectBackend(client, "store")
    report = probe(backend, writers=WRITERS)
    assert report.conditional, report.lines
    assert report.usable, report.lines
