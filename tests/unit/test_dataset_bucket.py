"""The facade: uploads, updates, downloads, tags, attributes, renames, deletions, collections and lists."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket, Version
from casstore.errors import AccessError, ConflictError, IntegrityError, NotFoundError, SourceError, UsageError
from casstore.model import DatasetType, VersionStatus
from casstore.repo import layout
from casstore.repo.store import Store
from casstore.transfer.progress import Silent

Write = Callable[..., str]


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.open(MemoryBackend(), create=True) as opened:
        yield opened


@pytest.fixture
def bucket(store: Store, tmp_path: Path) -> Bucket:
    return Bucket(
        store, name="default", user="ann", state_dir=str(tmp_path / "state"), cache_dir=str(tmp_path / "cache")
    )


@pytest.fixture
def bob(store: Store) -> Bucket:
    return Bucket(store, name="default", user="bob")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files under tmp/src and return its ``/*`` form."""

    def write(*, top: str = "src", **files: str) -> str:
        folder = tmp_path / top
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return f"{folder}/*"

    return write


def paths(bucket: Bucket, name: str, tag: str | None = None) -> list[str]:
    return [os.fsdecode(entry.path) for entry in bucket.entries(name, tag=tag)]


def text_of(bucket: Bucket, version: Version, path: bytes) -> bytes:
    tree = bucket.tree(version)
    entry = tree.lookup(path)
    assert entry is not None
    return b"".join(bytes(part) for part in bucket.store.read_chunks(list(tree.chunks(entry))))


class Warnings(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def warn(self, message: str) -> None:
        self.messages.append(message)


# ---- upload


def test_upload(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    write(a="one", d__b="two")
    result = bucket.upload(
        "ds", [str(tmp_path / "src")], description="first", metadata={"m": 1}, labels={"l": "x"}, tag="good",
        provenance={"workflow": "wf-1"},
    )  # fmt: skip
    version = result.version
    assert (result.created, result.files, result.logical_bytes) == (True, 2, 6)
    assert result.new_bytes > 0
    assert (version.number, version.dataset, version.tags) == (1, "ds", ("good", "latest"))
    assert version.metadata == {"m": 1, "description": "first"}
    assert version.record.provenance == {"workflow": "wf-1"}
    assert version.record.created_by == "ann"
    assert version.record.new_bytes == result.new_bytes
    assert paths(bucket, "ds") == ["src", "src/a", "src/d", "src/d/b"]
    assert bucket.info("ds").summary.labels == {"l": "x"}
    assert bucket.resolve("ds", "good") == bucket.resolve("ds", "1") == bucket.resolve("ds") == version


def test_earlier_sources_win(bucket: Bucket, write: Write) -> None:
    first, second = write(a="1", top="x"), write(a="2", b="2", top="y")
    version = bucket.upload("ds", [first, second]).version
    assert text_of(bucket, version, b"a") == b"1"
    assert paths(bucket, "ds") == ["a", "b"]


def test_unchanged_content_makes_no_version(bucket: Bucket, write: Write) -> None:
    src = write(a="1")
    assert bucket.upload("ds", [src], metadata={"m": 1}, description="d").created
    again = bucket.upload("ds", [src])
    assert (again.created, again.version.number, again.new_bytes) == (False, 1, 0)
    assert not bucket.upload("ds", [src], metadata={"m": 1}, description="d").created
    tagged = bucket.upload("ds", [src], tag="t", labels={"l": 1})
    assert (tagged.created, tagged.version.tags) == (False, ("latest", "t"))
    assert bucket.info("ds").summary.labels == {"l": 1}
    assert bucket.upload("ds", [src], metadata={"m": 2}).version.number == 2
    assert bucket.upload("ds", [src], description="e").version.number == 3
    assert bucket.upload("ds", [src], force_new_version=True).version.number == 4
    write(a="2")
    assert bucket.upload("ds", [src]).version.number == 5


def test_where_it_came_from_is_no_reason_for_a_version(bucket: Bucket, write: Write) -> None:
    src = write(a="1")
    first = bucket.upload("ds", [src], metadata={"m": 1}, origin={"m": 0, "from": "here"}).version
    assert first.metadata == {"m": 1, "from": "here"}
    assert not bucket.upload("ds", [src], origin={"from": "there"}).created
    assert bucket.resolve("ds").metadata == {"m": 1, "from": "here"}


def test_unchanged_means_like_the_latest(bucket: Bucket, write: Write) -> None:
    src = write(a="1")
    bucket.upload("ds", [src])
    write(a="2")
    bucket.upload("ds", [src])
    write(a="1")
    assert bucket.upload("ds", [src]).version.number == 3
    bucket.delete("ds")
    write(a="2")
    assert not bucket.upload("ds", [src]).created


def test_a_touched_file_is_no_change(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    src = write(a="1")
    bucket.upload("ds", [src])
    os.utime(tmp_path / "src" / "a", (1, 1))
    assert not bucket.upload("ds", [src]).created
    (tmp_path / "src" / "a").chmod(0o600)
    assert bucket.upload("ds", [src]).created


def test_regex(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    write(a_txt="1", b_csv="2", sub__c_txt="3")
    bucket.upload("ds", [str(tmp_path / "src")], regex=r"src/.*_txt")
    assert paths(bucket, "ds") == ["src", "src/a_txt", "src/sub", "src/sub/c_txt"]
    with pytest.raises(SourceError, match="matches no file"):
        bucket.upload("ds", [str(tmp_path / "src")], regex="nothing")
    with pytest.raises(UsageError, match="not a regular expression"):
        bucket.upload("ds", [str(tmp_path / "src")], regex="(")
    assert bucket.resolve("ds").number == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tag": "latest"}, "can't be set"),
        ({"tag": "5"}, "is a number"),
        ({"metadata": {"a": [1, "x"]}}, "the metadata"),
        ({"labels": {"a b": 1}}, "the labels"),
        ({"regex": "["}, "regular expression"),
    ],
)
def test_nothing_is_stored_for_a_wrong_request(
    bucket: Bucket, write: Write, options: dict[str, Any], message: str
) -> None:
    before = [info.key for info in bucket.store.backend.list("")]
    with pytest.raises(UsageError, match=message):
        bucket.upload("ds", [write(a="1")], **options)
    assert [info.key for info in bucket.store.backend.list("")] == before


def test_a_failed_upload_leaves_no_dataset(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        bucket.upload("ds", [str(tmp_path / "nope")])
    with pytest.raises(UsageError, match="nothing to upload"):
        bucket.upload("ds", [])
    with pytest.raises(NotFoundError):
        bucket.info("ds")
    assert list(bucket.refs.list_names()) == []


def test_resume_with_nothing_to_resume_warns(bucket: Bucket, write: Write) -> None:
    progress = Warnings()
    assert bucket.upload("ds", [write(a="1")], resume=True, progress=progress).created
    assert progress.messages == ["there is no interrupted upload to continue: uploading from the start"]
    assert bucket.unfinished() == []


def test_racing_uploads_all_become_versions(store: Store, tmp_path: Path) -> None:
    results: list[int] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        (tmp_path / f"f{number}").write_text(str(number))
        barrier.wait()
        mine = Bucket(store, name="default", user=f"u{number}")
        results.append(mine.upload("ds", [str(tmp_path / f"f{number}")]).version.number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(1, 9))
    summary = Bucket(store, name="default", user="x").list()[0]
    assert summary.users == tuple(f"u{number}" for number in range(8))


# ---- update


def test_update(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    bucket.upload("ds", [write(keep="k", drop__x="x", change="old")], metadata={"m": 1})
    write(change="new", top="more")
    (tmp_path / "extra").write_text("e")
    result = bucket.update("ds", add=[f"{tmp_path}/more/*", f"{tmp_path}/extra:deep/er"], remove="drop/", set_tag="u")
    assert (result.created, result.version.tags) == (True, ("latest", "u"))
    assert paths(bucket, "ds") == ["change", "deep", "keep", "deep/er", "deep/er/extra"]
    assert text_of(bucket, result.version, b"change") == b"new"
    assert text_of(bucket, bucket.resolve("ds", "1"), b"change") == b"old"
    from_first = bucket.update("ds", tag="1", remove="keep")
    assert from_first.version.number == 3
    assert paths(bucket, "ds") == ["change", "drop", "drop/x"]


def test_an_update_that_changes_nothing(bucket: Bucket, write: Write) -> None:
    bucket.upload("ds", [write(a="1")])
    assert not bucket.update("ds", remove="nothing").created
    with pytest.raises(UsageError, match="nothing to do"):
        bucket.update("ds")


def test_updates_are_refused(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no dataset or collection 'ds'"):
        bucket.update("ds", remove="x")
    bucket.upload("ds", [write(a="1")])
    bucket.collect("c", ["ds"])
    with pytest.raises(UsageError, match="'c' is a collection"):
        bucket.update("c", remove="x")
    with pytest.raises(NotFoundError, match="no version or tag 'x'"):
        bucket.update("ds", tag="x", remove="x")
    with pytest.raises(UsageError, match="inside the dataset"):
        bucket.update("ds", add=[f"{tmp_path}/src:/abs/../../x"])
    with pytest.raises(UsageError, match="is a collection"):
        bucket.upload("c", [write(a="1")])
    assert bucket.resolve("ds").number == 1


# ---- download and inspect


def test_download(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    version = bucket.upload("ds", [write(a="1", d__b="22")]).version
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="out is not a folder"):
        bucket.download("ds", str(out))
    out.mkdir()
    result = bucket.download("ds", str(out))
    assert (result.files, result.size, result.folders) == (2, 3, (str(out / "ds"),))
    assert (out / "ds" / "d" / "b").read_text() == "22"
    assert result.versions[0].number == version.number
    with pytest.raises(ConflictError, match="ds is not empty"):
        bucket.download("ds", str(out))
    (out / "ds" / "a").unlink()
    assert bucket.download("ds", str(out), resume=True).reused == 1
    assert (out / "ds" / "a").read_text() == "1"
    (tmp_path / "only").mkdir()
    assert bucket.download("ds", str(tmp_path / "only"), regex="d/").files == 1


def test_only_ready_versions_are_downloaded(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    src = write(a="1")
    bucket.upload("ds", [src])
    bucket.upload("ds", [src], force_new_version=True)
    bucket.delete("ds", tag="1")
    with pytest.raises(NotFoundError, match="version 1 of 'ds' was deleted"):
        bucket.download("ds", str(tmp_path), tag="1")
    for tag in ("01", "9", "nope"):
        with pytest.raises(NotFoundError, match=f"no version or tag '{tag}'"):
            bucket.download("ds", str(tmp_path), tag=tag)


def test_use_is_stamped_once_an_hour(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    bucket.upload("ds", [write(a="1")])
    stamps = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        bucket.download("ds", str(tmp_path / name))
        stamps.append(bucket.resolve("ds").state.last_used)
    assert stamps[0] is not None
    assert stamps[0] == stamps[1]


def test_a_bucket_that_can_not_be_written_can_be_downloaded(
    bucket: Bucket, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload("ds", [write(a="1")])

    def refuse(*_: object, **__: object) -> str:
        raise AccessError("read only")

    monkeypatch.setattr(bucket.store.backend, "put", refuse)
    (tmp_path / "out").mkdir()
    assert bucket.download("ds", str(tmp_path / "out")).files == 1
    assert bucket.resolve("ds").state.last_used is None


def test_collections_are_downloaded_and_listed_by_member(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    bucket.upload("one", [write(a="1")])
    bucket.upload("two", [write(b="2", top="y")])
    bucket.collect("c", ["two", "one"])
    assert paths(bucket, "c") == ["one/a", "two/b"]
    assert [entry.path for entry in bucket.entries("c", regex="b")] == [b"two/b"]
    (tmp_path / "out" / "two").mkdir(parents=True)
    (tmp_path / "out" / "two" / "mine").touch()
    with pytest.raises(ConflictError, match="two is not empty"):
        bucket.download("c", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "one").exists()
    (tmp_path / "out" / "two" / "mine").unlink()
    assert bucket.download("c", str(tmp_path / "out")).files == 2
    assert (tmp_path / "out" / "two" / "b").read_text() == "2"
    with pytest.raises(UsageError, match="no tags and no versions"):
        bucket.download("c", str(tmp_path / "out"), tag="1")


def test_inspect(bucket: Bucket, write: Write) -> None:
    bucket.upload("ds", [write(a="1", d__b="2")])
    assert [entry.path for entry in bucket.entries("ds", regex="d/")] == [b"d/b"]
    assert [entry.path for entry in bucket.entries("ds", tag="1")] == [b"a", b"d", b"d/b"]


# ---- tags


def test_tags(bucket: Bucket, write: Write) -> None:
    src = write(a="1")
    for _ in range(3):
        bucket.upload("ds", [src], force_new_version=True)
    assert bucket.set_tags("ds", ["x", "y"], tag="1").tags == ("x", "y")
    assert bucket.set_tags("ds", ["x"], tag="2").tags == ("x",)
    assert bucket.resolve("ds", "1").tags == ("y",)
    assert bucket.set_tags("ds", ["z"]).tags == ("latest", "z")
    assert bucket.set_tags("ds", ["w"], tag="y").tags == ("w", "y")
    assert bucket.update_tags("ds", set=["v"], delete=["w"], tag="1").tags == ("v", "y")
    assert bucket.delete_tags("ds", ["v", "y"], tag="v").tags == ()
    with pytest.raises(NotFoundError, match="the tag 'x' is not on version 3") as caught:
        bucket.delete_tags("ds", ["x"])
    assert "on version 2" in str(caught.value.hint)
    with pytest.raises(NotFoundError, match="no version or tag"):
        bucket.set_tags("ds", ["n"], tag="nope")
    for tag in ("latest", "7", "a.b", ""):
        with pytest.raises(UsageError):
            bucket.set_tags("ds", [tag])
        with pytest.raises(UsageError):
            bucket.delete_tags("ds", [tag])
    bucket.collect("c", ["ds"])
    with pytest.raises(UsageError, match="'c' is a collection"):
        bucket.set_tags("c", ["t"])


def test_latest_is_the_highest_ready_version(bucket: Bucket, write: Write) -> None:
    src = write(a="1")
    for _ in range(3):
        bucket.upload("ds", [src], force_new_version=True)
    bucket.delete("ds", tag="2")
    assert bucket.resolve("ds", "latest").number == 3
    bucket.delete("ds")
    assert bucket.resolve("ds").number == 1
    assert bucket.upload("ds", [src], force_new_version=True).version.number == 4


# ---- labels and metadata


def test_labels(bucket: Bucket, write: Write) -> None:
    bucket.upload("ds", [write(a="1")], labels={"a": {"b": 1, "c": 2}})
    assert bucket.update_labels("ds", set={"a": {"b": 5}, "d": ["x"]}, delete=["a.c"]) == {"a": {"b": 5}, "d": ["x"]}
    assert bucket.update_labels("ds") == {"a": {"b": 5}, "d": ["x"]}
    with pytest.raises(NotFoundError, match="labels of 'ds' have no key 'z'"):
        bucket.update_labels("ds", delete=["z"])
    with pytest.raises(UsageError, match="illegal key"):
        bucket.update_labels("ds", set={"a.b": 1})
    bucket.collect("c", ["ds"])
    assert bucket.update_labels("c", set={"x": 1}) == {"x": 1}


def test_metadata(bucket: Bucket, write: Write) -> None:
    src = write(a="1")
    bucket.upload("ds", [src], description="d", metadata={"m": 1})
    bucket.upload("ds", [src], metadata={"n": 1})
    assert bucket.update_metadata("ds", "1", set={"m": {"x": 1}}, delete=["description"]) == {"m": {"x": 1}}
    assert bucket.update_metadata("ds", "1") == {"m": {"x": 1}}
    assert bucket.resolve("ds", "1").metadata == {"m": {"x": 1}}
    assert bucket.resolve("ds", "1").record.metadata == {"m": 1, "description": "d"}
    assert bucket.update_metadata("ds", "latest") == {"n": 1}
    with pytest.raises(UsageError, match="name the version"):
        bucket.update_metadata("ds", None, set={"m": 1})
    with pytest.raises(NotFoundError, match="metadata of ds:1 have no key 'q'"):
        bucket.update_metadata("ds", "1", delete=["q"])
    assert not bucket.upload("ds", [src], metadata={"n": 1}).created
    bucket.update_metadata("ds", "2", delete=["n"])
    assert bucket.upload("ds", [src], metadata={"n": 1}).created


def test_edits_survive_a_download(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    bucket.upload("ds", [write(a="1")])
    bucket.update_metadata("ds", "1", set={"m": 1})
    bucket.download("ds", str(tmp_path))
    version = bucket.resolve("ds")
    assert (version.metadata, version.state.last_used is None) == ({"m": 1}, False)


# ---- rename


def test_rename(bucket: Bucket, write: Write) -> None:
    bucket.upload("ds", [write(a="1")], tag="t")
    bucket.collect("c", ["ds"])
    bucket.rename("ds", "new")
    assert bucket.resolve("new", "t").dataset == "new"
    with pytest.raises(NotFoundError):
        bucket.resolve("ds")
    assert paths(bucket, "c") == ["new/a"]
    bucket.rename("c", "default/d")
    assert bucket.info("d").summary.type == DatasetType.COLLECTION
    with pytest.raises(ConflictError, match="'d' is taken"):
        bucket.rename("new", "d")
    with pytest.raises(UsageError, match="bucket 'other'"):
        bucket.rename("new", "other/x")
    with pytest.raises(UsageError, match="no tag"):
        bucket.rename("new", "x:1")
    with pytest.raises(UsageError):
        bucket.rename("new", "a.b")
    bucket.upload("ds", [write(a="1")])


def test_no_upload_to_an_unfinished_rename(bucket: Bucket, write: Write) -> None:
    from casstore.format import record
    from casstore.repo.refs import NameRecord

    src = write(a="1")
    dataset_id = bucket.upload("ds", [src]).version.dataset_id
    alias = NameRecord(name="new", id=dataset_id, write_id="w")
    bucket.store.backend.put(layout.name_key("new"), [record.encode("name", alias)])
    assert bucket.resolve("new").dataset == "ds"
    with pytest.raises(ConflictError, match="unfinished rename of 'ds'"):
        bucket.upload("new", [src], force_new_version=True)
    assert [summary.name for summary in bucket.list()] == ["ds"]
    bucket.rename("ds", "new")
    assert bucket.upload("new", [src], force_new_version=True).version.number == 2


# ---- delete


def test_delete(bucket: Bucket, write: Write) -> None:
    src = write(a="1")
    for _ in range(4):
        bucket.upload("ds", [src], force_new_version=True)
    bucket.set_tags("ds", ["t"], tag="2")
    assert bucket.delete("ds").versions == (4,)
    assert bucket.delete("ds", tag="t").versions == (2,)
    with pytest.raises(NotFoundError, match="no version or tag 't'"):
        bucket.resolve("ds", "t")
    with pytest.raises(NotFoundError, match="version 2 of 'ds' was deleted"):
        bucket.delete("ds", tag="2")
    with pytest.raises(UsageError, match="Choose one"):
        bucket.delete("ds", tag="1", all_versions=True)
    result = bucket.delete("ds", all_versions=True)
    assert (result.versions, result.dropped, result.collections) == ((1, 3), True, ())
    with pytest.raises(NotFoundError):
        bucket.delete("ds", all_versions=True)
    assert bucket.upload("ds", [src]).version.number == 1


def test_the_last_version_takes_the_dataset_with_it(bucket: Bucket, write: Write) -> None:
    bucket.upload("ds", [write(a="1")])
    assert bucket.delete("ds", tag="1").dropped
    assert bucket.list() == []


def test_collections_protect_their_members(bucket: Bucket, write: Write) -> None:
    src = write(a="1")
    for _ in range(2):
        bucket.upload("ds", [src], force_new_version=True)
    bucket.upload("other", [src])
    bucket.collect("both", ["ds:1", "other"])
    bucket.collect("only", ["ds:1"])
    assert bucket.delete("ds").versions == (2,)
    with pytest.raises(ConflictError, match="is in a collection: 'both', 'only'") as caught:
        bucket.delete("ds", tag="1")
    assert "--force" in str(caught.value.hint)
    assert bucket.resolve("ds").number == 1
    result = bucket.delete("ds", all_versions=True, force=True)
    assert sorted((change.name, change.deleted) for change in result.collections) == [("both", False), ("only", True)]
    assert [member.name for member in bucket.info("both").members] == ["other"]
    with pytest.raises(NotFoundError):
        bucket.info("only")


def test_deleting_a_collection_deletes_no_data(bucket: Bucket, write: Write) -> None:
    bucket.upload("ds", [write(a="1")])
    bucket.collect("c", ["ds"])
    with pytest.raises(UsageError, match="no versions to delete"):
        bucket.delete("c", tag="1")
    result = bucket.delete("c")
    assert (result.type, result.dropped, result.versions) == (DatasetType.COLLECTION, True, ())
    assert bucket.resolve("ds").number == 1


# ---- collections


def test_collect(bucket: Bucket, write: Write) -> None:
    src = write(a="1")
    for _ in range(2):
        bucket.upload("x", [src], force_new_version=True)
    bucket.upload("y", [src])
    assert [(m.name, m.number) for m in bucket.collect("c", ["y", "default/x:1"])] == [("x", 1), ("y", 1)]
    assert [(m.name, m.number) for m in bucket.collect("d", ["c", "x:1"])] == [("x", 1), ("y", 1)]
    bucket.recollect("c", remove=["y"])
    assert [m.name for m in bucket.info("d").members] == ["x", "y"]
    with pytest.raises(ConflictError, match="versions 1 and 2 of 'x'"):
        bucket.collect("e", ["c", "x"])
    with pytest.raises(ConflictError, match="'c' is taken"):
        bucket.collect("c", ["x"])
    with pytest.raises(ConflictError, match="'x' is taken"):
        bucket.collect("x", ["y"])
    with pytest.raises(NotFoundError, match="'nope'"):
        bucket.collect("e", ["x", "nope"])
    with pytest.raises(UsageError, match="another bucket"):
        bucket.collect("e", ["other/x"])
    with pytest.raises(UsageError, match="at least one"):
        bucket.collect("e", [])
    with pytest.raises(NotFoundError):
        bucket.info("e")
    info = bucket.info("x")
    assert [version.collections for version in info.versions] == [("c", "d"), ()]
    assert bucket.info("d").summary.size == 2


def test_recollect(bucket: Bucket, write: Write) -> None:
    src = write(a="1")
    for _ in range(2):
        bucket.upload("x", [src], force_new_version=True)
    bucket.upload("y", [src])
    bucket.upload("z", [src])
    bucket.collect("c", ["x:1", "y"])
    with pytest.raises(ConflictError, match="'c' has version 1 of 'x' already, not 2"):
        bucket.recollect("c", add=["x:2"])
    members = bucket.recollect("c", add=["x:2", "z"], remove=["x"])
    assert [(m.name, m.number) for m in members] == [("x", 2), ("y", 1), ("z", 1)]
    with pytest.raises(NotFoundError, match="'x:1' is not in collection 'c'"):
        bucket.recollect("c", remove=["x:1"])
    with pytest.raises(NotFoundError, match="'nope' is not in collection"):
        bucket.recollect("c", remove=["nope"])
    bucket.collect("part", ["y", "z"])
    assert [m.name for m in bucket.recollect("c", remove=["part"])] == ["x"]
    with pytest.raises(UsageError, match="nothing to add"):
        bucket.recollect("c")
    with pytest.raises(UsageError, match="'x' is a dataset"):
        bucket.recollect("x", add=["y"])
    assert bucket.recollect("c", remove=["x:2"]) == []
    with pytest.raises(NotFoundError):
        bucket.info("c")
    bucket.collect("c", ["x"])


def test_members_that_were_deleted_can_be_removed(bucket: Bucket, write: Write, tmp_path: Path) -> None:
    src = write(a="1")
    dataset_id = bucket.upload("x", [src]).version.dataset_id
    bucket.upload("y", [src])
    bucket.collect("c", ["x", "y"])
    bucket.refs.delete_dataset(dataset_id)  # as somebody may who saw no collection yet
    assert [(m.name, m.version is None) for m in bucket.info("c").members] == [("x", True), ("y", False)]
    with pytest.raises(NotFoundError, match="version 1 of 'x', a member of 'c', was deleted"):
        bucket.download("c", str(tmp_path))
    assert [m.name for m in bucket.recollect("c", remove=["x"])] == ["y"]


# ---- list and info


def test_list(bucket: Bucket, bob: Bucket, write: Write) -> None:
    src = write(a="123")
    bucket.upload("alpha", [src])
    bob.upload("beta", [src])
    bucket.upload("gamma", [src])
    bob.upload("gamma", [src], force_new_version=True)
    bob.collect("coll", ["alpha"])
    everything = bucket.list()
    assert [summary.name for summary in everything] == ["alpha", "beta", "gamma", "coll"]
    assert [summary.name for summary in bucket.list(order="desc", count=2)] == ["coll", "gamma"]
    assert [summary.name for summary in bucket.list(count=2)] == ["gamma", "coll"]
    assert [summary.name for summary in bucket.list(users=["ann"])] == ["alpha", "gamma"]
    assert [summary.name for summary in bucket.list(users=["bob"])] == ["beta", "gamma", "coll"]
    assert bucket.list(users=[]) == []
    assert [summary.name for summary in bucket.list(name="m")] == ["gamma"]
    assert [summary.name for summary in bucket.list(type=DatasetType.COLLECTION)] == ["coll"]
    alpha = everything[0]
    assert (alpha.bucket, alpha.size, alpha.last_version, alpha.users) == ("default", 3, 1, ("ann",))
    assert alpha.stored_size > 0
    assert everything[1].stored_size == 0  # the same bytes were there already
    with pytest.raises(UsageError, match="asc or desc"):
        bucket.list(order="up")


def test_info(bucket: Bucket, bob: Bucket, write: Write) -> None:
    src = write(a="1")
    for owner in (bucket, bob, bucket):
        owner.upload("ds", [src], force_new_version=True)
    bucket.delete("ds", tag="2")
    info = bucket.info("ds")
    assert [found.version.number for found in info.versions] == [1, 3]
    assert [found.version.number for found in bucket.info("ds", order="desc").versions] == [3, 1]
    assert [found.version.number for found in bucket.info("ds", count=1).versions] == [3]
    assert [found.version.status for found in bucket.info("ds", all_states=True).versions] == [
        VersionStatus.READY, VersionStatus.PENDING_DELETE, VersionStatus.READY,
    ]  # fmt: skip
    assert [found.version.number for found in bucket.info("ds", tag="2").versions] == [2]
    assert [found.version.number for found in bucket.info("ds", tag="latest").versions] == [3]
    assert info.summary.users == ("ann",)
    with pytest.raises(NotFoundError, match="no version or tag '9'"):
        bucket.info("ds", tag="9")
    bucket.collect("c", ["ds"])
    assert bucket.info("c").members[0].version is not None
    with pytest.raises(UsageError, match="no tags"):
        bucket.info("c", tag="1")


def test_query(bucket: Bucket, bob: Bucket, write: Write) -> None:
    src = write(a="1")
    bucket.upload("alpha", [src], metadata={"score": 1}, labels={"team": "a"})
    bob.upload("alpha", [src], metadata={"score": 2})
    bob.upload("beta", [src], metadata={"score": 3}, labels={"team": "b"})
    bob.upload("gone", [src], metadata={"score": 9}, force_new_version=True)
    bob.delete("gone", all_versions=True)
    bucket.collect("coll", ["alpha"])

    def versions(text: str) -> list[str]:
        result = bucket.query(text)
        assert (result.type, result.datasets) == ("VERSION", ())
        return [str(version) for version in result.versions]

    def datasets(text: str) -> list[str]:
        result = bucket.query(text)
        assert (result.type, result.versions) == ("DATASET", ())
        return [summary.name for summary in result.datasets]

    assert versions("metadata.score > 0") == ["alpha:1", "alpha:2", "beta:1"]
    assert versions('metadata.score > 0 AND user = "bob"') == ["alpha:2", "beta:1"]
    assert versions('metadata.score > 0 AND label.team = "a"') == ["alpha:1", "alpha:2"]
    assert versions("metadata.score > 1 ORDER BY created_date DESC LIMIT 1") == ["beta:1"]
    assert versions("metadata.score > 1 OR is_collection = true") == ["alpha:2", "beta:1"]
    assert datasets('user = "bob"') == ["alpha", "beta"]
    assert datasets('user != "bob" ORDER BY name DESC') == ["coll"]
    assert datasets('user = "ann" ORDER BY name DESC') == ["coll", "alpha"]
    assert datasets("is_collection = true") == ["coll"]
    assert datasets('label CONTAINS KEY "team" ORDER BY user DESC') == ["beta", "alpha"]
    bucket.delete("alpha", tag="2", force=True)
    assert versions("metadata.score > 0") == ["alpha:1", "beta:1"]
    assert datasets('user = "bob"') == ["beta"]
    for text in ('name = "gone"', "metadata.score = 9", 'id = "nope"'):
        with pytest.raises(NotFoundError, match=r"^No Datasets Fit the Query$"):
            bucket.query(text)
    with pytest.raises(UsageError, match="line 1, column 6"):
        bucket.query("name ~ 5")


def test_verify(bucket: Bucket, write: Write) -> None:
    bucket.upload("ds", [write(a="x" * 1000)])
    bucket.upload("other", [write(b="y" * 1000, top="y")])
    bucket.collect("c", ["ds", "other"])
    assert bucket.verify().clean
    assert bucket.verify("ds").clean
    assert bucket.verify("c").size >= 2000
    packs = [info.key for info in bucket.store.backend.list("packs/")]
    bucket.store.backend.delete(packs)
    assert not bucket.verify("ds").clean
    assert not bucket.verify().clean


def test_a_damaged_record_is_named(bucket: Bucket, write: Write) -> None:
    version = bucket.upload("ds", [write(a="1")]).version
    key = layout.head_key(version.dataset_id)
    data = bytearray(bucket.store.backend.get(key).data)
    data[-3] ^= 1
    bucket.store.backend.put(key, [bytes(data)])
    for call in (bucket.resolve, bucket.info, bucket.delete):
        with pytest.raises(IntegrityError, match=key):
            call("ds")


# ---- damage of others


def test_damage_of_one_dataset_is_told_and_the_others_are_shown(store: Store, write: Write) -> None:
    told: list[str] = []
    bucket = Bucket(store, name="default", user="ann", warn=told.append)
    source = write(a="1")
    ids = {name: bucket.upload(name, [source]).version.dataset_id for name in ("good", "bad", "half")}
    bucket.upload("half", [source], force_new_version=True)
    bucket.collect("both", ["good", "half:1"])
    store.backend.put(layout.head_key(ids["bad"]), [b"x"])
    store.backend.put(layout.version_key(ids["half"], 2), [b"x"])
    half = layout.version_key(ids["half"], 2)

    assert {(found.name, found.last_version) for found in bucket.list()} == {("both", None), ("good", 1), ("half", 1)}
    assert {message.split(":")[0] for message in told} == {layout.head_key(ids["bad"]), half}
    told.clear()
    assert {found.name for found in bucket.query("is_collection = false").datasets} == {"good", "half"}
    assert bucket.info("good").versions[0].collections == ("both",)
    assert [info.version.number for info in bucket.info("half").versions] == [1]
    assert half in {message.split(":")[0] for message in told}
    told.clear()
    with pytest.raises(IntegrityError, match=layout.head_key(ids["bad"])):
        bucket.info("bad")
    with pytest.raises(IntegrityError, match=half):
        bucket.resolve("half")
    with pytest.raises(IntegrityError, match=layout.head_key(ids["bad"])):
        bucket.delete("good")  # nobody can tell whether it is in a collection
    assert told == []
