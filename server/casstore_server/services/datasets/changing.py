"""Changes of datasets and collections that move no data.

Decided here and only here: what OSMO's client may take for done though there was nothing to do (a tag or key to delete
that is not there; it is told in a warning), and that a version which is deleted leaves its collections: the client has
asked its user about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casstore.dataset import Bucket
from casstore.dataset.attributes import parse_key
from casstore.dataset.ref import check_name, check_tag, parse_ref
from casstore.dataset.summary import MemberInfo
from casstore.errors import NotFoundError, UsageError
from casstore.model import DatasetType, Head
from casstore.wire.dataset import (
    AttributeBody,
    AttributeReply,
    CollectBody,
    DatasetName,
    DeleteReply,
    MemberVersion,
    RecollectBody,
    RecollectReply,
    TagReply,
    TreeReply,
)
from casstore_server.services.context import Caller, Services
from casstore_server.services.datasets.access import open_bucket

__all__ = ["Change", "change", "collect", "delete", "recollect"]

_MOST_MEMBERS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a request wants to have changed."""

    tag: str | None
    new_name: str | None
    set_tags: Sequence[str]
    delete_tags: Sequence[str]
    delete_labels: Sequence[str]
    delete_metadata: Sequence[str]
    body: AttributeBody


def change(
    services: Services, caller: Caller, bucket_name: str, name: str, wanted: Change
) -> tuple[AttributeReply, list[str]]:
    """Rename, tag, label, and edit metadata, in this order; also what there was nothing to do about."""
    bucket = open_bucket(services, caller, bucket_name, write=True)
    head = bucket.refs.find(name)
    about_versions = wanted.set_tags or wanted.delete_tags or wanted.body.set_metadata or wanted.delete_metadata
    if head.type == DatasetType.COLLECTION and about_versions:
        raise UsageError(f"{name} is a collection: it has no tags and no metadata")
    for text in [*wanted.set_tags, *wanted.delete_tags]:
        check_tag(text)
    try:
        return _changed(bucket, name, head, wanted)
    finally:  # what was done before something failed is done
        services.index.changed(bucket_name, *dict.fromkeys([wanted.new_name or name, name]))


def _changed(bucket: Bucket, name: str, head: Head, wanted: Change) -> tuple[AttributeReply, list[str]]:
    reply = AttributeReply()
    warnings: list[str] = []
    if wanted.new_name:
        bucket.rename(name, check_name(wanted.new_name))
        name = wanted.new_name
    if wanted.set_tags or wanted.delete_tags:
        reply.tag_response = _tag(bucket, name, wanted, warnings)
    if wanted.body.set_label or wanted.delete_labels:
        keys = _there(wanted.delete_labels, head.labels, f"The labels of {name}", warnings)
        labels = bucket.update_labels(name, set=wanted.body.set_label, delete=keys)
        reply.label_response = TreeReply(metadata=labels)
    if wanted.body.set_metadata or wanted.delete_metadata:
        version = bucket.resolve(name, wanted.tag)
        keys = _there(wanted.delete_metadata, version.metadata, f"The metadata of {version}", warnings)
        metadata = bucket.update_metadata(name, str(version.number), set=wanted.body.set_metadata, delete=keys)
        reply.metadata_response = TreeReply(metadata=metadata)
    return reply, warnings


def _tag(bucket: Bucket, name: str, wanted: Change, warnings: list[str]) -> TagReply:
    version = bucket.resolve(name, wanted.tag)
    elsewhere = [text for text in wanted.delete_tags if text not in version.tags]
    warnings += [f"The tag {text} is not on {version}" for text in elsewhere]
    known = [text for text in wanted.delete_tags if text in version.tags]
    version = bucket.update_tags(name, set=wanted.set_tags, delete=known, tag=str(version.number))
    return TagReply(version_id=str(version.number), tags=list(version.tags))


def _there(keys: Sequence[str], tree: Mapping[str, Any], what: str, warnings: list[str]) -> list[str]:
    """Those of the dotted keys that a tree has, and no key below another."""
    found: list[str] = []
    for key in dict.fromkeys(keys):
        at: Any = tree
        for part in parse_key(key):
            at = at.get(part, _ABSENT) if isinstance(at, Mapping) else _ABSENT
        if at is _ABSENT:
            warnings.append(f"{what} have no key {key}")
        elif not any(key.startswith(f"{other}.") for other in keys):
            found.append(key)
    return found


_ABSENT = object()


def collect(services: Services, caller: Caller, bucket_name: str, name: str, body: CollectBody) -> None:
    """Make a collection."""
    bucket = open_bucket(services, caller, bucket_name, write=True)
    bucket.collect(name, _references(body.datasets))
    services.index.changed(bucket_name, name)


def recollect(services: Services, caller: Caller, bucket_name: str, name: str, body: RecollectBody) -> RecollectReply:
    """Change the members of a collection; without any it is gone."""
    bucket = open_bucket(services, caller, bucket_name, write=True)
    members: list[MemberInfo] = bucket.recollect(
        name, add=_references(body.add_datasets), remove=_references(body.remove_datasets)
    )
    services.index.changed(bucket_name, name)
    return RecollectReply(versions=[MemberVersion(dataset_name=one.name, version=str(one.number)) for one in members])


def _references(names: Sequence[DatasetName]) -> list[str]:
    if len(names) > _MOST_MEMBERS:
        raise UsageError(f"{len(names)} datasets are named; at most {_MOST_MEMBERS} are taken")
    return [str(parse_ref(f"{one.name}:{one.tag}" if one.tag else one.name)) for one in names]


def delete(
    services: Services,
    caller: Caller,
    bucket_name: str,
    name: str,
    *,
    tag: str | None,
    everything: bool,
    finish: bool,
) -> DeleteReply:
    """Delete a version, all of them, or a collection. ``finish`` comes after the client has deleted objects, which it
    is never asked to: what it speaks of has gone then.
    """
    bucket = open_bucket(services, caller, bucket_name, write=True)
    if finish:
        return _finished(bucket, name)
    single = bucket.refs.find(name).type == DatasetType.DATASET
    chosen = tag if single and not everything else None
    done = bucket.delete(name, tag=chosen, all_versions=everything and single, force=True)
    services.index.changed(bucket_name, name, *(one.name for one in done.collections))
    return DeleteReply(versions=[str(number) for number in reversed(done.versions)])


def _finished(bucket: Bucket, name: str) -> DeleteReply:
    try:
        bucket.refs.find(name)
    except NotFoundError:
        return DeleteReply()
    raise UsageError(f"{name} is there: delete its versions first")
