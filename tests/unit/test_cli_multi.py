"""Options with several values, and everything they can be mixed with."""

from __future__ import annotations

from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore_cli.multi import Command, ManyOption


@click.command(cls=Command)
@click.argument("name")
@click.argument("paths", nargs=-1)
@click.option("-s", "--set", "set_", cls=ManyOption)
@click.option("-a", "--add", cls=ManyOption)
@click.option("-x", "--regex")
@click.option("-r", "--resume", is_flag=True)
@click.option("-f", "--force", is_flag=True)
@click.option("--format-type")
@click.option("-c", "--count", type=int)
def command(**kwargs: Any) -> dict[str, Any]:
    return kwargs


def parse(*args: str) -> dict[str, Any]:
    result: dict[str, Any] = command.main(list(args), standalone_mode=False)
    return {key: value for key, value in result.items() if value not in (None, (), False)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["n"], {"name": "n"}),
        (["n", "-s", "a", "b", "c"], {"name": "n", "set_": ("a", "b", "c")}),
        (["n", "-s", "a", "-s", "b", "c"], {"name": "n", "set_": ("a", "b", "c")}),
        (["n", "--set", "a", "b", "--add", "c"], {"name": "n", "set_": ("a", "b"), "add": ("c",)}),
        (
            ["-r", "n", "p", "-s", "a", "-f"],
            {"name": "n", "paths": ("p",), "set_": ("a",), "resume": True, "force": True},
        ),
        (["-s", "a", "b", "--", "n", "-p"], {"name": "n", "paths": ("-p",), "set_": ("a", "b")}),
        (["n", "p", "--", "--set"], {"name": "n", "paths": ("p", "--set")}),
        (["n", "p", "-x", "re", "q"], {"name": "n", "paths": ("p", "q"), "regex": "re"}),
        (["n", "-s", "-5", "-1.5"], {"name": "n", "set_": ("-5", "-1.5")}),
        (["n", "-s", "-a b"], {"name": "n", "set_": ("-a b",)}),
        (["n", "-s", "-"], {"name": "n", "set_": ("-",)}),
        (["n", "-s", ""], {"name": "n", "set_": ("",)}),
        (["--set=-x", "n"], {"name": "n", "set_": ("-x",)}),
        (["--set=a=b", "n"], {"name": "n", "set_": ("a=b",)}),
        (["--set=", "n"], {"name": "n", "set_": ("",)}),
        (["-s-x", "n"], {"name": "n", "set_": ("-x",)}),
        (["-sa", "n"], {"name": "n", "set_": ("a",)}),
        (["n", "-rfs", "a", "b"], {"name": "n", "resume": True, "force": True, "set_": ("a", "b")}),
        (["n", "-rx", "re"], {"name": "n", "resume": True, "regex": "re"}),
        (["n", "-rxre"], {"name": "n", "resume": True, "regex": "re"}),
        (["n", "-c5"], {"name": "n", "count": 5}),
        (["n", "-x", "-odd"], {"name": "n", "regex": "-odd"}),
        (["n", "--regex=--resume"], {"name": "n", "regex": "--resume"}),
        (["n", "--format", "json"], {"name": "n", "format_type": "json"}),
        (["n", "--res"], {"name": "n", "resume": True}),
    ],
)
def test_line(line: list[str], expected: dict[str, Any]) -> None:
    assert parse(*line) == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["n", "-s"], "requires an argument"),
        (["n", "-s", "--force"], "requires an argument"),
        (["n", "-s", "--", "a"], "requires an argument"),
        (["n", "-x", "--resume"], "requires an argument"),
        (["n", "-x", "-r"], "requires an argument"),
        (["n", "-x"], "requires an argument"),
        (["n", "--fo", "x"], "ambiguous"),
        (["n", "-s", "a", "-z"], "-z"),
        (["n", "--nope"], "--nope"),
        (["n", "--force=yes"], "--force"),
        (["-s", "a", "n"], "NAME"),
    ],
)
def test_wrong_line(line: list[str], words: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        parse(*line)
    assert words in caught.value.format_message()


@given(st.lists(st.text(alphabet="ab:=.* \n", max_size=4), min_size=1, max_size=5), st.booleans())
def test_every_value_arrives(values: list[str], flag: bool) -> None:
    line = ["n", "--set", *values, *(["-r"] if flag else [])]
    assert command.main(line, standalone_mode=False)["set_"] == tuple(values)


def test_help_survives() -> None:
    result = command.make_context("x", ["n"]).get_help()
    assert "--set" in result
