"""A ``store.json`` that is lost or damaged.

Decided here and only here: what a new one says. What the damaged one still says, as far as it makes sense: the id,
which this machine's state is kept under, and how chunks are cut. Where it says nothing, a new id and the usual cuts:
all data can be read, and what is uploaded may be stored once more. One that is whole and was written by a newer
version is left alone.
"""

from __future__ import annotations

import os
import re

import msgspec

from casstore.backend.base import Backend
from casstore.backend.probe import probe, refusal
from casstore.chunking.params import ChunkerParams
from casstore.errors import FormatError, IntegrityError, NotFoundError, UsageError
from casstore.format import record
from casstore.repo import layout
from casstore.repo.limits import bounded_get
from casstore.repo.repair.quarantine import Quarantine
from casstore.repo.single import FEATURE, new_token
from casstore.repo.store import FEATURES, FORMAT, MAX_CONFIG, StoreConfig

__all__ = ["config_problem", "write_config"]

_ID = re.compile(rb'"id":"([0-9a-f]{32})"')
_FEATURES = re.compile(rb'"features":\[((?:"[a-z-]{1,64}",?)*)\]')
_WRITER = re.compile(rb'"writer":"([0-9a-f]{64})"')
_HELD = (layout.DATASETS, layout.NAMES, layout.PACKS, layout.MANIFESTS, layout.INDEX)


def config_problem(backend: Backend) -> str | None:
    """Say what is wrong with ``store.json``, or None; also where there is no store at all.

    ``FormatError`` for one that is whole, but not understood.
    """
    try:
        data = bounded_get(backend, layout.STORE, MAX_CONFIG)
    except NotFoundError:
        return "it is missing" if _holds_store(backend) else None
    except IntegrityError as error:
        return error.message
    try:
        record.check("store", data)
    except FormatError as error:
        return error.message
    record.decode("store", data, StoreConfig)
    return None


def _holds_store(backend: Backend) -> bool:
    return any(next(iter(backend.list(prefix)), None) is not None for prefix in _HELD)


def write_config(backend: Backend) -> StoreConfig:
    """Replace ``store.json`` by one made of what is left of it, and return that."""
    try:
        old = bounded_get(backend, layout.STORE, MAX_CONFIG)
    except (NotFoundError, IntegrityError):
        old = b""
    found = _ID.search(old)
    config = StoreConfig(
        format=FORMAT,
        id=found.group(1).decode("ascii") if found else os.urandom(16).hex(),
        chunker=_chunker(old).to_dict(),
    )
    config = _with_features(backend, config, old)
    Quarantine(backend).keep(layout.STORE)
    backend.put(layout.STORE, [record.encode("store", config)])
    return config


def _with_features(backend: Backend, config: StoreConfig, old: bytes) -> StoreConfig:
    """Return the description with the features of the old one; what the place can do decides where it does not say."""
    found = _FEATURES.search(old)
    if found is not None:
        names = [name.strip('"') for name in found.group(1).decode("ascii").split(",") if name]
        if not FEATURES.issuperset(names):
            raise FormatError(
                "store.json names features that are unknown here", hint="repair it with the version that wrote it"
            )
        single = FEATURE in names
    elif backend.capabilities.probe:
        report = probe(backend)
        if not report.usable:
            raise refusal(report, backend.url)
        single = not report.conditional
    else:
        single = False
    if not single:
        return config
    writer = _WRITER.search(old)
    token = writer.group(1).decode("ascii") if writer else new_token(config.id)
    return msgspec.structs.replace(config, features=[FEATURE], writer=token)


def _chunker(old: bytes) -> ChunkerParams:
    sizes = [re.search(rb'"%b":(\d{1,9})[,}]' % name, old) for name in (b"min", b"avg", b"max")]
    low, average, high = (int(size.group(1)) if size else None for size in sizes)
    if low is not None and average is not None and high is not None:
        try:
            return ChunkerParams(min=low, avg=average, max=high)
        except UsageError:
            pass
    return ChunkerParams()
