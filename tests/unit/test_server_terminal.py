"""What of a task's output reaches a terminal."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore_cli.terminal import copy_lines, harmless


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain text, ünïcode", "plain text, ünïcode"),
        ("tab\tstays", "tab\tstays"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        ("\x1b[38;5;196mred", "\x1b[38;5;196mred\x1b[0m"),
        ("\x1b[2J\x1b[Hgone", "gone"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]52;c;cGF5bG9hZA==\x1b\\text", "text"),
        ("\x1bP+q544e\x1b\\text", "text"),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x07", "link"),
        ("\x9b31mtext", "31mtext"),
        ("bell\x07 and \x00", "bell and "),
        ("\x1b", ""),
        ("over\u202eride", "override"),
        ("10%\r50%\r100%", "100%"),
        ("10%\r50%\r", "50%"),
        ("2026/11/21 04:53:22 [one] 10%\r100%", "2026/11/21 04:53:22 [one] 100%"),
        ("2026/11/21 04:53:22 [one][osmo] a\rb", "2026/11/21 04:53:22 [one][osmo] b"),
    ],
)
def test_only_colours_act(line: str, shown: str) -> None:
    assert harmless(line) == shown


@given(st.text(alphabet=st.sampled_from("\x1b[]0;m?25hlPX^_\\\x07\x9b\x9c\r\n\x08abcHJ ("), max_size=40))
def test_nothing_but_colours_is_left(line: str) -> None:
    shown = harmless(line)
    for piece in shown.split("\x1b")[1:]:
        assert piece.startswith("[")
        assert piece[1:].lstrip("0123456789;:").startswith("m")
    assert not set(shown) & {"\x07", "\x08", "\x9b", "\x9c", "\r"}


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def _copied(monkeypatch: pytest.MonkeyPatch, kind: Any, pieces: list[bytes]) -> bytes:
    raw = io.BytesIO()
    stream = kind(raw, encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    copy_lines(pieces)
    stream.flush()
    return raw.getvalue()


def test_a_pipe_gets_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [b"\x1b[2Ja\xff", b"b\r\n", b"no end"]
    assert _copied(monkeypatch, io.TextIOWrapper, pieces) == b"".join(pieces)


def test_a_terminal_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [b"one\ntw", b"o\x1b[2", b"J\nno end"]
    assert _copied(monkeypatch, _Terminal, pieces) == b"one\ntwo\nno end\n"
