"""Plain files go to every service and come back, against real servers on loopback."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casstore.errors import CasstoreError, NotFoundError
from casstore.remote.credentials import StorageCredential
from casstore.testing.servers.azurite import ACCOUNT, Azurite
from casstore.testing.servers.gcs import GcsServer
from casstore.testing.servers.s3 import moto_s3
from casstore.transfer.raw import (
    ACCESS_TYPES,
    Place,
    check_access,
    check_credential,
    delete_objects,
    download,
    look_before_deleting,
    open_place,
    parse_sources,
    upload,
)

Open = Callable[[str], Place]


class Only:
    """One credential, whatever is asked for."""

    def __init__(self, credential: StorageCredential | None) -> None:
        self.credential = credential

    def find(self, profile: str) -> StorageCredential | None:
        return self.credential


class Service:
    """A bucket of a running server."""

    def __init__(self, url: str, credential: StorageCredential | None) -> None:
        self.url = url
        self.source = Only(credential)

    def open(self, path: str = "") -> Place:
        return open_place(f"{self.url}/{path}".rstrip("/"), self.source)


@pytest.fixture(params=["s3", "gs", "azure", "file"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    if request.param == "s3":
        with moto_s3() as server:
            yield Service(f"s3://{server.bucket()}", server.credential)
    elif request.param == "gs":
        gcs: GcsServer = request.getfixturevalue("gcs_server")
        yield Service(f"gs://{gcs.bucket()}", gcs.credential)
    elif request.param == "azure":
        azurite: Azurite = request.getfixturevalue("azurite")
        yield Service(f"azure://{ACCOUNT}/{azurite.container()}", azurite.credential)
    else:
        (tmp_path / "bucket").mkdir()
        yield Service(f"file://{tmp_path}/bucket", None)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub dir/deep").mkdir(parents=True)
    (folder / "empty").write_bytes(b"")
    (folder / "sub dir/ümläut +%&'.txt").write_bytes(b"text")
    (folder / "sub dir/deep/large.bin").write_bytes(os.urandom(1 << 20) * 9)
    for number in range(40):
        (folder / f"file-{number:03}").write_bytes(b"%d" % number)
    return folder


def test_there_and_back_again_and_gone(service: Service, data: Path, tmp_path: Path) -> None:
    with service.open("runs/1") as place:
        sent = upload(place, parse_sources([f"{data}/*"]))
        assert (sent.files, sent.failed, sent.failures) == (43, 0, [])
        out = tmp_path / "out"
        out.mkdir()
        got = download(place, str(out))
        assert (got.files, got.failed, got.size) == (43, 0, sent.size)
        assert tree(out) == tree(data)
        (out / "file-007").write_bytes(b"!")
        (out / "file-008").unlink()
        again = download(place, str(out), resume=True)
        assert (again.files, again.failed) == (43, 0)
        assert again.reused == 41
        assert again.digest == got.digest
        assert tree(out) == tree(data)
    with service.open("runs/1/sub dir") as place:
        assert [one.name for one in place.objects()] == ["deep/large.bin", "ümläut +%&'.txt"]
        assert [one.name for one in place.objects(recursive=False)] == ["deep/", "ümläut +%&'.txt"]
        assert [one.name for one in place.objects(begins="deep/l")] == ["deep/large.bin"]
    with service.open("runs/1/file-001") as place:
        assert [one.name for one in place.objects()] == ["file-001"]
    with service.open("runs/1/file-0") as place, pytest.raises(NotFoundError):
        download(place, str(out))
    with service.open("runs") as place:
        assert look_before_deleting(place).objects == 43
        assert delete_objects(place, regex=r"1/file-0[0-2]") == 30
        assert delete_objects(place) == 13
        assert list(place.objects()) == []


def test_access(service: Service) -> None:
    for access in ACCESS_TYPES:
        check_access(f"{service.url}/some/place", access, service.source)
    with service.open() as place:
        assert list(place.objects()) == []


@pytest.mark.parametrize("service", ["s3", "gs", "azure"], indirect=True)
def test_a_bucket_that_is_not_there(service: Service) -> None:
    credential = service.source.find("")
    assert credential is not None
    missing = service.url[:-3] + ("zzz" if not service.url.endswith("zzz") else "yyy")
    with pytest.raises(CasstoreError) as caught:
        check_credential(missing, credential)
    assert credential.access_key not in caught.value.message + str(caught.value.hint)
