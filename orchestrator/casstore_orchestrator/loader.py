"""A workflow file into a checked specification.

Decided here and only here: how a file is cut into sections, and the order of the steps: cut, render, parse,
accept the lenient forms, build strictly. ``lenient`` knows the forms that documents use although OSMO rejects
them; ``build`` knows the rules.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from casstore import safeyaml
from casstore.errors import SpecError, UsageError

from .build import build_workflow
from .lenient import relax
from .plan import make_plan
from .spec import WorkflowSpec
from .template import Protected, is_template, merge_values, parse_assignments, render
from .typed import nearest, one_line

__all__ = ["Loaded", "Rendered", "Sections", "load", "render_text", "split"]

MAX_TEXT: Final = 16 << 20
"""Largest workflow file in bytes: room for files that the client put into it."""

_KEY: Final = re.compile(r"^([A-Za-z][A-Za-z0-9_-]*):", re.MULTILINE)
_SECTIONS: Final = ("workflow", "default-values", "version")


@dataclass(frozen=True, slots=True)
class Sections:
    """A file cut at its top-level keys.

    ``body`` is everything but the defaults and the version, with empty lines in their place, so that line
    numbers are those of the file. ``defaults_text`` is the section ``default-values`` as written, with its
    comments.
    """

    body: str
    defaults_text: str | None
    version_text: str | None
    warnings: tuple[str, ...] = ()

    def defaults(self) -> dict[str, Any]:
        """The values under ``default-values``, which are never templated."""
        if self.defaults_text is None:
            return {}
        document = safeyaml.load(self.defaults_text, what="default-values", error=SpecError)
        values = document.get("default-values") if isinstance(document, dict) else None
        if values is None:
            return {}
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise SpecError("default-values: expected a mapping of names to values")
        return values


@dataclass(frozen=True, slots=True)
class Rendered:
    """A file after its templates: YAML with the special tokens in place, and whether there was anything to
    render.
    """

    text: str
    templated: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checked workflow. ``rendered`` is its YAML after templates; ``warnings`` are lines for the user."""

    spec: WorkflowSpec
    rendered: str
    warnings: list[str] = field(default_factory=list)
    templated: bool = False


def split(text: str) -> Sections:
    """Cut a file at its top-level keys, without reading it as YAML (a template need not be YAML).

    Raises UsageError for a missing ``workflow``, an unknown key or one given twice.
    """
    if len(text) > MAX_TEXT:
        raise UsageError(f"the workflow file is larger than {MAX_TEXT >> 20} MiB")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    warnings: list[str] = []
    found = list(_KEY.finditer(text))
    if not found and _KEY.search(dedented := textwrap.dedent(text)):
        warnings.append("the whole file is indented: read as if it began in the first column")
        text, found = dedented, list(_KEY.finditer(dedented))
    sections: dict[str, str] = {}
    pieces = [text[: found[0].start()] if found else text]
    for index, match in enumerate(found):
        name = match[1]
        end = found[index + 1].start() if index + 1 < len(found) else len(text)
        body = text[match.start() : end]
        line = text.count("\n", 0, match.start()) + 1
        if name not in _SECTIONS:
            raise UsageError(f"line {line}: unknown top-level key {name!r}", hint=nearest(name, _SECTIONS))
        if name in sections:
            raise UsageError(f"line {line}: top-level key {name!r} is given twice")
        sections[name] = body
        pieces.append(body if name == "workflow" else "\n" * body.count("\n"))
    if "workflow" not in sections:
        raise UsageError("there is no 'workflow:' in the file", hint="a workflow file begins with 'workflow:'")
    return Sections(
        body="".join(pieces),
        defaults_text=sections.get("default-values"),
        version_text=sections.get("version"),
        warnings=tuple(warnings),
    )


def render_text(text: str, *, set_values: Sequence[str] = (), set_strings: Sequence[str] = ()) -> Rendered:
    """The file after its templates: what a dry run prints. Raises UsageError or SpecError."""
    sections = split(text)
    warnings = list(sections.warnings)
    if sections.version_text is not None and not re.fullmatch(
        r"version:\s*2\s*(?:#.*)?\s*", sections.version_text.strip()
    ):
        warnings.append("version: only 2 is known; the key is ignored")
    values = merge_values(sections.defaults(), set_values, set_strings)
    return Rendered(text=render(sections.body, values), templated=is_template(sections.body), warnings=tuple(warnings))


def load(
    text: str,
    *,
    set_values: Sequence[str] = (),
    set_strings: Sequence[str] = (),
    environment: Sequence[str] = (),
    render: bool = True,
) -> Loaded:
    """Read a workflow file.

    ``set_values``, ``set_strings`` and ``environment`` are the ``KEY=VALUE`` of ``--set``, ``--set-string``
    and ``--set-env`` (the last goes into the environment of every task). Raises UsageError or SpecError with
    the path of what is wrong. A rendered text can be loaded again, with ``render`` off so that braces left
    in it stay.
    """
    if render:
        rendered = render_text(text, set_values=set_values, set_strings=set_strings)
    else:
        sections = split(text)
        rendered = Rendered(text=sections.body, templated=False, warnings=sections.warnings)
    variables = parse_assignments(environment, option="--set-env", typed=False)
    protected = Protected(rendered.text)
    try:
        document = safeyaml.load(protected.text, what="workflow", max_bytes=MAX_TEXT, error=SpecError)
    except SpecError as error:
        raise SpecError(protected.restore(error.message), hint=_yaml_hint(rendered)) from None
    document = protected.restore_tree(document)
    raw = document.get("workflow") if isinstance(document, dict) else None
    warnings = list(rendered.warnings)
    try:
        spec = build_workflow(relax(raw, warnings), variables)
        make_plan(spec)
    except SpecError as error:
        raise SpecError(one_line(error.message), hint=error.hint) from None
    return Loaded(spec=spec, rendered=rendered.text.strip("\n") + "\n", warnings=warnings, templated=rendered.templated)


def _yaml_hint(rendered: Rendered) -> str | None:
    return "the line is that of the text after templates: see --dry-run" if rendered.templated else None
