"""Secrets in configs: where they are, what stands for them in the database, and what in replies.

Decided here and only here: which fields hold a secret (by name, in configs of the types that have any); that the
database has the id of one (``{"$secret": id}``) in its place and replies have stars; and that stars which come back
leave a secret as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from casstore.errors import UsageError
from casstore.wire.config import MASK

__all__ = ["HAVE_SECRETS", "Keeper", "hide", "ids", "mask", "mask_second", "reveal"]

HAVE_SECRETS: Final = frozenset({"DATASET", "SERVICE", "WORKFLOW"})
_NAMES: Final = frozenset({
    "access_key", "session_token", "auth", "password", "passphrase", "secret", "client_secret", "private_key", "token",
    "slack_token", "api_key", "webhook_url",
})  # fmt: skip
_REFERENCE: Final = "$secret"


class Keeper(Protocol):
    """Keeps secrets."""

    def keep(self, value: str, old: str | None) -> str:
        """The id for a secret; ``old`` is that of the one before it."""


def hide(new: Any, old: Any, keeper: Keeper, name: str = "") -> Any:
    """``new`` with ids for secrets; ``old`` is what was there, with ids. ``UsageError`` for stars out of place."""
    if isinstance(new, Mapping):
        if _REFERENCE in new:  # nobody gets a secret by its id
            raise UsageError(f"{name}: {_REFERENCE} is no name for a field")
        before = old if isinstance(old, Mapping) else {}
        return {key: hide(value, before.get(key), keeper, str(key)) for key, value in new.items()}
    if isinstance(new, list):
        rest = old if isinstance(old, list) else []
        return [hide(value, rest[at] if at < len(rest) else None, keeper, name) for at, value in enumerate(new)]
    if not isinstance(new, str) or not new:
        return new
    known = _reference(old)
    if new == MASK:
        if known is None:
            raise UsageError(
                f"{name}: {MASK} stands for a secret that is kept, and there is none", hint="Write it out."
            )
        return {_REFERENCE: known}
    return {_REFERENCE: keeper.keep(new, known)} if name in _NAMES else new


def mask(data: Any) -> Any:
    """The same with stars for secrets."""
    return _replaced(data, lambda _: MASK)


def reveal(data: Any, opened: Mapping[str, str]) -> Any:
    """The same with the secrets themselves; empty where one is gone."""
    return _replaced(data, lambda secret: opened.get(secret, ""))


def mask_second(first: Any, second: Any, revision: int) -> Any:
    """The second of two with stars, which say where a secret is another one than in the first."""
    known = _reference(second)
    if known is not None:
        before = _reference(first)
        return MASK if before in {None, known} else f"{MASK} <secret changed in r{revision}>"
    if isinstance(second, Mapping):
        old = first if isinstance(first, Mapping) else {}
        return {key: mask_second(old.get(key), value, revision) for key, value in second.items()}
    if isinstance(second, list):
        rest = first if isinstance(first, list) else []
        return [mask_second(rest[at] if at < len(rest) else None, value, revision) for at, value in enumerate(second)]
    return second


def ids(data: Any) -> Iterator[str]:
    """The ids of all secrets in it."""
    known = _reference(data)
    if known is not None:
        yield known
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from ids(value)
    elif isinstance(data, list):
        for value in data:
            yield from ids(value)


def _reference(data: Any) -> str | None:
    if isinstance(data, Mapping) and data.keys() == {_REFERENCE} and isinstance(data[_REFERENCE], str):
        return str(data[_REFERENCE])
    return None


def _replaced(data: Any, by: Any) -> Any:
    known = _reference(data)
    if known is not None:
        return by(known)
    if isinstance(data, Mapping):
        return {key: _replaced(value, by) for key, value in data.items()}
    return [_replaced(value, by) for value in data] if isinstance(data, list) else data
