"""The dataset commands: what they print, in text and JSON, and how they fail."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.dataset import Bucket
from casstore.errors import IntegrityError
from casstore.model import Entry, Kind
from casstore_cli import main
from casstore_cli.commands.dataset.inspect import draw_tree
from casstore_cli.commands.dataset.options import workers

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a dataset command in tmp_path; returns standard output. ``code`` is the exit code that is expected."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object, code: int = 0, err: str = "") -> str:
        capsys.readouterr()
        found = main.run(["dataset", *map(str, args)])
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        assert err in captured.err
        return captured.out

    return call


@pytest.fixture
def dataset(run: Run, tmp_path: Path) -> Path:
    """The dataset DS with two versions, made of the folder ``src``."""
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "one.txt").write_text("one")
    (source / "sub/two.txt").write_text("two")
    run("upload", "DS", "src", "--desc", "the first")
    (source / "one.txt").write_text("changed")
    run("upload", "DS:stable", "src")
    return source


def test_upload_tells_what_it_did(run: Run, dataset: Path) -> None:
    assert run("upload", "NEW", "src", err="Dataset NEW has been uploaded to bucket default as version 1") == ""
    assert run("upload", "NEW", "src", err="Nothing changed: version 1 of NEW in bucket default is the same") == ""
    (dataset / "one.txt").write_text("more")
    run("upload", "NEW", "src", err="new data to the storage (2 files, 7 B in ")


def test_upload_in_json(run: Run, dataset: Path) -> None:
    made = json.loads(run("upload", "DS", "src", "-t", "json", "--force-new-version", "--tag", "again"))
    assert (made["bucket"], made["name"], made["version"], made["created"]) == ("default", "DS", "3", True)
    assert made["tags"] == ["again", "latest"]
    assert json.loads(run("upload", "DS", "src", "-t", "json"))["created"] is False


def test_only_one_tag(run: Run, dataset: Path) -> None:
    assert "only one tag" in run("upload", "DS:a", "src", "--tag", "b", code=2)
    run("upload", "DS:a", "src", "--tag", "a")


def test_labels_and_metadata_of_an_upload(run: Run, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "l1.yaml").write_text("team: {name: blue, size: 3}\n")
    (tmp_path / "l2.yaml").write_text("team: {size: 4}\n")
    (tmp_path / "m.yaml").write_text("rate: 30\n")
    run("upload", "DS", "src", "-l", "l1.yaml", "l2.yaml", "-m", "m.yaml", "-d", "third")
    assert json.loads(run("label", "DS", "-t", "json")) == {"team": {"name": "blue", "size": 4}}
    assert json.loads(run("metadata", "DS:latest", "-t", "json")) == {"rate": 30, "description": "third"}


def test_uploads_of_several_kinds(run: Run, dataset: Path) -> None:
    run("upload", "KINDS", "src/*", "src", "src/sub/two.txt")
    assert run("inspect", "KINDS").split() == ["one.txt", "two.txt", "src/one.txt", "src/sub/two.txt", "sub/two.txt"]


def test_regex_starts_at_the_start(run: Run, dataset: Path) -> None:
    run("upload", "SOME", "src", "-x", "src/sub")
    assert run("inspect", "SOME") == "src/sub/two.txt\n"
    assert "matches no file" in run("upload", "SOME", "src", "-x", "sub", code=2)
    assert "regular expression" in run("inspect", "DS", "-x", "(", code=2)


def test_update(run: Run, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "new:name.txt").write_text("new")
    run("update", "DS:1", "-a", "new\\:name.txt:extra/deep", "src/one.txt", "-r", "src/sub")
    assert run("inspect", "DS").split() == ["one.txt", "extra/deep/new:name.txt", "src/one.txt"]
    assert "nothing to do" in run("update", "DS", code=2)


def test_start_only_and_resume_by_number(run: Run, dataset: Path) -> None:
    started = json.loads(run("upload", "DS", "src", "--start-only"))
    assert set(started) == {"version_id", "region", "storage_path", "manifest_path"}
    assert started["version_id"] == "3"
    assert "was not started" in run("upload", "DS:4", "src", "-r", code=2)
    run("upload", "DS:3", "src", "-r", "--force-new-version")
    run("update", "DS", "--resume", "4", "-r", "src/sub")
    assert "is finished" in run("update", "DS", "--resume", "4", "-r", "src/one", code=2)
    assert "number" in run("update", "DS", "--resume", "x", "-r", "src/one", code=2)


def test_resume_without_anything_to_continue(run: Run, dataset: Path) -> None:
    run("upload", "DS", "src", "--resume", err="WARNING: there is no interrupted upload")


def test_interrupt_is_one_line(run: Run, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bucket, "upload", interrupt)
    assert run("upload", "DS", "src", code=3, err="interrupted: DS was not changed; upload again") == ""


def test_workers_reach_the_store(run: Run, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = Bucket.upload

    def spy(self: Bucket, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["threads"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Bucket, "upload", spy)
    run("upload", "A", "src")
    run("upload", "B", "src", "-p", "1", "-T", "2")
    assert seen == [None, 2]
    assert run("upload", "B", "src", "-p", "0", code=2) == ""


def test_workers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert workers(None, None) is None
    assert workers(None, 7) == 7
    assert workers(3, None) == 3
    assert workers(100, 100) == 64


def test_download(run: Run, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run("download", "DS:1", "out", err="DS:1 has been downloaded to out/DS") == ""
    assert (tmp_path / "out/DS/src/one.txt").read_text() == "one"
    (tmp_path / "other/DS").mkdir(parents=True)
    (tmp_path / "other/DS/mine").write_text("mine")
    assert "is not empty" in run("download", "DS", "other", code=2)
    run("download", "DS", "out", "--resume")
    assert (tmp_path / "out/DS/src/one.txt").read_text() == "changed"
    assert "is not a folder" in run("download", "DS", "src/one.txt", code=2)


def test_download_of_a_collection(run: Run, dataset: Path, tmp_path: Path) -> None:
    run("upload", "OTHER", "src/sub")
    run("collect", "COL", "DS:1", "OTHER")
    (tmp_path / "out").mkdir()
    found = json.loads(run("download", "COL", "out", "-t", "json", "-x", ".*two"))
    assert [version["path"] for version in found["versions"]] == ["out/DS", "out/OTHER"]
    assert (tmp_path / "out/DS/src/sub/two.txt").exists()
    assert not (tmp_path / "out/DS/src/one.txt").exists()
    assert (tmp_path / "out/OTHER/sub/two.txt").exists()


def test_list(run: Run, dataset: Path) -> None:
    run("upload", "OTHER", "src")
    header, rule, first, second = run("list").splitlines()
    assert header.split()[:2] == ["Bucket", "Name"]
    for column in ("ID", "Created Date", "Last Version Created", "Last Version", "Storage Size", "Type"):
        assert column in header
    assert set(rule) == {"="}
    assert first.split()[:2] == ["default", "DS"]
    assert second.split()[:2] == ["default", "OTHER"]
    assert [d["name"] for d in json.loads(run("list", "-t", "json", "-o", "desc"))["datasets"]] == ["OTHER", "DS"]
    assert [d["name"] for d in json.loads(run("list", "-t", "json", "-c", "1"))["datasets"]] == ["OTHER"]
    assert [d["name"] for d in json.loads(run("list", "-t", "json", "-n", "D"))["datasets"]] == ["DS"]


def test_list_keys_are_the_servers(run: Run, dataset: Path) -> None:
    (found,) = json.loads(run("list", "-t", "json"))["datasets"]
    assert set(found) == {
        "name", "id", "bucket", "create_time", "last_created", "hash_location", "hash_location_size", "version_id",
        "type",
    }  # fmt: skip
    assert found["version_id"] == "2"


def test_list_is_about_the_user(run: Run, dataset: Path, isolated_home: Path) -> None:
    config = isolated_home / ".config/osmo/config.yaml"
    config.parent.mkdir(exist_ok=True)
    config.write_text("casstore: {user: ada}\n")
    assert run("list") == "No Datasets fit your query.\n"
    assert "DS" in run("list", "--all-users")
    assert "DS" in run("list", "--user", "tester", "bob")
    assert "exclude" in run("list", "--user", "x", "--all-users", code=2)


def test_list_over_buckets(run: Run, dataset: Path, tmp_path: Path) -> None:
    assert main.run(["bucket", "add", "lab", str(tmp_path / "lab")]) == 0
    run("upload", "lab/THERE", "src")
    assert [d["bucket"] for d in json.loads(run("list", "-t", "json"))["datasets"]] == ["default", "lab"]
    assert [d["bucket"] for d in json.loads(run("list", "-t", "json", "-b", "lab"))["datasets"]] == ["lab"]
    (tmp_path / "lab").rename(tmp_path / "gone")
    out = run("list", "-t", "json", err="WARNING: bucket 'lab' has no store")
    assert [d["bucket"] for d in json.loads(out)["datasets"]] == ["default"]
    assert "lab" in run("list", "-b", "lab", code=2)


def test_info(run: Run, dataset: Path) -> None:
    run("label", "DS", "-s", "a.b:string:x")
    run("collect", "COL", "DS:1")
    lines = run("info", "DS").splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == ["Name", "ID", "Bucket", "Type", "Stored Size"]
    assert lines[5:8] == ["Labels:", "  a:", "    b: x"]
    tables = "\n".join(lines[8:]).split("\n\n")
    assert tables[0].split("\n")[-1].split() == ["2", "latest,", "stable"]
    assert tables[1].split("\n")[-1].split() == ["1", "COL"]
    header = tables[2].split("\n")[0]
    assert header.split("   ")[0] == "Version"
    for column in ("Status", "Created By", "Created Date", "Last Used", "Size", "Checksum"):
        assert column in header
    assert " UTC " in tables[2]


def test_info_in_json(run: Run, dataset: Path) -> None:
    found = json.loads(run("info", "DS", "-t", "json"))
    assert set(found) == {
        "name", "id", "bucket", "created_by", "created_date", "hash_location", "hash_location_size", "labels", "type",
        "versions",
    }  # fmt: skip
    assert set(found["versions"][0]) >= {
        "name", "version", "status", "created_by", "created_date", "last_used", "size", "checksum", "location", "uri",
        "metadata", "tags", "collections",
    }  # fmt: skip
    assert found["versions"][0]["metadata"] == {"description": "the first"}
    assert [v["version"] for v in json.loads(run("info", "DS:1", "-t", "json"))["versions"]] == ["1"]
    assert [v["version"] for v in json.loads(run("info", "DS", "-t", "json", "-c", "1"))["versions"]] == ["2"]
    run("delete", "DS:1", "--force")
    assert len(json.loads(run("info", "DS", "-t", "json"))["versions"]) == 1
    both = json.loads(run("info", "DS", "-t", "json", "--all", "-o", "desc"))["versions"]
    assert [v["status"] for v in both] == ["READY", "PENDING_DELETE"]


def test_info_of_a_collection(run: Run, dataset: Path) -> None:
    run("collect", "COL", "DS:1")
    out = run("info", "COL")
    assert "Type: COLLECTION" in out
    assert "Created By: tester" in out
    assert out.splitlines()[-1].split() == ["DS", "1"]
    (member,) = json.loads(run("info", "COL", "-t", "json"))["versions"]
    assert set(member) == {"name", "version", "location", "uri", "hash_location", "size"}


def test_inspect(run: Run, dataset: Path) -> None:
    assert run("inspect", "DS") == "src/one.txt\nsrc/sub/two.txt\n"
    assert run("inspect", "DS", "--all") == "src/\nsrc/one.txt\nsrc/sub/\nsrc/sub/two.txt\n"
    assert run("inspect", "DS", "-c", "1", err="more than these 1") == "src/one.txt\n"
    entry = json.loads(run("inspect", "DS", "-t", "json"))[0]
    assert (entry["relative_path"], entry["size"], entry["type"]) == ("src/one.txt", 7, "file")


def test_tree_of_folders_on_the_way() -> None:
    entries = [
        Entry(b"z/deep/file", Kind.FILE),
        Entry(b"a\x1b", Kind.FILE),
        Entry(b"m", Kind.SYMLINK, target=b"a\n"),
    ]
    assert list(draw_tree(entries)) == ["├── a\\x1b", "├── m -> a\\n", "└── z", "    └── deep", "        └── file"]
    assert list(draw_tree([])) == []


def test_names_that_are_not_text(run: Run, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (Path(bytes(tmp_path).decode()) / "src" / b"a\xff\x1b[0m\n".decode("utf-8", "surrogateescape")).write_text("x")
    run("upload", "DS", "src")
    assert run("inspect", "DS") == "src/a\\xff\\x1b[0m\\n\n"
    (entry,) = json.loads(run("inspect", "DS", "-t", "json"))
    assert entry["relative_path"] == "src/a\udcff\x1b[0m\n"


def test_diff(run: Run, dataset: Path) -> None:
    (dataset / "three.txt").write_text("three")
    (dataset / "sub/two.txt").rename(dataset / "moved.txt")
    run("upload", "DS", "src")
    lines = run("diff", "DS:1", "DS:3").splitlines()
    assert "A  src/three.txt  (5 B)" in lines
    assert "M  src/one.txt  (content, 3 B -> 7 B)" in lines
    assert "R  src/sub/two.txt -> src/moved.txt" in lines
    assert lines[-2].startswith("DS:1 -> DS:3: 1 added, ")
    assert run("diff", "DS", "1", "3").splitlines() == lines
    found = json.loads(run("diff", "DS", "1", "3", "-t", "json"))
    assert (found["added"], found["renamed"], found["identical"]) == (1, 1, False)
    assert "no difference" in run("diff", "DS", "3", "latest")
    assert "two versions" in run("diff", "DS:1", "2", "3", code=2)
    assert "two buckets" in run("diff", "DS:1", "lab/DS:1", code=2)


def test_tag(run: Run, dataset: Path) -> None:
    assert run("tag", "DS:1", "-s", "a", "b").splitlines() == [
        "Version_id   Tags",
        "=================",
        "1            a, b",
    ]
    assert json.loads(run("tag", "DS:1", "-d", "a", "-s", "c", "-t", "json")) == {"version_id": "1", "tags": ["b", "c"]}
    assert run("tag", "DS", "-s", "b").splitlines()[-1].split(maxsplit=1)[1] == "b, latest, stable"
    assert "latest" in run("tag", "DS:1", "-s", "latest", code=2)
    assert "not on version 1" in run("tag", "DS:1", "-d", "stable", code=2)
    assert "nothing to do" in run("tag", "DS", code=2)


def test_label_and_metadata(run: Run, dataset: Path, tmp_path: Path) -> None:
    assert run("label", "DS") == "No Labels\n"
    assert run("metadata", "DS:2") == "No Metadata\n"
    assert run("label", "DS", "-s", "a.b:string:x,y", "n:numeric:2") == "a:\n  b:\n  - x\n  - y\nn: 2.0\n"
    assert json.loads(run("label", "DS", "-d", "a.b", "-s", "m:string:z", "-t", "json")) == {"a": {}, "n": 2, "m": "z"}
    (tmp_path / "set.yaml").write_text("q: {r: [1, 2]}\n")
    (tmp_path / "delete.yaml").write_text("- m\n")
    out = run("label", "DS", "--file", "-s", "set.yaml", "-d", "delete.yaml", "-t", "json")
    assert json.loads(out) == {"a": {}, "n": 2, "q": {"r": [1, 2]}}
    assert run("metadata", "DS:1", "-s", "k:string:v", "-t", "json").startswith("{")
    assert "without" in run("label", "DS:1", code=2)
    assert "tag or a number" in run("metadata", "DS", code=2)
    assert "no key" in run("label", "DS", "-d", "nope", code=2)


def test_rename(run: Run, dataset: Path) -> None:
    assert run("rename", "DS", "default/NEW") == "DS has been renamed to NEW\n"
    run("info", "NEW")
    assert "there is no" in run("info", "DS", code=2)
    assert "bucket" in run("rename", "NEW", "other/DS", code=2)
    assert "no tag" in run("rename", "NEW:1", "DS", code=2)


def test_delete_asks(run: Run, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    run("collect", "COL", "DS:1")
    question = "Are you sure you want to delete version 1 of dataset DS from bucket default? [y/N]: "
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert run("delete", "DS:1", err=question) == "Nothing was deleted.\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert json.loads(run("delete", "DS:1", "-t", "json"))["versions"] == []
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run("delete", "DS:1", err="1         COL").splitlines() == [
        "Dataset DS version 1 bucket default has been marked as PENDING_DELETE.",
        "Collection COL has been deleted with it.",
    ]
    assert "deleted" in run("delete", "DS:1", code=2)
    assert "no version or tag" in run("delete", "DS:9", code=2)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run("delete", "DS", "--all").splitlines()[-1] == "Dataset DS has been deleted."


def test_delete_of_a_collection(run: Run, dataset: Path) -> None:
    run("collect", "COL", "DS")
    assert run("delete", "COL", "--force") == "Collection COL has been deleted from bucket default.\n"
    run("info", "DS")


def test_query(run: Run, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "q").write_text('name = "DS"')
    assert run("query", "q").splitlines()[2].split()[0] == "DS"
    assert json.loads(run("query", "q", "-t", "json"))["type"] == "DATASET"
    (tmp_path / "q").write_text('metadata.description = "the first"')
    header, _, row = run("query", "q").splitlines()
    assert header.split("   ")[:2] == ["Name", "Version ID"]
    assert row.split()[:3] == ["DS", "1", "tester"]
    (found,) = json.loads(run("query", "q", "-t", "json"))["datasets"]
    assert found["version"] == "1"
    (tmp_path / "q").write_text("name =")
    assert "line 1" in run("query", "q", code=2)
    (tmp_path / "q").write_bytes(b"\xff")
    assert "UTF-8" in run("query", "q", code=2)
    assert "no such file" in run("query", "nope", code=2)


def test_verify(run: Run, dataset: Path, isolated_home: Path) -> None:
    assert run("verify").endswith("no problems.\n")
    assert run("verify", "DS:1").startswith("DS:1: ")
    assert json.loads(run("verify", "-t", "json"))["problems"] == []
    store = isolated_home / ".local/share/casstore/store"
    for pack in [path for path in (store / "packs").rglob("*") if path.is_file()]:
        pack.chmod(0o600)
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.write_bytes(data)
    assert "problems." in run("verify", code=2)
    assert json.loads(run("verify", "-t", "json", code=2))["problems"]


def test_check(run: Run, dataset: Path, tmp_path: Path, isolated_home: Path) -> None:
    store = isolated_home / ".local/share/casstore/store"

    def objects() -> list[Path]:
        return sorted(path for path in store.rglob("[!.]*") if path.is_file() and ".lock" not in path.parts)

    before = objects()
    assert json.loads(run("check", "DS")) == {"status": "pass"}
    for access in ("READ", "WRITE", "DELETE"):
        assert json.loads(run("check", "ANY:1", "-a", access)) == {"status": "pass"}
    assert objects() == before
    other = tmp_path / "other.yaml"
    other.write_text(f"casstore: {{buckets: {{ro: {{url: 'file://{store}', mode: read-only}}}}}}\n")
    assert json.loads(run("check", "ro/DS", "-a", "READ", "-c", other)) == {"status": "pass"}
    failed = json.loads(run("check", "ro/DS", "-a", "WRITE", "-c", other))
    assert failed["status"] == "fail"
    assert "read-only" in failed["error"]
    assert json.loads(run("check", "nope/DS"))["status"] == "fail"
    assert "no file" in run("check", "DS", "-c", "nope.yaml", code=2)


@pytest.mark.parametrize(
    "command",
    [
        ["info", "NOPE"], ["delete", "NOPE", "-f"], ["inspect", "NOPE"], ["label", "NOPE"], ["metadata", "NOPE:1"],
        ["tag", "NOPE", "-s", "x"], ["recollect", "NOPE", "-a", "DS"], ["upload", "NOPE", "missing"],
        ["verify", "NOPE"],
        ["download", "NOPE", "."], ["update", "NOPE", "-r", "x"], ["diff", "NOPE:1", "NOPE:2"], ["query", "missing"],
        ["list", "-b", "nope"], ["info", "a/b/c"], ["info", "DS:\x1b"], ["info", "x" * 500],
    ],
)  # fmt: skip
def test_errors_are_documents_too(run: Run, command: list[str]) -> None:
    found = json.loads(run(*command, "-t", "json", code=2))
    assert set(found) == {"message", "code", "kind", "hint"}
    assert found["code"] in {400, 404}


def test_a_failing_listing_still_is_a_document(
    run: Run, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Bucket, name: str, **_: object) -> Iterator[Entry]:
        yield Entry(b"first", Kind.FILE)
        raise IntegrityError("a node is damaged")

    monkeypatch.setattr(Bucket, "entries", fail)
    assert main.run(["dataset", "inspect", "DS", "-t", "json"]) == 2
    captured = capsys.readouterr()
    assert [entry["relative_path"] for entry in json.loads(captured.out)] == ["first"]
    assert json.loads(captured.err)["message"] == "a node is damaged"


def test_a_broken_store_is_no_traceback(run: Run, dataset: Path, isolated_home: Path) -> None:
    store = isolated_home / ".local/share/casstore/store"
    (store / "store.json").chmod(0o600)
    (store / "store.json").write_bytes(b"\xff" * 100)
    for command in (["list", "-a"], ["info", "DS"], ["upload", "DS", "src"], ["verify"]):
        assert run(*command, code=2).startswith("Error message: ")


def test_diff_has_one_line_for_a_whole_folder(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "eps"
    for name in ("one", "two", "three"):
        (source / name / "deep").mkdir(parents=True)
        (source / name / "a").write_text(name * 10)
        (source / name / "deep/b").write_text(name * 20)
    run("upload", "DS", "eps")
    shutil.rmtree(source / "one")
    (source / "two").rename(source / "second")
    (source / "three/deep").rename(source / "three/moved")
    (source / "three/moved/new").write_text("new")
    (source / "extra/x").mkdir(parents=True)
    (source / "extra/x/f").write_text("1234")
    (source / "extra/link").symlink_to("x")
    (source / "empty").mkdir()
    run("upload", "DS", "eps")
    found = run("diff", "DS", "1", "2").splitlines()
    assert found[:-2] == [
        "A  eps/empty/  (empty)",
        "A  eps/extra/  (1 file, 1 link, 4 B)",
        "D  eps/one/  (2 files, 90 B)",
        "R  eps/two/ -> eps/second/  (2 files, 90 B)",
        "D  eps/three/deep/",
        "A  eps/three/moved/",
        "R  eps/three/deep/b -> eps/three/moved/b",
        "A  eps/three/moved/new  (3 B)",
    ]
    assert found[-2] == "DS:1 -> DS:2: 9 added, 7 deleted, 0 modified, 3 renamed"
    every = run("diff", "DS", "1", "2", "--all").splitlines()[:-2]
    document = json.loads(run("diff", "DS", "1", "2", "-t", "json"))
    assert len(every) == len(document["changes"]) == 19
    assert {"D  eps/one/", "D  eps/one/a  (30 B)", "A  eps/extra/x/", "R  eps/two/a -> eps/second/a"} <= set(every)


def test_what_is_left_out_is_told_once(run: Run, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(dataset / "pipe")
    for _ in range(2):
        assert main.run(["dataset", "upload", "DS", "src"]) == 0
        assert capsys.readouterr().err.count("pipe") == 1


def test_a_folder_that_holds_the_store_is_refused(run: Run, isolated_home: Path) -> None:
    (isolated_home / "data").mkdir()
    (isolated_home / "data/x").write_text("x")
    assert "holds the store itself" in run("upload", "HOME", isolated_home, code=2)
    assert "holds the store itself" in run("upload", "HOME", f"{isolated_home}/*", code=2)
    run("upload", "DATA", isolated_home / "data")
    assert "holds the store itself" in run("update", "DATA", "-a", f"{isolated_home}:x", code=2)


def test_measurements_that_cant_be_written(run: Run, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "can't make the folder" in run("upload", "NEW", "src", "-b", "file/x", code=2)
    assert "no dataset" in run("info", "NEW", code=2)  # nothing was uploaded either
    (tmp_path / "out/upload-NEW.json").mkdir(parents=True)
    made = json.loads(run("upload", "NEW", "src", "-b", "out", "-t", "json", err="WARNING: can't write"))
    assert made["created"] is True


def test_a_wrong_line_is_told_in_json(run: Run, dataset: Path) -> None:
    for line in (["info", "DS", "-c", "x"], ["info", "DS", "--nonsense"], ["info"]):
        assert json.loads(run(*line, "-t", "json", code=2))["kind"] == "usage"
        assert json.loads(run(*line, "--format=json", code=2))["hint"] == "see: osmo dataset info --help"
    assert run("info", "DS", "-c", "x", code=2, err="Usage: osmo dataset info") == ""


def test_a_damaged_bucket_hides_no_other(run: Run, dataset: Path, isolated_home: Path, tmp_path: Path) -> None:
    assert main.run(["bucket", "add", "lab", str(tmp_path / "lab")]) == 0
    (tmp_path / "lab/store.json").write_text("nonsense")
    assert "DS" in run("list", err="WARNING: bucket 'lab' at file://")
    assert "lab" in run("list", "-b", "lab", code=2)


def test_status_of_a_download(run: Run, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run("download", "DS:1", "out")
    lines = run("status", "out/DS").splitlines()
    assert lines[0].startswith("DS:1 of bucket default, downloaded ")
    assert lines[1:] == ["Nothing was changed.", "Version 2 is newer."]
    (tmp_path / "out/DS/src/one.txt").write_text("mine")
    (tmp_path / "out/DS/new\n\x1b[31m").write_text("")
    shutil.rmtree(tmp_path / "out/DS/src/sub")
    assert run("status", "out/DS").splitlines()[1:-1] == [
        r"A  new\n\x1b[31m", "M  src/one.txt  (content)", "D  src/sub/", "1 added, 1 deleted, 1 modified",
    ]  # fmt: skip
    found = json.loads(run("status", "out/DS", "-t", "json"))
    assert (found["name"], found["version"], found["clean"], found["newer"]) == ("DS", "1", False, True)
    assert found["changes"][1] == {"status": "modified", "path": "src/one.txt", "type": "file", "what": ["content"]}
    assert "would be lost: modified src/one.txt" in run("download", "DS", "out", code=2)
    made = json.loads(run("download", "DS", "out", "--force", "-t", "json"))
    assert (made["files"], made["reused"], made["removed"]) == (2, 0, 0)
    assert json.loads(run("status", "out/DS", "-t", "json"))["changes"] == [
        {"status": "added", "path": "new\n\x1b[31m", "type": "file", "what": []}
    ]


def test_status_of_any_folder(run: Run, dataset: Path, tmp_path: Path) -> None:
    assert "is not known" in run("status", "src", code=2)
    assert "does not exist" in run("status", "nowhere", code=2)
    (tmp_path / "root").mkdir()
    shutil.copytree(dataset, tmp_path / "root/src")
    assert "Nothing was changed." in run("status", "root", "--against", "DS")
    assert "M  src/one.txt  (content)" in run("status", "root", "--against", "DS:1", "--verify")


def test_downloads_and_the_cache(run: Run, dataset: Path, tmp_path: Path, isolated_home: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    run("download", "DS", "a")
    assert not (isolated_home / ".cache/casstore/data").exists()
    run("download", "DS", "b", "--cache")
    run("download", "DS", "c", err="2 came from the cache")
    assert (tmp_path / "c/DS/src/one.txt").stat().st_nlink == 1
    shutil.rmtree(tmp_path / "c/DS")
    run("download", "DS", "c", "--link")
    assert (tmp_path / "c/DS/src/one.txt").stat().st_nlink == 2
    assert "Nothing was changed." in run("status", "c/DS")
