"""`osmo dataset adopt --reference` and `migrate --reference`, against moto's S3: data that stays where it is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from casstore.remote.open import open_objects
from casstore.testing.foreign import OsmoFolder
from casstore.testing.servers.s3 import S3Server, moto_s3
from casstore_cli import main

rng = random.Random(11)
LARGE = rng.randbytes((9 << 20) + 77)
FILES = {"a.bin": rng.randbytes(300_000), "sub/large.bin": LARGE, "small.txt": b"text", "empty": b""}
BREAKS = "These versions break when the objects are changed or deleted."


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Osmo = Callable[..., Result]


@pytest.fixture
def osmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Osmo:
    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        code = main.run([*map(str, args)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        assert "testing-secret" not in captured.out + captured.err
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with moto_s3() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server, isolated_home: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of a new bucket; the user has a credential for it."""
    name = "lab-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    plain = server.boto3()
    plain.create_bucket(Bucket=name)
    plain.close()
    fields = {
        "access_key_id": server.access_key_id,
        "access_key": server.access_key,
        "region": server.region,
        "override_url": server.endpoint,
    }
    configure(auth={"data": {f"s3://{name}": fields}})

    class Source:
        def find(self, profile: str) -> Any:
            return server.credential

    client, _ = open_objects(f"s3://{name}", Source())
    yield client
    client.close()


def configure(**content: Any) -> None:
    config = Path(os.environ["XDG_CONFIG_HOME"]) / "osmo" / "config.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(content))
    config.chmod(0o600)


def put(bucket: Any, files: dict[str, bytes], prefix: str = "data/") -> None:
    for path, data in files.items():
        bucket.put(prefix + path, [data])


def downloaded(osmo: Osmo, ref: str, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    result = osmo("dataset", "download", ref, folder)
    assert result.code == 0, result.err
    root = folder / ref.partition(":")[0]
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def packs_size(osmo: Osmo) -> int:
    size: int = osmo("store", "info", "-t", "json").json()["stored_size"]
    return size


def test_nothing_is_copied_and_everything_is_read(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    put(bucket, FILES)
    source = f"{bucket.url}/data"

    planned = osmo("dataset", "adopt", "robots", source, "--reference", "--dry-run")
    assert planned.code == 0
    assert BREAKS in planned.err + planned.out

    done = osmo("dataset", "adopt", "robots", source, "--reference", "-t", "json")
    assert done.code == 0, done.err
    assert BREAKS in done.err
    assert done.json()["new_bytes"] < 100_000
    references = done.json()["provenance"]["references"]
    assert references == {"files": 2, "size": len(LARGE) + 300_000, "at": [f"{bucket.url}/data/"]}
    assert packs_size(osmo) < 150_000

    assert downloaded(osmo, "robots", tmp_path / "out") == FILES
    assert osmo("dataset", "verify", "robots").code == 0
    assert f"{bucket.url}/data/" in osmo("dataset", "info", "robots").out
    info = osmo("store", "info", "-t", "json").json()
    assert info["referenced_size"] == len(LARGE) + 300_000
    assert "are not in the store" in osmo("store", "info").out
    assert osmo("store", "check").code == 0
    assert osmo("store", "check", "--read-data").code == 0


def test_all_versions_of_a_dataset_of_osmo(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    old = OsmoFolder(bucket, "datasets")
    first = {"a.bin": FILES["a.bin"], "note.txt": b"note"}
    old.version(1, first)
    old.version(2, {**first, "b.bin": FILES["a.bin"][:-5] + b"other", "large.bin": LARGE})
    source = f"{bucket.url}/datasets"
    assert BREAKS in osmo("dataset", "migrate", source, "robots", "--reference", "--dry-run").err
    done = osmo("dataset", "migrate", source, "robots", "--reference", "-t", "json")
    assert done.code == 0, done.err
    assert [version["state"] for version in done.json()["datasets"][0]["versions"]] == ["created"] * 2
    assert packs_size(osmo) < 150_000
    assert downloaded(osmo, "robots:1", tmp_path / "1") == first
    assert len(downloaded(osmo, "robots:2", tmp_path / "2")) == 4
    again = osmo("dataset", "migrate", source, "robots", "--reference", "-t", "json").json()
    assert [version["state"] for version in again["datasets"][0]["versions"]] == ["present"] * 2


@pytest.mark.parametrize("what", ["changed", "removed"])
def test_an_object_that_is_not_what_it_was(osmo: Osmo, bucket: Any, tmp_path: Path, what: str) -> None:
    put(bucket, FILES)
    assert osmo("dataset", "adopt", "robots", f"{bucket.url}/data", "--reference").code == 0
    if what == "changed":
        bucket.put("data/a.bin", [FILES["a.bin"][:-1] + b"x"])
    else:
        bucket.delete(["data/a.bin"])
    lost = f"{bucket.url}/data/a.bin was {what} since it was adopted"

    (tmp_path / "out").mkdir()
    result = osmo("dataset", "download", "robots", tmp_path / "out")
    assert result.code == 2
    assert lost in result.err + result.out
    assert "adopt the data again" in result.err + result.out
    for command in (["dataset", "verify", "robots"], ["store", "check"], ["store", "check", "--read-data"]):
        result = osmo(*command)
        assert result.code == 2, command
        assert lost in result.out, command
    assert "robots:1: 1 file damaged: a.bin" in osmo("store", "check").out
    repaired = osmo("store", "repair", "--yes")
    assert "robots:1: 1 file damaged: a.bin" in repaired.out

    bucket.put("data/a.bin", [FILES["a.bin"]])
    assert osmo("store", "check").code == 0
    assert downloaded(osmo, "robots", tmp_path / "again") == FILES


def test_references_lead_only_where_the_user_allows(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    put(bucket, FILES)
    assert osmo("dataset", "adopt", "robots", f"{bucket.url}/data", "--reference").code == 0
    configure()
    (tmp_path / "out").mkdir()
    result = osmo("dataset", "download", "robots", tmp_path / "out")
    assert result.code == 2
    assert f"referred to at {bucket.url}/data/" in result.err + result.out
    assert f"set a credential for {bucket.url}, or add the URL to casstore.references" in result.err + result.out
    result = osmo("store", "check")
    assert result.code == 0
    assert "objects elsewhere could not be looked at" in result.out
    assert osmo("dataset", "verify", "robots").code == 2
    configure(casstore={"references": ["file:///etc"]})
    result = osmo("dataset", "list")
    assert (result.code, "references lead to object storage alone" in result.err + result.out) == (2, True)


def test_what_is_allowed_by_name_is_read_with_the_identity_of_the_environment(
    osmo: Osmo, bucket: Any, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, FILES)
    assert osmo("dataset", "adopt", "robots", f"{bucket.url}/data", "--reference").code == 0
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.access_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", server.region)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    configure(casstore={"references": [f"{bucket.url}/dat"]})
    (tmp_path / "out").mkdir()
    assert osmo("dataset", "download", "robots", tmp_path / "out").code == 2, "another prefix"
    configure(casstore={"references": [f"{bucket.url}/data"]})
    assert downloaded(osmo, "robots", tmp_path / "again") == FILES


def test_what_is_uploaded_does_not_rely_on_references(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    put(bucket, FILES)
    assert osmo("dataset", "adopt", "robots", f"{bucket.url}/data", "--reference").code == 0
    copied = downloaded(osmo, "robots", tmp_path / "copy")
    assert osmo("dataset", "upload", "own", f"{tmp_path}/copy/robots/*").code == 0
    assert packs_size(osmo) > len(LARGE)
    bucket.delete([f"data/{path}" for path in FILES])
    assert downloaded(osmo, "own", tmp_path / "own") == copied
    assert osmo("dataset", "verify", "robots").code == 0, "what is stored is preferred"
    assert osmo("store", "gc", "--grace", "0", "--yes").code == 0
    assert downloaded(osmo, "robots", tmp_path / "robots") == copied


def test_adopting_again_without_references_brings_the_data_in(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    put(bucket, FILES)
    source = f"{bucket.url}/data"
    assert osmo("dataset", "adopt", "robots", source, "--reference").code == 0
    assert osmo("dataset", "adopt", "robots", source).code == 0
    bucket.delete([f"data/{path}" for path in FILES])
    assert downloaded(osmo, "robots", tmp_path / "out") == FILES


def test_an_update_keeps_what_its_base_refers_to(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    put(bucket, FILES)
    assert osmo("dataset", "adopt", "robots", f"{bucket.url}/data", "--reference").code == 0
    (tmp_path / "more").write_bytes(b"more" * 10_000)
    done = osmo("dataset", "update", "robots", "--add", tmp_path / "more", "--remove", "small.txt", "-t", "json")
    assert done.code == 0, done.err
    assert packs_size(osmo) < 150_000
    version = osmo("dataset", "info", "robots:2", "-t", "json").json()["versions"][0]
    assert version["provenance"]["references"]["at"] == [f"{bucket.url}/data/"]
    found = downloaded(osmo, "robots", tmp_path / "out")
    assert set(found) == {"a.bin", "sub/large.bin", "empty", "more"}


def test_each_object_stands_for_itself(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    """A version does not break when an object of another one goes, also where both objects have chunks in common."""
    put(bucket, {"x.bin": LARGE}, "one/")
    put(bucket, {"x.bin": LARGE + b"appended"}, "two/")
    assert osmo("dataset", "adopt", "set", f"{bucket.url}/one", "--reference").code == 0
    assert osmo("dataset", "adopt", "set", f"{bucket.url}/two", "--reference").code == 0
    assert osmo("dataset", "adopt", "three", f"{bucket.url}/two", "--reference").code == 0
    bucket.delete(["one/x.bin"])
    assert downloaded(osmo, "set:2", tmp_path / "a") == {"x.bin": LARGE + b"appended"}
    result = osmo("store", "check")
    assert "set:1: 1 file damaged: x.bin" in result.out
    assert "set:2" not in result.out
    assert osmo("dataset", "delete", "set:1", "--force").code == 0
    for _ in range(2):
        result = osmo("store", "gc", "--grace", "0", "--repack-below", "100%", "--yes")
        assert result.code == 0, result.err
    assert downloaded(osmo, "set", tmp_path / "b") == {"x.bin": LARGE + b"appended"}
    assert osmo("dataset", "delete", "set", "--all", "--force").code == 0
    assert osmo("store", "gc", "--grace", "0", "--repack-below", "100%", "--yes").code == 0
    assert downloaded(osmo, "three", tmp_path / "c") == {"x.bin": LARGE + b"appended"}
    assert osmo("store", "check", "--read-data").code == 0


def test_what_is_lost_is_stored_from_files_that_have_it(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    put(bucket, FILES)
    assert osmo("dataset", "adopt", "robots", f"{bucket.url}/data", "--reference").code == 0
    bucket.delete(["data/a.bin"])
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "some name").write_bytes(FILES["a.bin"])
    osmo("store", "repair", "--from", tmp_path / "found", "--yes")
    assert osmo("store", "check").code == 0
    assert downloaded(osmo, "robots", tmp_path / "out") == FILES


def test_a_remote_of_dvc(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    digests = {path: hashlib.md5(data, usedforsecurity=False).hexdigest() for path, data in FILES.items()}
    for path, digest in digests.items():
        bucket.put(f"dvc/files/md5/{digest[:2]}/{digest[2:]}", [FILES[path]])
    listed = json.dumps([{"md5": digest, "relpath": path} for path, digest in digests.items()]).encode()
    whole = hashlib.md5(listed, usedforsecurity=False).hexdigest()
    bucket.put(f"dvc/files/md5/{whole[:2]}/{whole[2:]}.dir", [listed])
    out = {"md5": f"{whole}.dir", "hash": "md5", "path": "images"}
    (tmp_path / "images.dvc").write_text(yaml.safe_dump({"outs": [out]}))
    cache = f"{bucket.url}/dvc"
    done = osmo("dataset", "adopt", "images", tmp_path / "images.dvc", "--cache", cache, "--reference", "-t", "json")
    assert done.code == 0, done.err
    assert done.json()["provenance"]["references"]["at"] == [f"{cache}/files/md5/"]
    assert packs_size(osmo) < 150_000
    assert downloaded(osmo, "images", tmp_path / "out") == {f"images/{path}": data for path, data in FILES.items()}
    (tmp_path / "cache").mkdir()
    local = osmo("dataset", "adopt", "x", tmp_path / "images.dvc", "--cache", tmp_path / "cache", "--reference")
    assert (local.code, "--reference is for object storage" in local.out + local.err) == (2, True)
