"""Hostile workflow files: refused with one clear line, in under a second of processor time and 100 MiB.

A child that has everything imported forks for each file and measures what reading it took: its own time and growth, and
those of the process in which templates are rendered.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

import pytest

SECONDS = 1.0
PACE = 0.1
"""What a machine takes, in seconds, that a second is meant for: the sum of a million squares. Slower ones have more."""
MEBIBYTES = 100

_MEASURE = r"""
import json, os, resource, sys, time
from casstore.errors import CasstoreError
from casstore_orchestrator.loader import load

def told(request):
    try:
        load(request["text"], set_values=request["set"])
    except CasstoreError as error:
        return {"kind": type(error).__name__, "message": error.message, "hint": error.hint or ""}
    except BaseException as error:
        return {"kind": "crash", "message": repr(error)[:500], "hint": ""}
    return {"kind": "accepted", "message": "", "hint": ""}

def measure(request):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reply = told(request)
    times = os.times()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return reply | {"seconds": sum(times[:4]), "mebibytes": max(grown, children) / 1024}

def pace():
    began = time.process_time()
    sum(number * number for number in range(1_000_000))
    return time.process_time() - began

print(min(pace() for _ in range(5)), flush=True)
for line in sys.stdin:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, json.dumps(measure(json.loads(line))).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        answer = file.read() or b'{"kind": "died", "message": "", "hint": "", "seconds": 0, "mebibytes": 0}'
    os.waitpid(child, 0)
    sys.stdout.write(answer.decode() + "\n")
    sys.stdout.flush()
"""


class Reader:
    def __init__(self, reading: IO[str], writing: IO[str]) -> None:
        self.seconds = SECONDS * max(1.0, float(reading.readline()) / PACE)
        self.reading = reading
        self.writing = writing

    def read(self, text: str, *settings: str) -> dict[str, Any]:
        self.writing.write(json.dumps({"text": text, "set": settings}) + "\n")
        self.writing.flush()
        found: dict[str, Any] = json.loads(self.reading.readline())
        return found


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with subprocess.Popen(
        [sys.executable, "-c", _MEASURE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        yield Reader(child.stdout, child.stdin)
        child.stdin.close()


def task(more: str) -> str:
    return f"workflow:\n  name: a\n  tasks:\n  - {{name: a, image: i, command: [x]{more}}}\n"


def aliases() -> str:
    lines = ["  x0: &x0 [a, a, a, a, a, a, a, a, a]"]
    lines += [f"  x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 9)}]" for level in range(1, 12)]
    return "workflow:\n  name: a\n" + "\n".join(lines) + "\n"


def merges() -> str:
    lines = ["  a: &a {b: c}"]
    for number in range(200):
        before = "".join(f", *k{other}" for other in range(number))
        lines.append(f"  k{number}: &k{number}\n    <<: [*a{before}]\n    z{number}: 1")
    return "workflow:\n" + "\n".join(lines) + "\n"


YAML = {
    "alias bomb": (aliases(), "more than 200000 values after expanding aliases"),
    "merge bomb": (merges(), "more than 200000 values after expanding aliases"),
    "alias of itself": ("workflow: &a [*a]\n", "contains itself"),
    "deep list": ("workflow: " + "[" * 100_000, "nested deeper than 50 levels"),
    "deep mapping": ("workflow: " + "{a: " * 50_000, "nested deeper than 50 levels"),
    "deep block": ("workflow:\n" + "".join(" " * at + "a:\n" for at in range(1, 3000)), "nested deeper than 50"),
    "many keys": ("workflow:\n" + "".join(f"  k{at}: 1\n" for at in range(300_000)), "more than 200000 values"),
    "many tasks": (
        "workflow:\n  name: a\n  tasks:\n" + "".join(f"  - {{name: t{at}, command: [x]}}\n" for at in range(20_000)),
        "20000 tasks are more than the 1000",
    ),
    "many groups": (
        "workflow:\n  name: a\n  groups:\n"
        + "".join(f"  - {{name: g{at}, tasks: [{{name: t{at}, command: [x]}}]}}\n" for at in range(9000)),
        "9000 tasks are more than the 1000",
    ),
    "huge integer": (task(f", cacheSize: {'9' * 1_000_000}"), "more than 100 digits"),
    "huge hexadecimal": (task(f", cacheSize: 0x{'9' * 1_000_000}"), "more than 100 digits"),
    "huge binary": (task(f", cacheSize: 0b{'1' * 1_000_000}"), "more than 100 digits"),
    "large integer": (task(f", cacheSize: {'9' * 99}"), "is out of range"),
    "huge quantity": (task(f", cacheSize: {'9' * 5000}Gi"), "is not a quantity"),
    "huge duration": (
        task("").replace("tasks", f"timeout: {{exec_timeout: {'9' * 5000}s}}\n  tasks"),
        "not a duration",
    ),
    "infinity": (task(", cacheSize: .inf"), "is out of range"),
    "not a number": (task(", cacheSize: .nan"), "is out of range"),
    "base sixty": (task(f", cacheSize: {'59:' * 100_000}59"), "is not a quantity"),
    "object": (task(", args: !!python/object/apply:os.system [id]"), "is not allowed, only plain data is"),
    "binary": (task(", args: [!!binary aGk=]"), "is not allowed, only plain data is"),
    "key twice": ("workflow:\n  name: a\n  name: b\n", "key 'name' is given twice"),
    "two documents": (task("") + "---\nworkflow: {}\n", "'workflow' is given twice"),
    "null character": (task(', args: ["a\\0b"]'), "contains a null character"),
    "null in the environment": (task(', environment: {A: "a\\0b"}'), "contains a null character"),
    "raw null": (task(', args: ["a\0b"]'), "control characters are not allowed"),
    "null in a name": (task("").replace("{name: a", '{name: "a\\0"'), "is not a name"),
    "newline in a name": (task("").replace("{name: a", '{name: "a\\nb"'), "is not a name"),
    "letter that looks like a": (task("").replace("{name: a", '{name: "\u0430"'), "is not a name"),
    "text that runs backwards": (task("").replace("{name: a", '{name: "a\u202eb"'), "is not a name"),
    "digits of another script": (task(', cacheSize: "\uff11Gi"'), "is not a quantity"),
    "surrogate": (task(', files: [{path: "/tmp/\\ud800", contents: x}]'), "invalid Unicode character"),
    "long argument": (task(f", args: [{'a' * 15_000_000}]"), "are more than the 131071"),
    "long name": (task("").replace("{name: a", f"{{name: {'a-' * 500_000}!"), "are more than 64"),
    "long path": (task(f', files: [{{path: "/{"a/" * 500_000}", contents: x}}]'), "are more than 4000"),
    "deep regex": (task(f', inputs: [{{url: "s3://b/x", regex: "{"(" * 499}{")" * 499}"}}]'), "."),
    "long regex": (task(f', inputs: [{{url: "s3://b/x", regex: "{"a" * 100_000}"}}]'), "are more than 1000"),
    "many codes": (task(f', exitActions: {{FAIL: "{",".join(["1-2"] * 200_000)}"}}'), "more than 256 codes"),
    "path that leads out": (task(', files: [{path: "/tmp/../osmo/x", contents: x}]'), "."),
    "dataset that leads out": (task(', outputs: [{dataset: {name: d, path: "../../etc"}}]'), "leads out of"),
    "too large": ("workflow:\n  name: " + "a" * (17 << 20), "larger than 16 MiB"),
    "nothing": ("\0" * 1_000_000, "there is no 'workflow:'"),
}

UNSAFE = "not allowed"
LARGE = "rendering the template takes"
TEMPLATES = {
    "class of text": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", UNSAFE),
    "attribute by filter": ("{{ ''|attr('__class__') }}", UNSAFE),
    "attribute by map": ("{{ ['']|map(attribute='__class__')|list }}", "at least one group"),
    "attribute by format": ("{{ '{0.__class__}'.format(1) }}", UNSAFE),
    "attribute by format_map": ("{{ '{a.__class__.__init__}'.format_map({'a': 1}) }}", UNSAFE),
    "globals of a class": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", UNSAFE),
    "globals of a function": ("{{ lipsum.__globals__ }}", UNSAFE),
    "template itself": ("{{ self._TemplateReference__context }}", UNSAFE),
    "file": ('{% include "/etc/passwd" %}', "no loader"),
    "module": ('{% import "os" as os %}', "no loader"),
    "giant range": ("{% for i in range(10**9) %}a{% endfor %}", "Range too big"),
    "endless loop": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", LARGE),
    "giant number": ("{{ (10**100000000) % 7 }}", LARGE),
    "number as text": ("{{ (10**5000)|string }}", "4300 digits"),
    "giant text": ("{{ 'a' * 10**10 }}", LARGE),
    "text that grows": ("{{ ('a' * 10**7)|replace('a', 'b' * 1000) }}", LARGE),
    "text that is joined": ("{{ range(99999)|join('a' * 100000) }}", LARGE),
    "text that is wrapped": ("{{ ('a ' * 10**7)|wordwrap(1) }}", LARGE),
    "links": ("{{ ('http://a ' * 10**6)|urlize }}", LARGE),
    "width": ("{{ '%1000000000d' % 1 }}", LARGE),
    "width of format": ("{{ '{:1000000000d}'.format(1) }}", LARGE),
    "margin": ("{{ 'a'|center(10**10) }}", LARGE),
    "lists": ("{{ [range(99999)|list] * 1000 }}{{ range(99999)|batch(1)|list|map('list')|list }}", LARGE),
    "sentences": ("{{ lipsum(n=100000) }}", LARGE),
    "calls of itself": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", LARGE),
    "deep expression": ("{{ " + "(" * 20_000 + ")" * 20_000 + " }}", LARGE),
    "deep blocks": ("{% if 1 %}" * 5000 + "{% endif %}" * 5000, LARGE),
    "endless output": ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", LARGE),
    "open braces": ("{{ x" * 100_000, "expected token"),
}


def refused(reader: Reader, found: dict[str, Any], words: str) -> None:
    assert found["kind"] in {"SpecError", "UsageError"}, found
    assert words in found["message"], found["message"]
    line = found["message"] + found["hint"]
    assert line.isprintable()
    assert len(line) < 1200
    assert found["seconds"] < reader.seconds
    assert found["mebibytes"] < MEBIBYTES


@pytest.mark.parametrize("name", YAML)
def test_hostile_yaml(reader: Reader, name: str) -> None:
    text, words = YAML[name]
    refused(reader, reader.read(text), words)


@pytest.mark.parametrize("name", TEMPLATES)
def test_hostile_templates(reader: Reader, name: str) -> None:
    body, words = TEMPLATES[name]
    refused(reader, reader.read(f"workflow:\n  name: a\n  tasks: []\n  x: '{body}'\n"), words)


def test_hostile_values(reader: Reader) -> None:
    found = reader.read("workflow:\n  name: {{ x }}\n  tasks: []\n", f"x={'9' * 500_000}")
    assert found["kind"] == "SpecError"
    assert found["seconds"] < reader.seconds


def test_hostile_defaults_are_never_templates(reader: Reader) -> None:
    found = reader.read("workflow:\n  name: {{ x }}\n  tasks: []\ndefault-values:\n  x: \"{{ ''.__class__ }}\"\n")
    assert found["kind"] == "SpecError"
    assert "not allowed" not in found["message"]


def test_what_people_write_is_not_refused(reader: Reader) -> None:
    line = "        some line of text {{x}} and more of it, of a usual length\n"
    text = (
        "workflow:\n  name: a\n  tasks:\n"
        "{% for i in range(999) %}  - {name: t{{i}}, image: i, command: [x, '{{i}}'], environment: {A: '{{i}}'}}\n"
        "{% endfor %}  - name: a\n    image: i\n    command: [x]\n    files:\n    - path: /tmp/x\n      contents: |\n"
        + line * 5_000
        + "default-values:\n  x: 1\n"
    )
    found = reader.read(text)
    assert found["kind"] == "accepted", found
