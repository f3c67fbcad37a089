"""Labels and metadata: what they may hold, how they are written, merged and deleted."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.dataset.attributes import change, check, load, load_keys, merge, parse_set
from casstore.errors import NotFoundError, UsageError


@pytest.mark.parametrize(
    ("items", "tree"),
    [
        ([], {}),
        (["a:string:x"], {"a": "x"}),
        (["a.b.c:string:x", "a.b.d:numeric:1.5"], {"a": {"b": {"c": "x", "d": 1.5}}}),
        (["a:string:x,y"], {"a": ["x", "y"]}),
        (["a:numeric:1,2e3"], {"a": [1.0, 2000.0]}),
        (["a:string:"], {"a": ""}),
        (["a:string:http://x:80/y"], {"a": "http://x:80/y"}),
        (["a:string:x", "a:string:y"], {"a": "y"}),
        (["a:string:x", "a.b:string:y"], {"a": {"b": "y"}}),
    ],
)
def test_set_items(items: list[str], tree: dict[str, Any]) -> None:
    assert parse_set(items) == tree


@pytest.mark.parametrize(
    "item",
    ["a", "a:string", "a:x", "a:int:1", ":string:x", "a..b:string:x", ".a:string:x", "a b:string:x", "ä:string:x",
     "a:numeric:x", "a:numeric:", "a:numeric:1,", "a:numeric:nan", "a:numeric:inf", "a:numeric:1e999"],
)  # fmt: skip
def test_set_items_that_are_wrong(item: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_set([item])
    assert caught.value.hint


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "must be a mapping"),
        ("x", "must be a mapping"),
        ({"a.b": 1}, "illegal key 'a.b' in the top level"),
        ({"a": {1: 2}}, "illegal key '1' in 'a'"),
        ({"": 1}, "illegal key ''"),
        ({"a": [1, "x"]}, "list 'a' must all be"),
        ({"a": [True, 1]}, "list 'a' must all be"),
        ({"a": [[1]]}, "list 'a' must all be"),
        ({"a": [{"b": 1}]}, "list 'a' must all be"),
        ({"a": {"b": math.nan}}, "'a.b' is not a finite number"),
        ({"a": [1.0, math.inf]}, "'a' is not a finite number"),
        ({"a": 1 << 63}, "beyond 64 bits"),
        ({"a": b"x"}, "'a' is neither text"),
        ({"a": "\ud800"}, "not valid text"),
        ({"a": "x" * (1 << 20)}, "larger than"),
    ],
)
def test_trees_that_are_wrong(tree: object, message: str) -> None:
    with pytest.raises(UsageError, match=f"^the labels.*{message}"):
        check(tree, "the labels")


def test_depth() -> None:
    tree: dict[str, Any] = {}
    for _ in range(40):
        tree = {"a": tree}
    with pytest.raises(UsageError, match="nested deeper than 32"):
        check(tree, "the labels")


def test_trees_that_are_right_are_copied() -> None:
    shared = {"x": [1, 2.5]}
    tree = {"a": shared, "b": shared, "c": None, "d": True, "e": [], "f": {}, "-_9": ["x"], "g": [True, False]}
    found = check(tree, "the labels")
    assert found == tree
    found["a"]["x"].append(3)
    assert shared == {"x": [1, 2.5]}
    assert found["b"] == {"x": [1, 2.5]}


def test_merge() -> None:
    old = {"a": {"x": 1, "y": [1, 2]}, "b": 1, "c": {"z": 1}}
    new = {"a": {"y": [3], "w": 2}, "b": {"v": 1}, "c": "text"}
    assert merge(old, new) == {"a": {"x": 1, "y": [3], "w": 2}, "b": {"v": 1}, "c": "text"}
    assert old == {"a": {"x": 1, "y": [1, 2]}, "b": 1, "c": {"z": 1}}


_TREES = st.recursive(
    st.integers(0, 3) | st.text("ab", max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@given(_TREES, _TREES)
def test_merging_twice_is_merging_once(old: dict[str, Any], new: dict[str, Any]) -> None:
    once = merge(old, new)
    assert merge(once, new) == once
    assert merge(old, {}) == old
    assert merge({}, new) == new


def test_deleting_comes_before_setting() -> None:
    tree = {"a": {"b": 1, "c": {"d": 1}}, "e": 2}
    assert change(tree, "labels", delete=["a.c"], set={"a": {"c": 5}}) == {"a": {"b": 1, "c": 5}, "e": 2}
    assert change(tree, "labels", delete=["a.b", "e"], set=None) == {"a": {"c": {"d": 1}}}
    assert change(tree, "labels", delete=["a.c.d"], set=None) == {"a": {"b": 1, "c": {}}, "e": 2}
    assert tree == {"a": {"b": 1, "c": {"d": 1}}, "e": 2}


@pytest.mark.parametrize("key", ["x", "a.x", "a.b.c", "e.f"])
def test_deleting_what_is_not_there(key: str) -> None:
    with pytest.raises(NotFoundError, match=f"labels have no key '{key}'"):
        change({"a": {"b": 1}, "e": 2}, "labels", delete=[key], set=None)


@pytest.mark.parametrize("key", ["", ".", "a.", "a b", "a..b"])
def test_deleting_what_is_no_key(key: str) -> None:
    with pytest.raises(UsageError, match="illegal key"):
        change({}, "labels", delete=[key], set=None)


def test_files() -> None:
    texts = [("a.yaml", "x: {y: 1}\nz: 2"), ("b.yaml", b"x: {w: [a, b]}\nz: 3"), ("c.yaml", "")]
    assert load(texts, "labels") == {"x": {"y": 1, "w": ["a", "b"]}, "z": 3}
    with pytest.raises(UsageError, match=r"labels in b\.yaml must be a mapping"):
        load([("b.yaml", "- a")], "labels")
    with pytest.raises(UsageError, match=r"b\.yaml: line 1, column 4: tag"):
        load([("b.yaml", "a: !!python/name:os.system x")], "labels")
    with pytest.raises(UsageError, match=r"list 'a'"):
        load([("b.yaml", "a: [1, x]")], "labels")


@pytest.mark.parametrize(
    ("text", "keys"),
    [("[a, b.c]", ["a", "b.c"]), ("a", ["a"]), ("a: {b: 1, c: {d: }}\ne: 1", ["a.b", "a.c.d", "e"]), ("[]", [])],
)
def test_files_of_keys(text: str, keys: list[str]) -> None:
    assert load_keys("k.yaml", text) == keys


@pytest.mark.parametrize("text", ["", "5", "[1]", "[[a]]", "[a b]"])
def test_files_that_are_no_keys(text: str) -> None:
    with pytest.raises(UsageError, match=r"k\.yaml must be a list of keys|illegal key"):
        load_keys("k.yaml", text)
