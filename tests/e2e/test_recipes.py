"""The recipes of docs/guide/python.md work: each is run as a program of its own, and its output is compared."""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "python.md"
_RECIPE = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECIPES = {
    f"{title}{number or ''}": recipe
    for title, section in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for number, recipe in enumerate(_RECIPE.findall(section))
}


def write_drives(root: Path) -> None:
    """What the page says of the dataset `drives`."""
    import h5py
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from mcap.writer import Writer

    for name in ("tables", "shards", "frames"):
        (root / name).mkdir(parents=True)
    (root / "notes.txt").write_text("Rain on both days.\nNo accident.\n")
    rows = 10_000
    for day in (1, 2):
        speed = np.linspace(0, 5 * day, rows)
        robot = [f"r{number % 3}" for number in range(rows)]
        table = pa.table({"robot": robot, "speed": speed, "noise": np.random.default_rng(day).random(rows)})
        pq.write_table(table, root / "tables" / f"{day:02}.parquet", row_group_size=1000)
    with h5py.File(root / "depth.h5", "w") as data:
        depth = np.arange(500 * 48 * 64, dtype="u4").reshape(500, 48, 64)
        data.create_dataset("depth", data=depth, chunks=(10, 48, 64), compression="gzip")
    rng = random.Random(1)
    for number in range(500):
        (root / "frames" / f"{number:04}").write_bytes(rng.randbytes(4096))
    for shard in range(4):
        with tarfile.open(root / "shards" / f"{shard:04}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(100):
                for suffix, content in (
                    ("json", json.dumps({"shard": shard, "number": number}).encode()),
                    ("bin", rng.randbytes(4096)),
                ):
                    member = tarfile.TarInfo(f"{shard:04}-{number:04}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    with (root / "lidar.mcap").open("wb") as out:
        recording = Writer(out, chunk_size=100_000)
        recording.start()
        schema = recording.register_schema("raw", "raw", b"")
        for topic, size, count in (("/imu", 48, 1000), ("/lidar", 20_000, 200)):
            channel = recording.register_channel(topic, "raw", schema)
            for moment in range(count):
                recording.add_message(channel, log_time=moment, data=rng.randbytes(size), publish_time=moment)
        recording.finish()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home whose default bucket has the dataset."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "home").mkdir()
    write_drives(folder / "drives")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "OSMO_"))}
    environment = kept | {"HOME": str(folder / "home"), "USER": "you", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [
            sys.executable,
            "-c",
            "from casstore_cli.start import main; main()",
            "dataset",
            "upload",
            "drives",
            f"{folder}/drives/*",
        ],
        env=environment,
        check=True,
        capture_output=True,
    )
    return environment


def test_every_recipe_is_found() -> None:
    assert len(RECIPES) == PAGE.read_text().count("```python\n") == 9


@pytest.mark.slow
@pytest.mark.parametrize("title", RECIPES)
def test_recipe(title: str, environment: dict[str, str], tmp_path: Path) -> None:
    if title == "PyTorch" and find_spec("torch") is None:
        pytest.skip("PyTorch is not installed: scripts/setup dev found no build for the CPU")
    code, shown = RECIPES[title]
    (tmp_path / "recipe.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "recipe.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.stdout, done.stderr) == (shown, "")
    assert done.returncode == 0
