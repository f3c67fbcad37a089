"""From the sources of an upload or update to one tree.

Decided here and only here: what happens before a tree is read, and how local files and objects of storage services
become one: in runs of one kind, the last one first, each over what the others made, so that of equal paths the earlier
source wins.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec

from casstore.dataset.sources import RemoteSource, Select, refuse_store
from casstore.errors import SourceError
from casstore.repo.tree import Tree
from casstore.transfer.progress import Progress

if TYPE_CHECKING:
    from casstore.dataset.bucket import Bucket
    from casstore.repo.hold import Hold
    from casstore.transfer.scan import Source
    from casstore.transfer.upload import TreeResult

__all__ = ["memory_dir", "provenance", "transfer"]


def transfer(
    bucket: Bucket,
    name: str,
    sources: Sequence[Source | RemoteSource],
    *,
    base: Tree | None = None,
    keep: Select | None = None,
    select: Select | None = None,
    hold: Hold,
    threads: int | None,
    progress: Progress,
) -> TreeResult:
    """Store a tree; see ``upload_tree``. ``SourceError`` when an object can't be read."""
    local = [source for source in sources if not isinstance(source, RemoteSource)]
    refuse_store(sources, bucket.store.url)
    upload = functools.partial(_upload, bucket, name, select=select, hold=hold, threads=threads, progress=progress)
    if len(local) == len(sources):
        return upload(local, base=base, keep=keep)
    result: TreeResult | None = None
    for remote, group in reversed([(kind, list(run)) for kind, run in groupby(sources, _is_remote)]):
        if not remote:
            result = _both(upload([one for one in group if not isinstance(one, RemoteSource)], base, keep), result)
            base, keep = bucket.store.tree(result.manifest), None
            continue
        if keep is not None:
            result = _both(upload([], base, keep), result)
            base, keep = bucket.store.tree(result.manifest), None
        for source in reversed(group):
            if isinstance(source, RemoteSource):
                result = _both(_take_over(bucket, name, source, base, select, hold, threads, progress), result)
                base = bucket.store.tree(result.manifest)
    if result is None:
        raise ValueError("no sources")
    return result


def provenance(sources: Sequence[Source | RemoteSource], given: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a version's record says of where it comes from: what was given, and the URLs among the sources."""
    urls = [source.url for source in sources if isinstance(source, RemoteSource)]
    return {"urls": urls, **(given or {})} if urls else dict(given or {})


def _is_remote(source: Source | RemoteSource) -> bool:
    return isinstance(source, RemoteSource)


def _both(later: TreeResult, earlier: TreeResult | None) -> TreeResult:
    """The outcome of two steps: the tree of the later one, and what both of them did."""
    if earlier is None:
        return later
    return msgspec.structs.replace(
        later,
        new_bytes=later.new_bytes + earlier.new_bytes,
        new_chunks=later.new_chunks + earlier.new_chunks,
        files_read=later.files_read + earlier.files_read,
        reused=later.reused + earlier.reused,
        skipped=(*later.skipped, *earlier.skipped),
    )


def _upload(
    bucket: Bucket,
    name: str,
    sources: Sequence[Source],
    base: Tree | None,
    keep: Select | None,
    *,
    select: Select | None,
    hold: Hold,
    threads: int | None,
    progress: Progress,
) -> TreeResult:
    # Slow to load, and only commands that store something need them.
    from casstore.transfer.statcache import StatCache  # noqa: PLC0415
    from casstore.transfer.upload import upload_tree  # noqa: PLC0415

    folder = memory_dir(bucket)
    cache = StatCache(os.path.join(folder, "files.sqlite") if folder else None, bucket.store.id)
    try:
        return upload_tree(
            bucket.store,
            sources,
            base=base,
            keep=keep,
            select=select,
            cache=cache,
            state_dir=bucket.state_dir,
            dataset=name,
            hold=hold,
            progress=progress,
            threads=threads,
        )
    finally:
        cache.close()


def _take_over(
    bucket: Bucket,
    name: str,
    source: RemoteSource,
    base: Tree | None,
    select: Select | None,
    hold: Hold,
    threads: int | None,
    progress: Progress,
) -> TreeResult:
    from casstore.dataset.adopt.base import Buckets  # noqa: PLC0415 - storage services are slow to load
    from casstore.dataset.adopt.prefix import Prefix  # noqa: PLC0415
    from casstore.dataset.adopt.take import survey  # noqa: PLC0415
    from casstore.transfer.foreign import take_over  # noqa: PLC0415
    from casstore.transfer.memo import Memo  # noqa: PLC0415
    from casstore.transfer.spool import Spool  # noqa: PLC0415

    with (
        Buckets(bucket.credentials) as buckets,
        Memo(memory_dir(bucket), source.url, bucket.store.id, exclusive=False) as memo,
        Spool() as spool,
    ):
        prefix = Prefix(source.url, buckets, dest=source.dest, named=not source.contents)
        wanted: Callable[[bytes], bool] | None = None
        if select is not None:
            chosen = select
            wanted = lambda path: path == prefix.alone or chosen(path)  # noqa: E731
        found = survey(prefix, spool, select=wanted)
        progress.expect(found.files, found.size)
        problems = found.problems
        if not problems:
            taken = take_over(
                bucket.store,
                spool.entries(),
                buckets.client,
                memo=memo,
                base=base,
                state_dir=bucket.state_dir,
                dataset=name,
                hold=hold,
                progress=progress,
                threads=threads,
            )
            if taken.result is not None:
                return taken.result
            problems = [*taken.problems]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise SourceError(f"{problems[0].url}: {problems[0].message}{more}", hint="nothing was committed")


def memory_dir(bucket: Bucket) -> str | None:
    """Return the folder where it is remembered what was read before, made; None where there can be none."""
    from casstore.transfer.localfs import local_folder  # noqa: PLC0415 - as above

    folder = None if bucket.cache_dir is None else local_folder(bucket.cache_dir)
    if folder is None:
        return None
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return None  # then every file is read
    return folder
