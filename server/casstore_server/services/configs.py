"""Configs: shown, changed, rolled back, compared.

Decided here and only here: what a change does to configs that are there (OSMO's rules: ``PUT`` of all adds and replaces
by name and removes nothing, ``PATCH`` merges, and null takes a field away), and that nothing is stored which could not
take effect as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from casstore.errors import CasstoreError, ConflictError, NotFoundError, UsageError
from casstore.wire.config import (
    TYPES,
    ConfigChange,
    ConfigHistory,
    DiffReply,
    Rollback,
    TagsChange,
)
from casstore_server.configs.effect import Stored, check_documents
from casstore_server.configs.masking import HAVE_SECRETS, Keeper, hide, ids, mask, mask_second
from casstore_server.configs.model import ServerConfig
from casstore_server.configs.shapes import checked, checked_name
from casstore_server.db.configs import ConfigRows, HistoryFilter, Note, Secrets
from casstore_server.identity.actions import BUILT_IN
from casstore_server.services import cluster, users
from casstore_server.services import config_documents as documents
from casstore_server.services.config_documents import DATASET
from casstore_server.services.context import Caller, Services

__all__ = [
    "diff",
    "forget",
    "history",
    "patch",
    "put",
    "remove",
    "rename",
    "rollback",
    "seed",
    "show",
    "show_one",
    "tag",
]

Changer = Callable[[dict[str, Any]], dict[str, Any]]
MAX_TEXT: Final = 4096
MAX_TAGS: Final = 50


def seed(rows: ConfigRows, owner: str) -> None:
    """Have a first revision of each type, so that there is something to come back to."""
    empty: dict[str, Any] = {kind: documents.empty(kind) for kind in TYPES}
    rows.seed(empty, Note(owner, "", "Initial configuration"))


def show(services: Services, caller: Caller, kind: str) -> Any:
    """All configs of a type, as they are in force; secrets are masked."""
    data = _current(services, kind)
    config = services.config.current()
    if kind in {"SERVICE", "WORKFLOW"}:
        return msgspec.to_builtins(checked(kind, "", mask(data)))
    if kind == DATASET:
        declared = {name: documents.bucket_of(config, name) for name in config.declared.buckets}
        return {"buckets": mask(data.get("buckets") or {}) | declared, "default_bucket": config.default_bucket}
    if kind == "POOL":
        declared = {
            name: dict(found or {}) | {documents.MANAGED: documents.FILE}
            for name, found in config.declared.pools.items()
        }
        undeclared = {name: {"description": pool.description} for name, pool in config.pools.items()}
        return {"pools": undeclared | data | declared}
    if kind == "ROLE":
        built_in = [documents.role_of(role) | {"immutable": True} for role in BUILT_IN.values()]
        return [*built_in, *({"name": name} | found for name, found in sorted(data.items()))]
    if kind == "BACKEND":
        return msgspec.to_builtins(cluster.backends(services, caller))
    return data


def show_one(services: Services, caller: Caller, kind: str, name: str) -> Any:
    """One config. ``NotFoundError``."""
    every = show(services, caller, kind)
    inner = every[documents.INNER[kind]] if kind in documents.INNER else every
    by_name = {one["name"]: one for one in inner} if isinstance(inner, list) else inner
    if name not in by_name:
        raise _missing(kind, name)
    return by_name[name]


def put(services: Services, caller: Caller, kind: str, name: str, change: ConfigChange) -> list[str]:
    """Set one config, or with an empty name those that are given; returns warnings."""
    given = documents.what_is_given(change)
    if name:
        made = _undeclared(
            services, kind, documents.around(kind, {checked_name(kind, name): documents.own_fields(kind, name, given)})
        )
        return _change(
            services, caller, kind, name, change, "Put complete", lambda old: documents.merged(kind, old, made)
        )
    several = _undeclared(services, kind, documents.several_of(kind, given))
    return _change(services, caller, kind, "", change, "Set", lambda old: documents.merged(kind, old, several))


def patch(services: Services, caller: Caller, kind: str, name: str, change: ConfigChange) -> list[str]:
    """Change fields; returns warnings."""
    given = documents.mapping_of(documents.what_is_given(change), kind)
    if not name:
        return _change(services, caller, kind, "", change, "Patched", lambda old: documents.patched(old, given))

    def changed(old: dict[str, Any]) -> dict[str, Any]:
        inner = documents.inner_of(kind, old)
        if name not in inner and kind not in {DATASET, "BACKEND"}:
            raise _missing(kind, name)
        one = documents.own_fields(kind, name, documents.patched(inner.get(name) or {}, given))
        return documents.merged(kind, old, documents.around(kind, {checked_name(kind, name): one}))

    return _change(services, caller, kind, name, change, "Patched", changed)


def remove(services: Services, caller: Caller, kind: str, name: str, change: ConfigChange) -> list[str]:
    """Take one config away."""
    config = services.config.current()
    declared = config.declared.buckets if kind == DATASET else config.declared.pools if kind == "POOL" else {}
    if name in declared:
        raise ConflictError(f"{name} is declared in the server's config.yaml", hint="Take it out there.")
    if kind == "POOL" and not change.force and services.database.live(name):
        raise ConflictError(
            f"Pool {name} has workflows that are not finished", hint=f"See: osmo workflow list --pool {name}"
        )

    def changed(old: dict[str, Any]) -> dict[str, Any]:
        inner = documents.inner_of(kind, old)
        if name not in inner:
            raise _missing(kind, name)
        rest = {key: value for key, value in inner.items() if key != name}
        if kind != DATASET:
            return rest
        return {**old, "buckets": rest} | ({"default_bucket": None} if old.get("default_bucket") == name else {})

    return _change(services, caller, kind, name, change, "Delete", changed)


def rename(services: Services, caller: Caller, pool: str, platform: str, change: ConfigChange) -> list[str]:
    """Give a pool, or a platform of it, another name."""
    new = checked_name("POOL", change.new_name or "")

    def moved(old: dict[str, Any], name: str) -> dict[str, Any]:
        if name not in old:
            raise _missing("POOL", name)
        if new in old:
            raise ConflictError(f"There is a {new} already")
        return {new if key == name else key: value for key, value in old.items()}

    def changed(old: dict[str, Any]) -> dict[str, Any]:
        if not platform:
            return moved(old, pool)
        if pool not in old:
            raise _missing("POOL", pool)
        body = dict(old[pool])
        body["platforms"] = moved(body.get("platforms") or {}, platform)
        if body.get("default_platform") == platform:
            body["default_platform"] = new
        return {**old, pool: body}

    return _change(services, caller, "POOL", pool, change, f"Rename to {new}:", changed)


def history(services: Services, wanted: HistoryFilter) -> ConfigHistory:
    """Revisions, secrets masked."""
    found = services.configs.rows.history(wanted)
    return ConfigHistory(configs=[documents.entry_of(one) for one in found])


def rollback(services: Services, caller: Caller, kind: str, wanted: Rollback) -> list[str]:
    """Make a new revision that is as an old one was."""
    old = services.configs.rows.get(kind, wanted.revision)
    said = f"Roll back {kind} to r{wanted.revision}"
    change = ConfigChange(description=f"{said}: {wanted.description}" if wanted.description else said, tags=wanted.tags)
    return _store(services, caller, kind, "", change, said, lambda _old, _secrets: old.data)


def diff(services: Services, kind: str, first: int, second: int) -> DiffReply:
    """Two revisions, and where a secret was changed."""
    one, other = services.configs.rows.get(kind, first), services.configs.rows.get(kind, second)
    return DiffReply(
        first_data=documents.on_wire(kind, mask(one.data)),
        second_data=documents.on_wire(kind, mask_second(one.data, other.data, second)),
    )


def tag(services: Services, kind: str, revision: int, change: TagsChange) -> None:
    """Change the tags of a revision."""
    add, drop = _tags(change.set_tags), _tags(change.delete_tags)
    if not add and not drop:
        raise UsageError("set_tags or delete_tags must name a tag")
    services.configs.rows.tag(kind, revision, add, drop)


def forget(services: Services, caller: Caller, kind: str, revision: int) -> None:
    """Take a revision out of the history."""
    services.configs.rows.hide(kind, revision, caller.user)


# --- changes


def _change(
    services: Services,
    caller: Caller,
    kind: str,
    name: str,
    change: ConfigChange,
    said: str,
    fn: Changer,
) -> list[str]:
    """As ``_store``; ``fn`` works with stars in place of secrets."""

    def changed(old: Any, secrets: Keeper) -> Any:
        before = mask(old)
        new = fn(before)
        if kind == DATASET:
            documents.nothing_leaves(before, new)
        return hide(new, old, secrets) if kind in HAVE_SECRETS else new

    words = " ".join(filter(None, (said, kind.lower(), name)))
    return _store(services, caller, kind, name, change, words, changed)


def _store(
    services: Services,
    caller: Caller,
    kind: str,
    name: str,
    change: ConfigChange,
    said: str,
    fn: Callable[[Any, Any], Any],
) -> list[str]:
    if kind == DATASET:
        services.configs.stored.forget()
        _prepare_buckets(services, services.configs.stored(), fn)
    warnings: list[str] = []

    def changed(old: Any, secrets: Secrets) -> Any:
        services.configs.stored.forget()  # nobody else changes any now: what is there stays while this is checked
        new = fn(old, secrets)
        _see_that_it_works(services, services.configs.stored(), kind, old, new)
        _keep_roles(caller, kind, old, new)
        warnings.extend(documents.without_effect(kind, old, new))
        return new

    description = (change.description or said)[:MAX_TEXT]
    note = Note(caller.user, name, description, _tags(change.tags))
    services.configs.rows.change(kind, note, changed, expected=change.revision, empty=documents.empty(kind))
    services.configs.stored.forget()
    services.config.last_good()
    return warnings


class _Unkept:
    """What would be kept, by itself."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def keep(self, value: str, old: str | None) -> str:
        """See ``Secrets``."""
        key = f"new-{len(self.found)}"
        self.found[key] = value
        return key


def _prepare_buckets(services: Services, known: Stored, fn: Callable[[Any, Any], Any]) -> None:
    """Open each bucket that is new, or is elsewhere than before, with the credential that it will have: before anything
    is locked, for it may take a while. Raises why one can't be.
    """
    unkept = _Unkept()
    docs = {
        **known.docs,
        DATASET: fn(known.docs.get(DATASET) or documents.empty(DATASET), unkept),
    }
    before = services.config.last_good().buckets
    kept = services.configs.rows.opened(set(ids(docs[DATASET])) - unkept.found.keys())
    after = services.config.trial(Stored(("trial",), docs, kept | unkept.found)).buckets
    for name, bucket in after.items():
        old = before.get(name)
        if old is None or (old.url, old.credential) != (bucket.url, bucket.credential):
            try:
                services.stores.prepare(bucket)
            except CasstoreError as error:
                raise type(error)(f"Bucket {name} can't be used: {error.message}", hint=error.hint) from None


def _see_that_it_works(services: Services, known: Stored, kind: str, old: Any, new: Any) -> None:
    """Raise ``UsageError`` unless what is stored next could take effect as a whole."""
    docs = {**known.docs, kind: new}
    check_documents(docs)
    if kind == "BACKEND":
        names = _backend_names(services.config.last_good())
        for name in new:
            if name not in names:
                raise NotFoundError(f"There is no backend {name}", hint=f"Pools name: {', '.join(names)}")
    wanted = set(ids(docs.get(DATASET)))
    opened = known.secrets if kind != DATASET else dict.fromkeys(wanted, "x")
    trial = services.config.trial(Stored(("trial",), docs, opened))
    for name in documents.inner_of(kind, old) if kind == "POOL" else ():
        if name not in documents.inner_of(kind, new) and services.database.live(name) and name not in trial.pools:
            raise ConflictError(f"Pool {name} has workflows that are not finished")


def _keep_roles(caller: Caller, kind: str, old: Any, new: Any) -> None:
    for name in {**old, **new} if kind == "ROLE" else ():
        if name in BUILT_IN:
            raise ConflictError(f"The role {name} is built in", hint="Choose another name.")
        users.check_declared(caller, name, old.get(name), new.get(name))


def _undeclared(services: Services, kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """Without those that ``config.yaml`` declares, which come back as they were shown."""
    config = services.config.current()
    if kind == "POOL":
        declared = {
            name: dict(found or {}) | {documents.MANAGED: documents.FILE}
            for name, found in config.declared.pools.items()
        }
        return {name: documents.unmanaged(found) for name, found in given.items() if declared.get(name) != found}
    if kind == DATASET and isinstance(given.get("buckets"), Mapping):
        declared = {name: documents.bucket_of(config, name) for name in config.declared.buckets}
        own = {name: found for name, found in given["buckets"].items() if declared.get(name) != found}
        return {**given, "buckets": own}
    return given


def _tags(given: Sequence[str] | None) -> list[str]:
    tags = list(dict.fromkeys(given or ()))
    if len(tags) > MAX_TAGS or any(not tag or len(tag) > 255 for tag in tags):
        raise UsageError(f"A revision has at most {MAX_TAGS} tags of 1 to 255 characters")
    return tags


def _current(services: Services, kind: str) -> Any:
    found = services.configs.rows.current(kind)
    return documents.empty(kind) if found is None else found.data


def _backend_names(config: ServerConfig) -> list[str]:
    return sorted({pool.backend for pool in config.pools.values()})


def _missing(kind: str, name: str) -> CasstoreError:
    return NotFoundError(f"There is no {kind} {name}", hint=f"See: osmo config show {kind}")
