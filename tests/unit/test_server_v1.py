"""What is in versions, over HTTP: pages of files, ranges of bytes, differences, lineage, commits, plans."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.served.http import Reply
from casstore_cli import main
from casstore_server.api.ranges import Span, Unsatisfiable, span_of
from casstore_server.services.jobs import Jobs
from tests.serving import Serving, may, serving

BASE = "/api/v1/bucket/team"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("v1")
    with serving(folder, {"team": f"file://{folder}/team"}) as found:
        found.services.jobs = Jobs()
        found.grants = {"reader": may("dataset:Read")}
        yield found
        found.services.jobs.close()


def ask(server: Serving, path: str, method: str = "GET", user: str = "ann", **headers: str) -> Reply:
    http = server.http(user)
    try:
        body = headers.pop("body", None)
        return http.server(method, BASE + path, headers=headers, body=None if body is None else body.encode())
    finally:
        http.close()


def get(server: Serving, path: str, status: int = 200) -> Any:
    found = ask(server, path)
    assert found.status == status, found.data
    return json.loads(found.data)


@pytest.fixture(scope="module")
def tree(server: Serving) -> Path:
    root = server.folder / "tree"
    for number in range(30):
        (root / f"dir{number % 3}" / f"sub{number % 2}").mkdir(parents=True, exist_ok=True)
        (root / f"dir{number % 3}" / f"sub{number % 2}" / f"file{number:02}.txt").write_text(f"text {number}")
    (root / "big.bin").write_bytes(os.urandom(3_000_000))
    (root / "page.html").write_text("<script>alert(1)</script>")
    (root / "empty").write_bytes(b"")
    (root / "link").symlink_to("big.bin")
    (root / "größe ☃").write_text("snow")
    (root / os.fsdecode(b"bytes\xff")).write_text("raw")
    with server.bucket("ann", "team") as bucket:
        bucket.upload("d", [f"{root}/*"])
    return root


# ---- files


def names(found: Any) -> list[str]:
    return [entry["path"] for entry in found["entries"]]


def test_files_of_a_folder(server: Serving, tree: Path) -> None:
    found = get(server, "/dataset/d/version/latest/files")
    assert names(found)[:3] == ["big.bin", "bytes\\xff", "dir0"]
    assert found["version"]["name"] == "d"
    entries = {entry["path"]: entry for entry in found["entries"]}
    assert entries["big.bin"]["size"] == 3_000_000
    assert entries["link"]["target"] == "big.bin"
    assert entries["dir0"]["type"] == "directory"
    below = get(server, "/dataset/d/version/1/files?path=dir1/sub0")
    assert names(below) == [f"dir1/sub0/file{number:02}.txt" for number in (4, 10, 16, 22, 28)]
    assert names(get(server, "/dataset/d/version/1/files?path=dir1/sub0&prefix=file2")) == [
        "dir1/sub0/file22.txt",
        "dir1/sub0/file28.txt",
    ]
    raw = entries["bytes\\xff"]["raw"]
    assert ask(server, f"/dataset/d/version/1/file/x?raw={raw}").data == b"raw"


@pytest.mark.parametrize("count", [1, 2, 7, 100])
@pytest.mark.parametrize("query", ["", "&recursive=true", "&recursive=true&path=dir1", "&path=dir2/sub1"])
def test_pages_are_the_whole(server: Serving, tree: Path, count: int, query: str) -> None:
    whole = names(get(server, f"/dataset/d/version/1/files?x=1{query}"))
    paged: list[str] = []
    cursor = ""
    while True:
        page = get(server, f"/dataset/d/version/1/files?count={count}&cursor={cursor}{query}")
        paged += names(page)
        assert len(page["entries"]) <= count
        cursor = page.get("cursor", "")
        if not cursor:
            break
    assert paged == whole
    assert len(whole) > 1


def test_recursive_is_everything(server: Serving, tree: Path) -> None:
    found = set(names(get(server, "/dataset/d/version/1/files?recursive=true")))
    there = {os.fsencode(path.relative_to(tree)).decode("utf-8", "backslashreplace") for path in tree.rglob("*")}
    assert found == there
    below = set(names(get(server, "/dataset/d/version/1/files?recursive=true&path=dir1")))
    assert below == {path for path in there if path.startswith("dir1/")}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dataset/d/version/9/files", 404),
        ("/dataset/none/version/1/files", 404),
        ("/dataset/d/version/1/files?path=nothing", 404),
        ("/dataset/d/version/1/files?path=big.bin", 404),
        ("/dataset/d/version/1/files?path=../x", 404),
        ("/dataset/d/version/1/files?cursor=%21", 400),
        ("/dataset/d/version/1/files?path=dir1&cursor=ZGlyMg==", 400),
        ("/dataset/d/version/1/files?count=0", 422),
        ("/dataset/d/version/1/files?raw=%21", 400),
        ("/dataset/d%2f..%2fx/version/1/files", 404),
        ("/dataset/d/version/1/file/nothing", 404),
        ("/dataset/d/version/1/file/..%2f..%2fetc%2fpasswd", 404),
        ("/dataset/d/version/1/file/dir0", 400),
        ("/dataset/d/version/1/file/link", 400),
        ("/diff?old=d:1&new=d:7", 404),
        ("/diff?old=&new=d", 400),
        ("/diff?old=other/d&new=d", 400),
    ],
)
def test_what_is_not_there(server: Serving, tree: Path, path: str, status: int) -> None:
    get(server, path, status)


# ---- bytes


def test_a_whole_file(server: Serving, tree: Path) -> None:
    found = ask(server, "/dataset/d/version/1/file/big.bin")
    assert (found.status, found.data) == (200, (tree / "big.bin").read_bytes())
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["content-disposition"] == "attachment; filename*=UTF-8''big.bin"
    assert "immutable" in found.headers["cache-control"]
    by_tag = ask(server, "/dataset/d/version/latest/file/big.bin")
    assert "no-cache" in by_tag.headers["cache-control"]
    assert ask(server, "/dataset/d/version/1/file/big.bin", **{"If-None-Match": by_tag.headers["etag"]}).status == 304
    assert ask(server, "/dataset/d/version/1/file/gr%C3%B6%C3%9Fe%20%E2%98%83").data == b"snow"
    empty = ask(server, "/dataset/d/version/1/file/empty")
    assert (empty.status, empty.data, empty.headers["content-length"]) == (200, b"", "0")


def test_nothing_of_a_file_runs_in_a_browser(server: Serving, tree: Path) -> None:
    found = ask(server, "/dataset/d/version/1/file/page.html")
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["content-disposition"].startswith("attachment;")
    assert "sandbox" in found.headers["content-security-policy"]
    text = ask(server, "/dataset/d/version/1/file/dir1/sub0/file04.txt")
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.headers["content-disposition"].startswith("inline;")
    forced = ask(server, "/dataset/d/version/1/file/dir1/sub0/file04.txt?download=true")
    assert forced.headers["content-disposition"].startswith("attachment;")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=65536-200000", 65536, 200_001),
        ("bytes=2999999-", 2_999_999, 3_000_000),
        ("bytes=-10", 2_999_990, 3_000_000),
        ("bytes=1000000-9999999", 1_000_000, 3_000_000),
        ("bytes=-9999999", 0, 3_000_000),
    ],
)
def test_ranges(server: Serving, tree: Path, asked: str, start: int, end: int) -> None:
    whole = (tree / "big.bin").read_bytes()
    found = ask(server, "/dataset/d/version/1/file/big.bin", Range=asked)
    assert (found.status, found.data) == (206, whole[start:end])
    assert found.headers["content-range"] == f"bytes {start}-{end - 1}/3000000"
    told = ask(server, "/dataset/d/version/1/file/big.bin", "HEAD", Range=asked)
    assert (told.status, told.data, told.headers["content-length"]) == (206, b"", str(end - start))


def test_ranges_that_are_none(server: Serving, tree: Path) -> None:
    path = "/dataset/d/version/1/file/big.bin"
    beyond = ask(server, path, Range="bytes=3000000-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, "bytes */3000000")
    assert ask(server, path, "HEAD", Range="bytes=-0").status == 416
    assert ask(server, "/dataset/d/version/1/file/empty", Range="bytes=0-0").status == 416
    for odd in ("bytes=5-2", "bytes=0-1,5-6", "bytes=x", "lines=1-2", "bytes=-"):
        assert ask(server, path, Range=odd).status == 200
    tag = ask(server, path, "HEAD").headers["etag"]
    assert ask(server, path, Range="bytes=0-9", **{"If-Range": tag}).status == 206
    assert ask(server, path, Range="bytes=0-9", **{"If-Range": '"another"'}).status == 200


def test_spans() -> None:
    assert span_of("bytes=2-3", 10) == Span(2, 2, 10, True)
    assert span_of("bytes=" + "9" * 30 + "-", 10) == Span(0, 10, 10, False)
    with pytest.raises(Unsatisfiable):
        span_of("bytes=10-", 10)


def test_damage_is_told_and_never_sent(server: Serving) -> None:
    data = os.urandom(200_000)
    (server.folder / "damaged").write_bytes(data)
    with server.bucket("ann", "team") as bucket:
        before = {info.key for info in bucket.store.backend.list("packs/")}
        bucket.upload("damaged", [str(server.folder / "damaged")])
        fresh = [info for info in bucket.store.backend.list("packs/") if info.key not in before]
    pack = server.folder / "team" / max(fresh, key=lambda info: info.size).key
    whole = bytearray(pack.read_bytes())
    whole[1000] ^= 1
    pack.write_bytes(whole)
    found = ask(server, "/dataset/damaged/version/1/file/damaged")
    assert (found.status, json.loads(found.data)["kind"]) == (500, "integrity")


# ---- what differs, and where it comes from


def test_diff_is_that_of_the_command(
    server: Serving, tree: Path, capsys: pytest.CaptureFixture[str], isolated_home: Path
) -> None:
    (server.folder / "new").write_text("new")
    with server.bucket("ann", "team") as bucket:
        bucket.update("d", add=[str(server.folder / "new")], remove="dir1/", force_new_version=True)
    found = get(server, "/diff?old=d:1&new=d:2")
    assert (found["added"], found["identical"], found["more"]) == (1, False, False)
    assert main.run(["bucket", "add", "team", f"file://{server.folder}/team"]) == 0
    capsys.readouterr()
    assert main.run(["dataset", "diff", "team/d:1", "d:2", "--format-type", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for side in ("old", "new"):
        assert told[side].items() <= found[side].items()
    beside = {"old", "new", "more"}
    assert {key: value for key, value in found.items() if key not in beside} == {
        key: value for key, value in told.items() if key not in beside
    }
    few = get(server, "/diff?old=d:1&new=d:2&count=1")
    assert (len(few["changes"]), few["more"]) == (1, True)


def test_lineage_goes_both_ways(server: Serving, tree: Path) -> None:
    with server.bucket("ann", "team") as bucket:
        made_from = bucket.resolve("d", "1")
        note = {
            "kind": "dataset",
            "ref": "team/d:1",
            "manifest": made_from.record.manifest,
            "checksum": made_from.record.checksum,
        }
        provenance = {"workflow_id": "w-1", "task": "train", "inputs": [note, {"kind": "url", "ref": "s3://b/x"}]}
        bucket.upload("model", [str(tree / "empty")], provenance=provenance)
    back = get(server, "/dataset/model/version/1/lineage")
    assert back["made_by"] == {"workflow_id": "w-1", "task": "train"}
    assert [origin["ref"] for origin in back["made_from"]] == ["team/d:1", "s3://b/x"]
    assert back["made_from"][0]["version"]["version"] == "1"
    forth = get(server, "/dataset/d/version/1/lineage")
    assert [(one["name"], one["version"]) for one in forth["made_of_it"]] == [("model", "1")]
    assert forth["made_from"] == []


# ---- commits and plans


def test_commit(server: Serving, tree: Path) -> None:
    with server.bucket("ann", "team") as bucket:
        manifest = bucket.resolve("d", "1").record.manifest
    body = json.dumps({"manifest": manifest, "metadata": {"a": 1}, "tag": "prod", "description": "again"})
    made = ask(server, "/dataset/again/commit", "POST", body=body)
    assert made.status == 200, made.data
    assert json.loads(made.data)["created"] is True
    again = ask(server, "/dataset/again/commit", "POST", body=body)
    assert json.loads(again.data)["created"] is False
    with server.bucket("ann", "team") as bucket:
        assert bucket.resolve("again", "prod").metadata == {"a": 1, "description": "again"}
    assert ask(server, "/dataset/again/commit", "POST", user="reader", body=body).status == 403
    missing = json.dumps({"manifest": "0" * 64})
    assert ask(server, "/dataset/again/commit", "POST", body=missing).status == 404
    for wrong in ("{}", "[]", "x", '{"manifest": "../x"}'):
        assert ask(server, "/dataset/again/commit", "POST", body=wrong).status == 400


def test_gc_plan_changes_nothing(server: Serving, tree: Path) -> None:
    before = [info.key for info in server.store("team").backend.list("")]
    found = get(server, "/gc/plan?grace=0")
    assert found["bucket"] == "team"
    assert [info.key for info in server.store("team").backend.list("")] == before
    assert ask(server, "/gc/plan", user="reader").status == 403
    get(server, "/gc/plan?grace=-1", 422)
