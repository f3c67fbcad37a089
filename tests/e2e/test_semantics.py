"""What OSMO's specification promises and what we promise besides, run for real: a server, its agents, real sandboxes.

``tests/compat/test_conformance.py`` has the whole specification with a virtual clock; here is what needs real folders,
processes and networks.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import homes

WORKFLOWS = Path(__file__).parent.parent / "compat" / "workflows"


class Home(homes.Home):
    """A home that runs workflows to their end."""

    def run(self, text: str, *words: str, code: int = 0) -> tuple[str, list[str]]:
        """Submit, and follow to the end: the workflow's id, and its log without times."""
        (self.work / "flow.yaml").write_text(text)
        return self.follow("flow.yaml", *words, code=code)

    def follow(self, *words: str, code: int = 0) -> tuple[str, list[str]]:
        said = self.osmo("workflow", "submit", *words, "--follow", code=code).splitlines()
        found = next(line.rpartition(" ")[2] for line in said if line.startswith("Workflow ID"))
        return found, [line.split(" ", 2)[2] for line in said if re.match(r"\d{4}/", line)]

    def tasks(self, workflow_id: str) -> dict[str, tuple[str, int | None]]:
        """Status and code of the newest attempt of each task."""
        groups = self.query(workflow_id)["groups"]
        return {task["name"]: (task["status"], task["exit_code"]) for group in groups for task in group["tasks"]}

    def files(self, dataset: str) -> dict[str, str]:
        target = Path(tempfile.mkdtemp(dir=self.work))
        self.osmo("dataset", "download", dataset, str(target))
        root = target / dataset.partition(":")[0]
        return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="cs-", ignore_cleanup_errors=True) as folder:
        found = Home(Path(folder) / "ada")
        yield found
        found.osmo("server", "stop", "--force")


def task(name: str, script: str, *, more: str = "", indent: int = 4) -> str:
    lines = [f"- name: {name}", "  image: ubuntu:24.04", f"  command: [bash, -c, {json.dumps(script)}]"]
    lines += ["  " + line for line in more.splitlines()]
    return "".join(" " * indent + line + "\n" for line in lines)


def flow(name: str, *tasks: str) -> str:
    return f"workflow:\n  name: {name}\n  tasks:\n" + "".join(tasks)


def test_checkpoints_are_versions_and_files(home: Home, tmp_path: Path) -> None:
    target = tmp_path / "saved"
    script = (
        "mkdir -p /tmp/ck/deep; echo x > /tmp/ck/deep/skip.log; echo 1 > /tmp/ck/epoch.pt; sleep 2.5;"
        " echo 2 > /tmp/ck/epoch.pt; exit 3"
    )
    more = (
        "checkpoint:\n"
        '- {path: /tmp/ck, dataset: "saved:newest", frequency: 700ms, regex: ".*pt$"}\n'
        f'- {{path: tmp/ck, url: "file://{target}", frequency: 1h}}\n'
    )
    wf, lines = home.run(flow("saves", task("only", script, more=more)), code=1)
    assert "[only][osmo] Checkpointing data from /tmp/ck to dataset saved:newest..." in lines
    first = "[only][osmo] Checkpointing data from /tmp/ck to default/saved:1 finished: 1 files, 2 B"
    assert lines.index(first) < lines.index("[only][osmo] The command ended with exit code 3")
    assert any(line.startswith("[only][osmo] Checkpointing data from /tmp/ck to default/saved:2") for line in lines)
    assert home.files("saved:1") == {"epoch.pt": "1\n"}
    assert home.files("saved:newest") == {"epoch.pt": "2\n"}
    assert (target / "deep" / "skip.log").read_text() == "x\n"
    assert home.tasks(wf)["only"] == ("FAILED", 3)


def test_the_others_finish_and_store_their_outputs(home: Home) -> None:
    text = (
        "workflow:\n  name: wait\n  groups:\n  - name: g\n    waitForNonlead: 60s\n    tasks:\n"
        + task("lead", "true", more="lead: true", indent=4)
        + task("writer", "sleep 1.5; echo late > {{output}}/f", more="outputs:\n- dataset: {name: late}", indent=4)
    )
    wf, _ = home.run(text)
    assert home.tasks(wf) == {"lead": ("COMPLETED", 0), "writer": ("COMPLETED", 0)}
    assert home.files("late") == {"f": "late\n"}


def test_a_group_has_a_clock_of_its_own(home: Home) -> None:
    text = flow(
        "clock",
        task("slow", "sleep 600", more="timeout: {exec_timeout: 2s}"),
        task("after", "true", more="inputs:\n- task: slow"),
        task("beside", "sleep 3; echo fine"),
    )
    wf, lines = home.run(text, code=1)
    assert "[beside] fine" in lines
    assert home.query(wf)["status"] == "FAILED_EXEC_TIMEOUT"
    assert home.tasks(wf) == {
        "slow": ("FAILED_EXEC_TIMEOUT", None),
        "after": ("FAILED_UPSTREAM", 3000),
        "beside": ("COMPLETED", 0),
    }
    events = home.osmo("workflow", "events", wf)
    assert "[slow] FAILED_EXEC_TIMEOUT: The group ran for longer than its limit of 2 s." in events


def test_equal_tasks_are_not_run_again(home: Home) -> None:
    text = flow(
        "equal",
        task("make", "date +%N > {{output}}/n; echo made", more="outputs:\n- dataset: {name: made}"),
        task("read", "cat {{input:make}}/n; echo read", more="inputs:\n- task: make"),
        task("always", "echo ran", more="cache: false"),
    )
    first, lines = home.run(text, "--cache")
    assert {"[make] made", "[read] read"} <= set(lines)
    again, lines = home.run(text, "--cache")
    taken = (
        f"[{{0}}][osmo] The command does not run: the result of {first}:{{0}}, an equal task, is taken (exit code 0)"
    )
    assert {taken.format("make"), taken.format("read"), "[always] ran"} <= set(lines)
    assert not {"[make] made", "[read] read"} & set(lines)
    assert {status for status, _ in home.tasks(again).values()} == {"COMPLETED"}
    newest, lines = home.run(text)
    assert {"[make] made", "[read] read"} <= set(lines)
    _, lines = home.follow(again, "--cache")
    assert taken.format("make").replace(f"{first}:", f"{newest}:") in lines


def test_failed_tasks_publish_only_what_is_asked_for(home: Home) -> None:
    script = "echo partly > {{output}}/f; exit 4"
    text = flow(
        "failing",
        task("silent", script, more="outputs:\n- dataset: {name: silent}"),
        task("asked", script, more="outputsOnFailure: true\noutputs:\n- dataset: {name: asked}"),
    )
    _, lines = home.run(text, code=1)
    assert "[silent][osmo] The outputs are not stored, because the task failed" in lines
    assert home.files("asked") == {"f": "partly\n"}
    assert "silent" in home.osmo("dataset", "info", "silent", code=2)


def test_a_restart_runs_only_what_failed_and_reads_what_completed(home: Home) -> None:
    marker = home.work / "marker"
    text = flow(
        "broken",
        task("first", "date +%N > {{output}}/n"),
        task(
            "second",
            "cat {{input:first}}/n; test -e {{input:1}}/marker",
            more=(f'inputs:\n- task: first\n- url: "file://{home.work}/given"'),
        ),
        task("third", "cat {{input:first}}/n", more="inputs:\n- task: first\n- task: second"),
    )
    (home.work / "given").mkdir()
    wf, lines = home.run(text, "--priority", "low", code=1)
    number = next(line for line in lines if line.startswith("[second] "))
    (home.work / "given" / marker.name).touch()
    said = home.osmo("workflow", "restart", wf, "-t", "json")
    again = json.loads(said)["name"]
    home.osmo("workflow", "logs", again)
    found = home.query(again)
    assert (found["status"], found["priority"], found["pool"]) == ("COMPLETED", "LOW", "default")
    assert {*home.tasks(again)} == {"second", "third"}
    lines = [line.split(" ", 2)[2] for line in home.osmo("workflow", "logs", again).splitlines()[1:]]
    assert number in lines
    assert f"[third] {number.split()[1]}" in lines
    _, lines = home.run(flow("later", task("reader", "cat {{input:first}}/n", more=f"inputs:\n- task: {wf}:first")))
    assert f"[reader] {number.split()[1]}" in lines


def test_a_restart_finds_no_more_than_there_was(home: Home) -> None:
    """A helper that ended with its lead has stored nothing: that is no reason to refuse the restart."""
    text = (
        "workflow:\n  name: helped\n  groups:\n  - name: g\n    tasks:\n"
        + task("lead", "true", more="lead: true")
        + task("helper", "sleep 600")
        + "  - name: h\n    tasks:\n"
        + task("reader", "ls {{input:helper}} | wc -l; exit 1", more="inputs:\n- task: helper")
    )
    wf, lines = home.run(text, code=1)
    assert "[reader] 0" in lines
    again = json.loads(home.osmo("workflow", "restart", wf, "-t", "json"))["name"]
    assert "[reader] 0" in home.osmo("workflow", "logs", again)
    assert home.tasks(again) == {"reader": ("FAILED", 1)}
    (home.work / "flow.yaml").write_text(flow("later", task("reader", "true", more=f"inputs:\n- task: {wf}:helper")))
    said = home.osmo("workflow", "submit", "flow.yaml", code=1)
    assert "this task has left no output that others can read" in said


def test_credentials_of_any_length_with_equal_keys(home: Home) -> None:
    """The form of the Azure templates: tokens of several services into the environment, and files."""
    home.osmo("credential", "set", "hf_token", "--generic", "--value", "-", stdin="s3cr3t-of-hugging-face\n")
    home.osmo("credential", "set", "short", "--type", "GENERIC", "--payload", "key=ab")
    home.osmo("credential", "set", "other", "--type", "GENERIC", "--payload", "key=another-secret")
    script = (
        'echo token $HF_TOKEN short $SHORT other $OTHER; test "$SHORT" = ab && echo cab is fine;'
        " cat /tmp/keys/key; stat -c %a /tmp/keys/key"
    )
    more = (
        "credentials:\n  hf_token: {HF_TOKEN: hf_token}\n  short: {SHORT: key}\n  other: /tmp/keys\n"
        "environment: {OTHER: none}"
    )
    _, lines = home.run(flow("secrets", task("only", script, more=more)))
    assert "[only] token [MASKED] short [MASKED] other none" in lines
    assert "[only] cab is fine" in lines
    assert "[only] [MASKED]600" in lines


@pytest.mark.slow
def test_training_with_torch_over_gloo(home: Home) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    _, lines = home.follow(str(WORKFLOWS / "train_torch.yaml"), "--set", f"python={sys.executable}")
    learned = {line for line in lines if "learned" in line}
    assert learned == {
        "[master] rank 0 of 2 learned [2.0, -1.0]",
        "[worker_1] rank 1 of 2 learned [2.0, -1.0]",
    }
    assert json.loads(home.osmo("dataset", "info", "torch-policy", "-t", "json"))["versions"]
