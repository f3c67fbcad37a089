"""Jinja templates in workflow files, rendered where they can do no harm.

Decided here and only here: which text is a template, which ``{{...}}`` are special tokens that survive
rendering, how ``--set`` values are typed, and the limits on rendering. A template comes from a user and may
try anything, so it is rendered by Jinja's sandbox in a child process with an empty environment, little memory
and little time; text without templates needs no child.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from casstore.errors import ServiceError, SpecError, UsageError

from .typed import one_line

__all__ = ["Protected", "is_template", "merge_values", "parse_assignments", "render"]

CPU_SECONDS: Final = 0.7
"""Processor time a short template may use, without the start of the child; a long one has more, by its length."""
CHARS_PER_SECOND: Final = 8 << 20
"""Length of a template that has a second more."""
WALL_SECONDS: Final = 30
"""Time after which the child is killed whatever it does; generous, because the machine may be busy."""
MEMORY_BYTES: Final = 60 << 20
"""What the child may write to for a short template. With the programs themselves it takes less than 100 MiB."""
MEMORY_PER_CHAR: Final = 32
"""Bytes more for each character of the template, of which a node of a tree is made in the worst case."""
OUTPUT_CHARS: Final = 4 << 20
"""Longest text that a template may become."""

_TOKEN: Final = re.compile(r"\{\{(?:uuid|workflow_id|output|input:[^{}]+|host:[^{}]+)\}\}")
# Bash's length of an array, ${#name[@]}, would open a Jinja comment.
_GUARDED: Final = re.compile(_TOKEN.pattern + r"|\$\{#(?!\})")
_MARKUP: Final = re.compile(r"\{\{|\{%|\{#")
_RESERVED: Final = re.compile(r"(?:uuid|workflow_id|output)|(?:input|host)(?::.*)?", re.DOTALL)


class Protected:
    """Text whose special tokens are replaced by opaque words, which mean nothing to Jinja or YAML.

    Tokens are exact: ``{{output}}`` without inner spaces. A token that only comes into being by rendering
    (the raw trick) is protected by a second ``Protected`` made from the rendered text.
    """

    def __init__(self, text: str) -> None:
        self._word = f"ZQ{secrets.token_hex(8)}N"
        self._tokens: list[str] = []
        self._pattern = re.compile(rf"{self._word}(\d+)QZ")
        self.text = _GUARDED.sub(self._hide, text)

    def _hide(self, match: re.Match[str]) -> str:
        self._tokens.append(match[0])
        return f"{self._word}{len(self._tokens) - 1}QZ"

    def _show(self, match: re.Match[str]) -> str:
        return self._tokens[int(match[1])]

    def restore(self, text: str) -> str:
        """``text`` with the tokens back in place."""
        return self._pattern.sub(self._show, text) if self._word in text else text

    def restore_tree(self, value: Any) -> Any:
        """A copy of plain data with the tokens back in every string, keys included."""
        if isinstance(value, str):
            return self.restore(value)
        if isinstance(value, list):
            return [self.restore_tree(item) for item in value]
        if isinstance(value, dict):
            return {self.restore_tree(key): self.restore_tree(item) for key, item in value.items()}
        return value


def is_template(text: str) -> bool:
    """Whether the text holds anything that Jinja would change; special tokens don't count."""
    return _MARKUP.search(_GUARDED.sub("", text)) is not None


def parse_assignments(pairs: Iterable[str], *, option: str, typed: bool) -> dict[str, Any]:
    """``KEY=VALUE`` pairs as a mapping; later ones win. ``typed``: whole numbers and decimals become numbers.

    Only the first ``=`` of a pair separates. Raises UsageError for a pair without one, or without a key.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"{option}: {pair!r} is not KEY=VALUE", hint=f"write {option} name=value")
        values[key] = _number(value) if typed else value
    return values


def merge_values(
    defaults: Mapping[str, Any], set_values: Iterable[str] = (), set_strings: Iterable[str] = ()
) -> dict[str, Any]:
    """The variables of a template: its defaults, overridden by ``--set``, overridden by ``--set-string``.

    The names of special tokens are ignored.
    """
    values = {
        **defaults,
        **parse_assignments(set_values, option="--set", typed=True),
        **parse_assignments(set_strings, option="--set-string", typed=False),
    }
    return {key: value for key, value in values.items() if not _RESERVED.fullmatch(key)}


def _number(text: str) -> int | float | str:
    kinds: tuple[Callable[[str], int | float], ...] = (int, float)
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def render(text: str, values: Mapping[str, Any], *, what: str = "workflow") -> str:
    """The text after Jinja, special tokens untouched. Raises SpecError with the line; ServiceError without Jinja."""
    protected = Protected(text)
    if not _MARKUP.search(protected.text):
        return text
    reply = _ask_child(protected.text, dict(values), what)
    if "text" in reply:
        return protected.restore(str(reply["text"]))
    line = reply.get("line")
    place = f"{what}, line {line}: " if line else f"{what}: "
    raise SpecError(
        one_line(place + protected.restore(str(reply["message"]))),
        hint=_hint(str(reply["kind"]), str(reply["message"]), values),
    )


def _hint(kind: str, message: str, values: Mapping[str, Any]) -> str | None:
    if kind == "undefined":
        name = re.match(r"'([^']+)' is undefined", message)
        if name is None:
            return None
        if re.fullmatch(r"workflow_id|output|uuid", name[1]):
            return f"write the token without spaces: {{{{{name[1]}}}}}"
        known = f" (known: {', '.join(sorted(values))})" if values else ""
        return f"give it a value with --set {name[1]}=... or under default-values{known}"
    if kind == "syntax":
        return "text that is not meant as a template goes between {% raw %} and {% endraw %}"
    return None


def _ask_child(text: str, values: dict[str, Any], what: str) -> dict[str, Any]:
    seconds = CPU_SECONDS + len(text) / CHARS_PER_SECOND
    memory = MEMORY_BYTES + MEMORY_PER_CHAR * len(text)
    command = [sys.executable, "-I", "-S", "-X", "utf8", str(Path(__file__).with_name("render_child.py"))]
    request = marshal.dumps(
        (_library_folders(), seconds, memory, OUTPUT_CHARS, text, values)  # no user classes in it
    )
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        close_fds=True,
    ) as child:
        try:
            output, _ = child.communicate(request, timeout=WALL_SECONDS)
        except subprocess.TimeoutExpired:
            raise _too_much(what, f"more than {WALL_SECONDS} s") from None
        finally:
            if child.poll() is None:
                child.kill()
    try:
        reply = json.loads(output)
    except ValueError:
        # Killed by the limit on processor time, or by running out of memory where Python can't say so.
        raise _too_much(what, f"more than {seconds:.1f} s of processor time, or too much memory") from None
    if not isinstance(reply, dict) or not ({"text"} <= reply.keys() or {"message", "kind"} <= reply.keys()):
        raise ServiceError(f"{what}: the template could not be rendered")
    if reply.get("kind") == "limit":
        raise _too_much(what, str(reply["message"]))
    return reply


def _too_much(what: str, detail: str) -> SpecError:
    return SpecError(
        f"{what}: rendering the template takes {detail}",
        hint="look for a loop or a repetition that is larger than meant",
    )


def _library_folders() -> list[str]:
    """Where Jinja and what it needs are installed; found without importing them here."""
    folders = []
    for name in ("jinja2", "markupsafe"):
        found = importlib.util.find_spec(name)
        if found is None or not found.submodule_search_locations:
            raise ServiceError(
                f"templates need {name}, which is not installed", hint="pip install 'casstore[workflow]'"
            )
        folders.append(str(Path(found.submodule_search_locations[0]).parent))
    return list(dict.fromkeys(folders))
