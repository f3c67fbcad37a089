"""``osmo config`` against a server: what is sent, what is said, and that no text and nobody's change is lost."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from casstore.config import load_config
from casstore_cli import editing, login, main
from tests.compat.conftest import Server

Osmo = Callable[..., str]


@pytest.fixture
def osmo(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Osmo]:
    config = load_config()
    login.save(config.paths, login.Login(f"http://127.0.0.1:{server.port}", "ada"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0, stdin: str = "") -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        assert main.run(["config", *words]) == code, capsys.readouterr()
        said = capsys.readouterr()
        return said.out + said.err

    yield run
    login.forget(config.paths)


def write(name: str, value: Any) -> str:
    Path(name).write_text(json.dumps(value))
    return name


def test_a_pool_from_its_file_to_its_end(osmo: Osmo) -> None:
    pool = {"platforms": {"a": {"gpu": 1, "nodes": 1}}}
    assert "Successfully updated POOL" in osmo(
        "update", "pool", "robots", "-f", write("p", pool), "-d", "why", "-t", "x"
    )
    assert json.loads(osmo("show", "POOL", "robots", "platforms", "a")) == {"gpu": 1, "nodes": 1}
    assert "No changes" in osmo("update", "POOL", "robots", "-f", "p")
    more = pool | {"description": "more"}
    osmo("update", "POOL", "robots", "--file", "-", stdin=json.dumps(more))
    assert json.loads(osmo("show", "POOL:3", "robots")) == more
    osmo("update", "POOL", "robots", "-f", "p")  # what is not in the text any more is gone
    assert json.loads(osmo("show", "POOL", "robots")) == pool
    difference = osmo("diff", "POOL:3")
    assert '-      "description": "more",' in difference
    assert "No differences" in osmo("diff", "POOL:4", "POOL")
    assert "POOL" in osmo("list")
    rows = json.loads(osmo("history", "POOL", "--tags", "x", "-t", "json"))["configs"]
    assert [(row["revision"], row["description"]) for row in rows] == [(2, "why")]
    assert "why" in osmo("history", "POOL", "--order", "desc", "-c", "9", "--created-after", "2020-01-01")
    assert "rolled back POOL to revision 3" in osmo("rollback", "POOL:3", "--description", "again")
    osmo("tag", "POOL", "--set", "good", "better")
    osmo("tag", "POOL:5", "--delete", "better")
    assert json.loads(osmo("history", "-r", "5", "-t", "json"))["configs"][0]["tags"] == ["good"]
    assert "deleted revision 3" in osmo("delete", "POOL:3")
    assert 'deleted POOL config "robots"' in osmo("delete", "POOL", "robots", "-d", "over")


def test_whole_types_are_changed_by_what_is_different(osmo: Osmo, server: Server) -> None:
    shown = json.loads(osmo("show", "WORKFLOW"))
    osmo("update", "WORKFLOW", "-f", write("w", shown | {"max_num_tasks": 7}))
    assert server.get("/api/configs/history", config_types="WORKFLOW", order="DESC")["configs"][0]["data"] == {
        "max_num_tasks": 7
    }
    osmo("update", "POD_TEMPLATE", "-f", write("t", {"a": {"spec": {}}, "b": {"spec": {}}}))
    osmo("update", "POD_TEMPLATE", "-f", write("t", {"a": {"spec": {"x": 1}}, "b": {"spec": {}}}))
    assert json.loads(osmo("show", "POD_TEMPLATE")) == {"a": {"spec": {"x": 1}}, "b": {"spec": {}}}
    told = osmo("update", "POD_TEMPLATE", "-f", write("t", {"a": {"spec": {}}}), code=2)
    assert "osmo config delete POD_TEMPLATE b" in told
    roles = json.loads(osmo("show", "ROLE"))
    roles.append({"name": "dev", "policies": [{"actions": ["app:*"], "resources": ["*"]}]})
    osmo("update", "ROLE", "-f", write("r", roles))
    assert server.services.roles().keys() == {"dev"}
    osmo("set", "ROLE", "osmo-robots", "pool")
    assert server.services.roles()["osmo-robots"].policies[0].resources == ("pool/robots",)
    checks = {"c": [{"operator": "GT", "left_operand": "1", "right_operand": "0", "assert_message": "m"}]}
    osmo("update", "RESOURCE_VALIDATION", "-f", write("v", checks))
    assert json.loads(osmo("show", "RESOURCE_VALIDATION", "c", "0", "operator")) == "GT"
    osmo("update", "BACKEND", "local", "-f", write("b", {"description": "ours"}))
    assert json.loads(osmo("show", "BACKEND", "local"))["description"] == "ours"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["show", "OTHER"], "no type of configs"),
        (["show", "POOL:x"], "names no revision"),
        (["show", "POOL:99"], "No config found"),
        (["show", "POOL", "none"], "has no none"),
        (["update", "BACKEND", "-f", "p"], "one by one"),
        (["update", "SERVICE", "x", "-f", "p"], "no configs with names"),
        (["update", "POOL"], "no terminal for an editor"),
        (["update", "POOL", "robots"], "not found in POOL"),
        (["update", "POOL", "robots", "-f", "none"], "can't read none"),
        (["update", "POOL", "robots", "-f", "wrong"], "Invalid JSON"),
        (["update", "POOL", "robots", "-f", "p"], "unknown field `gpus`"),
        (["update", "POOL", "a/b", "-f", "p"], "no name for a config"),
        (["delete", "POOL"], "Name is required"),
        (["delete", "POOL:1"], "is in force"),
        (["rollback", "POOL"], "To which revision"),
        (["diff", "POOL", "ROLE"], "Must diff the same config type"),
        (["tag", "POOL"], "must name a tag"),
        (["set", "ROLE", "x", "pool"], "must start with"),
        (["set", "ROLE", "osmo-x", "backend"], "need no roles"),
        (["history", "--at-timestamp", "soon"], "is not a time"),
    ],
)
def test_mistakes_are_told_in_one_line(osmo: Osmo, words: list[str], told: str) -> None:
    write("p", {"platforms": {"a": {"gpus": 1}}})
    Path("wrong").write_text("{")
    said = osmo(*words, code=2)
    assert told in said
    assert "Traceback" not in said


def test_a_text_that_was_refused_is_kept_and_nobody_is_overwritten(
    osmo: Osmo, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answers: list[str] = []

    def edit(text: str, **_: Any) -> str:
        if text.startswith("{"):  # while the editor is open somebody else changes them
            server.client.ask(
                "PATCH", "/api/configs/workflow", None, b'{"configs_dict": {"max_num_ports_per_task": 9}}'
            )
            return json.dumps(json.loads(text) | {"max_num_tasks": 5})
        answers.append(text)
        return f"because\n{text}"

    monkeypatch.setattr(click, "edit", edit)
    monkeypatch.setattr(editing, "_terminal", lambda: True)
    said = osmo("update", "WORKFLOW", code=2)
    assert "changed meanwhile" in said
    assert '+  "max_num_tasks": 5' in answers[0]
    (kept,) = tmp_path.glob("osmo-config-*.json")
    assert str(kept) in said
    assert json.loads(kept.read_text())["max_num_tasks"] == 5
    assert kept.stat().st_mode & 0o077 == 0
    found = server.get("/api/configs/workflow")
    assert (found["max_num_tasks"], found["max_num_ports_per_task"]) == (None, 9)
