"""Datasets through a server, with the data going straight to and from real services; and what may go wrong there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import AccessError
from casstore.remote.credentials import StorageCredential
from casstore.remote.presign import Address, ObjectSigner
from casstore.testing.servers.azurite import ACCOUNT, Azurite
from casstore.testing.servers.ceph import CephS3
from casstore.testing.servers.gcs import GcsServer
from tests.serving import Serving, serving

pytestmark = pytest.mark.slow


class Only:
    def __init__(self, credential: StorageCredential) -> None:
        self._credential = credential

    def find(self, profile: str) -> StorageCredential | None:
        return self._credential


def place(request: pytest.FixtureRequest, name: str) -> tuple[str, StorageCredential]:
    if name == "ceph":
        ceph: CephS3 = request.getfixturevalue("ceph")
        return f"s3://{ceph.bucket()}/stores/team", ceph.server.credential
    if name == "azure":
        azurite: Azurite = request.getfixturevalue("azurite")
        return f"azure://{ACCOUNT}/{azurite.container()}/team", azurite.credential
    gcs: GcsServer = request.getfixturevalue("gcs_server")
    return f"gs://{gcs.bucket()}/team", gcs.credential


@pytest.fixture(params=["ceph", "azure", "gcs"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    url, credential = place(request, request.param)
    with serving(tmp_path, {"team": url}, Only(credential)) as found:
        yield found


@pytest.fixture
def s3(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    url, credential = place(request, "ceph")
    with serving(tmp_path, {"team": url}, Only(credential)) as found:
        yield found


def source(folder: Path, size: int = 3_000_000) -> Path:
    root = folder / "src"
    (root / "sub").mkdir(parents=True, exist_ok=True)
    for number in range(5):
        (root / "sub" / str(number)).write_bytes(os.urandom(size // 5))
    return root


def asked(bucket: Any) -> list[tuple[str, str]]:
    """Where data goes: methods and addresses, from now on."""
    http, found = bucket.store.backend._http, []
    inner = http.data

    def data(method: str, url: str, **options: Any) -> Any:
        found.append((method, url))
        return inner(method, url, **options)

    http.data = data
    return found


def test_data_goes_straight(server: Serving) -> None:
    root = source(server.folder)
    with server.bucket("ann", "team") as bucket:
        log = asked(bucket)
        assert bucket.upload("d", [str(root)]).new_bytes > 3_000_000
        assert log and all(not url.startswith("/") for _, url in log)
    with server.bucket("bob", "team") as bucket:
        log = asked(bucket)
        out = server.folder / "out"
        out.mkdir()
        bucket.download("d", str(out))
        assert log and all(not url.startswith("/") for _, url in log)
        for path in (root / "sub").iterdir():
            assert (out / "d/src/sub" / path.name).read_bytes() == path.read_bytes()
        (root / "more").write_text("more")
        assert bucket.update("d", add=[str(root / "more")]).version.number == 2
        assert not bucket.verify("d").problems
    inner = server.store("team").backend
    assert not list(inner.list("incoming/"))
    assert not list(inner.list("leases/"))


class Spoiled:
    """Gives some addresses that do not work, as ones that are too old."""

    def __init__(self, inner: ObjectSigner, spoil: Callable[[int], bool]) -> None:
        self._inner = inner
        self._spoil = spoil
        self.given = 0

    def _maybe(self, found: Address) -> Address:
        self.given += 1
        if not self._spoil(self.given):
            return found
        return Address(found.url.replace("Signature=", "Signature=0").replace("sig=", "sig=0"), found.headers)

    def read(self, key: str, seconds: int) -> Address:
        return self._maybe(self._inner.read(key, seconds))

    def write(self, key: str, size: int, seconds: int) -> Address:
        return self._maybe(self._inner.write(key, size, seconds))


def spoil(server: Serving, which: Callable[[int], bool]) -> Spoiled:
    plane = server.services.plane
    signer = plane.signer(server.store("team").url, server.services.stores.credentials)
    found = Spoiled(signer, which)
    plane._signers[server.store("team").url] = (float("inf"), found)
    return found


def test_addresses_that_do_not_work_are_asked_for_anew(server: Serving) -> None:
    signer = spoil(server, lambda given: given % 2 == 1)
    root = source(server.folder)
    with server.bucket("ann", "team") as bucket:
        bucket.upload("d", [str(root)])
        assert not bucket.verify("d").problems
    assert signer.given > 6


def test_a_bucket_that_refuses_is_told_without_its_addresses(s3: Serving) -> None:
    spoil(s3, lambda _: True)
    with s3.bucket("ann", "team") as bucket, pytest.raises(AccessError, match="the bucket refused") as error:
        bucket.upload("d", [str(source(s3.folder))])
    assert "Signature" not in str(error.value) + str(error.value.hint)


def test_a_bucket_that_a_client_cannot_reach_is_reached_through_the_server(s3: Serving) -> None:
    class Nowhere(Spoiled):
        def _maybe(self, found: Address) -> Address:
            return Address(f"http://127.0.0.1:9/{found.url.partition('?')[0][-20:]}")

    plane, url = s3.services.plane, s3.store("team").url
    signer = plane.signer(url, s3.services.stores.credentials)
    plane._signers[url] = (float("inf"), Nowhere(signer, lambda _: False))
    root = source(s3.folder)
    with s3.bucket("ann", "team") as bucket:
        log = asked(bucket)
        bucket.upload("d", [str(root)])
        assert not bucket.verify("d").problems
        assert log[-1][1].startswith("/")


def test_what_is_put_in_place_of_a_pack_is_no_pack(s3: Serving) -> None:
    """A hostile client puts something else at its address, and says that it is the pack."""
    import msgspec

    from casstore.wire.v1 import PackBody, PackWish, UrlsBody, UrlsReply

    http = s3.http("mallory")
    wish = UrlsBody(write=[PackWish(pack="1" * 64, size=1000)])
    reply = http.server("POST", "/api/v1/bucket/team/urls", body=msgspec.json.encode(wish))
    address = msgspec.json.decode(reply.data, type=UrlsReply).write[0]
    assert http.data("PUT", address.url, headers=address.headers, body=[os.urandom(1000)], limit=1 << 16).status == 200
    said = PackBody(pack="1" * 64, incoming=address.incoming)
    found = http.server("POST", "/api/v1/bucket/team/packs", body=msgspec.json.encode(said))
    assert b"pack" in found.data and found.status == 500
    assert not list(s3.store("team").backend.list("packs/"))
    assert not list(s3.store("team").backend.list("incoming/"))
    http.close()
