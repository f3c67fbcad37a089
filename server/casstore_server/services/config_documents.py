"""Configs on the wire and as they are stored: the shapes of each type, and how one becomes the other.

Decided here and only here: how configs of each type are shown and which shapes are taken back; what a merge patch
does; and that nobody who does not know a secret has it sent to another place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from casstore.errors import UsageError
from casstore.remote.urls import parse_url
from casstore.wire.config import MASK, NAMED, ConfigChange, ConfigEntry
from casstore.wire.protocol import to_iso
from casstore_server.configs.masking import mask
from casstore_server.configs.model import ServerConfig
from casstore_server.configs.shapes import WITHOUT_EFFECT, checked_name
from casstore_server.db.configs import Revision
from casstore_server.identity.actions import Role

DATASET: Final = "DATASET"
MANAGED: Final = "_managed_by"
FILE: Final = "config.yaml"
INNER: Final = {"POOL": "pools", DATASET: "buckets", "BACKEND": "backends"}
"""Types whose configs are shown within another object."""


def nothing_leaves(old: Any, new: Any) -> None:
    """Raise ``UsageError`` for a bucket that is moved to another service while its secret stays, in stars: whoever does
    not know a secret can't have it sent elsewhere.
    """
    for name, body in (new.get("buckets") or {}).items():
        before = (old.get("buckets") or {}).get(name)
        credential = body.get("default_credential") if isinstance(body, Mapping) else None
        if before is None or not isinstance(credential, Mapping) or MASK not in credential.values():
            continue
        if _service_of(before) != _service_of(body):
            raise UsageError(
                f"DATASET {name}: its secret would be sent elsewhere than before", hint="Write the credential out."
            )


def _service_of(body: Mapping[str, Any]) -> tuple[str, Any]:
    try:
        profile = parse_url(str(body.get("dataset_path"))).profile
    except UsageError:
        profile = ""
    credential = body.get("default_credential")
    return profile, credential.get("override_url") if isinstance(credential, Mapping) else None


def without_effect(kind: str, old: Any, new: Any) -> list[str]:
    """A line for each field that was set and does nothing here."""
    silent = WITHOUT_EFFECT.get(kind, frozenset())
    several = {"": new} if kind not in NAMED else inner_of(kind, new)
    before = {"": old} if kind not in NAMED else inner_of(kind, old)
    named = {
        field
        for name, after in several.items()
        for field in silent
        if isinstance(after, Mapping) and after.get(field) and after[field] != (before.get(name) or {}).get(field)
    }
    return [f"{field} is kept, and does nothing here" for field in sorted(named)]


def what_is_given(change: ConfigChange) -> Any:
    """The configs in a request. Raises ``UsageError`` when there are none."""
    found = change.configs if change.configs is not None else change.configs_dict
    if found is None:
        raise UsageError("configs (or configs_dict) is missing in the request")
    return found


def several_of(kind: str, given: Any) -> dict[str, Any]:
    """Several configs of a type, from any of the shapes in which they are shown."""
    if isinstance(given, Mapping) and kind in INNER and kind != DATASET:
        given = given.get(INNER[kind], given)
    if isinstance(given, list) and kind in NAMED:
        if not all(isinstance(one, Mapping) and isinstance(one.get("name"), str) for one in given):
            raise UsageError(f"{kind}: each of the list must have a name")
        given = {one["name"]: {key: value for key, value in one.items() if key != "name"} for one in given}
    found = mapping_of(given, kind)
    if kind in NAMED and kind != DATASET:
        return {checked_name(kind, name): own_fields(kind, name, one) for name, one in found.items()}
    return found


def unmanaged(found: Any) -> Any:
    """A config as it was shown, without the mark of ``config.yaml``."""
    return {key: value for key, value in found.items() if key != MANAGED} if isinstance(found, Mapping) else found


def around(kind: str, several: dict[str, Any]) -> dict[str, Any]:
    """Configs by name, as they are in the whole of their type."""
    return {"buckets": several} if kind == DATASET else several


def merged(kind: str, old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with the configs of ``new`` set, by name."""
    if kind == DATASET and isinstance(new.get("buckets"), Mapping):
        return {**old, **new, "buckets": {**(old.get("buckets") or {}), **new["buckets"]}}
    return {**old, **new}


def own_fields(kind: str, name: str, raw: Any) -> Any:
    """Without what only replies have."""
    if kind == "ROLE" and isinstance(raw, Mapping):
        if raw.get("name", name) != name:
            raise UsageError(f"ROLE {name}: its name is {raw['name']}")
        return {key: value for key, value in raw.items() if key not in {"name", "immutable", MANAGED}}
    return raw


def patched(old: Any, new: Any) -> Any:
    """RFC 7396, a JSON merge patch."""
    if not isinstance(new, Mapping):
        return new
    found = dict(old) if isinstance(old, Mapping) else {}
    for key, value in new.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = patched(found.get(key), value)
    return found


def empty(kind: str) -> dict[str, Any]:
    """What is stored of a type that has no configs."""
    return {"buckets": {}, "default_bucket": None} if kind == DATASET else {}


def inner_of(kind: str, data: Any) -> Mapping[str, Any]:
    """The configs of a type by name, from what is stored."""
    found: Mapping[str, Any] = (data.get("buckets") or {}) if kind == DATASET else data
    return found


def on_wire(kind: str, data: Any) -> Any:
    """What a revision holds, as the configs of its type are shown."""
    if kind == "POOL":
        return {"pools": data}
    if kind in {"ROLE", "BACKEND"}:
        return [{"name": name} | found for name, found in sorted(data.items())]
    return data


def entry_of(found: Revision) -> ConfigEntry:
    """A revision as it is shown."""
    return ConfigEntry(
        config_type=found.kind,
        name=found.name,
        revision=found.revision,
        username=found.author,
        created_at=to_iso(found.created) or "",
        description=found.description,
        tags=list(found.tags) or None,
        data=None if found.data is None else on_wire(found.kind, mask(found.data)),
    )


def mapping_of(given: Any, kind: str) -> dict[str, Any]:
    """An object of the request. Raises ``UsageError`` for anything else."""
    if not isinstance(given, Mapping):
        raise UsageError(f"{kind}: expected an object of names and values")
    return dict(given)


def bucket_of(config: ServerConfig, name: str) -> dict[str, Any]:
    """A bucket of ``config.yaml`` as it is shown."""
    found = config.buckets[name]
    return {"dataset_path": found.url, "description": found.description, "mode": found.mode, MANAGED: FILE}


def role_of(role: Role) -> dict[str, Any]:
    """A role as it is shown."""
    policies = [{"actions": list(one.actions), "resources": list(one.resources)} for one in role.policies]
    return {"name": role.name, "description": role.description, "policies": policies}
