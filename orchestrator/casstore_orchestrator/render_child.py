"""The child process that renders one template: reads a request from stdin, writes a JSON reply to stdout.

Decided here and only here: what a template can reach while it is rendered. It runs as a script of its own,
imports nothing of this project, and limits itself before it sees the template.
"""

from __future__ import annotations

import json
import marshal
import resource
import signal
import sys
from types import TracebackType
from typing import Any

__all__ = ["main"]

_ADDRESSES = 512 << 20
"""Address space in bytes, for systems that don't count what is written."""


def _limit(cpu_seconds: float, memory: int) -> None:
    # Nobody handles the signal of this clock, so that it ends the process in the midst of whatever it does.
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    for what, limit in (
        (resource.RLIMIT_CPU, int(cpu_seconds) + 2),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_AS, _ADDRESSES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(what)
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (allowed, allowed))


def _line(error: BaseException) -> int | None:
    """The line of the template at which the error happened."""
    found: int | None = None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def _render(text: str, values: dict[str, Any], limit: int) -> dict[str, Any]:
    from jinja2 import StrictUndefined  # noqa: PLC0415  # found only after the folders are known
    from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError  # noqa: PLC0415  # as above
    from jinja2.sandbox import SandboxedEnvironment  # noqa: PLC0415  # as above

    try:
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
        pieces: list[str] = []
        size = 0
        for piece in environment.from_string(text).generate(values):
            size += len(piece)
            if size > limit:
                return {"kind": "limit", "message": f"more than {limit} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except TemplateSyntaxError as error:
        return {"kind": "syntax", "message": error.message or "not a template", "line": error.lineno}
    except UndefinedError as error:
        return {"kind": "undefined", "message": error.message or "undefined", "line": _line(error)}
    except SecurityError as error:
        return {"kind": "unsafe", "message": f"not allowed: {error.message}", "line": _line(error)}
    except (MemoryError, RecursionError) as error:
        return {"kind": "limit", "message": f"too much memory or depth ({type(error).__name__})"}
    except TemplateError as error:
        return {"kind": "template", "message": error.message or type(error).__name__, "line": _line(error)}
    except Exception as error:  # noqa: BLE001  # an expression of the user's may raise anything
        return {"kind": "error", "message": f"{type(error).__name__}: {error}"[:500], "line": _line(error)}


def main() -> None:
    """Answer the one request on stdin."""
    folders, cpu_seconds, memory, limit, text, values = marshal.loads(sys.stdin.buffer.read())  # noqa: S302  # from our parent
    sys.path[:0] = folders
    _limit(cpu_seconds, memory)
    reply = _render(text, values, limit)
    sys.stdout.write(json.dumps(reply))


if __name__ == "__main__":
    main()
