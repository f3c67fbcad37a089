"""Labels and metadata on the command line and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from casstore.errors import CasstoreError, SourceError, UsageError
from casstore_cli.commands.dataset.trees import load_files, load_keys, merged, parse_items


@pytest.mark.parametrize(
    ("items", "tree"),
    [
        (["a:string:x"], {"a": "x"}),
        (["a.b.c:string:x", "a.b.d:numeric:1"], {"a": {"b": {"c": "x", "d": 1.0}}}),
        (["a:string:x,y"], {"a": ["x", "y"]}),
        (["a:numeric:1,2.5,-3e2"], {"a": [1.0, 2.5, -300.0]}),
        (["a:string:http://x:80/"], {"a": "http://x:80/"}),
        (["a:string:"], {"a": ""}),
        (["a:string:x", "a:string:y"], {"a": "y"}),
    ],
)
def test_items(items: list[str], tree: dict[str, Any]) -> None:
    assert parse_items(items) == tree


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (["a"], "form"),
        (["a:string"], "form"),
        (["a:text:x"], "'text'"),
        (["a:numeric:x"], "not a number"),
        (["a:numeric:1,x"], "not a number"),
        (["a:numeric:nan"], "finite"),
        (["a:numeric:1e999"], "finite"),
        (["a..b:string:x"], "key"),
        ([":string:x"], "key"),
        (["a b:string:x"], "key"),
        (["a\n:string:x"], "key"),
        (["a:string:x", "a.b:string:y"], "above"),
        (["a.b:string:x", "a:string:y"], "below"),
    ],
)
def test_wrong_items(items: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_items(items)
    assert words in caught.value.message


def test_files_are_merged_left_to_right(tmp_path: Path) -> None:
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text("a: {b: 1, c: 2}\nlist: [1, 2]\n")
    two.write_text("a: {c: 3}\nlist: [x]\n")
    assert merged(load_files([str(one), str(two)])) == {"a": {"b": 1, "c": 3}, "list": ["x"]}
    assert merged([]) == {}


def test_merging_leaves_the_parts_alone() -> None:
    first: dict[str, Any] = {"a": {"b": 1}}
    assert merged([first, {"a": {"c": 2}}]) == {"a": {"b": 1, "c": 2}}
    assert first == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "mapping"),
        ("", "mapping"),
        ("a b: 1\n", "'a b'"),
        ("a: {b c: 1}\n", "in a"),
        ("5: x\n", "5"),
        ("a: {b: [1, x]}\n", "a.b"),
        ("a: [true]\n", "a:"),
        ("a: [[1]]\n", "a:"),
        ("a: .inf\n", "finite"),
        ("a: [.nan]\n", "finite"),
        ("a: &x [1]\nb: {\n", "x.yaml"),
        ("a: !!python/name:os.system x\n", "x.yaml"),
    ],
)
def test_wrong_files(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_files([str(path)])
    assert words in caught.value.message
    assert str(path) in caught.value.message


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(SourceError, match=str(path)):
            load_files([str(path)])
    large = tmp_path / "large"
    large.write_bytes(b"a" * (2 << 20))
    with pytest.raises(CasstoreError, match="large"):
        load_files([str(large)])


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("- a.b\n- c\n", ["a.b", "c"]),
        ("a.b\nc\n", ["a.b", "c"]),
        ("a: {b: 1, c: {}}\nd:\n", ["a.b", "a.c", "d"]),
    ],
)
def test_keys_to_delete(text: str, keys: list[str], tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    assert load_keys([str(path)]) == keys


@pytest.mark.parametrize("text", ["- [a]\n", "5\n", "- a b\n", "- a..b\n"])
def test_wrong_keys(text: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        load_keys([str(path)])
