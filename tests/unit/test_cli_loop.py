"""Ctrl-C in commands that run an event loop."""

from __future__ import annotations

import asyncio
import signal

import pytest

from casstore_cli.loop import run


def test_ctrl_c_cancels_what_runs_and_lets_it_clean_up() -> None:
    def ours(number: int, frame: object) -> None:
        pytest.fail("the command's own handler was called")

    cleaned: list[str] = []

    async def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)  # not raised here: told at the next point where it can be
            cleaned.append("went on")
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("cleaned up")

    before = signal.signal(signal.SIGINT, ours)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(work())
        assert signal.getsignal(signal.SIGINT) is ours
    finally:
        signal.signal(signal.SIGINT, before)
    assert cleaned == ["went on", "cleaned up"]


def test_a_signal_that_is_ignored_stays_so() -> None:
    async def work() -> str:
        signal.raise_signal(signal.SIGINT)
        return "done"

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(work()) == "done"
    finally:
        signal.signal(signal.SIGINT, before)
