"""Somebody who asks, and what they may do.

Decided here and only here: what is said to who may not; and how links in replies look. A server on a unix socket has no
URL: where OSMO's replies have the address of a page, ours then have the command that shows the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from casstore.errors import AccessError
from casstore_server.identity.actions import EVERYTHING, Action, Grants, scope_kind

__all__ = ["Caller", "Links"]


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses in replies. ``base`` is the URL the caller used, empty on a unix socket."""

    base: str = ""

    def overview(self, workflow_id: str) -> str:
        """Where to look at a workflow."""
        return f"{self.base}/workflows/{workflow_id}" if self.base else f"osmo workflow query {workflow_id}"

    def api(self, path: str) -> str:
        """The address of something below ``/api/workflow``."""
        return f"{self.base}/api/workflow/{path}"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, from where, and what they may do. ``token`` is the name of the personal token they came with, if any,
    ``address`` where the connection is from. Without ``grants`` it is somebody who may do everything, as the owner of
    the server may who comes by the unix socket.
    """

    user: str
    links: Links = Links()
    grants: Grants = EVERYTHING
    token: str | None = None
    address: str = ""

    def may(self, action: Action, *, pool: str | None = None, bucket: str | None = None) -> bool:
        """Whether they may: on this pool or bucket, or without one anywhere."""
        return self.grants.may(action, pool=pool, bucket=bucket)

    def require(self, action: Action, *, pool: str | None = None, bucket: str | None = None) -> None:
        """Raise ``AccessError`` unless they ``may``."""
        if self.may(action, pool=pool, bucket=bucket):
            return
        kind = scope_kind(action)
        name = pool if kind == "pool" else bucket if kind == "bucket" else None
        where = "" if name is None else f" in {kind} {name}"
        roles = ", ".join(self.grants.roles) or "none"
        raise AccessError(
            f"{self.user} has no right {action}{where}",
            hint=f"Rights come with roles (of this login: {roles}): ask whoever runs this server.",
        )
