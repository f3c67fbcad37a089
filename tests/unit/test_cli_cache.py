"""``osmo cache``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from casstore.cache.files import FileCache
from casstore_cli import main
from casstore_cli.caching import cache_dir, open_space


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main.run(["cache", *args]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def fill(count: int) -> None:
    files = FileCache(open_space())
    for number in range(count):
        assert files.add(bytes([number]) * 32, 8192, [bytes(8192)])


def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, isolated_home: Path) -> None:
    monkeypatch.setenv("CASSTORE_CACHE_SIZE", "3M")
    fill(2)
    found = json.loads(run(capsys, "info", "-t", "json"))
    assert found == {
        "path": f"{isolated_home}/.cache/casstore/data",
        "size": 16384,
        "limit": 3 << 20,
        "holds": {"files": {"count": 2, "size": 16384}},
    }
    text = run(capsys, "info")
    assert "16.0 KiB of 3.0 MiB are used" in text
    assert "files" in text


def test_clear(capsys: pytest.CaptureFixture[str]) -> None:
    fill(10)
    assert "80.0 KiB removed, 0 B left" in run(capsys, "clear")
    fill(10)
    found = json.loads(run(capsys, "clear", "--keep", "40K", "-t", "json"))
    assert 0 < found["size"] <= 40 << 10
    assert found["removed"] + found["size"] == 80 << 10
    assert "is no size" in run(capsys, "clear", "--keep", "much", code=2)


def test_a_limit_that_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASSTORE_CACHE_SIZE", "plenty")
    assert "CASSTORE_CACHE_SIZE is 'plenty', which is no size" in run(capsys, "info", code=2)
    assert not Path(cache_dir()).exists()
