"""The log store: format, order, following, tails, masking and bounds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore_orchestrator import logwriter as logs
from casstore_orchestrator.logs import LogStore, TaskLog


class Clock:
    def __init__(self) -> None:
        self.now = 1_795_233_600.0  # 2026/11/21 04:00:00 UTC

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[LogStore]:
    made = LogStore(tmp_path, clock=clock)
    made.begin("wf-1")
    yield made
    made.close()


def read(store: LogStore, **options: object) -> list[str]:
    return list(store.read("wf-1", **options))  # type: ignore[arg-type]  # options are passed through by name


def test_line_format(store: LogStore) -> None:
    store.append("wf-1", "a", 0, b"hello")
    store.append("wf-1", "a", 0, b"ours", source="osmo")
    store.append("wf-1", "a", 2, b"again")
    assert read(store) == [
        "2026/11/21 04:00:00 [a] hello",
        "2026/11/21 04:00:00 [a][osmo] ours",
        "2026/11/21 04:00:00 [a retry-2] again",
    ]


def test_merge_keeps_the_order_in_which_lines_came(store: LogStore) -> None:
    for i in range(300):
        store.append("wf-1", "abc"[i % 3], i // 150, b"%d" % i)
    assert [int(line.split()[-1]) for line in read(store)] == list(range(300))


def test_filter_by_task_and_attempt(store: LogStore) -> None:
    for task, retry in [("a", 0), ("a", 1), ("b", 0)]:
        store.append("wf-1", task, retry, f"{task}{retry}".encode())
    assert [line.split()[-1] for line in read(store, task="a")] == ["a0", "a1"]
    assert [line.split()[-1] for line in read(store, task="a", retry_id=1)] == ["a1"]
    assert [line.split()[-1] for line in read(store, retry_id=0)] == ["a0", "b0"]
    assert store.retries("wf-1", "a") == [0, 1]


@pytest.mark.parametrize("last", [0, 1, 2, 7, 2000, 5000])
def test_last_lines_of_several_tasks(store: LogStore, last: int) -> None:
    for i in range(3000):
        store.append("wf-1", "ab"[i % 2], 0, b"%d " % i + b"x" * (i % 97))
    expected = list(range(3000))[-last:] if last else []
    assert [int(line.split()[3]) for line in read(store, last=last)] == expected


def test_lines_are_cut_and_empty_ones_kept(store: LogStore) -> None:
    store.append("wf-1", "a", 0, b"")
    store.append("wf-1", "a", 0, b"one\ntwo")
    store.append("wf-1", "a", 0, b"y" * (logs.MAX_LINE + 5))
    texts = [line.split("[a] ", 1)[1] for line in read(store)]
    assert texts == ["", "one", "two", "y" * logs.MAX_LINE, "y" * 5]


def test_bytes_that_are_not_text_are_shown(store: LogStore) -> None:
    store.append("wf-1", "a", 0, b"\xff\xfe")
    assert read(store) == ["2026/11/21 04:00:00 [a] \ufffd\ufffd"]


def test_secrets_never_reach_the_disk(tmp_path: Path, store: LogStore) -> None:
    store.begin("wf-2", ["hunter2", "hunter2-longer", "line one\nline two", "  "])
    store.append("wf-2", "a", 0, b"pw=hunter2 hunter2-longer line two.")
    store.end("wf-2")
    store.append("wf-2", "a", 0, b"late hunter2")
    assert list(store.read("wf-2")) == ["2026/11/21 04:00:00 [a] pw=[MASKED] [MASKED] [MASKED]."]
    for path in (tmp_path / "wf-2").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


def test_short_secrets_are_masked_where_they_stand_alone(store: LogStore) -> None:
    store.begin("wf-1", ["7", "q8"])
    store.append("wf-1", "a", 0, b"pin=7 17 7. q8 q88 (q8)")
    assert read(store)[-1].endswith("pin=[MASKED] 17 [MASKED]. [MASKED] q88 ([MASKED])")


def test_secrets_can_be_added_while_a_workflow_runs(store: LogStore) -> None:
    store.begin("wf-1", ["first-secret"])
    store.mask("wf-1", ["second-secret", "first-secret-longer"])
    store.append("wf-1", "a", 0, b"first-secret-longer second-secret first-secret")
    assert read(store)[-1].endswith("[MASKED] [MASKED] [MASKED]")
    store.mask("wf-gone", ["x"])


def test_follow_sees_everything_until_the_end(store: LogStore) -> None:
    seen: list[str] = []
    first = threading.Event()

    def follow() -> None:
        for line in store.read("wf-1", follow=True):
            seen.append(line)
            first.set()

    store.append("wf-1", "a", 0, b"0")
    follower = threading.Thread(target=follow)
    follower.start()
    assert first.wait(30)
    for i in range(1, 500):
        store.append("wf-1", "ab"[i % 2], 0, b"%d" % i)
    store.end("wf-1")
    follower.join(30)
    assert not follower.is_alive()
    assert [int(line.split()[-1]) for line in seen] == list(range(500))


def test_follow_of_an_ended_workflow_returns(store: LogStore) -> None:
    store.append("wf-1", "a", 0, b"x")
    store.end("wf-1")
    assert len(read(store, follow=True)) == 1
    assert list(store.read("never-9", follow=True)) == []


def test_follow_returns_when_the_store_closes(tmp_path: Path) -> None:
    store = LogStore(tmp_path)
    store.begin("wf-1")
    thread = threading.Thread(target=lambda: list(store.read("wf-1", follow=True)))
    thread.start()
    store.close()
    thread.join(30)
    assert not thread.is_alive()


def test_an_endless_log_is_capped_and_says_so(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_ATTEMPT", 1000)
    for _ in range(100):
        store.append("wf-1", "a", 0, b"z" * 50)
    store.append("wf-1", "a", 0, b"ours still comes", source="osmo")
    lines = read(store)
    assert sum("z" * 50 in line for line in lines) < 20
    assert "further output of the command is dropped" in lines[-2]
    assert lines[-1].endswith("ours still comes")


def test_error_logs_are_the_tails_of_failed_attempts(store: LogStore) -> None:
    for i in range(250):
        store.append("wf-1", "a", 0, b"%d" % i)
    store.append("wf-1", "b", 0, b"fine")
    store.keep_error("wf-1", "a", 0)
    store.keep_error("wf-1", "absent", 0)
    assert [int(line.split()[-1]) for line in read(store, error=True)] == list(range(150, 250))


def test_a_log_goes_on_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    for text in (b"one", b"two"):
        store = LogStore(tmp_path, clock=clock)
        store.begin("wf-1")
        store.append("wf-1", "a", 0, text)
        store.close()
        clock.now += 1
    assert [line.split()[-1] for line in LogStore(tmp_path).read("wf-1")] == ["one", "two"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "."])
def test_a_workflow_id_is_never_a_path(store: LogStore, name: str) -> None:
    with pytest.raises(ValueError, match="not a workflow id"):
        list(store.read(name))


def test_lines_belong_to_the_attempt_announced_last(store: LogStore) -> None:
    log = TaskLog(store, "wf-1")
    log.write("a", b"one")
    log.attempt("a", 1)
    log.say("a", "two")
    assert [line.split(" ", 2)[2] for line in read(store)] == ["[a] one", "[a retry-1][osmo] two"]


def test_a_full_disk_costs_lines_that_are_counted_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_HELD", 1000)
    store = LogStore(tmp_path)
    try:
        store.begin("wf-1")
        path = tmp_path / "wf-1" / "_logs" / "a.0.log"
        path.symlink_to("/dev/full")
        for number in range(100):
            store.append("wf-1", "a", 0, b"line %d" % number)
        assert list(store.read("wf-1")) == []  # reading does not fail either
        store.keep_error("wf-1", "a", 0)
        path.unlink()
        list(store.read("wf-1"))  # the disk takes what was kept; the count of what was not comes after it
        lines = [line.split(" ", 2)[2] for line in store.read("wf-1")]
    finally:
        store.close()
    kept = [line for line in lines if line.startswith("[a] line ")]
    assert kept == [f"[a] line {number}" for number in range(len(kept))]
    assert 0 < len(kept) < 100
    assert lines[len(kept) :] == [f"[a][osmo] {100 - len(kept)} lines of this log were lost: No space left on device"]


# Several processes: who writes is not who reads.


@pytest.fixture
def others(tmp_path: Path, clock: Clock) -> Iterator[LogStore]:
    """Another process's store over the same folder."""
    made = LogStore(tmp_path, clock=clock)
    yield made
    made.close()


def test_what_another_process_writes_is_followed_to_its_end(store: LogStore, others: LogStore) -> None:
    seen: list[str] = []
    first, live = threading.Event(), threading.Event()
    live.set()

    def follow() -> None:
        for line in others.read("wf-1", follow=True, live=live.is_set):
            seen.append(line)
            first.set()

    follower = threading.Thread(target=follow)
    follower.start()
    store.append("wf-1", "a", 0, b"0")
    assert first.wait(30), "lines reach the disk by themselves"
    for i in range(1, 2000):
        store.append("wf-1", "ab"[i % 2], 0, b"%d" % i)
    store.close()
    live.clear()
    follower.join(30)
    assert not follower.is_alive()
    assert sorted(int(line.split()[-1]) for line in seen) == list(range(2000))
    for task in "ab":
        own = [int(line.split()[-1]) for line in seen if f"[{task}]" in line]
        assert own == sorted(own)


def test_a_follower_that_is_told_to_stop_stops(store: LogStore, others: LogStore) -> None:
    store.append("wf-1", "a", 0, b"one")
    store.flush()
    assert len(list(others.read("wf-1", follow=True, live=lambda: True, stop=lambda: True))) == 1


def test_a_line_that_is_not_whole_is_shown_when_it_is_or_never_will_be(
    tmp_path: Path, store: LogStore, others: LogStore
) -> None:
    store.append("wf-1", "a", 0, b"whole")
    store.flush()
    path = tmp_path / "wf-1" / "_logs" / "a.0.log"
    with path.open("ab") as file:
        file.write(b"2026/11/21 04:00:01.000000 [a] be")
    shown = others.read("wf-1", follow=True, live=iter([True, False]).__next__)
    assert next(shown).endswith("[a] whole")
    with path.open("ab") as file:
        file.write(b"gun\n2026/11/21 04:00:02.000000 [a] cut o")
    assert [line.split("[a] ")[1] for line in shown] == ["begun", "cut o"]
    assert [line.split("[a] ")[1] for line in others.read("wf-1", live=lambda: True)] == ["whole", "begun"]


def test_notes_of_others_stand_beside_the_log(tmp_path: Path, store: LogStore, others: LogStore, clock: Clock) -> None:
    others.begin("wf-1", ["hidden-word"])
    store.append("wf-1", "a", 0, b"first")
    clock.now += 1
    others.note("wf-1", "a", 0, "It is over: hidden-word")
    clock.now += 1
    store.append("wf-1", "a", 0, b"last")
    assert [line.split(" ", 2)[2] for line in read(store)] == [
        "[a] first",
        "[a][osmo] It is over: [MASKED]",
        "[a] last",
    ]
    others.note("wf-1", "b", 1, "never ran")
    assert store.retries("wf-1", "b") == [1]
    others.keep_error("wf-1", "a", 0)
    assert [line.split(" ", 2)[2] for line in read(others, error=True)][-1] == "[a] last"
    assert sorted(path.name for path in (tmp_path / "wf-1" / "_logs").iterdir()) == [
        "a.0.err",
        "a.0.log",
        "a.0.note",
        "b.1.note",
    ]


def test_who_only_reads_makes_no_folders(tmp_path: Path, others: LogStore) -> None:
    assert list(others.read("wf-9", follow=True, live=lambda: False)) == []
    others.note("wf-9", "a", 0, "dropped: nothing was begun")
    others.end("wf-9")
    assert not (tmp_path / "wf-9").exists()


def test_an_end_that_comes_just_after_a_flush_began_is_seen(tmp_path: Path) -> None:
    writer = logs.LogWriter(tmp_path)
    wait, wake = writer._end.wait, writer._dirty.set
    closing = threading.Thread(target=writer.close, daemon=True)
    begun, told = threading.Event(), threading.Event()

    def over_too_early(_: float) -> bool:
        """The interval ends a moment before ``close`` says so, and the flush comes after all that ``close`` says."""
        writer._end.wait = wait
        closing.start()
        begun.set()
        assert told.wait(60)
        return False

    def waking() -> None:
        wake()
        if writer._end.is_set():
            told.set()

    writer._end.wait = over_too_early
    writer._dirty.set = waking
    writer.begin("wf-1")
    writer.append("wf-1", "a", 0, b"line")
    assert begun.wait(60)
    closing.join(60)
    assert not closing.is_alive()
