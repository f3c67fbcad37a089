from __future__ import annotations

import re
import textwrap

import pytest

from casstore.errors import SpecError, UsageError
from casstore_orchestrator.loader import Loaded, load, render_text, split
from casstore_orchestrator.spec import (
    DatasetInput,
    DatasetOutput,
    TaskInput,
    UpdateDatasetOutput,
    UrlInput,
    UrlOutput,
)

GIB = 1 << 30


def one(fields: str, *, above: str = "", **options: list[str]) -> Loaded:
    """A workflow of one task with more fields in it."""
    text = "workflow:\n  name: w\n" + textwrap.indent(textwrap.dedent(above), "  ")
    text += "  tasks:\n  - name: t\n    image: i\n    command: [x]\n"
    return load(text + textwrap.indent(textwrap.dedent(fields), "    "), **options)


def refused(fields: str, *, above: str = "") -> SpecError:
    with pytest.raises(SpecError) as caught:
        one(fields, above=above)
    return caught.value


def test_the_whole_model() -> None:
    loaded = load(
        textwrap.dedent(
            r"""
            version: 2
            workflow:
              name: full
              pool: robots
              labels: {team: arm}
              timeout: {exec_timeout: 15m, queue_timeout: 60}
              resources:
                big:
                  cpu: 4
                  memory: 2Gi
                  storage: 1Gi
                  gpu: 1
                  platform: ovx-a40
                  nodesExcluded: [bad-node]
                  topology:
                  - key: rack
                    requirementType: preferred
              groups:
              - name: one
                barrier: false
                ignoreNonleadStatus: false
                tasks:
                - name: first
                  lead: true
                  image: repo:5000/name:tag@sha256:abc
                  command: [bash, -c]
                  args: ["echo {{output}}", 5, 0.5]
                  resource: big
                  environment: {N: 3, F: 0.25, S: text}
                  volumeMounts: [/data, /a:/b]
                  privileged: true
                  hostNetwork: true
                  exitActions: {complete: 3, RESCHEDULE: "1-2,137"}
                  downloadType: download
                  cacheSize: 1Gi
                  kpis: [{index: score, path: score.json}]
                  credentials: {github: /tmp/github, hf: {HF_TOKEN: token}}
                  checkpoint:
                  - {path: /tmp/ckpt, url: "s3://bucket/{{workflow_id}}", frequency: 30s, regex: '.*\.pt$'}
                  files:
                  - path: /tmp/a.sh
                    contents: |
                      echo hi
                  - path: /tmp/b.bin
                    base64: true
                    contents: AP8=
                  outputs:
                  - url: s3://bucket/out
                  - dataset:
                      name: bucket/set-{{workflow_id}}:new
                      path: sub
                      metadata: [m.yaml]
                      labels: [l.yaml]
                  - update_dataset: {name: set, paths: ["a", "b:c"]}
                - name: second
                  image: i
                  command: [x]
              - name: two
                tasks:
                - name: third
                  image: i
                  command: [x]
                  inputs:
                  - task: first
                    regex: .*txt
                  - task: other-7:task
                  - url: gs://bucket/in
                  - dataset: {name: set, regex: ''}
            """
        )
    )
    spec = loaded.spec
    assert loaded.warnings == []
    assert (spec.name, spec.pool, spec.labels) == ("full", "robots", {"team": "arm"})
    assert (spec.timeout.exec_timeout, spec.timeout.queue_timeout) == (900, 60)
    big = spec.resources["big"]
    assert (big.cpu, big.memory, big.gpu, big.platform) == (4, 2 * GIB, 1, "ovx-a40")
    assert big.nodes_excluded == ("bad-node",)
    assert (big.topology[0].key, big.topology[0].group, big.topology[0].requirement_type) == (
        "rack",
        "default",
        "preferred",
    )
    group = spec.groups[0]
    assert (group.barrier, group.ignore_nonlead_status, group.lead.name) == (False, False, "first")
    first = group.tasks[0]
    assert first.args == ("echo {{output}}", "5", "0.5")
    assert first.environment == {"N": "3", "F": "0.25", "S": "text"}
    assert first.exit_actions == {"COMPLETE": "3", "RESCHEDULE": "1-2,137"}
    assert first.credentials == {"github": "/tmp/github", "hf": {"HF_TOKEN": "token"}}
    assert first.checkpoint[0].frequency == 30
    assert [file.data() for file in first.files] == [b"echo hi\n", b"\x00\xff"]
    assert [type(item) for item in first.outputs] == [UrlOutput, DatasetOutput, UpdateDatasetOutput]
    third = spec.task("third")
    assert third.lead
    assert [type(item) for item in third.inputs] == [TaskInput, TaskInput, UrlInput, DatasetInput]
    assert third.inputs[1] == TaskInput(task="other-7:task")
    assert third.inputs[3] == DatasetInput(name="set")


def test_a_rendered_text_may_keep_braces() -> None:
    text = 'workflow:\n  name: w\n  tasks:\n  - {name: t, image: i, command: ["{% raw %}{{.Names}}{% endraw %}"]}\n'
    rendered = load(text).rendered
    assert load(rendered, render=False).spec.tasks[0].command == ("{{.Names}}",)


def test_tasks_become_groups_of_one() -> None:
    spec = one("").spec
    assert [(group.name, group.lead.name) for group in spec.groups] == [("t-group", "t")]


def test_a_rendered_text_loads_again() -> None:
    text = (
        "workflow:\n  name: {{ n }}\n  tasks:\n  - {name: t, image: i, command: [x, '{{output}}']}\n"
        "default-values:\n  n: a\n"
    )
    first = load(text, set_strings=["n=b"])
    assert first.templated
    second = load(first.rendered)
    assert not second.templated
    assert (second.spec, second.rendered) == (first.spec, first.rendered)
    assert second.spec.name == "b"


def test_an_unquoted_token_in_a_flow_list_is_text() -> None:
    assert one("args: [{{output}}, {{ x }}]", set_values=["x=1"]).spec.tasks[0].args == ("{{output}}", "1")


def test_the_environment_option_reaches_every_task_whole() -> None:
    loaded = one("environment: {A: old}", environment=["A=b=c", "output=kept"])
    assert loaded.spec.tasks[0].environment == {"A": "b=c", "output": "kept"}


def test_defaults_are_not_templated() -> None:
    loaded = load(
        "default-values:\n  v: 'as {is}'\nworkflow:\n  name: w\n  tasks:\n"
        "  - {name: t, image: i, command: ['{{ v }}']}\n"
    )
    assert loaded.spec.tasks[0].command == ("as {is}",)
    with pytest.raises(SpecError, match="default-values"):
        load("default-values:\n  v: {{ n }}\nworkflow:\n  name: w\n")


def test_lines_of_template_errors_are_those_of_the_file() -> None:
    with pytest.raises(SpecError, match="line 5"):
        render_text("default-values:\n  a: 1\nworkflow:\n  name: {{ a }}\n  pool: {{ nope }}\n")


# --- sections


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no 'workflow:'"),
        ("name: x\n", "unknown top-level key 'name'"),
        ("workflows:\n  name: x\n", "unknown top-level key 'workflows'"),
        ("workflow:\n  a: 1\nworkflow:\n  b: 1\n", "line 3: top-level key 'workflow' is given twice"),
        ("workflow:\n  a: 1\ndefault-values:\ndefault-values:\n", "given twice"),
    ],
)
def test_bad_sections(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        split(text)


def test_a_near_key_is_proposed() -> None:
    with pytest.raises(UsageError) as caught:
        split("workflows:\n  name: x\n")
    assert caught.value.hint == "did you mean 'workflow'?"


def test_an_empty_defaults_section_and_any_order_are_fine() -> None:
    sections = split("default-values:\n# note\nworkflow:\n  name: x\n")
    assert sections.defaults() == {}
    assert sections.body == "\n\nworkflow:\n  name: x\n"


def test_a_file_indented_as_a_whole_is_read_with_a_warning() -> None:
    loaded = load("   # note\n   workflow:\n     name: w\n     tasks:\n     - {name: t, image: i, command: [x]}\n")
    assert loaded.spec.name == "w"
    assert any("indented" in warning for warning in loaded.warnings)


def test_another_version_is_ignored_with_a_warning() -> None:
    text = "workflow:\n  name: w\n  tasks:\n  - {name: t, image: i, command: [x]}\nversion: 3\n"
    assert any("version" in warning for warning in load(text).warnings)


# --- strictness


@pytest.mark.parametrize(
    ("fields", "problem", "hint"),
    [
        ("colour: red", r"workflow\.tasks\[0\]\.colour: unknown key", "known here"),
        ("enviroment: {A: b}", r"workflow\.tasks\[0\]\.enviroment: unknown key", "'environment'"),
        ("files: [{path: /a, content: x}]", r"tasks\[0\]\.files\[0\]\.content: unknown key", "'contents'"),
        ("files: [{contents: x}]", r"files\[0\]\.path: missing", "path"),
        ("files: [{path: /a}]", r"files\[0\]\.contents: missing", "localpath"),
        ("files: [{path: /osmo/x, contents: x}]", r"files\[0\]\.path: adding file to /osmo", "/tmp"),
        ("files: [{path: /tmp/../osmo/x, contents: x}]", r"files\[0\]\.path: adding file to /osmo", "/tmp"),
        ("files: [{path: /a, contents: x}, {path: //a, contents: y}]", r"files\[1\]\.path: .* already", None),
        ("files: [{path: /a, contents: '%%%', base64: true}]", r"files\[0\]\.contents: not base64", None),
        ("files: [{path: /a, contents: x, localpath: y}]", r"files\[0\]: only one of", None),
        ("lead: sometimes", r"tasks\[0\]\.lead: expected true or false, found the text", None),
        ("environment: {A: [1]}", r"environment\.A: expected text, found a list", None),
        ("environment: {'A B': c}", r"environment: 'A B'", None),
        ("inputs: {task: x}", r"inputs: expected a list, found a mapping", None),
        ("inputs: [x]", r"inputs\[0\]: expected a mapping", None),
        ("inputs: [{}]", r"inputs\[0\]: expected one of task, url, dataset", None),
        ("inputs: [{task: a, url: s3://b}]", r"inputs\[0\]: exactly one of task and url", None),
        ("inputs: [{datasets: x}]", r"inputs\[0\]: expected one of", "'dataset'"),
        ("inputs: [{dataset: {name: a}, regex: x}]", r"inputs\[0\]\.regex: unknown key", "deeper"),
        ("inputs: [{dataset: {name: 'a b'}}]", r"inputs\[0\]\.dataset\.name: 'a b'", "bucket/"),
        ("inputs: [{dataset: {name: 'a', regex: '('}}]", r"inputs\[0\]\.dataset\.regex", None),
        ("inputs: [{task: a, regex: '*'}]", r"inputs\[0\]\.regex", None),
        ("inputs: [{task: 'a b'}]", r"inputs\[0\]\.task", None),
        ("inputs: [{url: 'http://x'}]", r"inputs\[0\]\.url: 'http://x' is not a storage URL", "s3://"),
        ("inputs: [{dataset: {name: 'a:1', localpath: x}}]", r"inputs\[0\]\.dataset\.name", None),
        ("outputs: [{task: a}]", r"outputs\[0\]: expected one of url, dataset", None),
        ("outputs: [{dataset: {name: a, path: ../x}}]", r"outputs\[0\]\.dataset\.path: .* leads out", None),
        ("outputs: [{update_dataset: {name: a, paths: [/x]}}]", r"update_dataset\.paths\[0\]: .* leads out", None),
        ("volumeMounts: ['/a:/b:/c']", r"volumeMounts\[0\]: invalid task volume mount", None),
        ("volumeMounts: ['/a:']", r"volumeMounts\[0\]", None),
        ("exitActions: {EXPLODE: 1}", r"exitActions: unknown action 'EXPLODE'", None),
        ("exitActions: {FAIL: 5-1}", r"exitActions: FAIL: the range 5-1 is empty", None),
        ("exitActions: {FAIL: all}", r"exitActions: FAIL: 'all' is not a code", None),
        ("downloadType: mountpoint-s3", r"downloadType: expected 'mount' or 'download'", None),
        ("checkpoint: [{path: /a, url: s3://b}]", r"checkpoint\[0\]\.frequency: missing", None),
        ("checkpoint: [{path: /a, url: s3://b, frequency: 1x}]", r"checkpoint\[0\]\.frequency", None),
        ("credentials: {c: relative}", r"credentials\.c: 'relative' is not an absolute path", None),
        ("resource: big", r"tasks\[0\]\.resource: undefined resource 'big'", None),
        ('args: ["a\\0b"]', r"args\[0\]: contains a null character", None),
        ("name: u", r"key 'name' is given twice", None),
    ],
)
def test_what_is_wrong_is_named_by_its_path(fields: str, problem: str, hint: str | None) -> None:
    error = refused(fields)
    assert re.search(problem, error.message), error.message
    if hint is not None:
        assert hint in str(error.hint)


@pytest.mark.parametrize(
    ("above", "problem"),
    [
        ("pools: x", r"workflow\.pools: unknown key"),
        ("timeout: {exec: 5}", r"workflow\.timeout\.exec: unknown key"),
        ("timeout: {exec_timeout: 0}", r"workflow\.timeout\.exec_timeout: must be more"),
        ("timeout: {exec_timeout: 10h5m}", r"workflow\.timeout\.exec_timeout"),
        ("timeout: 5m", r"workflow\.timeout: expected a mapping"),
        ("resources: {a: {cpus: 1}}", r"workflow\.resources\.a\.cpus: unknown key"),
        ("resources: {a: {cpu: lots}}", r"workflow\.resources\.a\.cpu: expected a number"),
        ("resources: {a: {cpu: 0}}", r"workflow\.resources\.a\.cpu: must be more than 0"),
        ("resources: {a: {gpu: -1}}", r"workflow\.resources\.a\.gpu: must not be negative"),
        ("resources: {a: {gpu: 1.5}}", r"workflow\.resources\.a\.gpu: expected a whole number"),
        ("resources: {a: {memory: 4GB}}", r"workflow\.resources\.a\.memory"),
        ("resources: [a]", r"workflow\.resources: expected a mapping"),
        ("groups: [{name: g, tasks: [{name: x, command: [y]}]}]", r"cannot use both"),
    ],
)
def test_what_is_wrong_above_the_tasks(above: str, problem: str) -> None:
    assert re.search(problem, refused("", above=above + "\n").message)


@pytest.mark.parametrize("name", ["1x", "x-", "a b", "a.b", "x" * 65, "", "ä"])
def test_bad_names(name: str) -> None:
    with pytest.raises(SpecError, match=r"workflow\.name"):
        load(f"workflow:\n  name: '{name}'\n  tasks:\n  - {{name: t, image: i, command: [x]}}\n")


def groups(*names: tuple[str, list[str]]) -> str:
    text = "workflow:\n  name: w\n  groups:\n"
    for group, tasks in names:
        text += f"  - name: {group}\n    tasks:\n"
        for index, task in enumerate(tasks):
            text += f"    - {{name: {task}, image: i, command: [x], lead: {str(index == 0).lower()}}}\n"
    return text


def test_tasks_and_groups_share_one_name_space() -> None:
    with pytest.raises(
        SpecError, match=r"groups\[0\]\.tasks\[0\]\.name: 'G-1' is taken by workflow\.groups\[0\]\.name"
    ):
        load(groups(("g_1", ["G-1"])))
    with pytest.raises(SpecError, match=r"'Task_a' is taken"):
        load(groups(("g", ["task-a"]), ("h", ["Task_a"])))
    with pytest.raises(SpecError, match=r"would have the name"):
        load(
            "workflow:\n  name: w\n  tasks:\n"
            "  - {name: a, image: i, command: [x]}\n  - {name: a-group, image: i, command: [x]}\n"
        )


def test_the_name_of_the_runtime_is_reserved() -> None:
    with pytest.raises(SpecError, match="'OSMO_ctrl' is reserved"):
        load(groups(("g", ["OSMO_ctrl"])))


@pytest.mark.parametrize("leads", [0, 2])
def test_a_group_has_exactly_one_lead(leads: int) -> None:
    text = groups(("g", ["a", "b"]))
    text = text.replace("lead: true", "lead: false") if leads == 0 else text.replace("lead: false", "lead: true")
    with pytest.raises(SpecError, match=rf"group 'g' has {leads} leads"):
        load(text)


def test_no_tasks_at_all() -> None:
    with pytest.raises(SpecError, match="at least one group or one task"):
        load("workflow:\n  name: w\n")
    with pytest.raises(SpecError, match=r"groups\[0\]\.tasks: a group needs"):
        load("workflow:\n  name: w\n  groups:\n  - name: g\n")


@pytest.mark.parametrize(
    "text",
    [
        "workflow: [",
        "workflow:\n\tname: x",
        "workflow: !!python/object:os.system {}",
        "workflow: &a {name: w, tasks: [*a]}",
        "workflow: 5",
        "workflow:",
        "workflow:\n  name: {a: b}\n  tasks: [{name: t}]",
        "workflow:\n  tasks: [5]",
        "workflow:\n  groups: {a: 1}",
        "workflow:\n  tasks:\n  - {name: t, 5: x}",
        "workflow:\n  name: w\n  tasks: x",
        "workflow: {tasks: [" + "[" * 100 + "]" * 100 + "]}",
    ],
)
def test_nonsense_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(text)
    assert "\n" not in caught.value.message


# --- lenient forms


@pytest.mark.parametrize(
    ("fields", "attribute", "value"),
    [
        ("env: {A: b}", "environment", {"A": "b"}),
        ("environment: [{name: A, value: 1}]", "environment", {"A": "1"}),
        ("environment: {A: true}", "environment", {"A": "true"}),
        ("args: 'a \"b c\"'", "args", ("a", "b c")),
        ("exitActions: {RESTART: 1-5}", "exit_actions", {"RESCHEDULE": "1-5"}),
        ("exitActions: {restart: 1, reschedule: 2}", "exit_actions", {"RESCHEDULE": "1,2"}),
        ("inputs: [dataset: name]", "inputs", (DatasetInput(name="name"),)),
        ("outputs: [dataset: name]", "outputs", (DatasetOutput(name="name"),)),
        (
            "outputs: [update_dataset: {name: n, path: p}]",
            "outputs",
            (UpdateDatasetOutput(name="n", paths=("p",)),),
        ),
    ],
)
def test_a_form_of_the_documents_is_read_with_a_warning(fields: str, attribute: str, value: object) -> None:
    loaded = one(fields)
    assert getattr(loaded.spec.tasks[0], attribute) == value
    assert [warning for warning in loaded.warnings if warning.startswith("workflow.tasks[0]")]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("bash", ("bash",)),
        ("python3 train.py --n 5", ("python3", "train.py", "--n", "5")),
        ("echo a && echo b", ("bash", "-c", "echo a && echo b")),
        ("echo $HOME", ("bash", "-c", "echo $HOME")),
        ("it's", ("bash", "-c", "it's")),
    ],
)
def test_a_command_may_be_text(command: str, words: tuple[str, ...]) -> None:
    loaded = load(f'workflow:\n  name: w\n  tasks:\n  - name: t\n    image: i\n    command: "{command}"\n')
    assert loaded.spec.tasks[0].command == words
    assert len(loaded.warnings) == 1


def test_a_task_with_its_own_platform_and_resources() -> None:
    loaded = one("platform: gb200\nresources: {gpu: 8}", above="resources: {default: {cpu: 2, memory: 1Gi}}\n")
    task = loaded.spec.tasks[0]
    asked = loaded.spec.resource_of(task)
    assert (asked.cpu, asked.memory, asked.gpu, asked.platform) == (2, GIB, 8, "gb200")
    assert loaded.spec.resources["default"].gpu is None
    assert len(loaded.warnings) == 2


def test_missing_name_command_and_image() -> None:
    loaded = load("workflow:\n  tasks:\n  - name: t\n")
    assert loaded.spec.name == "workflow"
    assert loaded.spec.tasks[0].command == ()
    assert len(loaded.warnings) == 3


def test_empty_lists_from_a_loop_mean_nothing() -> None:
    task = one("inputs:\noutputs:\nfiles:\nenvironment:\n").spec.tasks[0]
    assert (task.inputs, task.outputs, task.files, task.environment) == ((), (), (), {})


def test_hostile_names_do_not_make_hostile_messages() -> None:
    with pytest.raises(SpecError) as caught:
        one('"' + "\\n\\e[31m" * 2000 + '": 1\n')
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) < 600


def test_there_is_a_limit_on_tasks() -> None:
    tasks = "".join(f"  - {{name: t{index}, image: i, command: [x]}}\n" for index in range(1001))
    with pytest.raises(SpecError, match="1001 tasks are more than the 1000"):
        load(f"workflow:\n  name: w\n  tasks:\n{tasks}")
