"""What of YAML is read, and what is refused with a place and a reason."""

from __future__ import annotations

import math

import pytest

from casstore.errors import SpecError, UsageError
from casstore.safeyaml import MAX_DEPTH, MAX_NODES, load


def test_plain_data() -> None:
    text = "a: 1\nb: [x, 2.5, true, ~]\nc:\n  d: 'yes'\n  e: no\n"
    assert load(text, what="t") == {"a": 1, "b": ["x", 2.5, True, None], "c": {"d": "yes", "e": False}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-01-02", "2026-01-02"),
        ("2026-01-02 10:00:00", "2026-01-02 10:00:00"),
        ("22:30", "22:30"),
        ("1:2:3.5", "1:2:3.5"),
        ("0x1F", 31),
        ("1_000", 1000),
        ("010", 8),
        ("-7", -7),
        ("1e3", 1000.0),
        ("1.5e-3", 0.0015),
        (".5", 0.5),
        ("", None),
        ("null", None),
        ("!!str 5", "5"),
        ("'5'", "5"),
        ("1.2.3", "1.2.3"),
        ("-", [None]),
    ],
)
def test_scalars(text: str, value: object) -> None:
    assert load(text, what="t") == value


def test_infinity_is_a_number() -> None:
    assert load(".inf", what="t") == math.inf


def test_merge_keys_and_aliases() -> None:
    text = "base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nagain: *b\n"
    assert load(text, what="t") == {
        "base": {"x": 1, "y": 2},
        "use": {"x": 1, "y": 3},
        "again": {"x": 1, "y": 2},
    }


def test_bytes_with_and_without_mark() -> None:
    assert load(b"\xef\xbb\xbfa: \xc3\xa4", what="t") == {"a": "ä"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r"spec.yaml: line 2, column 1: key 'a' is given twice"),
        ("x: {b: 1, b: 2}\n", r"key 'b' is given twice"),
        ("a: !!python/object/apply:os.system [id]", r"line 1, column 4: tag .* is not allowed"),
        ("!custom {}", r"tag '!custom' is not allowed"),
        ("!!binary aGk=", r"is not allowed"),
        ("!!set {a}", r"is not allowed"),
        ("a: *nope", r"alias|undefined"),
        ("&a [*a]", r"contains itself"),
        ("&a {x: {y: *a}}", r"contains itself"),
        ("a: [1, 2", r"spec.yaml: line 2, column 1: did not find"),
        ("a: 1\n--- \nb: 2", r"more than one document"),
        ("{[1]: 2}", r"plain value|unhashable"),
        ("a: b: c", r"line 1, column 5"),
        ("a:\n\t- b", r"line 2"),
        ("a: \x00", r"spec.yaml: "),
        ("9" * 5000, r"spec.yaml: "),
    ],
)
def test_refusals_name_the_place(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load(text, what="spec.yaml")
    assert "\n" not in caught.value.message


def test_alias_bomb() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(UsageError, match=f"more than {MAX_NODES} values"):
        load("\n".join(lines), what="t")


def test_depth() -> None:
    assert load("[" * MAX_DEPTH + "]" * MAX_DEPTH, what="t") is not None
    with pytest.raises(UsageError, match="deeper than 50"):
        load("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), what="t")
    # Deep enough to end a recursive parser for good.
    with pytest.raises(UsageError, match="deeper than 50"):
        load("[" * 200_000, what="t")


def test_size() -> None:
    with pytest.raises(UsageError, match="larger than 10 bytes"):
        load("a: 0123456789", what="t", max_bytes=10)
    with pytest.raises(UsageError, match="larger than 10 bytes"):
        load(b"a: 0123456789", what="t", max_bytes=10)
    with pytest.raises(UsageError, match="larger than 10 bytes"):
        load("a: ääää", what="t", max_bytes=10)


def test_not_text() -> None:
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 3\)"):
        load(b"a: \xff", what="t")


def test_the_error_class_is_the_callers_choice() -> None:
    with pytest.raises(SpecError):
        load("[", what="t", error=SpecError)
