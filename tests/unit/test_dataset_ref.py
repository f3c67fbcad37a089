"""The grammar of references and tags, and where the arguments of an upload land."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.dataset.ref import Ref, check_name, check_tag, parse_ref, version_number
from casstore.dataset.sources import (
    RemoteSource,
    matcher,
    parse_additions,
    parse_mixed,
    parse_sources,
    refuse_store,
)
from casstore.errors import SourceError, UsageError
from casstore.transfer.scan import Source


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("ds", Ref(None, "ds", None)),
        ("b/ds", Ref("b", "ds", None)),
        ("b/ds:tag", Ref("b", "ds", "tag")),
        ("ds:", Ref(None, "ds", None)),
        ("ds:12", Ref(None, "ds", "12")),
        ("-a_B9/_-:-", Ref("-a_B9", "_-", "-")),
    ],
)
def test_refs(text: str, ref: Ref) -> None:
    assert parse_ref(text) == ref
    assert parse_ref(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    ["", "/", "a/", "/a", "a/b/c", "a:b:c", "a.b", "a b", "ä", ":t", "a/b:t.1", "a\n", "s3://b/d", "../a", "x" * 201],
)
def test_what_is_no_ref(text: str) -> None:
    with pytest.raises(UsageError, match="does not name a dataset"):
        parse_ref(text)


_PART = st.text("abcXYZ019_-", min_size=1, max_size=8)


@given(st.none() | _PART, _PART, st.none() | _PART)
def test_refs_round_trip(bucket: str | None, name: str, tag: str | None) -> None:
    assert parse_ref(str(Ref(bucket, name, tag))) == Ref(bucket, name, tag)


def test_version_numbers() -> None:
    assert [version_number(text) for text in ("1", "42", "0", "01", "1a", "-1", "", "9" * 13)] == [
        1, 42, None, None, None, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(("tag", "why"), [("latest", "always is"), ("7", "numbers name"), ("a.b", ""), ("", "")])
def test_tags_that_nobody_sets(tag: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_tag(tag)
    assert why in (caught.value.hint or "")


def test_names() -> None:
    assert check_name("a-B_9") == "a-B_9"
    with pytest.raises(UsageError, match=r"illegal name 'a\.b'"):
        check_name("a.b")
    assert check_tag("v1") == "v1"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dir" / "sub").mkdir(parents=True)
    (tmp_path / "file.txt").write_bytes(b"x")
    (tmp_path / "odd:name").write_bytes(b"x")
    (tmp_path / "link").symlink_to("dir")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sources_keep_their_last_component(tree: Path) -> None:
    root = os.fsencode(tree)
    assert parse_sources(["dir", f"{tree}/dir/", "dir/*", "file.txt", "link", "dir/sub"]) == [
        Source(root + b"/dir", b"dir"),
        Source(root + b"/dir", b"dir"),
        Source(root + b"/dir", b"", contents=True),
        Source(root + b"/file.txt", b"file.txt"),
        Source(root + b"/link", b"link"),
        Source(root + b"/dir/sub", b"sub"),
    ]


def test_dots_get_a_name(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "dir" / "sub")
    assert [source.dest for source in parse_sources([".", "..", "../", "./"])] == [b"sub", b"dir", b"dir", b"sub"]
    assert parse_sources(["*"])[0].contents
    with pytest.raises(UsageError, match="no name of its own"):
        parse_sources(["/"])


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("nope", SourceError, "nope does not exist"),
        ("nope/*", SourceError, "does not exist"),
        ("file.txt/*", SourceError, "not a folder"),
        ("file.txt/x", SourceError, "does not exist"),
        ("", UsageError, "not a path"),
        ("a\0b", UsageError, "not a path"),
        ("s3://bucket/x", UsageError, "only local files"),
        ("file:///tmp", UsageError, "only local files"),
        ("/dev/null", SourceError, "neither a file nor a folder"),
    ],
)
def test_sources_that_can_not_be(tree: Path, argument: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_sources([argument])


def test_a_dangling_link_named_as_a_source(tree: Path) -> None:
    (tree / "dangling").symlink_to("nowhere")
    with pytest.raises(SourceError, match="dangling does not exist"):
        parse_sources(["dangling"])


@pytest.mark.parametrize(
    ("argument", "dest", "contents"),
    [
        ("file.txt", b"file.txt", False),
        ("file.txt:new/dir", b"new/dir/file.txt", False),
        ("file.txt:", b"file.txt", False),
        ("file.txt:./a//b/.", b"a/b/file.txt", False),
        ("dir:x", b"x/dir", False),
        ("dir/*:x", b"x", True),
        (r"odd\:name", b"odd:name", False),
        (r"odd\:name:x", b"x/odd:name", False),
        (r"odd\:name:a\:b", b"a:b/odd:name", False),
        ("file.txt:a:b", b"a:b/file.txt", False),
    ],
)
def test_additions(tree: Path, argument: str, dest: bytes, contents: bool) -> None:
    (source,) = parse_additions([argument])
    assert (source.dest, source.contents) == (dest, contents)


@pytest.mark.parametrize("dest", ["/abs", "..", "../x", "a/../x", "/abs/../../x", "a/..", "a\0b"])
def test_destinations_outside(tree: Path, dest: str) -> None:
    with pytest.raises(UsageError, match="inside the dataset"):
        parse_additions([f"file.txt:{dest}"])


def test_additions_from_elsewhere(tree: Path) -> None:
    assert parse_additions(["s3://bucket/x/y", "gs://b/x:dest/z", "azure://a/c/*:d", "tos://h.org:80/b/x:y"]) == [
        RemoteSource("s3://bucket/x/y", b""),
        RemoteSource("gs://b/x", b"dest/z"),
        RemoteSource("azure://a/c", b"d", contents=True),
        RemoteSource("tos://h.org:80/b/x", b"y"),
    ]
    assert parse_mixed(["s3://bucket/*", "s3://b/x/"]) == [
        RemoteSource("s3://bucket", b"", contents=True),
        RemoteSource("s3://b/x", b""),
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("s3://bucket", "no name of its own"),
        ("file:///tmp", "a local folder"),
        ("http://x.org/a", "unknown scheme"),
        ("s3://bucket/../x", "is empty, '.' or '..'"),
        ("s3://bucket/a*/b", "asterisk"),
    ],
)
def test_remote_sources_that_can_not_be(argument: str, message: str) -> None:
    for parse in (parse_mixed, parse_additions):
        with pytest.raises(UsageError, match=message):
            parse([argument])


def test_patterns(tree: Path) -> None:
    assert matcher(None) is None
    assert matcher("") is None
    select = matcher(r"dir/.*\.txt$")
    assert select is not None
    assert [select(path) for path in (b"dir/a.txt", b"x/dir/a.txt", b"dir/a.txt2", b"dir/\xff.txt")] == [
        True, False, False, True,
    ]  # fmt: skip
    named = matcher("nothing", named=parse_sources(["file.txt", "dir"]))
    assert named is not None
    assert (named(b"file.txt"), named(b"dir")) == (True, False)
    for bad in ("(", "[", "*", "x" * 5000):
        with pytest.raises(UsageError, match="regular expression"):
            matcher(bad)


@pytest.mark.parametrize(
    ("source", "store", "refused"),
    [
        ("s3://lab", "s3://lab/store", True),
        ("s3://lab/store", "s3://lab/store", True),
        ("s3://lab/sto", "s3://lab/store", False),
        ("s3://lab/store/packs", "s3://lab/store", False),
        ("s3://lab2", "s3://lab/store", False),
        ("s3://lab", "file:///lab", False),
    ],
)
def test_prefixes_that_hold_the_store(source: str, store: str, refused: bool) -> None:
    if not refused:
        refuse_store([RemoteSource(source, b"")], store)
        return
    with pytest.raises(UsageError, match="holds the store itself"):
        refuse_store([RemoteSource(source, b"")], store)
