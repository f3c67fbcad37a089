"""T14 and T15: a dataset goes up and comes down through a network that fails, to a real S3 server.

What passes is tried again and everything is there; what does not pass ends with a clear error, and nothing broken is
left. No test waits for the clock: pauses between attempts are recorded, not slept.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from casstore.backend.base import Backend
from casstore.backend.objects import ObjectBackend
from casstore.dataset import Bucket
from casstore.errors import AccessError, CasstoreError, IntegrityError, StorageError, TransientError
from casstore.remote import azure, s3_connect
from casstore.remote.azure import AzureClient
from casstore.remote.base import ObjectClient
from casstore.remote.credentials import StorageCredential
from casstore.remote.gcs import GcsClient
from casstore.remote.limit import Budget, LimitClient
from casstore.remote.retry import RetryClient, RetryPolicy
from casstore.remote.s3 import S3Client
from casstore.repo.store import Store
from casstore.testing.faults import Fault, FaultBackend, FaultPlan
from casstore.testing.proxy import NetFault, NetProxy, NetRule
from casstore.testing.servers.azurite import ACCOUNT, Azurite
from casstore.testing.servers.gcs import GcsServer
from casstore.testing.servers.s3 import moto_s3

SIZE = 3 << 20
ALWAYS = 10**6


class Kept:
    """A client that stays open: making one takes longer than a test."""

    def __init__(self, inner: ObjectClient) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def close(self) -> None:
        pass


Way = Callable[[str], ObjectClient]


class Wires:
    """A bucket of a server, and two ways to it: through the proxy, and around it."""

    def __init__(self, proxy: NetProxy, way: Way, endpoint: str) -> None:
        self.proxy = proxy
        self.clients = [way(proxy.endpoint), way(endpoint)]

    def close(self) -> None:
        for client in self.clients:
            client.close()


@contextlib.contextmanager
def over_s3() -> Iterator[tuple[str, Way]]:
    with moto_s3() as server:
        name = server.bucket()
        yield (
            server.endpoint,
            lambda endpoint: S3Client(name, url=f"s3://{name}", credential=moved(server.credential, endpoint)),
        )


@contextlib.contextmanager
def over_azure() -> Iterator[tuple[str, Way]]:
    with Azurite(Path(__file__).parents[1] / "servers/azurite") as server:
        name = server.container()
        yield (
            server.url,
            lambda endpoint: AzureClient(
                ACCOUNT, name, url=f"azure://{ACCOUNT}/{name}", credential=moved(server.credential, endpoint)
            ),
        )


@contextlib.contextmanager
def over_gcs() -> Iterator[tuple[str, Way]]:
    with GcsServer() as server:
        name = server.bucket()
        yield (
            server.url,
            lambda endpoint: GcsClient(name, url=f"gs://{name}", credential=moved(server.credential, endpoint)),
        )


SERVICES = {"s3": over_s3, "azure": over_azure, "gcs": over_gcs}


def moved(credential: StorageCredential, endpoint: str) -> StorageCredential:
    return msgspec.structs.replace(credential, override_url=endpoint)


@pytest.fixture(scope="module")
def wires(request: pytest.FixtureRequest) -> Iterator[Wires]:
    service = SERVICES[getattr(request, "param", "s3")]
    with pytest.MonkeyPatch.context() as patch, service() as (endpoint, way), NetProxy(endpoint) as proxy:
        # A service that says nothing for so long is given up; long enough for a busy machine.
        patch.setattr(s3_connect, "READ_TIMEOUT", 2.0)
        patch.setattr(azure, "_READ_SECONDS", 2.0)
        found = Wires(proxy, way, endpoint)
        yield found
        found.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few files of bytes that can't be compressed."""
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / "large").write_bytes(os.urandom(SIZE))
    for number in range(8):
        (root / f"sub/{number}").write_bytes(os.urandom(5000 + number))
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class Progress:
    """Never more than there is, never backwards."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.files = self.size = self.done_files = self.done = 0

    def expect(self, files: int, size: int) -> None:
        with self._lock:
            self.files += files
            self.size += size

    def listed(self) -> None:
        pass

    def advance(self, size: int, *, new: int = 0) -> None:
        with self._lock:
            assert size >= 0
            assert new >= 0
            self.done += size
            assert self.done <= self.size, "more than 100%"

    def file_done(self, path: bytes) -> None:
        with self._lock:
            self.done_files += 1
            assert self.done_files <= self.files

    def warn(self, message: str) -> None:
        pass


class Net:
    """A store of one test, and the ways to it."""

    def __init__(self, wires: Wires) -> None:
        self.proxy = wires.proxy
        self.pauses: list[float] = []
        self._clients = wires.clients
        self._prefix = os.urandom(8).hex()
        self._open: list[Store] = []

    def backend(self, *, direct: bool = False, attempts: int = 8) -> Backend:
        client: Any = Kept(self._clients[direct])
        limited = LimitClient(client, Budget(64 << 20, 16))
        return ObjectBackend(
            RetryClient(limited, RetryPolicy(attempts=attempts), sleep=self.pauses.append), self._prefix
        )

    def bucket(self, backend: Backend | None = None, *, create: bool = False) -> Bucket:
        store = Store.open(backend or self.backend(), create=create)
        self._open.append(store)
        return Bucket(store, name="b", user="u")

    def close(self) -> None:
        for store in self._open:
            store.close()

    def assert_sound(self, versions: int) -> None:
        """Seen by a client that needs no luck: so many versions, and every byte of them right."""
        bucket = self.bucket(self.backend(direct=True))
        found = [v.version.number for v in bucket.info("data").versions] if versions else []
        assert found == list(range(1, versions + 1))
        assert bucket.verify().problems == []


@pytest.fixture
def net(wires: Wires) -> Iterator[Net]:
    wires.proxy.follow()
    found = Net(wires)
    found.bucket(found.backend(direct=True), create=True)
    yield found
    wires.proxy.follow()
    found.close()


def rule(fault: NetFault, method: str = "", part: str = "", **fields: Any) -> NetRule:
    return NetRule(fault=fault, method=method, part=part, **fields)


BUSY = {"Retry-After": "7"}
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>the token has expired</Message></Error>"

PASSING_UP = {
    "cut at once": rule(NetFault.CUT, "PUT", "/packs/"),
    "cut half-way": rule(NetFault.CUT, "PUT", "/packs/", after=SIZE // 2),
    "cut thrice": rule(NetFault.CUT, "PUT", "/packs/", after=1000, times=3),
    "reply lost": rule(NetFault.LOST, "PUT", "/packs/"),
    "manifest's reply lost": rule(NetFault.LOST, "PUT", "/manifests/"),
    "index's reply lost": rule(NetFault.LOST, "PUT", "/index/"),
    "commit's reply lost": rule(NetFault.LOST, "PUT", "/versions/"),
    "name's reply lost": rule(NetFault.LOST, "PUT", "/names/"),
    "heads' replies lost": rule(NetFault.LOST, "PUT", "/head", times=2),
    "stalled": rule(NetFault.STALL_SEND, "PUT", "/packs/", after=100_000),
    "stalled reply": rule(NetFault.STALL, "PUT", "/versions/", after=-1),
    "slow": rule(NetFault.THROTTLE, "GET", after=100, times=ALWAYS),
    "busy": rule(NetFault.ANSWER, "PUT", status=503, headers=BUSY, body=SLOW_DOWN, times=4),
    "too many": rule(NetFault.ANSWER, status=429, headers=BUSY, times=3),
    "broken": rule(NetFault.ANSWER, "PUT", status=500, times=3),
    "listing cut": rule(NetFault.TRUNCATE, "GET", "list-type=2", after=60),
}


@pytest.mark.parametrize("name", PASSING_UP)
def test_an_upload_survives(net: Net, folder: Path, name: str) -> None:
    bucket = net.bucket()
    net.proxy.follow(PASSING_UP[name])
    progress = Progress()
    result = bucket.upload("data", [str(folder)], progress=progress)
    assert net.proxy.hits >= 1
    assert (result.version.number, progress.done) == (1, progress.size)
    net.assert_sound(1)


PASSING_DOWN = {
    "reset at once": rule(NetFault.RESET, "GET", "/packs/"),
    "reset half-way": rule(NetFault.RESET, "GET", "/packs/", after=SIZE // 2),
    "truncated": rule(NetFault.TRUNCATE, "GET", "/packs/", after=SIZE // 2),
    "truncated often": rule(NetFault.TRUNCATE, "GET", "/packs/", after=10, times=5),
    "head reset": rule(NetFault.RESET, "GET", "/head", after=3),
    "stalled": rule(NetFault.STALL, "GET", "/packs/", after=70_000),
    "slow": rule(NetFault.THROTTLE, "GET", "/packs/", after=50_000),
    "busy": rule(NetFault.ANSWER, "GET", status=503, headers=BUSY, body=SLOW_DOWN, times=3),
    "too many": rule(NetFault.ANSWER, "GET", "/packs/", status=429, headers=BUSY),
    "broken": rule(NetFault.ANSWER, "GET", status=500, times=2),
    "wrong range": rule(NetFault.RANGE, "GET", "/packs/"),
    "lost": rule(NetFault.LOST, times=2),
}


@pytest.mark.parametrize("name", PASSING_DOWN)
def test_a_download_survives(net: Net, folder: Path, tmp_path: Path, name: str) -> None:
    net.bucket(net.backend(direct=True)).upload("data", [str(folder)])
    net.proxy.follow(PASSING_DOWN[name])
    progress = Progress()
    (tmp_path / "out").mkdir()
    net.bucket().download("data", str(tmp_path / "out"), progress=progress)
    assert net.proxy.hits >= 1
    assert contents(tmp_path / "out/data/folder") == contents(folder)
    assert progress.done == progress.size


def test_the_pause_that_the_service_asks_for_is_kept(net: Net, folder: Path) -> None:
    bucket = net.bucket()
    net.proxy.follow(PASSING_UP["busy"])
    bucket.upload("data", [str(folder)])
    assert len([pause for pause in net.pauses if pause >= 7.0]) == 4
    assert max(net.pauses) < 67.0


LASTING = {
    "reset": (rule(NetFault.RESET, times=ALWAYS), TransientError),
    "cut": (rule(NetFault.CUT, times=ALWAYS), TransientError),
    "lost": (rule(NetFault.LOST, times=ALWAYS), TransientError),
    "stalled": (rule(NetFault.STALL, "", "/packs/", times=ALWAYS, after=-1), TransientError),
    "truncated": (rule(NetFault.TRUNCATE, "GET", times=ALWAYS, after=5), StorageError),
    "busy": (rule(NetFault.ANSWER, status=503, body=SLOW_DOWN, times=ALWAYS), TransientError),
    "expired": (rule(NetFault.ANSWER, status=403, body=EXPIRED, times=ALWAYS), AccessError),
    "broken": (rule(NetFault.ANSWER, status=500, times=ALWAYS), TransientError),
    "no answer at all": (rule(NetFault.ANSWER, status=200, body=b"welcome to our portal", times=ALWAYS), CasstoreError),
}


@pytest.mark.parametrize("name", LASTING)
def test_what_does_not_pass_ends_an_upload_with_one_line(net: Net, folder: Path, name: str) -> None:
    fault, expected = LASTING[name]
    bucket = net.bucket(net.backend(attempts=2))
    net.proxy.follow(fault)
    progress = Progress()
    with pytest.raises(expected) as caught:
        bucket.upload("data", [str(folder)], progress=progress)
    assert_clear(caught.value)
    net.proxy.follow()
    direct = net.bucket(net.backend(direct=True))
    assert direct.verify().problems == []
    assert direct.upload("data", [str(folder)]).version.number == 1
    net.assert_sound(1)


@pytest.mark.parametrize("name", LASTING)
def test_what_does_not_pass_ends_a_download_with_one_line(net: Net, folder: Path, tmp_path: Path, name: str) -> None:
    fault, expected = LASTING[name]
    net.bucket(net.backend(direct=True)).upload("data", [str(folder)])
    bucket = net.bucket(net.backend(attempts=2))
    net.proxy.follow(fault)
    (tmp_path / "out").mkdir()
    with pytest.raises(expected) as caught:
        bucket.download("data", str(tmp_path / "out"), progress=Progress())
    assert_clear(caught.value)
    net.proxy.follow()
    assert partial(tmp_path / "out", contents(folder)) == []
    net.bucket().download("data", str(tmp_path / "out"))
    assert contents(tmp_path / "out/data/folder") == contents(folder)


def assert_clear(error: CasstoreError) -> None:
    assert "\n" not in error.message
    assert "Traceback" not in error.message
    assert "testing-secret" not in error.message + (error.hint or "")


def partial(root: Path, wanted: dict[str, bytes]) -> list[str]:
    """Files with a name of the dataset and other bytes."""
    return [
        name
        for name, data in wanted.items()
        for found in root.rglob(f"folder/{name}")
        if found.is_file() and found.read_bytes() != data
    ]


def test_a_range_that_is_always_another_is_no_data(net: Net, folder: Path, tmp_path: Path) -> None:
    net.bucket(net.backend(direct=True)).upload("data", [str(folder)])
    bucket = net.bucket()
    net.proxy.follow(rule(NetFault.RANGE, "GET", "/packs/", times=ALWAYS))
    (tmp_path / "out").mkdir()
    with pytest.raises(IntegrityError):
        bucket.download("data", str(tmp_path / "out"))
    assert partial(tmp_path / "out", contents(folder)) == []


def test_racing_uploads_through_a_bad_network(net: Net, folder: Path, tmp_path: Path) -> None:
    """Every third reply to a write is lost, and yet there is no gap, no duplicate, and no false conflict."""
    net.proxy.follow(*[rule(NetFault.LOST, "PUT", at=at) for at in range(3, 400, 3)])
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            own = tmp_path / f"own-{number}"
            own.mkdir()
            bucket = net.bucket()
            for step in range(2):
                (own / "file").write_bytes(b"%d %d" % (number, step))
                bucket.upload("data", [str(own)])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert net.proxy.hits > 5
    net.assert_sound(8)


# --- T15: wrong bytes of the right length


def test_a_bit_that_turns_on_the_way_is_read_again(net: Net, folder: Path, tmp_path: Path) -> None:
    net.bucket(net.backend(direct=True)).upload("data", [str(folder)])
    bucket = net.bucket()
    net.proxy.follow(rule(NetFault.FLIP, "GET", "/packs/", after=12345))
    (tmp_path / "out").mkdir()
    bucket.download("data", str(tmp_path / "out"))
    assert net.proxy.hits == 1
    assert contents(tmp_path / "out/data/folder") == contents(folder)


def test_wrong_bytes_name_the_pack_and_reach_no_file(net: Net, folder: Path, tmp_path: Path) -> None:
    net.bucket(net.backend(direct=True)).upload("data", [str(folder)])
    plan = FaultPlan(
        at=1, times=ALWAYS, fault=Fault.FLIP, operations=frozenset({"read"}), prefix="packs/", bit=8 * (SIZE // 2)
    )
    faulty = FaultBackend(net.backend(direct=True), plan)
    cache = tmp_path / "cache"
    bucket = Bucket(Store.open(faulty), name="b", user="u", cache_dir=str(cache))
    (tmp_path / "out").mkdir()
    with pytest.raises(IntegrityError) as caught:
        bucket.download("data", str(tmp_path / "out"))
    assert "packs/" in caught.value.message
    assert faulty.hits >= 2, "a second read is tried before it is called damaged"
    assert partial(tmp_path / "out", contents(folder)) == []
    bucket.store.close()
    # The same caches with a sound store: nothing of what was wrong was kept.
    sound = Bucket(Store.open(net.backend(direct=True)), name="b", user="u", cache_dir=str(cache))
    sound.download("data", str(tmp_path / "out"))
    assert contents(tmp_path / "out/data/folder") == contents(folder)
    assert sound.verify().problems == []
    sound.store.close()


# --- standing still


def test_a_stall_is_given_up_and_the_rest_goes_on(net: Net, folder: Path) -> None:
    """While one pack's connection stands still for ever, the upload finishes over another."""
    bucket = net.bucket()
    net.proxy.follow(PASSING_UP["stalled"])
    bucket.upload("data", [str(folder)])
    assert net.proxy.wait_stalled(0)
    net.assert_sound(1)


# --- the other services: their clients fail in other ways

ELSEWHERE_UP = ("cut half-way", "reply lost", "commit's reply lost", "busy", "too many", "listing cut")
ELSEWHERE_DOWN = ("reset half-way", "truncated", "truncated often", "busy", "broken", "lost")
AZURE_LISTING = rule(NetFault.TRUNCATE, "GET", "comp=list", after=60)


@pytest.mark.slow
@pytest.mark.parametrize("wires", ["azure", "gcs"], indirect=True)
@pytest.mark.parametrize("name", ELSEWHERE_UP)
def test_an_upload_elsewhere_survives(net: Net, folder: Path, name: str) -> None:
    bucket = net.bucket()
    net.proxy.follow(PASSING_UP[name], *([AZURE_LISTING] if name == "listing cut" else []))
    progress = Progress()
    assert bucket.upload("data", [str(folder)], progress=progress).version.number == 1
    assert net.proxy.hits >= 1
    net.assert_sound(1)


@pytest.mark.slow
@pytest.mark.parametrize("wires", ["azure", "gcs"], indirect=True)
@pytest.mark.parametrize("name", ELSEWHERE_DOWN)
def test_a_download_elsewhere_survives(net: Net, folder: Path, tmp_path: Path, name: str) -> None:
    net.bucket(net.backend(direct=True)).upload("data", [str(folder)])
    net.proxy.follow(PASSING_DOWN[name])
    (tmp_path / "out").mkdir()
    net.bucket().download("data", str(tmp_path / "out"), progress=Progress())
    assert net.proxy.hits >= 1
    assert contents(tmp_path / "out/data/folder") == contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize("wires", ["azure", "gcs"], indirect=True)
@pytest.mark.parametrize("name", ["reset", "busy", "expired", "broken", "no answer at all", "truncated"])
def test_what_does_not_pass_elsewhere_ends_with_one_line(net: Net, folder: Path, tmp_path: Path, name: str) -> None:
    fault, expected = LASTING[name]
    net.bucket(net.backend(direct=True)).upload("data", [str(folder)])
    bucket = net.bucket(net.backend(attempts=2))
    (folder / "new").write_bytes(b"new")
    net.proxy.follow(fault)
    (tmp_path / "out").mkdir()
    with pytest.raises(expected) as caught:
        bucket.download("data", str(tmp_path / "out"))
    assert_clear(caught.value)
    with pytest.raises(expected) as caught:
        bucket.upload("data", [str(folder)])
    assert_clear(caught.value)
    net.proxy.follow()
    net.assert_sound(1)
