"""``url:`` inputs and outputs in object storage: what is tried again, told, noted and refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import AccessError, CancelledError, NotFoundError, SourceError, SpecError, StorageError
from casstore.remote.base import ObjectClient
from casstore.remote.credentials import AmbientCredentials, StorageCredential
from casstore.testing.bucket import MemoryBucket
from casstore.transfer.raw import Place
from casstore_orchestrator import transfers, urls
from casstore_orchestrator.homes import Homes
from casstore_orchestrator.inputs import InputFetcher
from casstore_orchestrator.outputs import OutputStorer
from casstore_orchestrator.ports import UrlTransfer
from casstore_orchestrator.provenance import Producer
from casstore_orchestrator.spec import GroupSpec, TaskSpec, UrlInput, UrlOutput, WorkflowSpec
from casstore_orchestrator.testing import FakeData
from casstore_orchestrator.transfers import Stop
from casstore_orchestrator.urls import StorageUrls
from casstore_orchestrator.validation import check_urls


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "FIRST_PAUSE", 0.0)


class Flaky:
    """A ``UrlStore`` that fails so many times first."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.calls: list[tuple[Any, ...]] = []

    def check(self, url: str, user: str, *, reads: bool) -> None:
        self.calls.append((url, user))

    def _next(self, *call: Any) -> UrlTransfer:
        self.calls.append(call)
        if self.failures:
            raise self.failures.pop(0)
        return UrlTransfer(files=2, size=2048, digest="ab" * 32)

    def download(
        self, url: str, user: str, target: Path, *, regex: str | None, tell: Callable[[str], None], stop: Any
    ) -> UrlTransfer:
        return self._next(url, user, target.name, regex)

    def upload(
        self, url: str, user: str, source: Path, *, regex: str | None, again: bool, tell: Any, stop: Any
    ) -> UrlTransfer:
        return self._next(url, user, regex, again)


PRODUCER = Producer(
    workflow_id="w-1", workflow_uuid="0" * 32, group="g", task="t", retry_id=0, user="ada", image="x",
    command=("x",), exit_code=0, inputs=(),
)  # fmt: skip


def fetcher(home: Path, store: Any) -> InputFetcher:
    return InputFetcher.make(FakeData(), Homes(home), "w-1", "ada", file_urls=True, urls=store)


def task(**fields: Any) -> TaskSpec:
    return TaskSpec(name="t", lead=True, **fields)


def test_an_input_is_tried_again_and_noted(tmp_path: Path) -> None:
    store, said = Flaky([StorageError("broke off"), OSError("flaky")]), []
    spec = task(inputs=(UrlInput(url="s3://b/x", regex="a.*"),))
    (note,) = fetcher(tmp_path, store).fetch(spec, tmp_path / "home", said.append, Stop())
    assert store.calls == [("s3://b/x", "ada", "0", "a.*")] * 3
    assert (note.kind, note.ref, note.regex, note.checksum, note.files, note.size) == (
        "url", "s3://b/x", "a.*", "ab" * 32, 2, 2048,
    )  # fmt: skip
    assert said[-1] == "Downloaded s3://b/x to {{input:0}}: 2 files, 2.0 KiB"
    assert sum("Trying again" in line for line in said) == 2


@pytest.mark.parametrize("error", [AccessError("no"), NotFoundError("nothing"), SourceError("a key")])
def test_what_a_new_try_can_not_change_is_not_tried_again(tmp_path: Path, error: Exception) -> None:
    store = Flaky([error])
    with pytest.raises(type(error)):
        fetcher(tmp_path, store).fetch(task(inputs=(UrlInput(url="s3://b/x"),)), tmp_path / "h", print, Stop())
    assert len(store.calls) == 1


def test_an_output_that_is_tried_again_says_so(tmp_path: Path) -> None:
    store, said = Flaky([StorageError("broke off")]), []
    (tmp_path / "home/data/output").mkdir(parents=True)
    (tmp_path / "home/data/output/file").write_text("1")
    storer = OutputStorer(FakeData(), Homes(tmp_path), frozenset(), True, store)
    storer.store(task(outputs=(UrlOutput(url="gs://b/y"),)), tmp_path / "home", PRODUCER, said.append, Stop())
    assert store.calls == [("gs://b/y", "ada", None, False), ("gs://b/y", "ada", None, True)]
    assert said[-1] == "Uploaded to gs://b/y: 2 files, 2.0 KiB"


def test_local_urls_stay_what_they_were(tmp_path: Path) -> None:
    store, source = Flaky([]), tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("1")
    spec = task(inputs=(UrlInput(url=f"file://{source}"),))
    fetcher(tmp_path, store).fetch(spec, tmp_path / "home", print, Stop())
    assert (tmp_path / "home/data/input/0/file").read_text() == "1"
    assert store.calls == []


# --- at submission


def check(url: str, storage: Callable[..., None] | None) -> None:
    spec = WorkflowSpec(name="w", groups=(GroupSpec(name="g", tasks=(task(inputs=(UrlInput(url=url),)),)),))
    check_urls(spec, file_urls=True, storage=storage)


def test_urls_are_checked_when_a_workflow_is_submitted() -> None:
    store = StorageUrls(lambda _: AmbientCredentials())
    for url in ("s3://b/{{workflow_id}}/x", "azure://a/c", "swift://host/a/c/x", "gs://b", "file:///srv"):
        check(url, partial(store.check, user="ada"))
    for url in ("s3://", "s3://b/../x", "azure://a", "s3://b/x?y", "http://x/y", "s3://me:secret@b/x"):
        with pytest.raises(SpecError, match="task t, input 0") as caught:
            check(url, partial(store.check, user="ada"))
        assert "secret" not in caught.value.message
    with pytest.raises(SpecError, match="not supported"):
        check("s3://b/x", None)


def test_a_wrong_credential_is_told_when_a_workflow_is_submitted() -> None:
    class Wrong:
        def find(self, profile: str) -> None:
            raise SpecError(f"config.yaml: auth.data.{profile}.region must be a text")

    with pytest.raises(SpecError, match="must be a text"):
        check("s3://b/x", partial(StorageUrls(lambda _: Wrong()).check, user="ada"))


@pytest.mark.parametrize(
    ("error", "told"),
    [(AccessError("not yours"), True), (NotFoundError("no such bucket"), True), (StorageError("down"), False)],
)
def test_a_credential_that_can_not_read_an_input_is_told_when_a_workflow_is_submitted(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: bool
) -> None:
    class Has:
        def find(self, profile: str) -> StorageCredential:
            return StorageCredential(access_key_id="i", access_key="k", region="r", override_url="http://127.0.0.1:9")

    tried: list[str] = []

    def check_access(url: str, access: str, credentials: object) -> None:
        tried.append(url)
        raise error

    monkeypatch.setattr(urls, "check_access", check_access)
    store = partial(StorageUrls(lambda _: Has()).check, user="ada")
    store("s3://b/out", reads=False)
    store("s3://b/{{workflow_id}}", reads=True)
    assert tried == []
    if told:
        with pytest.raises(SpecError, match=str(error)):
            check("s3://b/in", store)
    else:  # it may be there when the task runs
        check("s3://b/in", store)
    assert tried == ["s3://b/in"]


def test_a_service_that_does_not_answer_does_not_hold_up_a_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    class Has:
        def find(self, profile: str) -> StorageCredential:
            return StorageCredential(access_key_id="i", access_key="k", region="r")

    gate = threading.Event()
    monkeypatch.setattr(urls, "check_access", lambda *_: gate.wait(30))
    monkeypatch.setattr(urls, "CHECK_SECONDS", 0.01)
    check("s3://b/in", partial(StorageUrls(lambda _: Has()).check, user="ada"))
    gate.set()


# --- the adapter


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryBucket:
    found = MemoryBucket()

    def open_place(url: str, credentials: object) -> Place:
        client: ObjectClient = found
        return Place(client, url.partition("double")[2].strip("/"), url)

    monkeypatch.setattr(urls, "open_place", open_place)
    return found


def test_all_files_or_an_error(tmp_path: Path, bucket: MemoryBucket) -> None:
    store = StorageUrls(lambda _: AmbientCredentials())
    bucket.objects = {"x/a": b"1", "x/b": b"22", "x/../c": b"3"}
    said: list[str] = []

    def download(regex: str | None) -> UrlTransfer:
        return store.download("s3://double/x", "ada", tmp_path, regex=regex, tell=said.append, stop=lambda: False)

    with pytest.raises(SourceError, match=r"the key 'x/\.\./c'"):  # and not an error that is tried again
        download(None)
    assert any("x/../c" in line for line in said)
    done = download("[ab]")
    assert (done.files, done.size, len(done.digest)) == (2, 3, 64)
    with pytest.raises(CancelledError):
        store.download("s3://double/x", "ada", tmp_path, regex=None, tell=print, stop=lambda: True)


def test_links_of_a_task_are_not_followed(tmp_path: Path, bucket: MemoryBucket) -> None:
    (tmp_path / "outside").write_text("secret")
    output = tmp_path / "output"
    output.mkdir()
    (output / "file").write_text("1")
    (output / "link").symlink_to(tmp_path / "outside")
    (output / "folder").symlink_to(tmp_path)
    store, said = StorageUrls(lambda _: AmbientCredentials()), []
    for again in (False, True):
        done = store.upload(
            "s3://double/y", "ada", output, regex=None, again=again, tell=said.append, stop=lambda: False
        )
        assert done.files == 1
    assert bucket.objects == {"y/file": b"1"}
    assert bucket.puts == ["y/file"]  # what is there already is left alone
    assert sum("a symbolic link" in line for line in said) == 4


def test_the_log_is_told_how_far_it_is_and_not_of_every_file(
    tmp_path: Path, bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, said = StorageUrls(lambda _: AmbientCredentials()), []
    bucket.objects = {f"x/{n}": b"1234" for n in range(50)}
    store.download("s3://double/x", "ada", tmp_path, regex=None, tell=said.append, stop=lambda: False)
    assert said == []
    monkeypatch.setattr(urls, "TELL_EVERY", 0.0)
    store.download("s3://double/x", "ada", tmp_path, regex=None, tell=said.append, stop=lambda: False)
    assert "200 B of 200 B" in said[-1] or "files" in said[-1]
    said.clear()
    monkeypatch.setattr(urls, "TELL_EVERY", 1e9)
    bucket.objects = {f"x/..\\{n}": b"" for n in range(500)}
    with pytest.raises(SourceError, match="and 499 more failed"):
        store.download("s3://double/x", "ada", tmp_path, regex=None, tell=said.append, stop=lambda: False)
    assert len(said) == 21
    assert not [name for name in os.listdir(tmp_path) if "\\" in name]
