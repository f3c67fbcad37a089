"""URLs of stores: what opens, and what is refused with which words."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import pytest

from casstore.backend.registry import open_backend
from casstore.errors import AccessError, CasstoreError, NotFoundError, StorageError, UsageError


def round_trip(url: str, *, create: bool = False) -> str:
    backend = open_backend(url, create=create)
    backend.put("a/b", [b"x"])
    found = backend.url
    backend.close()
    again = open_backend(found)
    assert again.get("a/b").data == b"x"
    again.close()
    return found


def test_plain_path(tmp_path: Path) -> None:
    assert round_trip(str(tmp_path)) == f"file://{tmp_path}"


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("store", "./other", "a/../third", "c:drive"):
        assert round_trip(path, create=True).startswith(f"file://{tmp_path}/")
    assert sorted(os.listdir(tmp_path)) == ["c:drive", "other", "store", "third"]


def test_home(isolated_home: Path) -> None:
    round_trip("~/store", create=True)
    assert (isolated_home / "store/a/b").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["a b", "ü", "50%", "a#b", "a?b", "~", "a:b@c"])
def test_file_url(tmp_path: Path, name: str) -> None:
    url = "file://" + quote(f"{tmp_path}/{name}")
    assert open_backend(round_trip(url, create=True)).url == round_trip(url)
    assert (tmp_path / name / "a/b").read_bytes() == b"x"


def test_file_url_with_a_name_that_is_not_text(tmp_path: Path) -> None:
    round_trip(f"file://{tmp_path}/%ff%fe", create=True)
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff\xfe"]


def test_scheme_in_any_case(tmp_path: Path) -> None:
    round_trip(f"FILE://{tmp_path}")


def test_memory_is_shared_by_name() -> None:
    with pytest.raises(NotFoundError):
        open_backend("memory://registry-test")
    first = open_backend("memory://registry-test", create=True)
    first.put("a", [b"x"])
    assert open_backend("memory://registry-test").get("a").data == b"x"
    with pytest.raises(NotFoundError):
        open_backend("memory://registry-other")
    first.close()
    assert open_backend("memory://registry-test", create=True).get("a").data == b"x"


def test_missing_folder(tmp_path: Path) -> None:
    for url in (str(tmp_path / "none"), f"file://{tmp_path}/none"):
        with pytest.raises(NotFoundError) as caught:
            open_backend(url)
        assert caught.value.hint
        assert str(tmp_path / "none") in caught.value.message
    assert not (tmp_path / "none").exists()
    open_backend(str(tmp_path / "none/below"), create=True).close()
    assert (tmp_path / "none/below").is_dir()


def test_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for create in (False, True):
        with pytest.raises(UsageError, match="not a folder"):
            open_backend(str(tmp_path / "file"), create=create)
    for create in (False, True):
        with pytest.raises((NotFoundError, StorageError)):
            open_backend(str(tmp_path / "file/below"), create=create)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, **_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(AccessError):
        open_backend(str(tmp_path / "new"), create=True)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "not a path"),
        ("a\0b", "not a path"),
        ("/", "root of the file system"),
        ("file:///", "root of the file system"),
        ("file:///..", "root of the file system"),
        ("file://host/path", "not a URL of a local folder"),
        ("file://localhost/path", "not a URL of a local folder"),
        ("file://relative", "not a URL of a local folder"),
        ("file:/path", "not a URL of a local folder"),
        ("file:///a?b=c", "no query"),
        ("file:///a#b", "no fragment"),
        ("file:///a%zz", "percent"),
        ("file:///a%2", "percent"),
        ("file:///a%00b", "not a path"),
        ("memory://", "not a store in memory"),
        ("memory:///x", "not a store in memory"),
        ("memory://a/b", "not a store in memory"),
        ("memory://a?b", "not a store in memory"),
        ("memory:/a", "not a store in memory"),
        ("s3://bucket//prefix", "empty"),
        ("azure://account", "names no container"),
        ("swift://x", "names no account"),
        ("http://host/x", "unknown scheme"),
        ("FTP://host/x", "unknown scheme"),
    ],
)
def test_refused(url: str, words: str) -> None:
    for create in (False, True):
        with pytest.raises(UsageError) as caught:
            open_backend(url, create=create)
        assert words in caught.value.message
        assert caught.value.hint
        assert "\n" not in caught.value.message


def test_messages_hold_no_secret_and_no_control_characters() -> None:
    with pytest.raises(CasstoreError) as caught:
        open_backend("s3://key:hunter2@bucket/\x1b[31m\nx")
    assert "hunter2" not in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("s3://bucket/p", "casstore.remote.s3", "s3"),
        ("tos://endpoint/bucket", "casstore.remote.s3", "s3"),
        ("swift://endpoint/account/bucket", "casstore.remote.s3", "s3"),
        ("azure://account/container", "casstore.remote.azure", "azure"),
        ("gs://bucket", "casstore.remote.gcs", "gcs"),
    ],
)
def test_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str) -> None:
    def missing(name: str) -> object:
        assert name == module
        raise ModuleNotFoundError("No module named 'vendor'", name="vendor")

    monkeypatch.setattr("casstore.remote.open.importlib.import_module", missing)
    with pytest.raises(UsageError, match=rf"pip install 'casstore\[{extra}\]'"):
        open_backend(url)


def test_a_path_that_leaves_no_room_for_keys() -> None:
    with pytest.raises(UsageError, match="too long"):
        open_backend("s3://bucket/" + "x" * 600)
