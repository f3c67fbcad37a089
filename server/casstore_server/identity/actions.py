"""What may be done to what, by whom: actions, policies, roles and what they grant together.

Decided here and only here: the names of the actions and which resources each is about (a pool, a bucket, or nothing in
particular), how patterns match, and the roles that are there without being declared. Rights are only ever added: what
no policy allows is refused, and there is no policy that takes a right away, so that the order of roles never matters.

In a policy, ``*`` in an action stands for any text; a resource is ``*``, ``pool/NAME`` or ``bucket/NAME``, of which the
name may end in ``*``. An action about nothing in particular is granted by a policy for ``*`` alone: whoever has every
right in one pool is not for that reason allowed to manage users.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, get_args

from casstore.errors import UsageError

__all__ = [
    "ACTIONS",
    "ANYWHERE",
    "BUILT_IN",
    "EVERYTHING",
    "NOTHING",
    "ROLE_NAME",
    "Action",
    "Grants",
    "Policy",
    "Role",
    "Scope",
    "grants_of",
    "parse_role",
    "scope_kind",
]

Action = Literal[
    "open",
    "profile:Own",
    "credential:Own",
    "token:Own",
    "token:Manage",
    "user:Read",
    "user:Manage",
    "config:Read",
    "config:Write",
    "pool:Read",
    "workflow:Read",
    "workflow:Create",
    "workflow:Change",
    "workflow:Exec",
    "workflow:Manage",
    "app:Read",
    "app:Write",
    "app:Manage",
    "dataset:Read",
    "dataset:Write",
    "dataset:Delete",
    "bucket:Manage",
    "server:Read",
    "server:Manage",
    "audit:Read",
    "metrics:Read",
]
"""``open`` needs nobody. ``...:Own``, ``workflow:Change``, ``workflow:Exec`` and ``app:Write`` are about what is one's
own; for what belongs to others it takes ``...:Manage`` besides.
"""
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
ROLE_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]{0,62}[A-Za-z0-9])?", re.ASCII)
_POOLED: Final = frozenset({"pool", "workflow"})
_BUCKETED: Final = frozenset({"dataset", "bucket"})
_PATTERN: Final = re.compile(r"[A-Za-z:*-]{1,64}", re.ASCII)
_RESOURCE: Final = re.compile(r"\*|(?:pool|bucket)/(?:\*|[^\s/*\x00-\x1f]{1,128}\*?)", re.ASCII)
_MAX_POLICIES: Final = 100
_MAX_PATTERNS: Final = 200

Kind = Literal["pool", "bucket", ""]


def scope_kind(action: str) -> Kind:
    """What an action is about: a ``pool``, a ``bucket``, or (empty) nothing in particular."""
    family = action.partition(":")[0]
    return "pool" if family in _POOLED else "bucket" if family in _BUCKETED else ""


@dataclass(frozen=True, slots=True)
class Scope:
    """Names of pools, or of buckets: ``all`` of them, or those in ``names`` and those that begin with a prefix."""

    all: bool = False
    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    def __contains__(self, name: str) -> bool:
        return self.all or name in self.names or name.startswith(self.prefixes)

    def __bool__(self) -> bool:
        return self.all or bool(self.names) or bool(self.prefixes)


@dataclass(frozen=True, slots=True)
class Policy:
    """Patterns of actions, and the resources that they are granted for."""

    actions: tuple[str, ...]
    resources: tuple[str, ...] = ("*",)

    def grants(self, action: str) -> bool:
        """Whether the action is among them, whatever the resources."""
        return any(_fits(pattern, action) for pattern in self.actions)


@dataclass(frozen=True, slots=True)
class Role:
    """A name for policies."""

    name: str
    description: str = ""
    policies: tuple[Policy, ...] = ()


@dataclass(frozen=True)
class Grants:
    """What somebody may do: the policies of all their roles together; in no pools but ``pools``, if it is set."""

    roles: tuple[str, ...] = ()
    policies: tuple[Policy, ...] = ()
    pools: frozenset[str] | None = None

    def may(self, action: Action, *, pool: str | None = None, bucket: str | None = None) -> bool:
        """Whether the action is allowed: on this pool or bucket, or without one on any there might be."""
        if action == "open":
            return True
        scope = self._scopes[action]
        name = pool if scope_kind(action) == "pool" else bucket if scope_kind(action) == "bucket" else None
        return bool(scope) if name is None else name in scope

    def scope(self, action: Action) -> Scope:
        """The pools or buckets on which an action is allowed; all or none for one that is about neither."""
        return ANYWHERE if action == "open" else self._scopes[action]

    @cached_property
    def actions(self) -> tuple[Action, ...]:
        """Everything that is allowed somewhere."""
        return tuple(action for action in ACTIONS if action != "open" and self._scopes[action])

    @cached_property
    def _scopes(self) -> dict[Action, Scope]:
        found: dict[Action, Scope] = {action: _scope(action, self.policies) for action in ACTIONS if action != "open"}
        if self.pools is not None:
            for action, scope in found.items():
                if scope_kind(action) == "pool":
                    found[action] = Scope(names=frozenset(pool for pool in self.pools if pool in scope))
        return found


ANYWHERE: Final = Scope(all=True)
_NONE: Final = Scope()


def _scope(action: Action, policies: Iterable[Policy]) -> Scope:
    found = [resource for policy in policies if policy.grants(action) for resource in policy.resources]
    kind = scope_kind(action)
    if "*" in found or (kind and f"{kind}/*" in found):
        return ANYWHERE
    if not kind:
        return _NONE
    names = [resource.removeprefix(f"{kind}/") for resource in found if resource.startswith(f"{kind}/")]
    return Scope(
        names=frozenset(name for name in names if not name.endswith("*")),
        prefixes=tuple(sorted({name[:-1] for name in names if name.endswith("*")})),
    )


def _fits(pattern: str, text: str) -> bool:
    """Whether a text is what a pattern says, in which ``*`` is any text; in time that no pattern makes long."""
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    last = rest.pop()
    if not text.startswith(first) or len(text) < len(first) + len(last) or not text.endswith(last):
        return False
    place, end = len(first), len(text) - len(last)
    for part in rest:
        place = text.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True


BUILT_IN: Final[Mapping[str, Role]] = {
    role.name: role
    for role in (
        Role("osmo-admin", "Everything", (Policy(("*",)),)),
        Role(
            "osmo-user",
            "Submits workflows and works with datasets, in all pools and buckets",
            (
                Policy(
                    (
                        *("profile:Own", "credential:Own", "token:Own", "pool:Read", "app:Read", "app:Write"),
                        *("workflow:Read", "workflow:Create", "workflow:Change", "workflow:Exec"),
                        *("dataset:Read", "dataset:Write", "dataset:Delete", "server:Read"),
                    )
                ),
            ),
        ),
        Role(
            "osmo-viewer",
            "Looks at pools, workflows, apps and datasets",
            (
                Policy(
                    (
                        "profile:Own",
                        "token:Own",
                        "pool:Read",
                        "workflow:Read",
                        "app:Read",
                        "dataset:Read",
                        "server:Read",
                    )
                ),
            ),
        ),
    )
}
"""The roles that every server has; a declared role can't have the name of one."""

EVERYTHING: Final = Grants(("osmo-admin",), BUILT_IN["osmo-admin"].policies)
NOTHING: Final = Grants()


def grants_of(names: Iterable[str], declared: Mapping[str, Role] | None = None) -> Grants:
    """What roles grant together; the name of a role that does not exist (any more) grants nothing."""
    roles = tuple(sorted(set(names)))
    found = [BUILT_IN.get(name) or (declared or {}).get(name) for name in roles]
    return Grants(roles, tuple(policy for role in found if role is not None for policy in role.policies))


def parse_role(name: str, raw: object) -> Role:
    """A role as a ``ROLE`` configuration declares it: ``{description, policies: [{actions, resources}]}``.

    Raises ``UsageError`` for anything else. What would take rights away is an error, not ignored.
    """
    if not ROLE_NAME.fullmatch(name):
        raise UsageError(f"'{name[:100]}' is not the name of a role", hint="Letters, digits and . _ : - only.")
    if name in BUILT_IN:
        raise UsageError(f"The role {name} is built in and can't be declared", hint="Choose another name.")
    fields = _mapping(raw, f"role {name}", {"name", "description", "policies"})
    policies = fields.get("policies", [])
    if not isinstance(policies, list) or len(policies) > _MAX_POLICIES:
        raise UsageError(f"role {name}: policies must be a list of at most {_MAX_POLICIES}")
    return Role(
        name,
        str(fields.get("description") or ""),
        tuple(_parse_policy(policy, f"role {name}: policies[{number}]") for number, policy in enumerate(policies)),
    )


def _parse_policy(raw: object, where: str) -> Policy:
    fields = _mapping(raw, where, {"actions", "resources"})
    actions = _strings(fields.get("actions"), f"{where}.actions")
    for pattern in actions:
        if not _PATTERN.fullmatch(pattern) or not any(_fits(pattern, action) for action in ACTIONS[1:]):
            raise UsageError(f"{where}: there is no action '{pattern[:100]}'", hint=f"Known: {', '.join(ACTIONS[1:])}")
    resources = _strings(fields.get("resources", ["*"]), f"{where}.resources")
    for resource in resources:
        if not _RESOURCE.fullmatch(resource):
            raise UsageError(
                f"{where}: '{resource[:100]}' is not a resource",
                hint="Write *, pool/NAME, pool/PREFIX* or bucket/NAME.",
            )
    return Policy(actions, resources)


def _mapping(raw: object, where: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise UsageError(f"{where} must be a mapping of keys to values")
    unknown = sorted(set(map(str, raw)) - known)
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0][:100]}", hint=f"Known: {', '.join(sorted(known))}")
    return raw


def _strings(raw: object, where: str) -> tuple[str, ...]:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not 0 < len(raw) <= _MAX_PATTERNS:
        raise UsageError(f"{where} must be a list of 1 to {_MAX_PATTERNS} texts")
    if not all(isinstance(one, str) for one in raw):
        raise UsageError(f"{where} must be a list of texts")
    return tuple(raw)
