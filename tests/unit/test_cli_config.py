"""Where files are, what the configuration may hold, and how it is changed."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from casstore.config import find_paths, load_config
from casstore.errors import NotFoundError, UsageError
from casstore_cli.config import change_config


def write(home: Path, text: str) -> Path:
    path = home / ".config/osmo/config.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_nothing_configured(isolated_home: Path) -> None:
    config = load_config()
    assert config.default_bucket == "default"
    assert config.bucket().url == f"file://{isolated_home}/.local/share/casstore/store"
    assert config.user == "tester"
    assert config.pools == {}
    assert not Path(config.paths.config).exists()


def test_default_url_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/a b/c#d")
    assert load_config().bucket().url == "file:///a%20b/c%23d/casstore/store"


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"OSMO_CONFIG_FILE_DIR": "/one", "OSMO_CONFIG_DIR": "/two"}, "/one"),
        ({"OSMO_CONFIG_DIR": "/two"}, "/two"),
        ({"XDG_CONFIG_HOME": "/three"}, "/three/osmo"),
    ],
)
def test_config_folder(variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_paths().config == folder


def test_folders_without_xdg(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("XDG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    paths = find_paths()
    assert paths.cache == f"{isolated_home}/.cache/casstore"
    assert paths.state == f"{isolated_home}/.local/state/casstore"
    assert paths.runtime == f"{isolated_home}/.local/state/casstore/run"
    assert paths.logs == f"{isolated_home}/.local/state/osmo"
    monkeypatch.setenv("OSMO_LOG_FILE_DIR", "/logs")
    assert find_paths().logs == "/logs"


def test_declared_buckets(isolated_home: Path) -> None:
    write(
        isolated_home,
        "auth: {data: {s3://x: {access_key: k}}}\n"
        "casstore:\n  user: ada\n  default_bucket: lab\n"
        "  buckets: {lab: {url: 'file:///srv/lab', description: ours, mode: read-only}}\n",
    )
    config = load_config()
    assert config.user == "ada"
    assert sorted(config.buckets) == ["default", "lab"]
    assert config.bucket().mode == "read-only"
    assert config.bucket("default").url.startswith("file://")
    with pytest.raises(NotFoundError, match="nope"):
        config.bucket("nope")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n", "mapping"),
        ("a: [\n", "config.yaml"),
        ("a: 1\na: 2\n", "twice"),
        ("casstore: 5\n", "casstore must be a mapping"),
        ("casstore: {bukets: {}}\n", "casstore.bukets"),
        ("casstore: {buckets: []}\n", "casstore.buckets must be"),
        ("casstore: {buckets: {a b: {url: 'file:///x'}}}\n", "a b"),
        ("casstore: {buckets: {a: {url: 5}}}\n", "casstore.buckets.a.url"),
        ("casstore: {buckets: {a: {}}}\n", "casstore.buckets.a.url"),
        ("casstore: {buckets: {a: {url: /srv}}}\n", "file:///"),
        ("casstore: {buckets: {a: {url: 'file:///x', mode: rw}}}\n", "read-write"),
        ("casstore: {buckets: {a: {url: 'file:///x', size: '1'}}}\n", "casstore.buckets.a.size"),
        ("casstore: {default_bucket: x}\n", "default_bucket"),
        ("casstore: {default_bucket: [x]}\n", "default_bucket"),
        ("casstore: {user: 5}\n", "casstore.user"),
        ("casstore: {pools: 5}\n", "casstore.pools"),
        ("!!python/object:os.system {}\n", "config.yaml"),
    ],
)
def test_wrong_files_name_the_place(isolated_home: Path, text: str, words: str) -> None:
    path = write(isolated_home, text)
    with pytest.raises(UsageError) as caught:
        load_config()
    assert words in caught.value.message
    assert str(path) in caught.value.message


def test_not_text(isolated_home: Path) -> None:
    write(isolated_home, "").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"config\.yaml"):
        load_config()


def test_change_keeps_the_rest_and_is_private(isolated_home: Path) -> None:
    path = write(isolated_home, "auth: {data: {x: {key: secret}}}\nother: 1\n")
    path.chmod(0o644)

    def add(own: dict[str, Any]) -> None:
        own["buckets"] = {"lab": {"url": "file:///srv"}}

    assert change_config(add).bucket("lab").url == "file:///srv"
    assert yaml.safe_load(path.read_text()) == {
        "auth": {"data": {"x": {"key": "secret"}}},
        "other": 1,
        "casstore": {"buckets": {"lab": {"url": "file:///srv"}}},
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == [".config.lock", "config.yaml"]


def test_a_wrong_change_changes_nothing(isolated_home: Path) -> None:
    path = write(isolated_home, "casstore: {user: ada}\n")
    with pytest.raises(UsageError):
        change_config(lambda own: own.update(default_bucket="nope"))
    assert path.read_text() == "casstore: {user: ada}\n"


def test_change_follows_a_symlink(isolated_home: Path, tmp_path: Path) -> None:
    path = isolated_home / ".config/osmo/config.yaml"
    path.parent.mkdir()
    (tmp_path / "real.yaml").write_text("casstore: {}\n")
    path.symlink_to(tmp_path / "real.yaml")
    change_config(lambda own: own.update(user="ada"))
    assert path.is_symlink()
    assert load_config().user == "ada"


def test_changes_at_once_are_all_kept() -> None:
    def add(number: int) -> None:
        def change(own: dict[str, Any]) -> None:
            own.setdefault("buckets", {})[f"b{number}"] = {"url": f"file:///b{number}"}

        change_config(change)

    threads = [threading.Thread(target=add, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(load_config().buckets) == 9


def test_an_empty_home_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "")
    assert find_paths().config == os.path.join(pwd.getpwuid(os.getuid()).pw_dir, ".config/osmo")

    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UsageError, match="no home folder"):
        find_paths()


def test_a_pipe_is_no_configuration(isolated_home: Path) -> None:
    os.mkfifo(isolated_home / ".config/pipe")
    (isolated_home / ".config/osmo").mkdir()
    (isolated_home / ".config/osmo/config.yaml").symlink_to("../pipe")
    with pytest.raises(UsageError, match="is not a file"):
        load_config()
