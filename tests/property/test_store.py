"""Whatever goes in comes out, and no bit of it can change unseen."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.backend.base import Capabilities
from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.errors import CasstoreError, FormatError, IntegrityError
from casstore.format import index, manifest, pack, record
from casstore.model import Head, Kind
from casstore.repo import layout
from casstore.repo.check import session
from casstore.repo.leases import Lease
from casstore.repo.records import now
from casstore.repo.store import Store, StoreConfig
from casstore.repo.trash import TrashRecord, TrashState
from casstore.repo.verify import verify_store
from casstore.transfer.scan import Source
from casstore.transfer.upload import upload_tree

names = st.binary(min_size=1, max_size=12).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))
blocks = st.one_of(
    st.binary(max_size=2000),
    st.builds(
        lambda seed, size: (seed * (size // len(seed) + 1))[:size],
        st.binary(min_size=1, max_size=64),
        st.integers(0, 1_500_000),
    ),
    st.integers(0, 700_000).map(os.urandom),
)
trees = st.recursive(blocks, lambda inner: st.dictionaries(names, inner, max_size=5), max_leaves=12).map(
    lambda tree: tree if isinstance(tree, dict) else {b"only": tree}
)


def write(root: bytes, tree: dict) -> dict[bytes, bytes | None]:  # type: ignore[type-arg]
    found: dict[bytes, bytes | None] = {}
    pending = [(b"", tree)]
    while pending:
        path, folder = pending.pop()
        for name, content in folder.items():
            inside = path + b"/" + name if path else name
            if isinstance(content, dict):
                os.mkdir(root + b"/" + inside)
                found[inside] = None
                pending.append((inside, content))
            else:
                with open(root + b"/" + inside, "wb") as out:
                    out.write(content)
                found[inside] = content
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(trees, st.integers(1, 3))
def test_round_trip(tree: dict, threads: int) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as root:
        expected = write(os.fsencode(root), tree)
        store = Store.open(MemoryBackend(), create=True)
        result = upload_tree(store, [Source(os.fsencode(root), b"", contents=True)], threads=threads)
        opened = Store.open(store.backend).tree(result.manifest)
        found = {}
        for entry in opened.entries():
            chunks = [bytes(chunk) for chunk in store.read_chunks(list(opened.chunks(entry)))]
            found[entry.path] = b"".join(chunks) if entry.kind == Kind.FILE else None
        assert found == expected
        assert verify_store(store).clean


class Near(MemoryBackend):
    """In memory, and looked at as a folder is: without threads."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(conditional_put=True, local=True)


def test_every_flipped_bit_and_every_cut_of_a_small_store_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "workers", lambda: 1)  # threads cost most of the time here
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.txt").write_text("some text " * 60)
    (source / "b.bin").write_bytes(os.urandom(50))
    (source / "c").symlink_to("a.txt")
    backend = Near()
    bucket = Bucket(Store.open(backend, create=True), name="b", user="u")
    bucket.upload("robot", [str(source)], labels={"kind": "arm"})
    bucket.set_tags("robot", ["golden"])
    Lease.acquire(backend, kind="upload", user="u", heartbeat=False)
    trash_id = layout.new_id()
    trash = TrashRecord(id=trash_id, state=TrashState.MARKED, created_at=now(), write_id="w", packs=["0" * 64])
    backend.put(layout.trash_key(trash_id), [record.encode("trash", trash)])

    def found() -> bool:
        try:
            return not verify_store(Store.open(backend)).clean
        except IntegrityError:
            return True  # the store can't even be opened: store.json

    assert not found()
    damaged = 0
    for key in [info.key for info in backend.list("")]:
        original = backend.get(key).data
        for position in range(len(original)):
            backend.put(key, [original[:position]])
            assert found(), (key, "cut at", position)
            for bit in range(8):
                broken = bytearray(original)
                broken[position] ^= 1 << bit
                backend.put(key, [broken])
                damaged += 1
                assert found(), (key, position, bit)
        backend.put(key, [original])
    assert not found()
    assert damaged > 10_000


noise = st.binary(max_size=600)


@settings(max_examples=300, deadline=None)
@given(noise, st.binary(min_size=32, max_size=32))
def test_parsers_survive_noise(data: bytes, some_id: bytes) -> None:
    attempts = [
        lambda: pack.parse_footer(some_id, data[:16], data[16:], len(data)),
        lambda: pack.tail_size(data[-16:]),
        lambda: index.Segment(data),
        lambda: index.Segment(b"CASIDX01" + data),
        lambda: manifest.decode_root(manifest.ROOT_MAGIC + data),
        lambda: manifest.decode_leaf(data),
        lambda: manifest.decode_inner(data),
        lambda: list(manifest.list_records(0, data)),
        lambda: record.decode("head", data, Head),
        lambda: record.decode("store", b"casstore-record 1 store " + data, StoreConfig),
    ]
    for attempt in attempts:
        try:
            attempt()
        except CasstoreError as error:
            assert isinstance(error, (FormatError, IntegrityError))
