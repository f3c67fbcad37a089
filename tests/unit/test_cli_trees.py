"""Labels and metadata from files and from the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casstore.errors import CasstoreError, SourceError, UsageError
from casstore_cli.commands.dataset.trees import from_files, to_delete, to_set


def test_files_are_merged_left_to_right(tmp_path: Path) -> None:
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text("a: {b: 1, c: 2}\nlist: [1, 2]\n")
    two.write_text("a: {c: 3}\nlist: [x]\n")
    assert from_files([str(one), str(two)], "labels") == {"a": {"b": 1, "c": 3}, "list": ["x"]}
    assert to_set([str(two)], "labels", files=True) == {"a": {"c": 3}, "list": ["x"]}
    assert from_files([], "labels") is None


def test_items() -> None:
    assert to_set(["a.b:string:x,y", "a.c:numeric:1"], "labels", files=False) == {"a": {"b": ["x", "y"], "c": 1.0}}
    assert to_set([], "labels", files=False) is None
    assert to_delete(["a.b", "c"], files=False) == ["a.b", "c"]
    with pytest.raises(UsageError):
        to_delete(["a b"], files=False)


@pytest.mark.parametrize(
    "text",
    ["- a\n", "a b: 1\n", "a: {b: [1, x]}\n", "a: .inf\n", "b: {\n", "a: !!python/name:os.system x\n", "a: 1\na: 2\n"],
)
def test_wrong_files_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        from_files([str(path)], "labels")
    assert str(path) in caught.value.message


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(SourceError, match=str(path)):
            from_files([str(path)], "labels")
    large = tmp_path / "large"
    large.write_bytes(b"a" * (2 << 20))
    with pytest.raises(CasstoreError, match="large"):
        from_files([str(large)], "labels")


def test_keys_to_delete(tmp_path: Path) -> None:
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text("- a.b\n- c\n")
    two.write_text("d: {e: 1}\n")
    assert to_delete([str(one), str(two)], files=True) == ["a.b", "c", "d.e"]
    two.write_text("5\n")
    with pytest.raises(UsageError, match=str(two)):
        to_delete([str(two)], files=True)
