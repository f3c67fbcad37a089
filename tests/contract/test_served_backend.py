"""The back end through a server keeps the contract; what it lets through is in ``security/test_served_store.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.base import Backend, Condition, ObjectInfo, validate_key
from casstore.backend.served import ServedBackend
from casstore.testing.backend_contract import BackendContract
from casstore.wire.v1 import ObjectReply
from casstore_server.services.v1 import objects, transfer
from tests.serving import serving


class _Lenient(objects.Objects):
    """Lets everything through: the contract is about keys that no store has."""

    def get(self, key: str, limit: int = objects.MAX_OBJECT) -> Any:
        return self._backend.get(key, limit=limit)

    def stat(self, key: str) -> ObjectReply:
        found = self._backend.stat(key)
        return ObjectReply(found.key, found.size, found.mtime)

    def _found(self, prefix: str, after: str) -> Iterable[ObjectInfo]:
        return self._backend.list(prefix, after=after)

    def put(self, key: str, data: bytes, condition: Condition) -> str:
        return self._backend.put(validate_key(key), [data], condition=condition)

    def delete(self, keys: Any) -> None:
        self._backend.delete(keys)


class TestServed(BackendContract):
    THREADS = 16
    OPEN = 40

    @pytest.fixture
    def backend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
        monkeypatch.setattr(transfer, "Objects", _Lenient)
        monkeypatch.setattr(transfer, "MAX_OBJECT", 64 << 20)
        monkeypatch.setattr("casstore_server.api.edge.MAX_REQUEST_BYTES", 64 << 20)
        with serving(tmp_path, {"b": f"file://{tmp_path}/store"}) as server:
            for info in server.store("b").backend.list(""):
                server.store("b").backend.delete([info.key])
            found = ServedBackend(server.http("ann"), "b")
            yield found
            found.close()
