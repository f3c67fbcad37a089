from __future__ import annotations

import base64

import pytest

from casstore_orchestrator.spec import (
    Checkpoint,
    DatasetOutput,
    FileSpec,
    TaskInput,
    TaskSpec,
    UrlInput,
)
from casstore_orchestrator.tokens import TokenValues, expand_vars, resolve, resolve_text

VALUES = TokenValues(
    workflow_id="w-3",
    uuid="0f",
    output="/osmo/data/output",
    inputs=("/osmo/data/input/0", "/osmo/data/input/1"),
    hosts={"peer": "peer", "self": "self"},
)
TASK = TaskSpec(name="self", lead=True, inputs=(TaskInput(task="old-2:before"), UrlInput(url="s3://b/{{workflow_id}}")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{workflow_id}}", "w-3"),
        ("{{ workflow_id }}", "w-3"),
        ("{{uuid}}", "0f"),
        ("{{output}}/x", "/osmo/data/output/x"),
        ("{{input:0}} {{input:1}}", "/osmo/data/input/0 /osmo/data/input/1"),
        ("{{input:before}}", "/osmo/data/input/0"),
        ("{{ input: before }}", "/osmo/data/input/0"),
        ("{{host:peer}}:80", "peer:80"),
        ("{{input:2}} {{host:nobody}} {{item}} {{", "{{input:2}} {{host:nobody}} {{item}} {{"),
        ("{{{output}}}", "{/osmo/data/output}"),
        ("no token", "no token"),
    ],
)
def test_tokens(text: str, expected: str) -> None:
    assert resolve_text(text, TASK, VALUES) == expected


def test_tokens_work_in_every_string_of_a_task() -> None:
    secret = base64.b64encode(b"{{output}}").decode()
    task = TaskSpec(
        name="self",
        lead=True,
        command=("run", "{{output}}"),
        args=("{{host:peer}}",),
        environment={"OUT": "{{output}}"},
        inputs=TASK.inputs,
        outputs=(DatasetOutput(name="set-{{workflow_id}}"),),
        files=(
            FileSpec(path="/tmp/{{workflow_id}}", contents="echo {{input:0}}"),
            FileSpec(path="/tmp/b", contents=secret, base64=True),
        ),
        checkpoint=(Checkpoint(path="{{output}}", url="s3://b/{{workflow_id}}", frequency=1),),
    )
    resolved = resolve(task, VALUES)
    assert resolved.command == ("run", "/osmo/data/output")
    assert resolved.args == ("peer",)
    assert resolved.environment == {"OUT": "/osmo/data/output"}
    assert resolved.inputs[1] == UrlInput(url="s3://b/w-3")
    assert resolved.outputs == (DatasetOutput(name="set-w-3"),)
    assert resolved.files[0] == FileSpec(path="/tmp/w-3", contents="echo /osmo/data/input/0")
    assert resolved.files[1].data() == b"{{output}}"
    assert resolved.checkpoint[0].url == "s3://b/w-3"
    assert task.command == ("run", "{{output}}")


def test_a_task_without_tokens_is_itself() -> None:
    plain = TaskSpec(name="a", command=("x",))
    assert resolve(plain, VALUES) is plain


def test_variables_in_commands_are_expanded_like_on_kubernetes() -> None:
    argv = ("run", "$(A)/$(B)", "$$(A)", "$A ${A} $", "$(UNKNOWN)", "$$", "$$$(A)")
    assert expand_vars(argv, {"A": "1", "B": "$(A)"}) == (
        "run",
        "1/$(A)",
        "$(A)",
        "$A ${A} $",
        "$(UNKNOWN)",
        "$$",
        "$1",
    )
