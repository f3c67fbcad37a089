"""State that relies on locks is kept on a local disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from casstore.transfer import journal, localfs
from casstore.transfer.journal import Journal
from casstore.transfer.localfs import NETWORK, local_folder
from casstore.transfer.scan import State
from casstore.transfer.statcache import Known, StatCache

EXT4, NFS = 0xEF53, 0x6969


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder on NFS; everything else is local."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "var").mkdir()
    monkeypatch.setattr(localfs, "FALLBACK", str(tmp_path / "var"))
    monkeypatch.setattr(localfs, "_f_type", lambda path: NFS if path.startswith(str(home)) else EXT4)
    return home


def own(home: Path) -> Path:
    return home.parent / "var" / f"casstore-{os.geteuid()}"


def test_what_is_local_stays(tmp_path: Path) -> None:
    folder = str(tmp_path / "not" / "there" / "yet")
    assert local_folder(folder, lambda path: EXT4) == folder
    assert local_folder(folder, lambda path: 0) == folder


@pytest.mark.parametrize("kind", sorted(NETWORK))
def test_network_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    monkeypatch.setattr(localfs, "FALLBACK", str(tmp_path / "var"))
    asked: list[str] = []

    def f_type(path: str) -> int:
        asked.append(path)
        return kind if path == str(tmp_path) else EXT4

    found = local_folder(str(tmp_path / "a" / "b"), f_type)
    assert asked[0] == str(tmp_path)
    assert found is not None
    assert found.startswith(str(tmp_path / "var" / f"casstore-{os.geteuid()}"))
    assert os.stat(os.path.dirname(found)).st_mode & 0o777 == 0o700
    assert local_folder(str(tmp_path / "a" / "c"), f_type) != found


def test_the_real_call_answers(tmp_path: Path) -> None:
    assert localfs._f_type("/proc") == 0x9FA0
    assert localfs._f_type(str(tmp_path / "nowhere")) == 0


def test_nothing_local(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localfs, "_f_type", lambda path: NFS)
    assert local_folder(str(home)) is None
    assert Journal.create(str(home), "store", "ds") is None
    assert list(journal.unfinished(str(home), "store")) == []
    cache = StatCache(str(home / "files.sqlite"), "store")
    assert not cache.has_tree(b"key")
    cache.close()


@pytest.mark.parametrize("trap", ["link", "open", "file"])
def test_a_folder_that_somebody_else_may_have_laid_out_is_not_used(home: Path, trap: str) -> None:
    place = own(home)
    if trap == "link":
        (home.parent / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(home.parent / "elsewhere")
    elif trap == "open":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.write_text("")
    assert local_folder(str(home)) is None
    assert Journal.create(str(home), "store", "ds") is None


def test_a_folder_of_another_user_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(home).mkdir(mode=0o700)
    real = os.geteuid()
    place = own(home)
    place.rename(place.with_name(f"casstore-{real + 1}"))
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    assert local_folder(str(home)) is None


def test_the_stat_cache_and_journals_move(home: Path) -> None:
    cache = StatCache(str(home / "cache" / "files.sqlite"), "store")
    state: State = (1, 2, 3, 4, 5)  # type: ignore[assignment]
    cache.keep_folder(b"/f", b"a", b"b", {b"a": Known(state, 0, b"")})
    cache.close()
    cache = StatCache(str(home / "cache" / "files.sqlite"), "store")
    assert list(cache.folder(b"/f", b"a", b"b")) == [b"a"]
    cache.close()
    written = Journal.create(str(home / "state"), "store", "ds")
    assert written is not None
    written.close()
    assert [found.header.dataset for found in journal.unfinished(str(home / "state"), "store")] == ["ds"]
    assert list(home.rglob("*")) == []
