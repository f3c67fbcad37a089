"""A writer of chunks for work that may be interrupted and done again.

Decided here and only here: that such work keeps a journal while it runs, adopts the packs that earlier work left
behind, and lets go of both in the end; and when a content that was stored before may be relied on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from casstore.errors import CasstoreError
from casstore.format.manifest import check_list, list_records
from casstore.model import Content
from casstore.repo.hold import Hold
from casstore.repo.packs import places_of, read_footer
from casstore.repo.store import Store
from casstore.repo.writer import Writer
from casstore.transfer import journal as journals
from casstore.transfer.journal import Journal

__all__ = ["carry_over", "is_stored", "writing"]


@contextlib.contextmanager
def writing(
    store: Store, *, lanes: int, state_dir: str | None, dataset: str, hold: Hold | None = None
) -> Iterator[Writer]:
    """A writer for the block. ``state_dir`` is where the journal is kept; None for none.

    When the block fails the journal stays, and the next work on this machine adopts what is durable. ``hold`` learns
    which packs the work relies on; without one nothing may be committed.
    """
    journal = Journal.create(state_dir, store.id, dataset) if state_dir else None
    own = Hold(store, dataset=dataset) if hold is None else hold
    try:
        with own.writer(lanes=lanes, on_pack=journal.add if journal else None) as writer:
            adopted = _adopt(store, writer, state_dir) if state_dir else []
            yield writer
            own.rely(writer.packs.used)
            for left in adopted:
                journals.discard(left)
    except BaseException:
        if journal:
            journal.close()
        raise
    else:
        if journal:
            journal.finish()
    finally:
        if hold is None:
            own.close()


def _adopt(store: Store, writer: Writer, state_dir: str) -> list[journals.Unfinished]:
    """Make the packs of interrupted uploads known; returns the journals that are done with."""
    adopted = list(journals.unfinished(state_dir, store.id))
    if any(upload.packs for upload in adopted):
        indexed = store.index.pack_ids()
        for upload in adopted:
            for pack_id in upload.packs:
                if pack_id not in indexed and pack_id not in writer.dying:
                    try:
                        writer.adopt(places_of(pack_id, read_footer(store.backend, pack_id)))
                    except CasstoreError:
                        continue  # lost or damaged: its chunks are stored again
        writer.flush()
    return adopted


def is_stored(store: Store, writer: Writer, content: Content, size: int, *, referred: bool = False) -> bool:
    """Whether the store really has all chunks of a file of ``size`` bytes, and the list of them can be right.

    With ``referred`` chunks count that are only referred to: of what another version refers to, too.
    """
    known = writer.present if referred else writer.known
    pending = [(content.depth, content.refs, size)] if size or content.refs else []
    try:
        while pending:
            depth, refs, length = pending.pop()
            check_list(depth, refs, length)
            for chunk_id, part in list_records(depth, refs):
                if not known(chunk_id):
                    return False
                if depth:
                    pending.append((depth - 1, store.read_chunk(chunk_id), part))
    except CasstoreError:
        return False
    return True


def carry_over(store: Store, writer: Writer, content: Content, size: int) -> bool:
    """The same for a file of another version, which may refer to what that one refers to; what is there of it, but is
    being deleted, is stored anew.

    So it is with the chunks of a version that is kept while they are moved to other packs.
    """
    if is_stored(store, writer, content, size, referred=True):
        return True
    lane = writer.lane()
    pending = [(content.depth, content.refs, size)]
    try:
        while pending:
            depth, refs, length = pending.pop()
            check_list(depth, refs, length)
            for chunk_id, part in list_records(depth, refs):
                if depth:
                    node = store.read_chunk(chunk_id)
                    writer.put_node(node)
                    pending.append((depth - 1, node, part))
                elif not writer.present(chunk_id):
                    (data,) = store.read_chunks([(chunk_id, part)])
                    lane.add(data)
    except CasstoreError:
        return False
    return True
