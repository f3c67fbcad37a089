"""Which symbolic links of a version lead out of it.

Decided here and only here: when a link counts as staying inside. Links are followed as the kernel would, through the
other links of the version, because ``a/..`` is not where it looks when ``a`` is a link itself.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["leads_out"]

MAX_FOLLOWED = 40
"""Links that the kernel follows in one path; beyond that the path can't be opened at all."""


def leads_out(path: bytes, links: Mapping[bytes, bytes]) -> bool:
    """Whether the link at ``path`` leads out of the folder that holds all of ``links`` (path to target).

    An absolute target does, wherever it points: the folder may be moved. A dangling link or a loop inside does not.
    """
    here = [part for part in path.split(b"/")[:-1] if part]
    pending = [links[path]]
    rest: list[bytes] = []
    followed = 0
    while pending or rest:
        if pending:
            target = pending.pop()
            if target.startswith(b"/"):
                return True
            rest += [part for part in reversed(target.split(b"/")) if part not in (b"", b".")]
            continue
        part = rest.pop()
        if part == b"..":
            if not here:
                return True
            here.pop()
            continue
        here.append(part)
        deeper = links.get(b"/".join(here))
        if deeper is not None:
            followed += 1
            if followed > MAX_FOLLOWED:
                return False
            here.pop()
            pending.append(deeper)
    return False
