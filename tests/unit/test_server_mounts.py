"""What the processes of mounts for tasks are told."""

from __future__ import annotations

from pathlib import Path

from casstore_orchestrator.ports import DatasetVersion
from casstore_server.mounts import ServerMounts
from casstore_server.settings import Settings


def test_the_cache_of_a_task_is_as_large_as_it_says(tmp_path: Path) -> None:
    settings = Settings(
        socket_path=tmp_path / "socket",
        state_dir=tmp_path / "state",
        config_file=tmp_path / "config.yaml",
        data_dir=tmp_path / "data",
        cache_dir=tmp_path / "cache",
        user="u",
    )
    mounts = ServerMounts(settings)
    version = DatasetVersion("b", "ds", 1, "00" * 32, "00" * 32, 5, 1)
    assert mounts._order(version, "/x", "", 3 << 20).mount.limit == 3 << 20
    assert 0 < mounts._order(version, "/x", "", None).mount.limit <= 20 << 30
    assert mounts._order(version, "/x", "", 0).mount.cache == str(tmp_path / "cache" / "data")
