"""What is in versions, what differs between them, where they come from; and new ones.

Decided here and only here: how a page of files is found again (by the entry that it ends with: a version never
changes), how far the search goes for what a version was used for, and what a version must be to be committed.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterator

from casstore.cache.files import content_id
from casstore.dataset import Bucket
from casstore.dataset.catalog import Catalog, require_dataset
from casstore.dataset.commit import Commit, until_made
from casstore.dataset.ref import parse_ref
from casstore.dataset.summary import Version
from casstore.errors import AccessError, CasstoreError, ConflictError, NotFoundError, UsageError
from casstore.format.manifest import MAX_PATH
from casstore.model import DatasetType, Entry, Kind, Totals, VersionRecord
from casstore.repo.hold import Hold
from casstore.repo.records import Records
from casstore.repo.tree import Tree
from casstore.transfer.progress import Silent
from casstore.transfer.upload import TreeResult
from casstore.wire.v1 import (
    Change,
    CommitBody,
    CommitReply,
    DiffReply,
    FileEntry,
    FilesReply,
    LineageReply,
    Origin,
    VersionName,
)
from casstore_server.services.context import Caller, Services
from casstore_server.services.v1.objects import bases_of
from casstore_server.services.v1.transfer import rights_of
from casstore_server.services.v1.trees import require_whole

__all__ = ["Opened", "commit", "diff", "files", "lineage", "open_version", "path_of"]

MOST_CHANGES = 10_000
"""Changes in one reply, at most."""
LOOKED_AT = 20_000
"""Versions that are searched for what came from one, at most."""
_STEP = 256


class Opened:
    """One version of a bucket, and its files."""

    def __init__(self, bucket: Bucket, version: Version) -> None:
        self.bucket = bucket
        self.version = version
        self.tree: Tree = bucket.tree(version)


def open_version(services: Services, caller: Caller, bucket: str, name: str, tag: str) -> Opened:
    """A version of a dataset that is ready. ``NotFoundError``."""
    found = services.stores.open(bucket, caller.user)
    return Opened(found, found.resolve(name, tag))


def named(version: Version) -> VersionName:
    """A version, as replies name it."""
    record = version.record
    return VersionName(
        name=version.dataset,
        version=str(record.number),
        checksum=record.checksum,
        manifest=record.manifest,
        created_at=record.created_at,
        created_by=record.created_by,
    )


def path_of(text: str, raw: str) -> bytes:
    """The path of an entry, from UTF-8 or, where it is none, from base64. ``UsageError``."""
    if not raw:
        return text.strip("/").encode("utf-8", "surrogateescape")[:MAX_PATH]
    try:
        return base64.b64decode(raw, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("raw is not base64") from None


# ---- files


def files(
    opened: Opened, path: bytes, *, prefix: bytes = b"", recursive: bool = False, cursor: str = "", count: int
) -> FilesReply:
    """Return a page of the entries of a folder whose names begin with ``prefix``, or of all that is below a folder.

    ``NotFoundError`` when there is no such folder. A page costs the parts of the tree that it is in.
    """
    if prefix and recursive:
        raise UsageError("prefix and recursive exclude each other")
    tree = opened.tree
    if path:
        top = tree.lookup(path)
        if top is None or top.kind != Kind.DIRECTORY:
            raise NotFoundError(f"{_shown(path)} is not a folder of {opened.version}")
    found = [*itertools.islice(_page(tree, path, prefix, _after(cursor), recursive=recursive), count + 1)]
    more = len(found) > count
    return FilesReply(
        version=named(opened.version),
        path=_shown(path),
        entries=[_entry(entry) for entry in found[:count]],
        cursor=base64.urlsafe_b64encode(found[count - 1].path).decode("ascii") if more else "",
    )


def _after(cursor: str) -> bytes:
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("the cursor is none of ours") from None


def _page(tree: Tree, path: bytes, prefix: bytes, after: bytes, *, recursive: bool) -> Iterator[Entry]:
    directory, name = (after.rpartition(b"/")[0], after.rpartition(b"/")[2]) if after else (path, prefix)
    if after and not _is_within(directory, path, recursive=recursive):
        raise UsageError("the cursor is of another folder")
    for entry in tree.entries_from(directory, name):
        if not _is_within(entry.parent, path, recursive=recursive):
            return
        if entry.path == after:
            continue
        if not entry.name.startswith(prefix):
            return  # names are in order
        yield entry


def _is_within(directory: bytes, path: bytes, *, recursive: bool) -> bool:
    if directory == path:
        return True
    return recursive and (not path or directory.startswith(path + b"/"))


def _entry(entry: Entry) -> FileEntry:
    path, raw = _text(entry.path)
    is_file = entry.kind == Kind.FILE
    return FileEntry(
        path=path,
        type=Kind(entry.kind).name.lower(),
        mode=entry.mode,
        mtime=entry.mtime_ns / 1e9,
        size=entry.size,
        digest=digest_of(entry) if is_file else "",
        target=_text(entry.target)[0],
        raw=raw,
    )


def digest_of(entry: Entry) -> str:
    """The digest of a file's content, in hexadecimal: equal for equal bytes in one store."""
    return content_id(entry.size, entry.content).hex()


def _text(data: bytes) -> tuple[str, str]:
    try:
        return data.decode(), ""
    except UnicodeDecodeError:
        return data.decode("utf-8", "backslashreplace"), base64.urlsafe_b64encode(data).decode("ascii")


def _shown(path: bytes) -> str:
    return _text(path)[0]


# ---- what differs


def diff(services: Services, caller: Caller, bucket_name: str, old: str, new: str, count: int) -> DiffReply:
    """Compare two versions, ``NAME[:TAG]`` each, of any datasets of the bucket."""
    bucket = services.stores.open(bucket_name, caller.user)
    before, after = (_resolved(bucket, bucket_name, text) for text in (old, new))
    key = ("diff", bucket.store.id, before.manifest, after.manifest)
    found = services.jobs.ask(key, lambda _: bucket.diff(before, after))
    if found is None:
        raise ConflictError(f"{before} and {after} are being compared, which takes a while", hint="Ask again.")
    return DiffReply(
        old=named(before),
        new=named(after),
        identical=found.identical,
        added=found.added,
        removed=found.removed,
        modified=found.modified,
        renamed=found.renamed,
        shared_bytes=found.shared_bytes,
        new_bytes=found.new_bytes,
        changes=[
            Change(
                status=change.status,
                path=_shown(change.path),
                old_path=None if change.old_path is None else _shown(change.old_path),
                type=change.kind.name.lower(),
                what=list(change.what),
                old_size=change.old_size,
                new_size=change.new_size,
            )
            for change in found.changes[:count]
        ],
        more=len(found.changes) > count,
    )


def _resolved(bucket: Bucket, name: str, text: str) -> Version:
    ref = parse_ref(text)
    if ref.bucket not in (None, name):
        raise UsageError("Versions in two buckets can't be compared", hint="Their chunks are not in one store.")
    return bucket.resolve(ref.name, ref.tag)


# ---- where a version comes from


def lineage(services: Services, caller: Caller, bucket_name: str, name: str, tag: str) -> LineageReply:
    """What a version was made from, and which versions of the bucket were made from it."""
    bucket = services.stores.open(bucket_name, caller.user)
    version = bucket.resolve(name, tag)
    found = services.jobs.ask(("lineage", bucket.store.id, str(version)), lambda _: _lineage(bucket, version))
    if found is None:
        raise ConflictError(f"The lineage of {version} is being looked for, which takes a while", hint="Ask again.")
    return found


def _lineage(bucket: Bucket, version: Version) -> LineageReply:
    bucket_name = bucket.name
    said = version.record.provenance
    catalog = Catalog(bucket.refs, bucket.name)
    used: list[Version] = []
    looked_at = 0
    more = False
    heads = [head for head in bucket.refs.heads(lambda _: None) if head.type == DatasetType.DATASET]
    for start in range(0, len(heads), _STEP):
        if looked_at >= LOOKED_AT:
            more = True
            break
        for versions in catalog.versions_of(heads[start : start + _STEP]):
            looked_at += len(versions)
            used += [one for one in versions if _is_from(one.record, version, bucket_name)]
    used.sort(key=lambda one: one.record.created_at)
    return LineageReply(
        version=named(version),
        made_by={key: value for key, value in said.items() if key != "inputs"},
        made_from=[_origin(bucket, bucket_name, note) for note in _inputs(version.record)],
        made_of_it=[named(one) for one in used],
        looked_at=looked_at,
        more=more,
    )


def _inputs(record: VersionRecord) -> list[dict[str, object]]:
    found = record.provenance.get("inputs")
    return [note for note in found if isinstance(note, dict)] if isinstance(found, list) else []


def _is_from(record: VersionRecord, version: Version, bucket_name: str) -> bool:
    """Whether a version was made from another one: by its digest, and by its name where no digest was noted."""
    for note in _inputs(record):
        known = note.get("manifest")
        if known == version.record.manifest:
            return True
        if not known and note.get("ref") in {f"{bucket_name}/{version}", str(version)}:
            return True
    return False


def _origin(bucket: Bucket, bucket_name: str, note: dict[str, object]) -> Origin:
    kind, ref, manifest = (str(note.get(key, "")) for key in ("kind", "ref", "manifest"))
    found: Version | None = None
    if kind == "dataset":
        try:
            parsed = parse_ref(ref)
            if parsed.bucket in (None, bucket_name):
                there = bucket.resolve(parsed.name, parsed.tag)
                found = there if there.record.manifest == manifest or not manifest else None
        except CasstoreError:
            found = None  # renamed, or deleted since
    return Origin(
        kind=kind,
        ref=ref,
        manifest=manifest,
        checksum=str(note.get("checksum", "")),
        version=None if found is None else named(found),
    )


# ---- a new version


def commit(services: Services, caller: Caller, bucket_name: str, name: str, body: CommitBody) -> CommitReply:
    """Make a version of a manifest that is in the store. ``UsageError`` when something of it is not."""
    if not rights_of(services, caller, bucket_name).write:
        raise AccessError(f"{caller.user} can't write to bucket {bucket_name}")
    bucket = services.stores.open(bucket_name, caller.user)
    tree = bucket.store.tree(bytes.fromhex(body.manifest))
    made = Commit(
        bucket.refs,
        Catalog(bucket.refs, bucket.name),
        name,
        caller.user,
        description=body.description or None,
        metadata=body.metadata,
        labels=body.labels,
        tag=body.tag or None,
        provenance=body.provenance,
        force=body.force,
    )
    records = Records(bucket.store.backend)

    def once(hold: Hold) -> CommitReply:
        try:
            bases = bases_of(records, require_dataset(bucket.refs.find(name), to="commit to"))
        except NotFoundError:
            bases = []
        record = VersionRecord(
            number=1,
            manifest=body.manifest,
            checksum=tree.checksum.hex(),
            totals=Totals(*tree.root.totals),
            created_at="",
            created_by=caller.user,
            write_id="",
        )
        hold.rely(require_whole(bucket.store, record, bases))
        done = made.finish(TreeResult(tree.id, tree.checksum, tree.totals), hold)
        services.index.changed(bucket_name, done.version.dataset_id)
        return CommitReply(version=named(done.version), created=done.created)

    return until_made(bucket.store, once, user=caller.user, dataset=name, progress=Silent())
