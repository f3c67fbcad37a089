"""What counts as the disk use of an attempt."""

from __future__ import annotations

import os
from pathlib import Path

from casstore_orchestrator.executors.storage import disk_use


def test_files_count_once_and_links_and_holes_do_not(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "a/b").mkdir(parents=True)
    empty = disk_use(home)
    (home / "a/b/file").write_bytes(os.urandom(1 << 20))
    os.link(home / "a/b/file", home / "a/other")
    (tmp_path / "outside").write_bytes(os.urandom(1 << 20))
    (home / "link").symlink_to(tmp_path / "outside")
    (home / "up").symlink_to(tmp_path)
    with open(home / "sparse", "wb") as file:
        file.truncate(1 << 30)
    used = disk_use(home) - empty
    assert 1 << 20 <= used <= (1 << 20) + (64 << 10)


def test_counting_ends_beyond_what_matters_and_at_what_is_gone(tmp_path: Path) -> None:
    for number in range(50):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "file").write_bytes(os.urandom(64 << 10))
    assert (1 << 20) < disk_use(tmp_path, most=1 << 20) < 50 * (64 << 10)
    assert disk_use(tmp_path / "missing") == 0
