from __future__ import annotations

import os

import pytest

from casstore.errors import SpecError, UsageError
from casstore_orchestrator import template
from casstore_orchestrator.template import Protected, is_template, merge_values, parse_assignments, render


def test_plain_text_needs_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(template, "_ask_child", refuse)
    text = "a: {{output}}/x\nb: {{host:peer}}:80 ${#list[@]}\n"
    assert render(text, {}) == text
    assert not is_template(text)


def test_values_loops_and_tokens() -> None:
    text = "{% for i in range(n) %}{{ name }}-{{i}} {{output}}/{{input:0}} {% endfor %}{# gone #}"
    assert render(text, {"n": 2, "name": "x"}) == "x-0 {{output}}/{{input:0}} x-1 {{output}}/{{input:0}} "


def test_the_raw_trick_builds_a_token() -> None:
    text = "{% for i in [1, 2] %}{% raw %}{{host:worker_{% endraw %}{{i}}{% raw %}}}{% endraw %} {% endfor %}"
    assert render(text, {}) == "{{host:worker_1}} {{host:worker_2}} "


def test_a_token_inside_a_raw_block_or_an_expression_survives() -> None:
    assert render("{% raw %}{{output}}{% endraw %}", {}) == "{{output}}"
    assert render("{% set where = '{{output}}/x' %}{{ where }}", {}) == "{{output}}/x"


def test_length_of_a_bash_array_is_no_comment() -> None:
    assert render("echo ${#list[@]} {{ n }} {# note #}", {"n": 1}) == "echo ${#list[@]} 1 "


def test_defaults_that_are_mappings_render_as_flow_yaml() -> None:
    assert render("timeout: {{ timeout }}", {"timeout": {"exec_timeout": "5m"}}) == ("timeout: {'exec_timeout': '5m'}")


def test_a_version_number_keeps_its_form() -> None:
    assert render("ubuntu:{{ v }}", {"v": 22.04}) == "ubuntu:22.04"


def test_an_undefined_variable_names_itself_and_its_line() -> None:
    with pytest.raises(SpecError, match=r"line 3: 'nope' is undefined") as caught:
        render("a\nb\n{{ nope }}\n", {"known": 1})
    assert caught.value.hint is not None
    assert "--set nope=" in caught.value.hint
    assert "known" in caught.value.hint


def test_a_token_with_spaces_gets_a_hint() -> None:
    with pytest.raises(SpecError) as caught:
        render("{{ output }}", {})
    assert "{{output}}" in str(caught.value.hint)


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(SpecError, match="line 2") as caught:
        render("x\n{% if %}\n", {})
    assert "raw" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format('') }}",
    ],
)
def test_the_sandbox_holds(text: str) -> None:
    with pytest.raises(SpecError):
        render(text, {})


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x' * 10**10 }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9**(9**(9**9)) }}",
        "{{ range(10**9)|list }}",
    ],
)
def test_a_template_that_takes_too_much_is_stopped(text: str) -> None:
    with pytest.raises(SpecError):
        render(text, {})


def test_the_child_has_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    real = template.subprocess.Popen

    def spy(command: list[str], **options: object) -> object:
        seen.update(options, command=command)
        return real(command, **options)  # type: ignore[call-overload]  # handed on as they came

    monkeypatch.setattr(template.subprocess, "Popen", spy)
    monkeypatch.setenv("SECRET", "hidden")
    assert render("{{ 1 + 1 }}", {}) == "2"
    assert seen["env"] == {}
    assert "hidden" not in str(seen["command"])
    assert os.environ["SECRET"] == "hidden"


def test_a_child_that_never_answers_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "WALL_SECONDS", 0.2)
    monkeypatch.setattr(template, "CPU_SECONDS", 60)
    with pytest.raises(SpecError, match="takes more than"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {})


def test_set_is_typed_and_set_string_is_not() -> None:
    values = merge_values({"a": 1, "b": 2}, ["a=5", "c=2.5", "d=true", "e=x=y", "output=no"], ["b=07", "host:x=no"])
    assert values == {"a": 5, "b": "07", "c": 2.5, "d": "true", "e": "x=y"}


@pytest.mark.parametrize("pair", ["novalue", "=x", " =x"])
def test_an_assignment_without_a_name_or_value_is_refused(pair: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        parse_assignments([pair], option="--set", typed=True)


def test_protection_is_undone_in_every_string() -> None:
    protected = Protected("{{output}} {{uuid}}")
    first, second = protected.text.split()
    assert "{" not in protected.text
    assert protected.restore_tree({first: [second, 1, None]}) == {"{{output}}": ["{{uuid}}", 1, None]}


def test_what_a_message_quotes_is_made_harmless() -> None:
    with pytest.raises(SpecError) as caught:
        render("{{ ('\x1b[31m\n' * 1000)() }}{{ x['\x1b' * 1000] }}", {"x": {}})
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600
