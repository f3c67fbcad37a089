"""Setting and deleting tags.

Decided here and only here: that a tag is on one version of its dataset, that setting it moves it, and that deleting it
from another version than the one it is on is a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from casstore.dataset.catalog import Catalog, require_dataset
from casstore.dataset.ref import check_tag
from casstore.dataset.summary import Version
from casstore.errors import NotFoundError
from casstore.model import Head
from casstore.repo.refs import Refs

__all__ = ["change_tags"]


def change_tags(
    refs: Refs,
    catalog: Catalog,
    name: str,
    *,
    set: Sequence[str],  # noqa: A002 - the word of the command
    delete: Sequence[str],
    tag: str | None,
) -> Version:
    """Delete tags from a version, then set tags on it. See ``Bucket.update_tags``."""
    for text in [*set, *delete]:
        check_tag(text)
    head = require_dataset(refs.find(name), to="tag")

    def change(head: Head) -> Head:
        number, _ = catalog.number_of(head, tag)
        tags = dict(head.tags)
        for text in delete:
            if tags.pop(text, None) != number:
                there = head.tags.get(text)
                raise NotFoundError(
                    f"the tag {text!r} is not on version {number} of {name!r}",
                    hint=f"it is on version {there}: name that one" if there else "no version has it",
                )
        tags.update(dict.fromkeys(set, number))
        return head if tags == head.tags else msgspec.structs.replace(head, tags=tags)

    number, _ = catalog.number_of(head, tag)
    head = refs.update_head(head.id, change)
    return catalog.resolve(head, str(number))
