"""Who is measured: each as its users would call it, on one machine, with zstd where it has it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from benchmarks.measure import Cost, disk_usage, run


class Contender:
    """A way to keep versions of a folder. ``work`` is a folder of its own; ``source`` is what is kept."""

    name = ""
    program = ""

    def __init__(self, work: Path, source: Path) -> None:
        self.work = work
        self.source = source
        self.store = work / "store"

    @classmethod
    def missing(cls) -> bool:
        """Whether it is not installed."""
        return shutil.which(cls.program) is None

    def prepare(self) -> None:
        """Make an empty store; not timed."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)

    def upload(self) -> Cost:
        """Keep the folder as it is now."""
        raise NotImplementedError(self.name)

    def download(self, target: Path) -> Cost:
        """Bring the newest version back."""
        raise NotImplementedError(self.name)

    def stored(self) -> int:
        """Bytes on disk."""
        return disk_usage(self.store)


class Casstore(Contender):
    """The project itself, by its command."""

    name = "casstore"
    program = sys.executable

    def env(self) -> dict[str, str]:
        """Folders of its own in place of the user's."""
        kinds = {"CONFIG": "config", "DATA": "data", "STATE": "state", "CACHE": "cache", "RUNTIME": "run"}
        env = {
            f"XDG_{kind}_{'DIR' if kind == 'RUNTIME' else 'HOME'}": str(self.work / name)
            for kind, name in kinds.items()
        }
        for folder in env.values():
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        return env

    def _osmo(self, *arguments: str) -> Cost:
        osmo = Path(sys.executable).with_name("osmo")
        return run([str(osmo), "dataset", *arguments], env=self.env())

    def prepare(self) -> None:
        super().prepare()
        self.store = self.work / "data" / "casstore" / "store"

    def upload(self) -> Cost:
        return self._osmo("upload", "bench", f"{self.source}/*")

    def download(self, target: Path) -> Cost:
        target.mkdir(parents=True)
        return self._osmo("download", "bench", str(target))


class Restic(Contender):
    """restic, no read concurrency set, compression as it comes."""

    name = program = "restic"
    env = {"RESTIC_PASSWORD": "benchmark", "RESTIC_PROGRESS_FPS": "0.1"}  # noqa: RUF012 - a constant

    def _restic(self, *arguments: str) -> Cost:
        env = {**self.env, "RESTIC_CACHE_DIR": str(self.work / "cache")}
        return run(["restic", "-q", "-r", str(self.store), *arguments], env=env)

    def prepare(self) -> None:
        super().prepare()
        self._restic("init")

    def upload(self) -> Cost:
        return self._restic("backup", str(self.source))

    def download(self, target: Path) -> Cost:
        return self._restic("restore", "latest", "--target", str(target))


class Borg(Contender):
    """borg, unencrypted, zstd level 3."""

    name = program = "borg"
    number = 0

    def _borg(self, *arguments: str, cwd: Path | None = None) -> Cost:
        env = {"BORG_BASE_DIR": str(self.work), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "LANG": "C.UTF-8"}
        return run(["borg", *arguments], env=env, cwd=cwd)

    def prepare(self) -> None:
        super().prepare()
        self._borg("init", "--encryption", "none", str(self.store))

    def upload(self) -> Cost:
        self.number += 1
        return self._borg("create", "--compression", "zstd,3", f"{self.store}::v{self.number}", ".", cwd=self.source)

    def download(self, target: Path) -> Cost:
        target.mkdir(parents=True)
        return self._borg("extract", f"{self.store}::v{self.number}", cwd=target)


class Casync(Contender):
    """casync with its default chunk store."""

    name = program = "casync"

    def upload(self) -> Cost:
        self.store.mkdir(exist_ok=True)
        return run(["casync", "make", f"--store={self.store}/chunks", f"{self.store}/v.caidx", str(self.source)])

    def download(self, target: Path) -> Cost:
        return run(["casync", "extract", f"--store={self.store}/chunks", f"{self.store}/v.caidx", str(target)])


class Dvc(Contender):
    """DVC without git: `dvc add` into its cache, `dvc checkout` from it."""

    name = program = "dvc"

    def _dvc(self, *arguments: str) -> Cost:
        return run(["dvc", *arguments], cwd=self.work, env={"DVC_NO_ANALYTICS": "1", "HOME": str(self.work)})

    def prepare(self) -> None:
        super().prepare()
        self._dvc("init", "-q", "--no-scm")
        self._dvc("config", "cache.type", "copy")
        self.store = self.work / ".dvc" / "cache"
        self.store.mkdir(exist_ok=True)

    def upload(self) -> Cost:
        copy = self.work / "data"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.source, copy, symlinks=True)
        return self._dvc("add", "-q", "data")

    def download(self, target: Path) -> Cost:
        shutil.rmtree(self.work / "data")
        cost = self._dvc("checkout", "-q")
        shutil.move(self.work / "data", target)
        return cost


class Copy(Contender):
    """`cp -r`: no versions, no checks."""

    name, program = "cp -r", "cp"
    number = 0

    def upload(self) -> Cost:
        self.number += 1
        self.store.mkdir(exist_ok=True)
        return run(["cp", "-r", str(self.source), str(self.store / f"v{self.number}")])

    def download(self, target: Path) -> Cost:
        return run(["cp", "-r", str(self.store / f"v{self.number}"), str(target)])


class Tar(Contender):
    """`tar | zstd -3 -T0`: no versions, no random access."""

    name, program = "tar|zstd", "zstd"
    number = 0

    def upload(self) -> Cost:
        self.number += 1
        self.store.mkdir(exist_ok=True)
        pipe = f"tar -C {self.source} -cf - . | zstd -q -3 -T0 -o {self.store}/v{self.number}.tar.zst"
        return run(["sh", "-c", pipe])

    def download(self, target: Path) -> Cost:
        target.mkdir(parents=True)
        return run(["sh", "-c", f"zstd -q -dc {self.store}/v{self.number}.tar.zst | tar -C {target} -xf -"])


class Floor(Contender):
    """The same bytes read, cut, hashed, compressed and written by the C libraries on all cores, and nothing else."""

    name = "floor"
    program = sys.executable

    def upload(self) -> Cost:
        self.store.mkdir(exist_ok=True)
        env = {"PYTHONPATH": os.getcwd()}
        return run([sys.executable, "-m", "benchmarks.floor", str(self.source), str(self.store)], env=env)


ALL: list[type[Contender]] = [Casstore, Restic, Borg, Casync, Dvc, Copy, Tar, Floor]
