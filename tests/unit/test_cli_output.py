"""What results look like."""

from __future__ import annotations

import io
import json
import sys
import time

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.errors import UsageError
from casstore_cli import output


def test_table_is_osmos() -> None:
    text = output.table(["Version", "Tags"], [["1", "latest"], ["12", None]])
    assert text.split("\n") == [
        "Version   Tags",
        "================",
        "1         latest",
        "12        N/A",
    ]


def test_table_without_rows_and_with_total() -> None:
    assert output.table(["A", "B"], []).split("\n") == ["A   B", "====="]
    assert output.table(["A"], [["1"]], total=["22"]).split("\n") == ["A", "==", "1", "==", "22"]


def test_table_counts_columns_of_wide_characters() -> None:
    text = output.table(["A", "B"], [["データ", "x"], ["ab", "y"]])
    assert text.split("\n") == ["A        B", "==========", "データ   x", "ab       y"]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (12, "12 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (3 * 1024**4, "3.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert output.size(count) == shown


def test_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert output.date("2026-11-21T00:01:30+00:00") == "Nov 21, 2026 00:01 UTC"
    assert output.date("2026-11-21T00:01:30") == "Nov 21, 2026 00:01 UTC"
    assert output.date(None) is None
    monkeypatch.setenv("TZ", "XYZ-2")
    time.tzset()
    assert output.date("2026-11-21T23:01:30Z") == "Nov 22, 2026 01:01 XYZ"
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name", "plain name"),
        ("größe-データ", "größe-データ"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("a\u202eb", "a\\u202eb"),
        (b"a\xffb", "a\\xffb"),
        ("\x9b2J", "\\x9b2J"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_escape(name: str | bytes, shown: str) -> None:
    assert output.escape(name) == shown


@given(st.binary())
def test_escaped_names_are_one_harmless_line(name: bytes) -> None:
    shown = output.escape(name)
    assert shown.isprintable()
    shown.encode("utf-8")


@given(
    st.lists(
        st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())),
        max_size=4,
    )
)
def test_array_is_what_json_would_write(values: list[dict[str, object]]) -> None:
    stream, sys.stdout = sys.stdout, io.StringIO()
    try:
        with click.Context(click.Command("x")):
            array = output.Array()
            for value in values:
                array.add(value)
            array.close()
        written = sys.stdout.getvalue()
    finally:
        sys.stdout = stream
    assert written == json.dumps(values, indent=4) + "\n"


@pytest.mark.parametrize(
    ("answer", "yes"),
    [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("maybe\n", False), ("y", True)],
)
def test_confirm(answer: str, yes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    assert output.confirm("Sure?") is yes
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Sure? [y/N]: ")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(UsageError, match="not confirmed"):
        output.confirm("Sure?")


def test_messages_follow_the_level(capsys: pytest.CaptureFixture[str]) -> None:
    output.message("seen")
    output.message("hidden", level="DEBUG")
    output.message("hidden", level="WARNING", wanted="ERROR")
    output.warn("odd")
    captured = capsys.readouterr()
    assert captured.err == "seen\nWARNING: odd\n"
    assert captured.out == ""


def test_tree_text() -> None:
    lines = output.tree_text({"a": {"b": [1, 2]}, "c": "x\x1by"}, 2)
    assert lines[0] == "  a:"
    assert not any("\x1b" in line for line in lines)
