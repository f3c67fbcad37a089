"""Stores whose references lead astray: to local files, to hosts inside, to more than was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore import hashing
from casstore.backend.memory import MemoryBackend
from casstore.compression import REFERENCE
from casstore.dataset import Bucket
from casstore.errors import AccessError, CasstoreError, FormatError, IntegrityError
from casstore.format.index import Location, encode
from casstore.format.pack import PackKind
from casstore.format.reference import Pointer, encode_pointer
from casstore.remote.credentials import StorageCredential
from casstore.repo import layout
from casstore.repo.packs import PackBuilder
from casstore.repo.references import References
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.testing.foreign import MemoryClient
from casstore.transfer.fetch import Fetcher

SECRET = b"the content of a file that only this user can read\n" * 200


class Everything:
    """A user with a credential for whatever is asked for."""

    def find(self, profile: str) -> StorageCredential:
        return StorageCredential()


class Watch:
    """Opens buckets that hold the secret under every key; notes which, and how much is read."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.size = 0

    def __call__(self, url: str, credentials: Any) -> tuple[Any, str]:
        self.opened.append(url)
        watch = self

        class Client(MemoryClient):
            def read(self, key: str, **options: Any) -> Any:
                watch.size += options["length"]
                self.store(key, SECRET, '"etag"')
                return super().read(key, **options)

        return Client(url), ""


def hostile(backend: MemoryBackend, pointers: dict[bytes, bytes], raw: int) -> None:
    """Add a pack of references, and index it."""
    builder = PackBuilder(PackKind.DATA)
    for chunk_id, payload in pointers.items():
        builder.append(chunk_id, raw, REFERENCE, payload)
    sealed = builder.seal()
    backend.put(layout.pack_key(sealed.pack_id), [b"".join(bytes(part) for part in sealed.parts)])
    segment = encode(sealed.places)
    backend.put(layout.index_key(hashing.digest(segment)), [segment])


@pytest.fixture
def backend(tmp_path: Path) -> MemoryBackend:
    """A store with a version whose file is ``SECRET``, of which the data is gone."""
    backend = MemoryBackend()
    (tmp_path / "secret").write_bytes(SECRET)
    store = Store.open(backend, create=True)
    Bucket(store, name="b", user="u").upload("set", [str(tmp_path / "secret")])
    backend.delete([layout.pack_key(store.locate(hashing.digest(SECRET)).pack_id)])
    for info in list(backend.list(layout.INDEX)):
        backend.delete([info.key])
    return backend


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def opened(backend: MemoryBackend, watch: Watch) -> Iterator[Any]:
    stores: list[Store] = []

    def make(*, allowed: bool = True) -> Store:
        references = References(Everything(), (), watch) if allowed else References(None, ("s3://lab/mine",), watch)
        stores.append(Store.open(backend, references=references))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def attempts(store: Store, tmp_path: Path) -> list[CasstoreError]:
    """What a download, a check and a reader make of it."""
    found: list[CasstoreError] = []
    ref = hashing.digest(SECRET), len(SECRET)
    (tmp_path / "out").mkdir()
    for work in (
        lambda: Bucket(store, name="b", user="u").download("set", str(tmp_path / "out")),
        lambda: list(store.read_chunks([ref])),
    ):
        with pytest.raises(CasstoreError) as refused:
            work()
        found.append(refused.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and SECRET[:100] in path.read_bytes()]
    report = verify_store(store)
    assert report.losses or any("could not be looked at" in note.message for note in report.notes)
    return found


@pytest.mark.parametrize(
    "bucket", ["file://", "file:///", "http://169.254.169.254", "https://intranet/x", "s3://lab/.."]
)
def test_what_is_no_object_storage_is_never_opened(
    backend: MemoryBackend, opened: Any, watch: Watch, tmp_path: Path, bucket: str
) -> None:
    path = str(tmp_path / "secret").lstrip("/")
    hostile(backend, {hashing.digest(SECRET): encode_pointer(Pointer(bucket, path, '"etag"', 0))}, len(SECRET))
    assert all(isinstance(error, FormatError) for error in attempts(opened(), tmp_path))
    assert watch.opened == []


@pytest.mark.parametrize(
    ("bucket", "key"),
    [
        ("s3://lab", "mine-too"),
        ("s3://lab", "mine2/x"),
        ("s3://other", "mine/x"),
        ("tos://169.254.169.254/lab", "mine"),
        ("swift://localhost:8080/lab/mine", "x"),
    ],
)
def test_what_was_not_allowed_is_never_opened(
    backend: MemoryBackend, opened: Any, watch: Watch, tmp_path: Path, bucket: str, key: str
) -> None:
    hostile(backend, {hashing.digest(SECRET): encode_pointer(Pointer(bucket, key, '"etag"', 0))}, len(SECRET))
    assert all(isinstance(error, AccessError) for error in attempts(opened(allowed=False), tmp_path))
    assert watch.opened == []


def test_no_more_is_read_than_whoever_wants_it_says(backend: MemoryBackend, opened: Any, watch: Watch) -> None:
    wanted = [(bytes([number]) * 32, 5000) for number in range(200)]
    pointer = encode_pointer(Pointer("s3://lab", "x", '"etag"', 0))
    hostile(backend, {chunk_id: pointer for chunk_id, _ in wanted}, 16 << 20)
    fetcher = Fetcher(opened())
    fetcher.load(wanted)
    with pytest.raises(IntegrityError, match="another length"):
        fetcher.take(*wanted[0])
    assert watch.size == 0
    fetcher.close()


def test_a_place_in_the_index_that_is_no_reference(backend: MemoryBackend, opened: Any, tmp_path: Path) -> None:
    """The index is not verified: a pointer's bytes may be any, and any bytes may be called a pointer."""
    hostile(backend, {hashing.digest(SECRET): b"noise" * 20}, len(SECRET))
    assert all(isinstance(error, IntegrityError) for error in attempts(opened(), tmp_path))
    pack = hashing.digest(b"no pack")
    segment = encode([(b"\1" * 32, Location(pack, 16, 3000, 5000, REFERENCE))])
    backend.put(layout.index_key(hashing.digest(segment)), [segment])
    store = opened()
    with pytest.raises(FormatError, match="impossible"):
        store.locate(b"\1" * 32)
