"""Whatever is lost on the way, a client with retries behaves as one without losses; and no text is a harmful URL."""

from __future__ import annotations

import io
import itertools
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casstore.errors import CasstoreError, NotFoundError, PreconditionError, UsageError
from casstore.remote.base import Absent, Condition, Matches, ObjectClient
from casstore.remote.local import LocalClient
from casstore.remote.retry import RetryClient, RetryPolicy
from casstore.remote.urls import parse_url
from casstore.testing.faults import Fault, FaultClient, FaultPlan

KEYS = ("a", "b/c", "b/d")
FAULTS = st.lists(
    st.builds(
        FaultPlan,
        at=st.integers(1, 30),
        times=st.integers(1, 3),
        fault=st.sampled_from([Fault.TRANSIENT, Fault.LOST]),
    ),
    max_size=4,
)
OPERATION = st.tuples(
    st.sampled_from(["put", "absent", "swap", "stale", "upload", "read", "list", "delete"]), st.sampled_from(KEYS)
)


class Model:
    """What a service without a network would say."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def apply(self, operation: str, key: str, data: bytes) -> object:
        there = key in self.objects
        if operation in {"put", "upload"} or (operation == "absent" and not there) or (operation == "swap" and there):
            self.objects[key] = data
            return "done"
        if operation in {"absent", "swap", "stale"}:
            return PreconditionError
        if operation == "read":
            return self.objects.get(key, NotFoundError)
        if operation == "list":
            return sorted(self.objects)
        self.objects.pop(key, None)
        return "done"


def ask(client: ObjectClient, tags: dict[str, str], operation: str, key: str, data: bytes) -> object:
    """The same of a client; ``tags`` are those that it gave."""
    conditions: dict[str, Condition] = {
        "put": None,
        "absent": Absent(),
        "swap": Matches(tags.get(key, "no such tag")),
        "stale": Matches("no such tag"),
    }
    try:
        if operation in conditions:
            tags[key] = client.put(key, [data[:3], data[3:]], condition=conditions[operation])
        elif operation == "upload":
            tags[key] = client.upload(key, io.BytesIO(data))
        elif operation == "read":
            found = client.read(key)
            assert found.etag == tags[key]
            return found.data
        elif operation == "list":
            return [info.key for info in client.list("")]
        else:
            client.delete([key])
            tags.pop(key, None)
    except CasstoreError as error:
        return type(error)
    return "done"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plans=FAULTS, operations=st.lists(OPERATION, min_size=1, max_size=25))
def test_losses_are_not_noticed(plans: list[FaultPlan], operations: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        client: ObjectClient = LocalClient(root, durable=False)
        for plan in plans:
            client = FaultClient(client, plan)
        client = RetryClient(client, RetryPolicy(attempts=20, deadline=1e9), sleep=lambda _: None)
        model, tags = Model(), dict[str, str]()
        for number, (operation, key) in zip(itertools.count(), operations, strict=False):
            data = b"write %d" % number  # as a record's write id, no two are equal
            assert ask(client, tags, operation, key, data) == model.apply(operation, key, data), (number, operation)
        client.close()


@settings(deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet="abz09./:@?#%-_\\ ,;*\n\0", max_size=40).map("s3://".__add__),
        st.text(alphabet="ab./:@%-", max_size=40).map("azure://".__add__),
        st.text(alphabet="ab./:@%-", max_size=40).map("swift://".__add__),
        st.text(alphabet="ab./%20e", max_size=40).map("file:///".__add__),
    )
)
def test_a_url_is_sound_or_refused(text: str) -> None:
    try:
        found = parse_url(text)
    except UsageError as error:
        assert error.message.isprintable()
        return
    assert parse_url(found.url) == found
    parts = found.prefix.split("/") if found.prefix else []
    assert set(parts).isdisjoint({"", ".", ".."})
    assert "\0" not in found.prefix
    if found.scheme != "file":
        assert "@" not in found.bucket_url
        assert found.prefix.isprintable()
        assert found.bucket_url.startswith(found.profile) or found.profile.startswith(found.bucket_url)


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_a_lost_reply_to_a_body_of_any_size(size: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        inner = FaultClient(LocalClient(root, durable=False), FaultPlan(at=1, times=1, fault=Fault.LOST))
        client = RetryClient(inner, sleep=lambda _: None)
        assert client.put("a", [bytes(size)], condition=Absent()) == client.head("a").etag
        client.close()
