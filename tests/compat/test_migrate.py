"""`osmo dataset migrate` and `adopt`, against moto's S3: what a user of OSMO 6.2, of DVC or of a bucket does."""

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
from casstore.testing.foreign import OsmoFolder, osmo_etag
from casstore.testing.servers.s3 import S3Server, moto_s3
from casstore_cli import main

rng = random.Random(5)
LARGE = rng.randbytes((9 << 20) + 77)
FIRST = {"set/a.bin": rng.randbytes(200_000), "set/empty": b"", "set/name with ü.txt": b"text"}
SECOND = {**FIRST, "set/large.bin": LARGE}


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
        code = main.run(["dataset", *map(str, args)])
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
    config = Path(os.environ["XDG_CONFIG_HOME"]) / "osmo" / "config.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump({"auth": {"data": {f"s3://{name}": fields}}}))
    config.chmod(0o600)

    class Source:
        def find(self, profile: str) -> Any:
            return server.credential

    client, _ = open_objects(f"s3://{name}", Source())
    yield client
    client.close()


def downloaded(osmo: Osmo, ref: str, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    assert osmo("download", ref, folder).code == 0
    root = folder / ref.partition(":")[0]
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_from_a_bucket_of_osmo_to_ours(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    old = OsmoFolder(bucket, "datasets")
    old.version(1, FIRST)
    old.version(2, SECOND)
    bucket.put("raw/folder/a.txt", [b"linked"])
    old.version(4, {}, [old.described("a.txt", f"{bucket.url}/raw/folder/a.txt", 6, osmo_etag(b"linked"))])
    info = old.info("robots", [1, 2, 4], labels={"team": "arms"})
    info["versions"][0]["tags"] = ["golden"]
    info["versions"][1]["metadata"] = {"description": "with the large one"}
    (tmp_path / "info.json").write_text(json.dumps(info))
    source = f"{bucket.url}/datasets"

    [listed] = osmo("migrate", source, "--list", "-t", "json").json()
    assert (listed["id"], listed["versions"], listed["begins_with"]) == (old.id, [1, 2, 4], "a.txt")
    assert old.id in osmo("migrate", source, "--list").out

    planned = osmo("migrate", source, "--info", tmp_path / "info.json", "--dry-run", "-t", "json").json()
    [dataset] = planned["datasets"]
    assert dataset["name"] == "robots"
    assert [version["state"] for version in dataset["versions"]] == ["planned"] * 3
    assert [version["files"] for version in dataset["versions"]] == [3, 4, 1]
    assert osmo("info", "robots").code == 2

    done = osmo("migrate", source, "--info", tmp_path / "info.json", "-t", "json")
    assert done.code == 0
    [dataset] = done.json()["datasets"]
    assert [(v["source_version"], v["version"], v["state"]) for v in dataset["versions"]] == [
        (1, "1", "created"),
        (2, "2", "created"),
        (4, "3", "created"),
    ]
    assert [v["osmo_checksum"] for v in dataset["versions"]] == [old.checksums[number] for number in (1, 2, 4)]
    assert dataset["versions"][1]["checks"] == {"md5": 3, "md5-of-parts": 1}
    assert downloaded(osmo, "robots:golden", tmp_path / "1") == FIRST
    assert downloaded(osmo, "robots:2", tmp_path / "2") == SECOND
    assert downloaded(osmo, "robots", tmp_path / "3") == {"a.txt": b"linked"}
    shown = osmo("info", "robots", "-t", "json").json()
    assert shown["labels"] == {"team": "arms"}
    assert [(v["created_by"], v["created_date"][:10]) for v in shown["versions"]] == [
        ("alex@lab", "2026-02-01"),
        ("alex@lab", "2026-02-02"),
        ("alex@lab", "2026-02-04"),
    ]
    assert shown["versions"][1]["metadata"] == {"description": "with the large one"}
    assert osmo("verify").code == 0

    again = osmo("migrate", source, "--dataset", f"{old.id}=robots")
    assert again.code == 0
    assert again.out.count("here already") == 3


def test_damage_is_told_file_by_file(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    old = OsmoFolder(bucket, "")
    old.version(1, {"good": b"good", "gone": b"gone", "wrong": b"wrong"}, [old.entry("../x", b"x")])
    bucket.delete([f"{old.prefix}/hashes/{osmo_etag(b'gone')}"])
    bucket.put(f"{old.prefix}/hashes/{osmo_etag(b'wrong')}", [b"WRONG"])
    result = osmo("migrate", bucket.url, "robots")
    assert result.code == 2
    assert "gone: its object" in result.out and "../x: it leaves the dataset" in result.out
    assert f"{old.prefix}/manifests/1.json, entry 4" in result.out
    assert osmo("info", "robots").code == 2
    result = osmo("migrate", bucket.url, "robots", "--skip-damaged")
    assert result.code == 0
    assert "wrong: its bytes are not those that were recorded" in result.out
    assert downloaded(osmo, "robots", tmp_path / "1") == {"good": b"good"}
    [version] = osmo("info", "robots", "-t", "json").json()["versions"]
    assert version["provenance"]["adopted"]["damaged"]["files"] == 3


def test_which_dataset_becomes_which(osmo: Osmo, bucket: Any) -> None:
    one, two = OsmoFolder(bucket, "d"), OsmoFolder(bucket, "d")
    one.version(1, {"f": b"one"})
    two.version(1, {"f": b"two"})
    source = f"{bucket.url}/d"
    for arguments, words in [
        ((), "no name for any"),
        (("name",), "one name is not enough"),
        (("--dataset", "nope=name"), "there is no dataset 'nope'"),
        (("--dataset", one.id), "does not say which"),
        (("--dataset", f"{one.id}=x", f"{two.id}=x"), "two datasets can't become one"),
        (("--dataset", f"{one.id}=a.b"), "illegal name"),
        (("x:3", "--dataset", f"{one.id}=x"), "without a tag"),
    ]:
        result = osmo("migrate", source, *arguments)
        assert result.code == 2, arguments
        assert words in result.out, arguments
    assert osmo("migrate", source, "--dataset", f"{one.id}=a", f"{two.id}=b").code == 0
    assert osmo("migrate", f"{source}/{two.id}", "c").code == 0
    checksums = [osmo("info", name, "-t", "json").json()["versions"][0]["checksum"] for name in "abc"]
    assert checksums[0] != checksums[1] == checksums[2]


def test_collections(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    one, two = OsmoFolder(bucket, "d"), OsmoFolder(bucket, "d")
    for number in (2, 5):
        one.version(number, {"f": f"one {number}".encode()})
    two.version(7, {"f": b"two"})
    members = [(one, "one", 5), (two, "two", 7)]
    collection = {
        **one.info("both", [], id="c" * 22, type="COLLECTION", labels={"team": "arms"}),
        "versions": [
            {
                "name": name,
                "version": str(number),
                "location": "https://x",
                "uri": f"{folder.storage}/manifests/{number}.json",
                "hash_location": f"{folder.storage}/hashes",
                "size": 1,
            }
            for folder, name, number in members
        ],
    }
    for name, value in {"one": one.info("one", [2, 5]), "two": two.info("two", [7]), "both": collection}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    source = f"{bucket.url}/d"
    part = osmo("migrate", source, "--info", tmp_path / "one.json", tmp_path / "both.json")
    assert part.code == 2
    assert "Collection both was NOT made: not here are two:7" in part.out
    everything = ["migrate", source, "--info", *(tmp_path / f"{name}.json" for name in ("one", "two", "both"))]
    [made] = osmo(*everything, "-t", "json").json()["collections"]
    assert (made["state"], made["members"]) == ("created", ["one:2", "two:1"])
    shown = osmo("info", "both", "-t", "json").json()
    assert (shown["type"], shown["labels"]) == ("COLLECTION", {"team": "arms"})
    assert downloaded(osmo, "one:2", tmp_path / "1") == {"f": b"one 5"}
    again = osmo(*everything)
    assert (again.code, "Collection both is here already" in again.out) == (0, True)
    assert osmo("recollect", "both", "--remove", "two").code == 0
    again = osmo(*everything)
    assert (again.code, "something else has this name" in again.out) == (2, True)


def test_a_copy_in_a_local_folder(osmo: Osmo, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    client, _ = open_objects((tmp_path / "copy").as_uri())
    old = OsmoFolder(client, "datasets", url="s3://was-there")
    old.version(1, FIRST)
    client.close()
    assert osmo("migrate", tmp_path / "copy" / "datasets", "robots").code == 0
    assert downloaded(osmo, "robots", tmp_path / "1") == FIRST
    assert osmo("migrate", tmp_path / "copy" / "datasets" / old.id, "again").code == 0
    assert osmo("migrate", tmp_path / "copy", "robots").code == 2


def test_upstreams_own_form(osmo: Osmo, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    assert osmo("upload", "DS", tmp_path / "f").code == 0
    result = osmo("migrate", "DS")
    assert result.code == 0
    assert "DS:1 is in this store already: there is nothing to migrate" in result.err
    assert osmo("migrate", "DS:nope").code == 2
    assert osmo("migrate", "no such thing").code == 2


def test_only_what_is_in_object_storage_is_referred_to(osmo: Osmo, isolated_home: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "ds" / "manifests").mkdir(parents=True)
    (tmp_path / "data" / "ds" / "manifests" / "1.json").write_text("[]")
    for command in (["migrate", tmp_path / "data", "DS"], ["adopt", "DS", tmp_path]):
        result = osmo(*command, "--reference")
        assert (result.code, "--reference is for object storage" in result.out) == (2, True)


def test_a_prefix(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    files = {"a": b"a", "b/c": b"c", "b/large": LARGE}
    for name, data in files.items():
        bucket.put(f"raw/run/{name}", [data])
    bucket.put("raw/runner", [b"something else"])
    url = f"{bucket.url}/raw/run"
    survey = osmo("adopt", "run", url, "--dry-run", "-t", "json").json()
    assert (survey["files"], survey["size"]) == (3, sum(map(len, files.values())))
    made = osmo("adopt", "run", url, "--tag", "raw", "-t", "json").json()
    assert (made["created"], made["version"], made["checks"]) == (True, "1", {"none": 3})
    assert downloaded(osmo, "run:raw", tmp_path / "1") == files
    assert osmo("adopt", "run", url, "-t", "json").json()["created"] is False
    bucket.put("raw/run/a", [b"changed"])
    made = osmo("adopt", "run", url, "-x", "a$", "-t", "json").json()
    assert (made["created"], made["files"]) == (True, 1)
    assert osmo("adopt", "run", f"{bucket.url}/nowhere").code == 2
    assert osmo("adopt", "run", "https://example.org/x").code == 2
    assert osmo("adopt", "run", "s3://not-mine/x").code == 2


def test_uploads_and_updates_from_storage(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    for name in ("a.txt", "sub/b.txt"):
        bucket.put(f"raw/folder/{name}", [f"remote {name}".encode()])
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "b.txt").write_text("local b")
    (tmp_path / "folder" / "c.txt").write_text("local c")
    url = f"{bucket.url}/raw/folder"
    assert osmo("upload", "DS", url, tmp_path / "folder").code == 0
    first = {"folder/a.txt": b"remote a.txt", "folder/sub/b.txt": b"remote sub/b.txt", "folder/c.txt": b"local c"}
    assert downloaded(osmo, "DS:1", tmp_path / "1") == first
    assert osmo("upload", "DS", tmp_path / "folder", url).code == 0
    assert downloaded(osmo, "DS:2", tmp_path / "2") == {**first, "folder/sub/b.txt": b"local b"}
    assert osmo("update", "DS", "--remove", "folder/c", "--add", f"{url}/a.txt:top", f"{url}/*:all").code == 0
    assert downloaded(osmo, "DS:3", tmp_path / "3") == {
        "folder/a.txt": b"remote a.txt",
        "folder/sub/b.txt": b"local b",
        "top/a.txt": b"remote a.txt",
        "all/a.txt": b"remote a.txt",
        "all/sub/b.txt": b"remote sub/b.txt",
    }
    [*_, version] = osmo("info", "DS", "-t", "json").json()["versions"]
    assert version["provenance"]["urls"] == [f"{url}/a.txt", url]
    assert osmo("upload", "DS", "-x", "nothing", f"{url}/a.txt").code == 0
    assert downloaded(osmo, "DS", tmp_path / "4") == {"a.txt": b"remote a.txt"}
    bucket.put("clash/folder", [b"a file"])
    assert osmo("update", "DS:2", "--add", f"{bucket.url}/clash/folder").code == 0
    assert downloaded(osmo, "DS", tmp_path / "5") == {"folder": b"a file"}


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def dvc_folder(put: Callable[[str, bytes], object], files: dict[str, bytes], *, layout: str = "files/md5/") -> str:
    """Store files and their list as DVC does; returns the digest of the list."""
    for data in files.values():
        put(f"{layout}{md5(data)[:2]}/{md5(data)[2:]}", data)
    entries = sorted(({"md5": md5(data), "relpath": name} for name, data in files.items()), key=lambda e: e["relpath"])
    text = json.dumps(entries, sort_keys=True).encode()
    put(f"{layout}{md5(text)[:2]}/{md5(text)[2:]}.dir", text)
    return f"{md5(text)}.dir"


def test_dvc(osmo: Osmo, bucket: Any, tmp_path: Path) -> None:
    files = {"a.txt": b"a\r\n", "sub/b": LARGE, "empty": b""}
    digest = dvc_folder(lambda key, data: bucket.put(f"remote/{key}", [data]), files)
    outs = [{"md5": digest, "size": 3, "nfiles": 3, "hash": "md5", "path": "images"}]
    (tmp_path / "images.dvc").write_text(yaml.safe_dump({"outs": outs}))
    remote = f"{bucket.url}/remote"
    made = osmo("adopt", "images", tmp_path / "images.dvc", "--cache", remote, "-t", "json").json()
    assert made["checks"] == {"md5": 3}
    assert downloaded(osmo, "images", tmp_path / "1") == {f"images/{name}": data for name, data in files.items()}
    assert osmo("adopt", "top", digest, "--from", "dvc", "--cache", remote).code == 0
    assert downloaded(osmo, "top", tmp_path / "2") == files
    rotten = dvc_folder(lambda key, data: bucket.put(f"remote/{key}", [data]), {**files, "c/d": b"fresh"})
    bucket.put(f"remote/files/md5/{md5(b'fresh')[:2]}/{md5(b'fresh')[2:]}", [b"rot"])
    result = osmo("adopt", "other", rotten, "--from", "dvc", "--cache", remote)
    assert result.code == 2
    assert "c/d: its bytes are not those that were recorded" in result.out
    assert osmo("info", "other").code == 2
    assert osmo("adopt", "other", tmp_path / "images.dvc").code == 2


def test_dvc_before_release_3_and_a_lock_file(osmo: Osmo, tmp_path: Path) -> None:
    """Text was hashed with the line ends of Unix; the cache has it as it was."""
    project = tmp_path / "project"
    cache = project / ".dvc" / "cache"

    def put(key: str, data: bytes) -> None:
        (cache / key).parent.mkdir(parents=True, exist_ok=True)
        (cache / key).write_bytes(data)

    text = b"one\r\ntwo\r\n"
    unix = md5(text.replace(b"\r\n", b"\n"))
    put(f"{unix[:2]}/{unix[2:]}", text)
    program = b"#!/bin/sh\n"
    put(f"{md5(program)[:2]}/{md5(program)[2:]}", program)
    digest = dvc_folder(put, {"x": b"x"})
    lock = {
        "schema": "2.0",
        "stages": {
            "one": {"outs": [{"path": "out/t.txt", "md5": unix}, {"path": "run", "md5": md5(program), "isexec": True}]},
            "two": {"outs": [{"path": "dir", "md5": digest, "hash": "md5"}]},
            "three": {"cmd": "true"},
        },
    }
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    made = osmo("adopt", "DS", project / "dvc.lock", "-t", "json").json()
    assert made["checks"] == {"md5": 2, "md5-of-text": 1}
    assert downloaded(osmo, "DS", tmp_path / "1") == {"out/t.txt": text, "run": program, "dir/x": b"x"}
    assert (tmp_path / "1" / "DS" / "run").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "not a file of DVC"),
        ("outs: x", "outs is not a list"),
        ("outs: [{md5: abc, path: x}]", "has no md5"),
        ("outs: [{path: x, files: []}]", "versioned by the cloud"),
        ("outs: [{md5: d41d8cd98f00b204e9800998ecf8427e}]", "no path"),
        ("outs: [{md5: d41d8cd98f00b204e9800998ecf8427e, path: ../x}]", "leaves the dataset"),
        ("outs: [{md5: d41d8cd98f00b204e9800998ecf8427e, path: /x}]", "absolute"),
        ("outs: [{md5: d41d8cd98f00b204e9800998ecf8427f, path: x}]", "is not in the cache"),
        ("outs: []", "no output of DVC"),
    ],
)
def test_what_dvc_would_not_write(osmo: Osmo, tmp_path: Path, text: str, words: str) -> None:
    cache = tmp_path / ".dvc" / "cache" / "d4"
    cache.mkdir(parents=True)
    (cache / "1d8cd98f00b204e9800998ecf8427e").write_bytes(b"")
    (tmp_path / "x.dvc").write_text(text)
    result = osmo("adopt", "DS", tmp_path / "x.dvc")
    assert result.code == 2
    assert words in result.out


def test_a_damaged_list_of_dvc(osmo: Osmo, tmp_path: Path) -> None:
    cache = tmp_path / ".dvc" / "cache" / "files" / "md5" / "ab"
    cache.mkdir(parents=True)
    for text, words in [(b"[]", "is damaged"), (b'[{"relpath": 1}]', "entry 1 is not a file"), (b"x", "'['")]:
        (cache / ("0" * 30 + ".dir")).write_bytes(text)
        (tmp_path / "x.dvc").write_text(f"outs: [{{md5: ab{'0' * 30}.dir, path: x, hash: md5}}]")
        result = osmo("adopt", "DS", tmp_path / "x.dvc")
        assert result.code == 2
        assert words in result.out


def test_a_folder(osmo: Osmo, tmp_path: Path) -> None:
    (tmp_path / "f" / "empty").mkdir(parents=True)
    (tmp_path / "f" / "x").write_text("x")
    (tmp_path / "f" / "link").symlink_to("x")
    assert osmo("adopt", "DS", tmp_path / "f", "--dry-run", "-t", "json").json()["files"] == 1
    assert osmo("adopt", "DS", tmp_path / "f").code == 0
    assert osmo("inspect", "DS").out.split() == ["empty", "link", "x"] or osmo("inspect", "DS").out.split() == [
        "link",
        "x",
    ]
    [version] = osmo("info", "DS", "-t", "json").json()["versions"]
    assert version["provenance"]["adopted"] == {"from": "folder", "source": "f"}
    assert osmo("adopt", "DS", tmp_path / "f" / "x").code == 2
    assert osmo("adopt", "DS", tmp_path / "f", "--cache", "x").code == 2
