"""Following a text across servers that come and go: places in logs, marks, and the client that goes on."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.errors import NotFoundError, ServiceError
from casstore.wire.following import Marked, mark
from casstore.wire.protocol import to_exception
from casstore.wire.workflow import SubmitReply, SubmitRequest
from casstore_cli import patience
from casstore_cli.client import Client, ConnectionLostError, NotLetInError, ReplyLostError, Stream, Target
from casstore_cli.commands.workflow.submit import _post_once
from casstore_cli.following import follow
from casstore_cli.paging import PAGE, collect
from casstore_orchestrator.logs import LogStore, Piece

# Places in logs.


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LogStore]:
    made = LogStore(tmp_path)
    made.begin("wf-1")
    yield made
    made.close()


def test_whoever_goes_on_from_any_place_gets_the_rest(store: LogStore) -> None:
    rng = random.Random(5)
    written: dict[str, list[str]] = {"a": [], "b": [], "c": []}

    def write(count: int) -> None:
        for _ in range(count):
            task = rng.choice("abc")
            lines = [f"{task}{len(written[task]) + i} " + "x" * rng.randrange(300) for i in range(rng.randrange(1, 40))]
            written[task] += lines
            store.append("wf-1", task, rng.randrange(2) if task == "a" else 0, "\n".join(lines).encode())

    write(500)
    whole = list(store.pieces("wf-1"))
    assert len(whole) > 5
    for cut in range(0, len(whole), 3):
        places: dict[str, int] = {}
        for piece in whole[:cut]:
            places |= piece.moved
        rest = b"".join(piece.text for piece in store.pieces("wf-1", places=places))
        assert b"".join(piece.text for piece in whole[:cut]) + rest == b"".join(piece.text for piece in whole)
    places = {name: end for piece in whole for name, end in piece.moved.items()}
    write(300)
    seen = b"".join(piece.text for piece in [*whole, *store.pieces("wf-1", places=places)]).decode()
    for task, lines in written.items():
        own = [line.split("] ", 1)[1] for line in seen.splitlines() if f"[{task}" in line]
        assert sorted(own) == sorted(lines)
        assert task == "a" or own == lines  # the attempts of one task do not write at the same time


@pytest.mark.parametrize("last", [0, 1, 50, 4000, 10**6])
def test_the_end_of_a_log_is_left_at_a_place_too(store: LogStore, last: int) -> None:
    for number in range(5000):
        store.append("wf-1", "ab"[number % 2], 0, b"%d" % number)
    places: dict[str, int] = {}
    pieces = list(store.pieces("wf-1", last=last))
    numbers = [int(line.split()[-1]) for piece in pieces for line in piece.text.splitlines()]
    assert numbers == list(range(5000))[max(0, 5000 - last) :]
    for piece in pieces:
        places |= piece.moved
    store.append("wf-1", "a", 0, b"more")
    rest = list(store.pieces("wf-1", places=places))
    if last:
        assert [line.split()[-1] for piece in rest for line in piece.text.splitlines()] == [b"more"]


def test_places_that_nobody_gave_are_taken_as_they_are(store: LogStore) -> None:
    store.append("wf-1", "a", 0, b"one\ntwo")
    assert list(store.pieces("wf-1", places={"a.0.log": 10**12, "../../etc/passwd": 3, "b.0.log": 7})) == []


def test_a_follower_hears_that_it_still_is_one(store: LogStore) -> None:
    store.append("wf-1", "a", 0, b"one")
    pieces = store.pieces("wf-1", follow=True, live=lambda: True, quiet=0)
    assert next(pieces).text.endswith(b"one\n")
    assert next(pieces) == Piece(b"", {})


def test_what_comes_at_once_is_written_as_lines(store: LogStore) -> None:
    store.begin("wf-1", ["hidden-word"])
    store.append("wf-1", "a", 0, b"one\n\nhidden-word\nfour")
    store.append("wf-1", "a", 0, b"s1\ns2", source="osmo")
    assert [line.split(" ", 2)[2] for line in store.read("wf-1")] == [
        "[a] one",
        "[a] ",
        "[a] [MASKED]",
        "[a] four",
        "[a][osmo] s1",
        "[a][osmo] s2",
    ]


# Marks.


def test_text_is_given_with_its_place() -> None:
    data = b"one\ntwo\n" + mark({"a": 8}) + mark({}) + b"three\n" + mark({"a": 14, "b": 1}) + b"four\nfi"
    for size in (1, 2, 5, 1000):
        marked, given = Marked(), b""
        for start in range(0, len(data), size):
            given += marked.feed(data[start : start + size])
            assert given in {b"", b"one\ntwo\n", b"one\ntwo\nthree\n"}
        assert marked.places == {"a": 14, "b": 1}
        assert marked.rest() == b"four\nfi"
        marked.cut()
        assert marked.feed(b"four\n" + mark({"b": 2})) == b"four\n"


def test_a_mark_inside_of_a_line_is_none() -> None:
    marked = Marked()
    assert marked.feed(b"a \x1e{} b\n" + mark({"x": 1})) == b"a \x1e{} b\n"


@pytest.mark.parametrize("bad", [b"\x1e[1]\n", b"\x1e{\n", b'\x1e{"a":-1}\n', b'\x1e{"a":"b"}\n', b"\x1e\xff\n"])
def test_marks_that_are_none_end_it(bad: bytes) -> None:
    with pytest.raises(ServiceError, match="can't be understood"):
        Marked().feed(bad)


# The client.


class Server(Client):
    """Servers that give parts of a text, one after the other; an exception is raised in its place."""

    def __init__(self, *replies: list[Any]) -> None:
        super().__init__(Target("u", url="http://127.0.0.1:9"))
        self.replies = iter(replies)
        self.asked: list[tuple[str, Any, Any]] = []

    def stream(self, path: str, query: Any = None, body: Any = None) -> Stream:
        self.asked.append((path, query, None if body is None else dict(body.places)))
        reply = next(self.replies)
        if isinstance(reply[0], Exception):
            raise reply[0]
        return Stream(self._pieces(reply), marked=reply[0] != b"unmarked\n")

    def _pieces(self, reply: list[Any]) -> Generator[bytes, None, None]:
        for piece in reply:
            if isinstance(piece, Exception):
                raise piece
            yield piece


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No test waits; how long it would have."""
    found: list[float] = []
    monkeypatch.setattr(patience, "_wait", lambda _where, _begun, seconds: found.append(seconds))
    return found


def test_what_is_cut_short_goes_on_at_its_place(waits: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lost = ConnectionLostError("gone")
    server = Server(
        [b"one\n" + mark({"a": 4}) + b"two\n", lost],
        [lost],
        [to_exception(503, b"<html>no gateway</html>")],
        [NotLetInError("too many at once", status=429)],
        [b"two\n", mark({"a": 8, "b": 3}), lost],
        [b"three\n" + mark({"b": 9})],
    )
    assert b"".join(follow(server, "wf-1", "logs", {"task_name": "a", "last_n_lines": 7})) == b"one\ntwo\nthree\n"
    again = "api/v1/workflow/wf-1/logs"
    assert server.asked == [
        ("api/workflow/wf-1/logs", {"task_name": "a", "last_n_lines": 7}, None),
        *[(again, {"task_name": "a"}, {"a": 4})] * 4,
        (again, {"task_name": "a"}, {"a": 8, "b": 3}),
    ]
    assert len(waits) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("waiting for it") == said.err.count("The server is back.") == 2


def test_what_gave_nothing_is_asked_for_anew() -> None:
    server = Server([b"\x1e", ConnectionLostError("gone")], [b"one\n", mark({})])
    assert b"".join(follow(server, "wf-1", "events", {"last_n_lines": 3})) == b"one\n"
    assert server.asked[1] == server.asked[0] == ("api/workflow/wf-1/events", {"last_n_lines": 3}, None)


def test_a_server_without_places_ends_it() -> None:
    pieces = follow(Server([b"unmarked\n", ConnectionLostError("gone")]), "wf-1", "logs")
    assert next(pieces) == b"unmarked\n"
    with pytest.raises(ConnectionLostError):
        next(pieces)


def test_a_first_request_that_fails_is_not_repeated() -> None:
    with pytest.raises(ConnectionLostError):
        follow(Server([ConnectionLostError("nobody listens")]), "wf-1", "logs")


def test_a_workflow_that_is_not_known_any_more_ends_it() -> None:
    server = Server([b"x\n" + mark({"a": 2}), ConnectionLostError("gone")], [NotFoundError("There is no workflow")])
    with pytest.raises(NotFoundError, match="There is no workflow"):
        list(follow(server, "wf-1", "logs"))


def test_a_token_that_is_no_good_any_more_ends_it() -> None:
    server = Server([b"x\n" + mark({"a": 2}), ConnectionLostError("gone")], [NotLetInError("expired", status=401)])
    with pytest.raises(NotLetInError, match="expired"):
        list(follow(server, "wf-1", "logs"))


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    now = iter(range(0, 100_000, 100))
    monkeypatch.setattr(patience.time, "monotonic", lambda: float(next(now)))
    server = Server([b"x\n" + mark({"a": 2}), ConnectionLostError("gone")], *[[ConnectionLostError("away")]] * 50)
    with pytest.raises(ServiceError, match=r"away \(for 10 minutes") as raised:
        list(follow(server, "wf-1", "logs"))
    assert raised.value.hint == "What runs goes on. Ask again: osmo workflow logs wf-1"
    assert 3 <= len(waits) < 10
    assert max(waits) <= 16


def test_a_server_of_our_own_that_was_killed_is_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[str] = []
    monkeypatch.setattr("casstore_cli.login.connect", lambda: started.append("it"))
    answers = iter([ServiceError("away"), ServiceError("away"), 7])

    def ask() -> int:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    path = tmp_path / "s"
    client = Client(Target("u", socket_path=str(path)))
    assert patience.persistently(client, ask, hint="") == 7
    assert started == []  # it was stopped, since its socket is gone
    path.touch()
    answers = iter([ServiceError("away"), 7])
    assert patience.persistently(client, ask, hint="") == 7
    assert started == ["it"]


# Submissions.


class Taker(Client):
    """A server that loses the reply to the first submission."""

    def __init__(self, second: Any) -> None:
        super().__init__(Target("u", url="http://127.0.0.1:9"))
        self.replies = iter([ReplyLostError("It went away"), second])
        self.asked: list[tuple[str, SubmitRequest]] = []

    def post(self, path: str, reply: Any, query: Any = None, body: Any = None) -> Any:
        self.asked.append((path, body))
        found = next(self.replies)
        if isinstance(found, Exception):
            raise found
        return found


def test_a_submission_whose_answer_is_lost_is_asked_for_again() -> None:
    taker = Taker(SubmitReply(name="x-1"))
    assert _post_once(taker, "api/pool/p/workflow", {}, SubmitRequest(file="text")).name == "x-1"
    assert [path for path, _ in taker.asked] == ["api/pool/p/workflow", "api/v1/pool/p/workflow"]
    first, second = (body for _, body in taker.asked)
    assert first == second
    assert first.uuid is not None


def test_another_server_is_not_asked_twice() -> None:
    with pytest.raises(ReplyLostError, match="It went away") as raised:
        _post_once(Taker(NotFoundError("no such route")), "api/pool/p/workflow", {}, SubmitRequest(file="text"))
    assert raised.value.hint == "Look whether it was submitted: osmo workflow list"


# Lists.


class Page:
    def __init__(self, rows: list[int], more_entries: bool) -> None:
        self.rows = rows
        self.more_entries = more_entries


@pytest.mark.parametrize(("count", "there", "pages"), [(5, 3, 1), (5, 50, 1), (PAGE, 3 * PAGE, 1), (2500, 9000, 3)])
def test_lists_are_collected_in_pages(count: int, there: int, pages: int) -> None:
    asked: list[tuple[int, int]] = []

    def ask(limit: int, offset: int) -> Page:
        asked.append((limit, offset))
        return Page(list(range(offset, min(offset + limit, there))), offset + limit < there)

    assert collect(ask, lambda page: page.rows, count).rows == list(range(min(count, there)))
    assert len(asked) == pages


def test_a_list_that_says_there_is_more_and_gives_nothing_ends() -> None:
    assert collect(lambda limit, offset: Page([1] if not offset else [], True), lambda page: page.rows, 9).rows == [1]
