"""From a declared bucket to its open store.

Decided here and only here: with whose credentials a bucket of ``config.yaml`` is opened, and what is said when it has
no store.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from casstore.errors import IntegrityError, NotFoundError, UsageError

if TYPE_CHECKING:
    from casstore.config import BucketConfig, Config
    from casstore.remote.credentials import CredentialSource
    from casstore.repo.store import Store

__all__ = ["open_store"]


@contextlib.contextmanager
def open_store(
    bucket: BucketConfig, *, config: Config, create: bool = False, credentials: CredentialSource | None = None
) -> Iterator[Store]:
    """The store of a bucket, closed at the end of the block.

    ``credentials`` are those of ``config`` by default. ``create`` makes the folder and the store where there is none.
    """
    from casstore.backend.registry import open_backend  # noqa: PLC0415 - commands that open no store start sooner
    from casstore.remote.configured import ConfiguredCredentials  # noqa: PLC0415
    from casstore.repo.references import References  # noqa: PLC0415
    from casstore.repo.store import Store  # noqa: PLC0415

    credentials = credentials or ConfiguredCredentials(config.raw, config.paths.config_file)
    references = References(credentials, _allowed(config))
    try:
        backend = open_backend(bucket.url, create=create, credentials=credentials)
        try:
            store = Store.open(backend, create=create, references=references)
        except BaseException:
            backend.close()
            raise
    except IntegrityError as error:
        raise type(error)(
            f"bucket {bucket.name!r} at {bucket.url}: {error.message}",
            hint=error.hint or "make store.json anew with `osmo store repair`; the data itself is not touched by this",
        ) from None
    except NotFoundError as error:
        local = "is the disk mounted? " if bucket.url.startswith("file:") else ""
        raise NotFoundError(
            f"bucket {bucket.name!r} has no store at {bucket.url}: {error.message}",
            hint=(not local and error.hint) or f"{local}A new store is made with: osmo bucket add NAME URL",
        ) from None
    with store:
        yield store


def _allowed(config: Config) -> tuple[str, ...]:
    """The URLs below which references may lead."""
    from casstore.repo.references import allowed_prefixes  # noqa: PLC0415

    try:
        return allowed_prefixes(config.references)
    except UsageError as error:
        raise UsageError(f"{config.paths.config_file}: casstore.references: {error.message}", hint=error.hint) from None
