"""Defects of OSMO 6.2's dataset commands, as tests of the right behaviour.

The numbers are those of the list in the functional reference of OSMO 6.2.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from casstore.dataset.adopt import base as adopt
from casstore.testing.foreign import MemoryBuckets
from casstore_cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def json(self) -> object:
        return json.loads(self.out)


Osmo = Callable[..., Result]


@pytest.fixture
def osmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Osmo:
    def run(*args: object, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main.run(["dataset", *map(str, args)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree: a/one.txt, a/two.txt, b.txt."""
    root = tmp_path / "source"
    (root / "a").mkdir(parents=True)
    (root / "a/one.txt").write_text("one")
    (root / "a/two.txt").write_text("two")
    (root / "b.txt").write_text("b")
    return root


def test_01_a_dangling_link_hides_nothing_and_everything_is_kept(osmo: Osmo, source: Path, tmp_path: Path) -> None:
    (source / "a/aa-dangling").symlink_to("nowhere")
    (source / "a-folder-link").symlink_to("a")
    (source / "b-file-link").symlink_to("b.txt")
    (source / "empty").mkdir()
    (source / "b.txt").chmod(0o750)
    os.utime(source / "b.txt", ns=(0, 1_600_000_000_123_456_789))
    assert osmo("upload", "DS", source).code == 0
    assert osmo("download", "DS", tmp_path).code == 0
    copy = tmp_path / "DS/source"
    assert sorted(os.listdir(copy)) == ["a", "a-folder-link", "b-file-link", "b.txt", "empty"]
    assert sorted(os.listdir(copy / "a")) == ["aa-dangling", "one.txt", "two.txt"]
    assert os.readlink(copy / "a/aa-dangling") == "nowhere"
    assert os.readlink(copy / "a-folder-link") == "a"
    assert (copy / "b.txt").stat().st_mode & 0o777 == 0o750
    assert (copy / "b.txt").stat().st_mtime_ns == 1_600_000_000_123_456_789


def test_02_a_file_that_can_not_be_read_makes_no_version(
    osmo: Osmo, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: object, *args: object, **kwargs: object) -> int:
        if os.fsencode(path).endswith(b"two.txt"):  # type: ignore[arg-type]  # whatever is opened
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(os, "open", refuse)
    result = osmo("upload", "DS", source)
    assert result.code == 2
    assert "two.txt" in result.out
    assert "Permission denied" in result.out
    monkeypatch.undo()
    assert osmo("info", "DS", "-t", "json").code == 2


def test_02_missing_data_fails_the_download(osmo: Osmo, source: Path, tmp_path: Path, isolated_home: Path) -> None:
    assert osmo("upload", "DS", source).code == 0
    packs = [path for path in (isolated_home / ".local/share/casstore/store/packs").rglob("*") if path.is_file()]
    for pack in packs:
        pack.unlink()
    (tmp_path / "out").mkdir()
    result = osmo("download", "DS", tmp_path / "out")
    assert result.code != 0
    assert result.out.startswith("Error message: ")
    assert not (tmp_path / "out/DS").exists()


@pytest.mark.parametrize("options", [["-x", "source/a"], ["-c", "1"], ["-x", "nothing"], ["-c", "2", "-x", "source"]])
def test_03_inspect_prints_json_that_can_be_parsed(osmo: Osmo, source: Path, options: list[str]) -> None:
    osmo("upload", "DS", source)
    found = osmo("inspect", "DS", "-t", "json", *options).json()
    assert isinstance(found, list)
    assert all(set(entry) >= {"relative_path", "storage_path", "url", "size", "etag"} for entry in found)


def test_03_the_tree_marks_the_last_entries(osmo: Osmo, source: Path) -> None:
    osmo("upload", "DS", source)
    assert osmo("inspect", "DS", "-t", "tree").out.splitlines() == [
        "└── source",
        "    ├── a",
        "    │   ├── one.txt",
        "    │   └── two.txt",
        "    └── b.txt",
    ]
    assert osmo("inspect", "DS", "-t", "tree", "-x", "source/a/one").out.splitlines() == [
        "└── source",
        "    └── a",
        "        └── one.txt",
    ]


def test_04_delete_everything_in_json(osmo: Osmo, source: Path) -> None:
    osmo("upload", "DS", source)
    osmo("upload", "DS", source, "--force-new-version")
    result = osmo("delete", "DS", "--all", "--force", "-t", "json")
    assert result.code == 0
    found = result.json()
    assert isinstance(found, dict)
    assert found["versions"] == ["1", "2"]
    assert osmo("info", "DS").code == 2


def test_05_a_missing_folder_is_one_clear_line(osmo: Osmo, source: Path, tmp_path: Path) -> None:
    osmo("upload", "DS", source)
    result = osmo("download", "DS", tmp_path / "missing")
    assert result.code == 2
    assert result.out.startswith(f"Error message: {tmp_path}/missing does not exist\n")


def test_05_nobody_to_answer_is_no(osmo: Osmo, source: Path) -> None:
    osmo("upload", "DS", source)
    result = osmo("delete", "DS", stdin="")
    assert result.code == 2
    assert "not confirmed" in result.out
    assert osmo("info", "DS").code == 0


def test_07_the_checksum_is_of_the_content_alone(
    osmo: Osmo, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = tmp_path / "other/source"
    (twin / "a").mkdir(parents=True)
    for name in ("b.txt", "a/two.txt", "a/one.txt"):  # another order of creation, other times
        (twin / name).write_bytes((source / name).read_bytes())
        os.utime(twin / name, (1, 1))
    monkeypatch.chdir(tmp_path)
    sums = {osmo("checksum", path).out for path in ("source", "./source/", source, twin, "other/../source")}
    assert len(sums) == 1
    made = osmo("upload", "DS", source, "-t", "json").json()
    assert isinstance(made, dict)
    assert sums == {made["checksum"] + "\n"}
    (twin / "b.txt").write_text("c")
    assert osmo("checksum", twin).out not in sums


def test_08_objects_of_storage_keep_their_keys(osmo: Osmo, monkeypatch: pytest.MonkeyPatch) -> None:
    """`a.txt` in `raw/folder` is made of letters of the folder's name, and stays what it is."""
    services = MemoryBuckets()
    services.bucket("s3://rec").store("raw/folder/a.txt", b"a")
    monkeypatch.setattr(adopt, "open_objects", services)
    assert osmo("upload", "DS", "s3://rec/raw/folder").code == 0
    assert osmo("inspect", "DS").out == "folder/a.txt\n"
    result = osmo("upload", "DS", "s3://rec/raw/other")
    assert (result.code, "there is nothing at s3://rec/raw/other" in result.out) == (2, True)


def test_09_numbers_never_become_tags(osmo: Osmo, source: Path) -> None:
    assert osmo("upload", "DS:1", source).code == 2
    assert osmo("upload", "DS", source).code == 0
    assert osmo("upload", "DS:2", source, "--force-new-version").code == 2
    assert osmo("upload", "DS:2", source, "--resume", "--force-new-version").code == 0
    assert osmo("upload", "DS", source, "--tag", "7").code == 2
    assert osmo("tag", "DS", "--set", "7").code == 2
    found = osmo("info", "DS", "-t", "json").json()
    assert isinstance(found, dict)
    assert [version["tags"] for version in found["versions"]] == [[], ["latest"]]
    finished = osmo("upload", "DS:1", source, "--resume")
    assert finished.code == 2
    assert "finished" in finished.out


def test_10_queries_about_users_and_lists_work(osmo: Osmo, source: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.yaml"
    labels.write_text("kinds: [a, b]\n")
    osmo("upload", "DS", source, "-l", labels)
    osmo("upload", "OTHER", source / "b.txt")
    query = tmp_path / "query"

    def names(text: str) -> list[str]:
        query.write_text(text)
        found = osmo("query", query, "-t", "json").json()
        assert isinstance(found, dict)
        return [dataset["name"] for dataset in found.get("datasets", ())]

    assert names('user = "tester" ORDER BY name DESC') == ["OTHER", "DS"]
    assert names('"tester" = user ORDER BY user ASC LIMIT 1') != []
    assert names('label.kinds CONTAINS ["a"]') == ["DS"]
    assert names('id != "x" AND name CONTAINS "TH"') == ["OTHER"]


def test_10_deleted_versions_are_not_found(osmo: Osmo, source: Path, tmp_path: Path) -> None:
    marked = tmp_path / "m.yaml"
    marked.write_text("mark: 1\n")
    osmo("upload", "DS", source, "-m", marked)
    osmo("upload", "DS", source, "--force-new-version")
    osmo("delete", "DS:1", "--force")
    query = tmp_path / "query"
    query.write_text("metadata.mark = 1")
    assert osmo("query", query).code == 2


def test_11_update_of_a_collection_is_refused_in_words(osmo: Osmo, source: Path) -> None:
    osmo("upload", "DS", source)
    osmo("collect", "COL", "DS")
    result = osmo("update", "COL", "--add", source)
    assert result.code == 2
    assert "collection" in result.out


@pytest.mark.parametrize("dest", ["/abs/../../x", "..", "a/../../b", "/abs"])
def test_12_no_destination_leads_out_of_the_dataset(osmo: Osmo, source: Path, dest: str) -> None:
    osmo("upload", "DS", source)
    result = osmo("update", "DS", "--add", f"{source}:{dest}")
    assert result.code == 2
    assert "destination" in result.out
    found = osmo("info", "DS", "-t", "json").json()
    assert isinstance(found, dict)
    assert len(found["versions"]) == 1


def test_12_links_that_lead_out_are_refused(osmo: Osmo, tmp_path: Path) -> None:
    root = tmp_path / "evil"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    assert osmo("upload", "DS", root).code == 0
    (tmp_path / "out").mkdir()
    assert osmo("download", "DS", tmp_path / "out").code == 2
    assert not (tmp_path / "out/DS").exists()
    assert osmo("download", "DS", tmp_path / "out", "--unsafe-links").code == 0
    assert os.readlink(tmp_path / "out/DS/evil/link") == "/etc"


def test_13_recollect_shows_names_and_removes_what_was_named(osmo: Osmo, source: Path) -> None:
    for name in ("ONE", "TWO", "THREE"):
        osmo("upload", name, source)
    osmo("collect", "COL", "ONE", "TWO", "THREE")
    result = osmo("recollect", "COL", "--remove", "TWO")
    assert result.out.splitlines()[2:] == ["ONE       1", "THREE     1"]
    assert osmo("recollect", "COL", "--remove", "ONE", "THREE").out == "Collection COL deleted\n"


@pytest.mark.parametrize(
    "command",
    [
        ["upload", "DS", "SOURCE"],
        ["update", "DS", "--remove", "x"],
        ["delete", "DS", "--force"],
        ["tag", "DS", "--set", "t"],
        ["label", "DS", "--set", "a:string:b"],
        ["metadata", "DS:1", "--set", "a:string:b"],
        ["rename", "DS", "OTHER"],
        ["collect", "COL", "DS"],
        ["recollect", "COL", "--add", "DS"],
    ],
)
def test_13_a_read_only_bucket_is_not_changed(
    osmo: Osmo, source: Path, isolated_home: Path, command: list[str]
) -> None:
    osmo("upload", "DS", source)
    store = isolated_home / ".local/share/casstore/store"
    config = isolated_home / ".config/osmo/config.yaml"
    config.parent.mkdir()
    config.write_text(f"casstore: {{buckets: {{default: {{url: 'file://{store}', mode: read-only}}}}}}\n")
    before = sorted(store.rglob("*"))
    result = osmo(*[str(source) if word == "SOURCE" else word for word in command])
    assert result.code == 2
    assert "read-only" in result.out
    assert sorted(store.rglob("*")) == before
    assert osmo("label", "DS").code == 0
    assert osmo("inspect", "DS").code == 0


def test_15_resume_keeps_large_files_that_are_right(osmo: Osmo, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(range(256)) * 40_000)
    (tmp_path / "small").write_text("small")
    osmo("upload", "DS", tmp_path / "large", tmp_path / "small")
    (tmp_path / "out").mkdir()
    osmo("download", "DS", tmp_path / "out")
    (tmp_path / "out/DS/small").unlink()
    found = osmo("download", "DS", tmp_path / "out", "--resume", "-t", "json").json()
    assert isinstance(found, dict)
    assert (found["files"], found["reused"], found["written"]) == (2, 1, 5)


def test_16_an_empty_list_is_a_document(osmo: Osmo) -> None:
    assert osmo("list", "-t", "json").json() == {"datasets": []}
    assert osmo("list").out == "No Datasets fit your query.\n"


@pytest.mark.parametrize("command", ["upload", "update", "download"])
def test_16_benchmarks_are_written(osmo: Osmo, source: Path, tmp_path: Path, command: str) -> None:
    osmo("upload", "DS", source / "b.txt")
    rest = {"upload": [source], "update": ["--add", source], "download": [tmp_path]}[command]
    assert osmo(command, "DS", *rest, "--benchmark-out", tmp_path / "bench").code == 0
    (path,) = (tmp_path / "bench").iterdir()
    report = json.loads(path.read_text())
    assert report["total_bytes_transferred"] > 0
    assert report["total_number_of_files"] >= 1


def test_16_benchmarks_count_files_that_did_not_have_to_be_read(osmo: Osmo, source: Path, tmp_path: Path) -> None:
    for name in ("ONE", "TWO", "THREE"):
        osmo("upload", name, source, "--benchmark-out", tmp_path)
    report = json.loads((tmp_path / "upload-THREE.json").read_text())
    assert (report["total_number_of_files"], report["total_bytes_transferred"]) == (3, 0)


def test_17_a_deleted_version_stays_deleted(osmo: Osmo, source: Path) -> None:
    osmo("upload", "DS", source)
    osmo("upload", "DS", source, "--force-new-version")
    osmo("delete", "DS:2", "--force")
    assert osmo("upload", "DS:2", source, "--resume").code == 2
    assert osmo("inspect", "DS:2").code == 2
    made = osmo("upload", "DS", source, "--force-new-version", "-t", "json").json()
    assert isinstance(made, dict)
    assert made["version"] == "3"
