"""``osmo store gc``, ``osmo store leases`` and ``osmo dataset retention``."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from casstore.config import load_config
from casstore.repo.leases import Lease
from casstore_cli import main
from casstore_cli.stores import open_bucket

Run = Callable[..., str]


class Terminal(io.StringIO):
    """A standard input that somebody sits at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*args: object, code: int = 0, answer: str | None = None) -> str:
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO("") if answer is None else Terminal(answer))
        found = main.run(list(map(str, args)))
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        return captured.out

    return call


@pytest.fixture
def garbage(run: Run, tmp_path: Path) -> Run:
    """Two datasets, one of them deleted."""
    for name in ("kept", "gone"):
        (tmp_path / name).write_bytes(os.urandom(300_000))
        run("dataset", "upload", name, name)
    run("dataset", "delete", "gone", "--all", "--force")
    return run


def stored() -> int:
    root = Path(load_config().bucket(None).url.removeprefix("file://"))
    return sum(path.stat().st_size for path in (root / "packs").rglob("*") if path.is_file())


def test_space_comes_back_at_once(garbage: Run) -> None:
    before = stored()
    shown = garbage("store", "gc", "--grace", "0", "--yes")
    assert "To delete: 2 packs, 1 manifest, 1 deleted dataset: " in shown
    assert "Freed " in shown
    assert before - stored() > 300_000
    assert "There is nothing to do." in garbage("store", "gc", "--grace", "0")
    garbage("dataset", "verify")


def test_a_dry_run_changes_nothing(garbage: Run) -> None:
    with open_bucket() as bucket:
        before = [info.key for info in bucket.store.backend.list("")]
    assert "Nothing was changed: this was a dry run." in garbage("store", "gc", "--grace", "0", "--dry-run")
    document = json.loads(garbage("store", "gc", "--grace", "0", "--dry-run", "-t", "json"))
    assert document["dry_run"] is True
    assert document["done"] is False
    assert document["result"] is None
    assert document["plan"]["mark"]["packs"] == 2
    assert document["plan"]["mark"]["bytes"] > 300_000
    with open_bucket() as bucket:
        assert [info.key for info in bucket.store.backend.list("")] == before


def test_somebody_is_asked_first(garbage: Run) -> None:
    before = stored()
    assert "there is nobody to ask" in garbage("store", "gc", "--grace", "0", code=2)
    assert "Nothing was changed." in garbage("store", "gc", "--grace", "0", answer="no\n")
    assert stored() == before
    garbage("store", "gc", "--grace", "0", answer="yes\n")
    assert stored() < before


def test_the_grace_period_is_told(garbage: Run) -> None:
    before = stored()
    shown = garbage("store", "gc", "--yes")
    assert "Kept: 2 packs, " in shown
    assert "younger than the grace period, the last until " in shown
    assert stored() == before
    kept = json.loads(garbage("store", "gc", "--yes", "-t", "json"))["plan"]["kept"]
    assert [entry["reason"] for entry in kept] == ["grace"]
    assert kept[0]["until"] is not None
    # What the first run marked is deleted by a later one with less patience.
    document = json.loads(garbage("store", "gc", "--grace", "0", "--force", "-t", "json"))
    assert document["result"]["deleted_datasets"] == 1
    assert document["result"]["freed_bytes"] > 300_000
    assert stored() < before


def test_running_uploads_are_told(garbage: Run) -> None:
    with (
        open_bucket() as bucket,
        Lease.acquire(bucket.store.backend, kind="upload", user="ann", dataset="maps", heartbeat=False) as lease,
    ):
        shown = garbage("store", "gc", "--grace", "0", "--yes")
        assert "ann on " in shown
        assert "runs upload to maps since " in shown
        rows = garbage("store", "leases").splitlines()
        assert rows[2].split()[:3] == ["upload", "maps", "ann"]
        assert rows[2].endswith("running")
        (found,) = json.loads(garbage("store", "leases", "-t", "json"))["leases"]
        assert (found["id"], found["kind"], found["dataset"]) == (lease.id, "upload", "maps")
        assert found["expired"] is False
    assert json.loads(garbage("store", "leases", "-t", "json")) == {"leases": []}


def test_an_interrupt_is_made_up_for_by_the_next_run(garbage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stored()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("casstore.repo.index.Index.tidy", interrupted)
        garbage("store", "gc", "--grace", "0", "--yes", code=3)
    assert stored() == before
    assert json.loads(garbage("store", "leases", "-t", "json")) == {"leases": []}
    shown = garbage("store", "gc", "--yes")  # the grace period is no matter any more: it has begun
    assert "Deletion to finish, begun " in shown
    assert before - stored() > 300_000


def test_another_collection_is_told(garbage: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        open_bucket() as bucket,
        Lease.acquire(bucket.store.backend, kind="gc", user="ann", heartbeat=False),
    ):
        monkeypatch.setattr("casstore.repo.gc.run.socket.gethostname", lambda: "elsewhere")
        shown = garbage("store", "gc", "--yes", code=2)
        assert "another collection runs: ann on " in shown
        assert "osmo store leases" in shown
        garbage("store", "gc", "--dry-run")


def test_wrong_options(run: Run) -> None:
    for option, value in (
        ("--grace", "soon"),
        ("--grace", "5"),
        ("--repack-below", "half"),
        ("--repack-below", "101%"),
    ):
        run("store", "gc", option, value, code=2)
    assert "no span of time" in run("store", "gc", "--grace", "1 year", "-t", "json", code=2)


def test_a_read_only_bucket_is_only_looked_at(garbage: Run, isolated_home: Path) -> None:
    store = load_config().bucket(None).url
    (isolated_home / ".config/osmo").mkdir(parents=True, exist_ok=True)
    (isolated_home / ".config/osmo/config.yaml").write_text(
        f"casstore: {{buckets: {{ro: {{url: '{store}', mode: read-only}}}}}}\n"
    )
    assert "read-only" in garbage("store", "gc", "--bucket", "ro", "--yes", code=2)
    garbage("store", "gc", "--bucket", "ro", "--dry-run")


def test_a_rule(run: Run, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / "a").write_text(str(number))
        run("dataset", "upload", "d", "a", *(["--tag", "gold"] if not number else []))
    assert run("dataset", "retention", "d") == "d keeps all versions.\n"
    assert "keeps nothing of 'd' but its latest" in run("dataset", "retention", "d", "--no-keep-tagged", code=2)
    run("dataset", "retention", "d", "--keep-last", "0", code=2)
    assert "the latest 2 versions, versions with a tag" in run(
        "dataset", "retention", "d", "--keep-last", "2", "--keep-tagged"
    )
    shown = run("store", "gc", "--grace", "0", "--dry-run")
    assert "Dataset d: version 2 no longer kept." in shown
    assert "Kept: version 1 (tagged); version 3 (of the last 2); version 4 (the latest)." in shown
    document = json.loads(run("store", "gc", "--grace", "0", "--yes", "-t", "json"))
    assert document["plan"]["retention"] == [
        {"dataset": "d", "expired": ["2"], "kept": {"1": "tagged", "3": "last", "4": "latest"}}
    ]
    assert document["result"]["expired"] == {"d": ["2"]}
    assert document["result"]["deleted_versions"] == 1
    assert json.loads(run("dataset", "retention", "d", "--no-keep-tagged", "-t", "json"))["retention"] == {
        "keep_last": 2,
        "keep_tagged": False,
        "keep_within_s": None,
    }
    assert json.loads(run("dataset", "retention", "d", "--clear", "-t", "json")) == {"name": "d", "retention": None}
    assert json.loads(run("store", "gc", "--grace", "0", "--dry-run", "-t", "json"))["plan"]["retention"] == []
    assert "without :gold" in run("dataset", "retention", "d:gold", code=2)
