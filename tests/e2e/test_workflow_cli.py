"""``osmo workflow`` and its relatives against real servers that the commands start, in homes of their own."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import homes
from tests.homes import OSMO, PATIENCE, eventually

WORKFLOWS = Path(__file__).parent.parent / "compat" / "workflows"


class Home(homes.Home):
    """A home whose commands are read as text while they run."""

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        return super().start(*words, text=True, **options)

    def submit(self, text: str, *words: str) -> str:
        name: str = self.json("workflow", "submit", self.write("flow.yaml", text), *words)["name"]
        return name

    @property
    def sockets(self) -> list[Path]:
        return list(self.run_dir.glob("casstore/*.sock"))

    def close(self) -> None:
        self.osmo("server", "stop", "--tasks")


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """One home with one server for the tests that leave it as it was."""
    with tempfile.TemporaryDirectory(prefix="cs-", ignore_cleanup_errors=True) as folder:
        found = Home(Path(folder) / "ada")
        yield found
        found.close()


@pytest.fixture
def new_home(short_path: Path) -> Iterator[Home]:
    found = Home(short_path / "ada")
    yield found
    found.close()


def gone(pid: int) -> bool:
    """Whether the process has ended; what nobody has waited for yet (a zombie) has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def flow(name: str, script: str, more: str = "") -> str:
    return f"""
workflow:
  name: {name}
  tasks:
  - name: one
    image: ubuntu
    command: [bash, -c, {json.dumps(script)}]
{more}"""


# --- submitting


def test_follow_shows_the_log_and_succeeds_with_the_workflow(home: Home) -> None:
    said = home.osmo("workflow", "submit", str(WORKFLOWS / "hello_world.yaml"), "--follow")
    lines = said.splitlines()
    assert lines[0] == "Workflow submit successful."
    assert lines[1].startswith("Workflow ID        - hello-osmo-")
    assert lines[2].startswith("Workflow Overview  - ")
    assert any(line.endswith("[hello] Hello from OSMO!") for line in lines)
    assert lines[-1].endswith("is COMPLETED.")


def test_follow_fails_with_the_workflow(home: Home) -> None:
    said = home.osmo("workflow", "submit", home.write("f.yaml", flow("fails", "echo no; exit 3")), "-f", code=1)
    assert said.splitlines()[-2:] == ["Workflow fails-1 is FAILED.", "Task 'one' failed with exit code 3"]
    query = home.osmo("workflow", "query", said.split("Workflow ID        - ")[1].split()[0])
    assert "exit code 3" in query
    assert "FAILED" in query


def test_numbers_go_up_and_an_old_workflow_can_be_submitted_again(home: Home) -> None:
    assert home.submit(flow("twice", "true")) == "twice-1"
    home.wait("twice-1", "COMPLETED")
    again = home.osmo("workflow", "submit", "twice-1")
    assert "Workflow ID        - twice-2" in again
    home.wait("twice-2", "COMPLETED")
    home.osmo("workflow", "submit", "twice-1", "--set", "a=1", code=2)
    home.osmo("workflow", "submit", "twice-99", code=2)


def test_standard_input_can_be_submitted(home: Home) -> None:
    said = home.osmo("workflow", "submit", "-", "--follow", stdin=flow("piped", "echo from a pipe"))
    assert "[one] from a pipe" in said


def test_values_reach_templates_and_environment_whole(home: Home) -> None:
    template = str(WORKFLOWS / "template_hello_world.yaml")
    rendered = home.osmo(
        "workflow", "submit", template, "--dry-run", "--set", "workflow_name=hey", "ubuntu_version=22.04"
    )
    assert "name: hey" in rendered
    assert "22.04" in rendered
    text = flow("env", 'echo "A is $A, B is $B"')
    said = home.osmo(
        "workflow", "submit", home.write("env.yaml", text), "--set-env", "A=b=c d", "--set-env", "B=x", "-f"
    )
    assert "[one] A is b=c d, B is x" in said
    assert "{{" not in home.osmo("workflow", "spec", "env-1")


def test_the_template_is_kept(home: Home) -> None:
    text = flow("{{ name }}", "true") + "\ndefault-values:\n  name: kept\n"
    assert home.submit(text) == "kept-1"
    assert home.osmo("workflow", "spec", "kept-1", "--template") == text
    assert "name: kept" in home.osmo("workflow", "spec", "kept-1")
    home.wait("kept-1", "COMPLETED")


def test_local_files_survive_whatever_is_in_them(home: Home) -> None:
    script = b'a=(1 2 3)\necho "${#a[@]} {{ braces }} {% too %} {# and #}"\nhead -c 4 /tmp/raw | od -An -tx1\n'
    home.write("files/run.sh", script)
    home.write("files/raw.bin", b"\x00\xff\xfe{{")
    text = """
workflow:
  name: {{ name }}
  tasks:
  - name: one
    image: ubuntu
    command: [bash, /tmp/run.sh]
    args: ["{{workflow_id}}"]
    files:
    - {path: /tmp/run.sh, localpath: "{{ folder }}/run.sh"}
    - path: /tmp/raw
      localpath: raw.bin
default-values: {folder: '.', name: local}
"""
    said = home.osmo("workflow", "submit", home.write("files/flow.yaml", text), "--follow")
    assert "[one] 3 {{ braces }} {% too %} {# and #}" in said
    assert "[one]  00 ff fe 7b" in said
    assert home.osmo("workflow", "spec", "local-1", "--template") == text


def test_local_files_are_rendered_when_asked(home: Home) -> None:
    home.write("rendered/run.sh", "echo {{ word }} of {{workflow_id}}\n")
    text = flow("rendered", "bash /tmp/run.sh", "    files: [{path: /tmp/run.sh, localpath: run.sh}]\n")
    text += "default-values: {word: hello}\n"
    path = home.write("rendered/flow.yaml", text)
    assert "[one] hello of rendered-1" in home.osmo("workflow", "submit", path, "-f", "--render-localpath-files")


def test_local_files_stay_beside_the_workflow(home: Home) -> None:
    home.write("secret.txt", "secret")
    (home.work / "inside").mkdir()
    (home.work / "inside" / "link").symlink_to(home.work / "secret.txt")
    for local in ("../secret.txt", str(home.work / "secret.txt"), "link"):
        text = flow("outside", "cat /tmp/x", f"    files: [{{path: /tmp/x, localpath: {json.dumps(local)}}}]\n")
        path = home.write("inside/flow.yaml", text)
        said = home.osmo("workflow", "submit", path, code=2)
        assert "outside" in said
        assert "--allow-outside-paths" in said
    assert "[one] secret" in home.osmo("workflow", "submit", path, "--allow-outside-paths", "-f")
    missing = flow("m", "true", "    files: [{path: /tmp/x, localpath: nowhere.sh}]\n")
    assert "does not exist" in home.osmo("workflow", "submit", home.write("inside/m.yaml", missing), code=2)


def test_local_folders_become_versions_once(home: Home) -> None:
    home.write("ds/data/a.txt", "first")
    text = flow(
        "local-data",
        "cat {{input:0}}/code/data/a.txt; echo made > {{output}}/out.txt",
        "    inputs: [{dataset: {name: code, localpath: data}}]\n    outputs: [{dataset: {name: made}}]\n",
    )
    path = home.write("ds/flow.yaml", text)
    assert "[one] first" in home.osmo("workflow", "submit", path, "--follow")
    assert "as code:1" in home.stderr
    home.osmo("workflow", "submit", path, "--follow")
    assert "unchanged" in home.stderr
    home.write("ds/data/a.txt", "second")
    assert "[one] second" in home.osmo("workflow", "submit", path, "--follow")
    assert "code:2" in home.stderr
    versions = home.json("dataset", "info", "made")["versions"]
    assert [version["version"] for version in versions]
    home.osmo("workflow", "validate", path)
    wrong = home.write("ds/wrong.yaml", text.replace("local-data", "local_data").replace("image", "imagine"))
    home.write("ds/data/a.txt", "third")
    home.osmo("workflow", "submit", wrong, code=1)
    assert len(home.json("dataset", "info", "code")["versions"]) == 2  # nothing is uploaded for a wrong file


def test_validate(home: Home) -> None:
    assert home.osmo("workflow", "validate", str(WORKFLOWS / "serial.yaml")) == "Workflow validation succeeded.\n"
    said = home.osmo("workflow", "validate", home.write("bad.yaml", flow("bad", "true", "    gpus: 3\n")), code=1)
    assert "gpus" in said
    warned = flow("warned", "true", "    inputs: [{dataset: {name: not-there}}]\n")
    home.osmo("workflow", "validate", home.write("warned.yaml", warned))
    assert "not-there" in home.stderr


def test_low_priority_is_warned_about_in_any_case(home: Home) -> None:
    home.osmo("workflow", "submit", home.write("low.yaml", flow("low", "true")), "--priority", "low")
    assert "LOW priority can be preempted" in home.stderr
    assert home.wait("low-1", "COMPLETED")["priority"] == "LOW"


# --- watching


def test_logs_of_one_task_its_end_and_its_errors(home: Home) -> None:
    home.submit(flow("chatty", "for i in $(seq 1 50); do echo line $i; done; exit 4"))
    home.wait("chatty-1", "FAILED")
    said = home.osmo("workflow", "logs", "chatty-1")
    assert said.startswith("Workflow chatty-1 has logs:\n")
    assert said.count("[one] line ") == 50
    assert "[one] line 50" in home.osmo("workflow", "logs", "chatty-1", "-t", "one", "-r", "0", "-n", "5")
    assert "[one] line 1\n" not in home.osmo("workflow", "logs", "chatty-1", "-n", "5")
    assert "[one] line 50" in home.osmo("workflow", "logs", "chatty-1", "-t", "one", "--error")
    assert "FAILED" in home.osmo("workflow", "events", "chatty-1", "-t", "one")


def test_logs_are_streamed_while_the_task_runs(home: Home) -> None:
    gate = "until [ -e /osmo/data/output/../input/never ]; do echo tick; sleep 0.2; done"
    home.submit(flow("stream", gate))
    process = home.start("workflow", "logs", "stream-1")
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.endswith("[one] tick\n")
        if seen == 3:
            break
    assert home.json("workflow", "query", "stream-1")["status"] == "RUNNING"
    home.osmo("workflow", "cancel", "stream-1", "-m", "seen enough")
    rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "seen enough" in rest
    found = home.wait("stream-1", "FAILED_CANCELED")
    assert found["cancelled_by"] == "ada"


def test_interrupting_a_follower_leaves_the_workflow_alone(home: Home) -> None:
    home.submit(flow("quiet", "echo begun; sleep 600"))
    process = home.start("workflow", "logs", "quiet-1")
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith("[one] begun\n"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert "Traceback" not in errors
    assert home.json("workflow", "query", "quiet-1")["status"] == "RUNNING"
    home.osmo("workflow", "cancel", "quiet-1")
    home.wait("quiet-1", "FAILED_CANCELED")


def test_lists_and_tags(home: Home) -> None:
    first = home.submit(flow("listed", "true"))
    second = home.submit(flow("listed", "false"))
    home.wait(first, "COMPLETED")
    home.wait(second, "FAILED")
    rows = home.osmo("workflow", "list", "-n", "listed").splitlines()
    assert rows[0].split("   ")[0] == "User"
    assert [row.split()[1] for row in rows[2:]] == [first, second]  # the newest last
    listed = home.json("workflow", "list", "-n", "listed", "-o", "desc", "-c", "1")
    assert [row["name"] for row in listed["workflows"]] == [second]
    assert listed["more_entries"] is True
    assert home.json("workflow", "list", "-n", "listed", "-s", "failed", "completed")["workflows"].__len__() == 2
    home.osmo("workflow", "tag", "-w", first, "-a", "nightly", "x")
    assert home.osmo("workflow", "tag").split() == ["nightly", "x"]
    assert [row["name"] for row in home.json("workflow", "list", "--tags", "nightly")["workflows"]] == [first]
    home.osmo("workflow", "tag", "-w", first, "-r", "nightly", "x")
    assert home.osmo("workflow", "list", "-u", "bob") == "There are no workflows to view.\n"
    assert home.json("workflow", "list", "--submitted-before", "2020-01-01")["workflows"] == []
    assert first in home.osmo("workflow", "list", "-n", "listed", "--submitted-after", "2020-01-01", "-a")


def test_cancelling_tells_each_failure_and_fails(home: Home) -> None:
    running = home.submit(flow("long", "sleep 600"))
    said = home.osmo("workflow", "cancel", "none-1", running, code=2)
    assert "Workflow none-1: There is no workflow none-1" in said
    assert f"Cancel job for workflow {running} is submitted!" in said
    home.wait(running, "FAILED_CANCELED")
    assert home.json("workflow", "cancel", running, code=2)[0]["error"]["kind"] == "conflict"
    assert home.osmo("workflow", "cancel", running, code=2).startswith(f"Workflow {running} has ended already: ")


def test_restarting_runs_only_what_failed(home: Home) -> None:
    text = """
workflow:
  name: halves
  tasks:
  - name: good
    image: ubuntu
    command: [bash, -c, "echo made > {{output}}/x"]
  - name: bad
    image: ubuntu
    command: [bash, -c, "cat {{input:0}}/x; exit 1"]
    inputs: [{task: good}]
"""
    first = home.submit(text)
    home.wait(first, "FAILED")
    second = home.json("workflow", "restart", first)["name"]
    found = home.wait(second, "FAILED")
    assert [task["name"] for group in found["groups"] for task in group["tasks"]] == ["bad"]
    assert "[bad] made" in home.osmo("workflow", "logs", second)
    home.osmo("workflow", "restart", "listed-1", code=2)


def test_tasks_resources_pools_and_profile(home: Home) -> None:
    running = home.submit(flow("busy", "sleep 600"))
    home.wait(running, "RUNNING")
    assert running in home.osmo("task", "list")
    verbose = home.json("task", "list", "-v", "-w", running)["tasks"]
    assert (verbose[0]["task_name"], verbose[0]["cpu"]) == ("one", 1)
    assert home.json("task", "list", "-S")["summaries"][0]["user"] == "ada"
    assert "1/" in home.osmo("resource", "list")
    node = home.json("resource", "list")["resources"][0]["hostname"]
    assert node in home.osmo("resource", "info", node)
    home.osmo("workflow", "cancel", running)
    home.wait(running, "FAILED_CANCELED")
    assert home.osmo("task", "list", "-w", running) == "There are no tasks to view.\n"

    home.osmo(
        "pool", "declare", "robots", "--platform", "ovx-a40:gpu=1,nodes=2", "agx:nodes=left+right", "-d", "dry run"
    )
    listed = home.json("pool", "list", "-p", "robots")["node_sets"][0]["pools"][0]
    assert (listed["description"], listed["resource_usage"]["total_capacity"]) == ("dry run", "2")
    nodes = home.json("resource", "list", "-p", "robots")["resources"]
    assert sorted(node["hostname"] for node in nodes) == ["left", "ovx-a40-1", "ovx-a40-2", "right"]
    said = home.osmo("workflow", "submit", str(WORKFLOWS / "resources_platforms.yaml"), "-p", "robots", code=1)
    assert "osmo pool declare robots --platform" in said
    home.osmo("profile", "set", "pool", "robots")
    assert "default: robots" in home.osmo("profile", "list")
    home.osmo("profile", "set", "pool", "default")
    home.osmo("pool", "declare", "robots", "--platform", "ovx-a40:gpu=2")
    assert home.json("pool", "list", "-p", "robots")["resource_sum"]["total_capacity"] == "2"
    home.osmo("pool", "remove", "robots", "--platform", "agx")
    home.osmo("pool", "remove", "robots")
    assert "robots" not in home.osmo("pool", "list")


def test_who_and_where(home: Home) -> None:
    assert home.json("info")["user"] == "ada"
    assert home.json("server", "status")["running"] is True
    assert home.json("doctor")["isolation"] in {"bubblewrap", "plain"}
    assert "local" in home.osmo("backend", "list")


def test_a_task_may_become_another_user(home: Home) -> None:
    """Folders are open to others as they are on the machine, whatever the server's umask is."""
    if home.json("doctor")["isolation"] != "bubblewrap":
        pytest.skip("tasks are ordinary processes here")
    places = (
        "/ /usr /etc /var /home /osmo /osmo/data /osmo/data/input /osmo/data/output /osmo/usr/bin /osmo/run/workspace"
    )
    script = (
        f"stat -c 'mode %a %n' {places}; umask; touch {{{{output}}}}/file; stat -c 'mode %a %n' {{{{output}}}}/file"
    )
    workflow_id = home.submit(flow("modes", script))
    said = home.osmo("workflow", "logs", workflow_id)
    modes = dict(line.split(" mode ")[1].split(" ")[::-1] for line in said.splitlines() if " mode " in line)
    assert modes.pop("/osmo/data/output/file") == "644"
    assert set(modes.values()) == {"755"}, modes
    assert "[one] 0022" in said


# --- what is wrong is told in one line


@pytest.mark.parametrize(
    "words",
    [
        "workflow submit nowhere.yaml",
        "workflow submit .",
        "workflow submit flow.yaml --priority urgent",
        "workflow submit flow.yaml --set novalue",
        "workflow submit flow.yaml --pool nowhere",
        "workflow submit flow.yaml --pool ../../x",
        "workflow submit flow.yaml --follow -t json",
        "workflow submit binary.yaml",
        "workflow submit empty.yaml",
        "workflow validate broken.yaml",
        "workflow query nothing-1",
        "workflow query ../../etc/passwd",
        "workflow query .",
        "workflow logs nothing-1",
        "workflow logs twice-1 --error",
        "workflow logs twice-1 -r 1",
        "workflow logs twice-1 -t nothing",
        "workflow events nothing-1",
        "workflow spec nothing-1",
        "workflow cancel",
        "workflow restart nothing-1",
        "workflow list -u a -a",
        "workflow list -s NONSENSE",
        "workflow list --priority NONSENSE",
        "workflow list --submitted-after tomorrow",
        "workflow list -c 0",
        "workflow tag -a x",
        "workflow tag -w nothing-1",
        "task list -s NONSENSE",
        "task list -v -S",
        "pool list -p nowhere",
        "pool declare x --platform y:cpu=many",
        "pool declare x --platform y:colour=red",
        "pool declare ../x --platform y",
        "pool declare x --platform y:memory=lots",
        "pool remove nowhere",
        "resource list -p nowhere",
        "resource info nowhere",
        "profile set pool nowhere",
        "profile set bucket nowhere",
        "profile set notifications email true",
        "login not-a-url",
        "login ftp://x",
        "login http://127.0.0.1:1 --username ada",
        "login http://127.0.0.1:1 --method code",
        "server start --port 99999",
        "server start --port 0",
    ],
)
def test_what_is_wrong_is_told_in_one_line(home: Home, words: str) -> None:
    home.write("flow.yaml", flow("never", "true"))
    home.write("binary.yaml", b"\xff\xfe\x00")
    home.write("empty.yaml", "")
    home.write("broken.yaml", "workflow: {name: [")
    done = subprocess.run(
        [*OSMO, *words.split()],
        env=home.env,
        cwd=home.work,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode in {1, 2, 10}, said
    assert "Traceback" not in said
    assert "internal error" not in said.lower(), said
    told = [
        line for line in said.splitlines() if line.strip().startswith(("Error message: ", "Error: ", '"message": '))
    ]
    assert len(told) == 1, said
    assert len(told[0]) > len("Error message: "), said


def spec(more: str = "", *, command: str = "[echo, hi]", top: str = "") -> str:
    return f"workflow:\n  name: bad\n{top}  tasks:\n  - name: one\n    image: x\n    command: {command}\n{more}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (spec(top="  resources: {default: {cpu: .nan}}\n"), "cpu: nan is not an amount"),
        (spec(command="['']"), "command[0]: is empty"),
        (spec(f"    environment: {{A: {'x' * 140_000}}}\n"), "a program can be given in one piece"),
        (spec(command=f"[echo, {'x' * 140_000}]"), "a program can be given in one piece"),
        (spec("    files: [{path: relative, contents: x}]\n"), "not an absolute path"),
        (spec("    files: [{path: /proc/x, contents: x}]\n"), "a folder of the system"),
        (spec("    files: [{path: /tmp/x, localpath: pipe}]\n"), "not an ordinary file"),
        (spec("    inputs: [{dataset: {name: nothing}}]\n"), "there is no dataset or collection 'nothing'"),
        (spec("    inputs: [{dataset: {name: nowhere/x}}]\n"), "there is no bucket 'nowhere'"),
        (spec("    inputs: [{task: one}]\n"), "in the same group"),
        (spec("    credentials: {hf: {A: b}}\n"), "there is no credential 'hf'"),
        (spec("    image: y\n"), "given twice"),
        ("# {{ ''.__class__.__mro__ }}\n" + spec(), "not allowed"),
        ("# {{ 'x' * 1000000000 }}\n" + spec(), "too much memory"),
        ("#" + "x" * 11_000_000 + "\n" + spec(), "larger than the 10485760 bytes"),
    ],
)
def test_a_workflow_that_can_not_run_is_refused_in_one_line(home: Home, text: str, told: str) -> None:
    if not (home.work / "pipe").exists():
        os.mkfifo(home.work / "pipe")
    path = home.write("bad.yaml", text)
    for words in (("submit", path), ("submit", path, "-t", "json")):
        done = home.start("workflow", *words)
        said, errors = done.communicate(timeout=PATIENCE)
        assert done.returncode in {1, 2}, said
        assert "Traceback" not in said + errors
        message = json.loads(said)["message"] if "json" in words else said.split("Error message: ")[1].splitlines()[0]
        assert told in message
        assert len(message) < 500


def test_a_bucket_that_is_missing_is_told_with_the_command_that_adds_it(home: Home) -> None:
    path = home.write("bad.yaml", spec("    inputs: [{dataset: {name: nowhere/x}}]\n"))
    assert "osmo bucket add nowhere FOLDER-OR-URL" in home.osmo("workflow", "submit", path, code=1)


def test_every_missing_platform_is_declared_by_one_command(home: Home) -> None:
    said = home.osmo("workflow", "submit", str(WORKFLOWS / "welcome.yaml"), code=1)
    options = "--platform rtx-pro-6000 --platform gb200:gpu=8 --platform jetson-agx-thor"
    assert f"osmo pool declare default {options}" in said


def test_a_workflow_comes_through_a_pipe(home: Home) -> None:
    pipe = home.work / "workflow-pipe"
    os.mkfifo(pipe)
    submitted = home.start("workflow", "submit", str(pipe), "-t", "json")
    pipe.write_text(flow("piped", "echo piped"))
    said, errors = submitted.communicate(timeout=PATIENCE)
    assert submitted.returncode == 0, said + errors
    assert "[one] piped" in home.osmo("workflow", "logs", json.loads(said)["name"])


def test_an_archive_in_the_environment(home: Home) -> None:
    """Close to what one variable can hold: through a template, and through --set-env, which no URL can hold."""
    source = home.work / "inline"
    source.mkdir()
    (source / "train.py").write_text("print('trained inline')\n")
    (source / "weights").write_bytes(os.urandom(90_000))
    packed = subprocess.run(["tar", "-cz", "-C", str(source), "."], capture_output=True, check=True).stdout
    archive = base64.b64encode(packed).decode()
    assert 100_000 < len(archive) < 131_000
    for option, key in (("--set-string", "encoded_archive"), ("--set-env", "ENCODED_ARCHIVE")):
        path = str(WORKFLOWS / "train_inline.yaml")
        said = home.osmo("workflow", "submit", path, option, f"{key}={archive}", "--follow")
        assert "[train] trained inline" in said


def test_a_folder_as_a_dataset_whose_name_is_templated(home: Home) -> None:
    home.osmo("bucket", "add", "training", str(home.folder / "training-bucket"))
    home.write("src/training/train.py", "import sys; print('iterations', sys.argv[1])\n")
    path = home.write("train_dataset.yaml", (WORKFLOWS / "train_dataset.yaml").read_text())
    for iterations, told in (("10", "Uploaded"), ("20", "is unchanged: training/training-code:1.")):
        said = home.osmo("workflow", "submit", path, "--set", f"max_iterations={iterations}", "--follow")
        assert f"[train] iterations {iterations}" in said
        assert told in home.stderr
    stored = home.osmo("workflow", "spec", "dataset-training-1")
    assert "      contents: |\n" in stored, "scripts are shown as they were written"
    assert home.json("workflow", "validate", path)["logs"] == "Workflow validation succeeded."


def test_an_interrupt_ends_the_following_and_not_the_workflow(home: Home) -> None:
    path = home.write("flow.yaml", flow("goes-on", "echo started; sleep 600"))
    follower = home.start("workflow", "submit", path, "--follow")
    assert follower.stdout is not None
    for line in follower.stdout:
        if line.endswith("] started\n"):
            break
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=PATIENCE)
    assert follower.returncode == 3
    assert "the workflow goes on: osmo workflow logs goes-on-1, osmo workflow cancel goes-on-1" in errors
    assert home.json("workflow", "query", "goes-on-1")["status"] == "RUNNING"
    home.osmo("workflow", "cancel", "goes-on-1")


# --- the server


def test_two_commands_at_once_start_one_server(new_home: Home) -> None:
    commands = [new_home.start("workflow", "list") for _ in range(4)]
    for command in commands:
        said, errors = command.communicate(timeout=PATIENCE)
        assert (command.returncode, said) == (0, "There are no workflows to view.\n"), errors
    log = (new_home.state / "server.log").read_text()
    assert log.count("server of ada") == 1, log
    assert len(new_home.sockets) == 1


def test_only_the_owner_reaches_the_socket(new_home: Home) -> None:
    new_home.osmo("workflow", "list")
    (path,) = new_home.sockets
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((new_home.state / "server.sqlite").stat().st_mode) == 0o600
    assert new_home.json("server", "status")["server"]["url"] is None


def test_a_killed_server_is_replaced_and_its_tasks_run_on(new_home: Home) -> None:
    script = "echo attempt; until [ -e /osmo/run/workspace/go ]; do sleep 0.1; done; echo went on"
    workflow_id = new_home.submit(flow("survivor", f"(sleep 8; touch /osmo/run/workspace/go) & {script}"))
    new_home.wait(workflow_id, "RUNNING")
    follower = new_home.start("workflow", "logs", workflow_id)
    assert follower.stdout is not None
    seen = ""
    for line in follower.stdout:
        seen += line
        if line.endswith("] attempt\n"):
            break
    old, (path,) = new_home.pid, new_home.sockets
    os.kill(old, signal.SIGKILL)
    said, errors = follower.communicate(timeout=PATIENCE)
    assert (follower.returncode, path.exists()) == (0, True), errors
    assert "was lost; waiting for it" in errors
    assert "The server is back." in errors
    found = new_home.wait(workflow_id, "COMPLETED")
    assert new_home.pid != old
    ((task,),) = [group["tasks"] for group in found["groups"]]
    assert (task["name"], task["retry_id"], task["status"]) == ("one", 0, "COMPLETED")
    whole = new_home.osmo("workflow", "logs", workflow_id)
    assert seen + said == whole
    lines = [line.partition("] ")[2] for line in whole.splitlines()]
    assert (lines.count("attempt"), lines.count("went on")) == (1, 1)


def test_tasks_go_on_without_the_server_unless_they_are_to_end_with_it(new_home: Home) -> None:
    assert new_home.osmo("server", "stop") == "No server is running.\n"
    assert new_home.osmo("server", "status", code=1) == "No server is running.\n"
    workflow_id = new_home.submit(flow("running", "sleep 600"))
    new_home.wait(workflow_id, "RUNNING")
    pid = new_home.pid
    said = new_home.osmo("server", "stop")
    assert said == (
        "The server was stopped.\n1 task goes on; the next osmo command that needs the server takes it up.\n"
    )
    assert gone(pid)
    assert new_home.sockets == []
    assert new_home.osmo("server", "start").startswith("The server is running (process ")
    assert new_home.osmo("server", "start") == "The server is running already.\n"
    assert "1 running (1 task), 0 waiting" in new_home.osmo("server", "status")
    said = new_home.osmo("server", "stop", "--tasks")
    assert said == "The server was stopped.\n1 task ended with it, to begin again with the next one.\n"

    def attempts() -> list[tuple[int, str]]:
        groups = new_home.json("workflow", "query", workflow_id, "-v")["groups"]
        return [(task["retry_id"], task["status"]) for group in groups for task in group["tasks"]]

    eventually(lambda: (1, "RUNNING") in attempts(), "it begins again")
    new_home.osmo("workflow", "cancel", workflow_id)
    new_home.wait(workflow_id, "FAILED_CANCELED")


def test_a_server_that_can_not_start_says_why(new_home: Home) -> None:
    new_home.state.mkdir(parents=True)
    (new_home.state / "server.sqlite").write_bytes(b"no database" * 1000)
    said = new_home.osmo("workflow", "list", code=10)
    assert "ended while it started" in said
    assert "server.sqlite can't be used" in said
    assert "server.log" in said
    (new_home.state / "server.sqlite").unlink()
    new_home.osmo("workflow", "list")


def test_a_folder_of_somebody_else_is_not_listened_in(new_home: Home) -> None:
    (new_home.run_dir / "casstore").symlink_to(new_home.folder)
    said = new_home.osmo("workflow", "list", code=2)
    assert "is not a folder of yours" in said
    (new_home.run_dir / "casstore").unlink()


def test_a_path_that_is_too_long_for_a_socket(new_home: Home) -> None:
    deep = new_home.folder / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    new_home.env["XDG_RUNTIME_DIR"] = str(deep)
    new_home.osmo("workflow", "list")
    line = next(line for line in new_home.osmo("server", "status").splitlines() if line.startswith("Socket"))
    path = Path(line.partition(" : ")[2])
    assert path.parent == Path(f"/tmp/casstore-{os.getuid()}")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    new_home.osmo("server", "stop")
    assert not path.exists()


def test_a_server_whose_socket_was_removed_is_named(new_home: Home) -> None:
    new_home.osmo("server", "start")
    new_home.sockets[0].unlink()
    said = new_home.osmo("workflow", "list", code=10)
    assert f"process {new_home.pid}) runs, but its socket" in said
    assert "osmo server stop" in said
    assert "can't be asked" in new_home.json("doctor")["server"]
    new_home.osmo("server", "stop", "--tasks")
    assert new_home.osmo("workflow", "list") == "There are no workflows to view.\n"


def test_a_database_that_becomes_unusable_is_told_in_one_line(new_home: Home) -> None:
    new_home.submit(flow("before", "true"))
    new_home.osmo("server", "stop", "--tasks")
    with (new_home.state / "server.sqlite").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(15 * 4096))
    said = new_home.osmo("workflow", "list", code=10)
    assert "database" in said
    assert "server.sqlite" in said


def _other_version(home: Home) -> subprocess.Popen[str]:
    """A server that says it is another version, started as the command would."""
    code = (
        "import casstore; casstore.__version__ = '0.0.1'\n"
        "import casstore_server.__main__ as server; raise SystemExit(server.main())"
    )
    program = (
        "import os, sys\nfrom casstore_cli import background\nfrom casstore.config import load_config\n"
        f"line = background.command_line(load_config())\nos.execv(line[0], [line[0], '-c', {code!r}, *line[4:]])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=home.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )

    def answers() -> bool:
        for path in home.sockets:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    return True
        return False

    eventually(answers, "the other server answers")
    return process


def test_a_server_of_another_version_is_replaced_when_idle(new_home: Home) -> None:
    process = _other_version(new_home)
    assert new_home.osmo("workflow", "list") == "There are no workflows to view.\n"
    assert "Restarting the server" in new_home.stderr
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert new_home.json("server", "status")["server"]["version"] != "0.0.1"


def test_a_server_of_another_version_is_kept_while_it_works(new_home: Home) -> None:
    process = _other_version(new_home)
    # The first submission replaces it: it is idle. So make it work by asking it directly.
    new_home.env["OSMO_TEST"] = "1"
    script = (
        "from casstore.wire.workflow import SubmitReply, SubmitRequest\nfrom casstore_cli import background\n"
        "from casstore.config import load_config\nimport sys\n"
        "client = background.connect(background.find_place(load_config()))\n"
        "reply = client.post('api/pool/default/workflow', SubmitReply, body=SubmitRequest(file=sys.stdin.read()))\n"
        "print(reply.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=new_home.env,
        input=flow("working", "sleep 600"),
        capture_output=True,
        text=True,
        check=True,
    )
    new_home.osmo("workflow", "query", done.stdout.strip())
    assert "the running server is version 0.0.1" in new_home.stderr
    assert process.poll() is None
    new_home.osmo("server", "stop", "--tasks")
    process.communicate(timeout=PATIENCE)


def test_a_port_is_opened_on_request_and_can_be_logged_in_to(new_home: Home, short_path: Path) -> None:
    said = new_home.osmo("server", "start", "--port", "0")
    url = said.split(" and listens on ")[1].rstrip(".\n")
    assert url.startswith("http://127.0.0.1:")
    bob = Home(short_path / "bob")
    bob.env |= {"USER": "bob", "LOGNAME": "bob"}
    assert "Welcome bob." in bob.osmo("login", url, "--method=dev", "--username=bob")
    assert bob.json("info")["user"] == "bob"
    name = bob.json("workflow", "submit", bob.write("f.yaml", flow("remote", "echo hi")))["name"]
    assert "[one] hi" in bob.osmo("workflow", "logs", name)
    assert [row["name"] for row in bob.json("workflow", "list")["workflows"]] == [name]
    assert new_home.json("workflow", "list")["workflows"] == []
    assert [row["user"] for row in new_home.json("workflow", "list", "-a")["workflows"]] == ["bob"]
    assert not (bob.state / "server.pid").exists()  # no server of bob's own was needed
    bob.osmo("logout")
    assert bob.json("info")["user"] == "bob"
    bob.close()


def test_a_foreground_server_ends_with_an_interrupt(new_home: Home) -> None:
    process = new_home.start("server", "start", "--foreground")
    eventually(lambda: new_home.sockets, "it listens")
    assert new_home.osmo("workflow", "list") == "There are no workflows to view.\n"
    assert new_home.pid == process.pid
    assert "running already" in new_home.osmo("server", "start", "--foreground", code=2)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, log
    assert "the server ended" in log
    with (new_home.state / "server.pid").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it any more


def test_listing_does_not_import_the_server(home: Home) -> None:
    program = (
        "import sys\nfrom casstore_cli.main import run\ncode = run(['workflow', 'list'])\n"
        "heavy = {'fastapi', 'sqlalchemy', 'httpx', 'alembic', 'uvicorn', 'jinja2', 'rich', 'blake3'}\n"
        "heavy &= set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\nsys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=home.env, cwd=home.work, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


APP = """default-values:
  # Whom to greet
  who: world

workflow:
  name: greeting
  tasks:
  - name: one
    image: ubuntu
    command: [cat, /tmp/text]
    files:
    - path: /tmp/text
      localpath: text.txt
"""


def test_apps(home: Home) -> None:
    path = home.write("greeting.yaml", APP)
    home.write("text.txt", "Hello from the local file\n")
    assert home.osmo("app", "create", "greeting", "-d", "Says hello", "-f", path) == (
        "App greeting was created, version 1.\n"
    )
    said = home.osmo("app", "create", "greeting", "-d", "again", "-f", path, code=2)
    assert "There is an app greeting already" in said
    assert home.osmo("app", "update", "greeting", "-f", path) == "App greeting did not change: it is still version 1.\n"
    home.write("other.yaml", APP.replace("name: greeting", "name: other-{{ who }}"))
    assert home.osmo("app", "update", "greeting", "-f", "other.yaml") == "App greeting is now version 2.\n"
    assert home.osmo("app", "spec", "greeting:1") == APP
    shown = home.osmo("app", "show", "greeting")
    assert shown == "DESCRIPTION\nSays hello\n\nPARAMETERS\n  # Whom to greet\n  who: world\n"
    info = home.json("app", "info", "greeting")
    assert [found["version"] for found in info["versions"]] == [1, 2]
    said = home.osmo("app", "submit", "greeting:1", "--follow")
    assert "Hello from the local file" in said
    assert "COMPLETED" in said
    assert "other-you-1" in home.osmo("app", "submit", "greeting", "--set", "who=you", "-l", str(home.work))
    (entry,) = home.json("workflow", "list", "--app", "greeting:1")["workflows"]
    assert (entry["app_name"], entry["app_version"], entry["app_owner"]) == ("greeting", 1, "ada")
    home.osmo("app", "rename", "greeting", "hello", "--force")
    assert len(home.json("workflow", "list", "--app", "hello")["workflows"]) == 2
    home.osmo("app", "delete", "hello", code=2)
    assert home.osmo("app", "delete", "hello:1", "--force") == "Deleted of app hello: version 1.\n"
    home.osmo("app", "submit", "hello:1", code=2)
    home.osmo("app", "delete", "hello", "--all", stdin="n\n")
    assert "hello" in home.osmo("app", "list")
    home.osmo("app", "delete", "hello", "--all", "--force")
    assert home.osmo("app", "list") == "There are no apps to view.\n"
    home.osmo("app", "create", "bad name", "-d", "x", "-f", path, code=2)
    home.write("broken.yaml", "workflows:\n")
    home.osmo("app", "create", "broken", "-d", "x", "-f", "broken.yaml", code=2)
    assert "Give --file" in home.osmo("app", "create", "broken", "-d", "x", code=2)
