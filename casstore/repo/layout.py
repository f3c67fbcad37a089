"""Where each kind of object is in a bucket.

Decided here and only here: the keys, and which names and ids may be part of one. ``docs/format/layout.md``
tells what stands behind each.
"""

from __future__ import annotations

import base64
import os
import re

from casstore import hashing
from casstore.errors import FormatError, UsageError

STORE = "store.json"
PACKS = "packs/"
INDEX = "index/"
MANIFESTS = "manifests/"
NAMES = "names/"
DATASETS = "datasets/"
LEASES = "leases/"
TRASH = "trash/"
EXCHANGE = "exchange/"
INCOMING = "incoming/"
"""What clients of a server have put into the bucket, and the server has not looked at yet."""

MAX_NAME = 200
"""Characters in the name of a dataset, and in a tag."""

_NAME = re.compile(r"[A-Za-z0-9_-]+\Z", re.ASCII)
_DATASET_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{21}\Z", re.ASCII)
# A key must not have a component that starts with a dash, a name may; no name holds a dot.
_DASHED = "_."
_RANDOM_ID = re.compile(r"[0-9a-f]{32}\Z", re.ASCII)
_MAX_DIGITS = 12


def pack_key(pack_id: bytes) -> str:
    """Key of a pack."""
    name = pack_id.hex()
    return f"{PACKS}{name[:2]}/{name}"


def index_key(segment_id: bytes) -> str:
    """Key of an index segment."""
    return INDEX + segment_id.hex()


def manifest_key(manifest_id: bytes) -> str:
    """Key of the root of a manifest."""
    name = manifest_id.hex()
    return f"{MANIFESTS}{name[:2]}/{name}"


def id_of(key: str) -> bytes:
    """Return the id that an object is named by; ``FormatError`` when the key names none."""
    return hashing.from_hex(key.rpartition("/")[2])


def is_name(name: str) -> bool:
    """Whether this may be the name of a dataset or collection: ASCII letters, digits, ``_`` and ``-``."""
    return len(name) <= MAX_NAME and _NAME.match(name) is not None


def name_key(name: str) -> str:
    """Key of the record that maps a dataset's name to its id; ``UsageError`` for an illegal name."""
    if not is_name(name):
        raise UsageError(
            f"illegal name {name[:MAX_NAME]!r}",
            hint=f"use letters, digits, '_' and '-', at most {MAX_NAME} of them",
        )
    return f"{NAMES}{_DASHED if name.startswith('-') else ''}{name}"


def name_of(key: str) -> str:
    """Return the name whose record this key is; ``FormatError`` when it is none."""
    name = key.removeprefix(NAMES)
    if name.startswith(_DASHED):
        name = name.removeprefix(_DASHED)
    if not is_name(name) or name_key(name) != key:
        raise FormatError(f"{key} does not belong here: it is not the record of a name")
    return name


def new_dataset_id() -> str:
    """Return a fresh random id: 22 characters of URL-safe base64, as OSMO's."""
    while True:
        text = base64.urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode("ascii")
        if is_dataset_id(text):
            return text


def is_dataset_id(text: str) -> bool:
    """Whether this is the id of a dataset, and so may become part of a key."""
    return _DATASET_ID.match(text) is not None


def _dataset(dataset_id: str) -> str:
    if not is_dataset_id(dataset_id):
        raise FormatError(f"illegal dataset id {dataset_id[:40]!r}")
    return DATASETS + dataset_id


def head_key(dataset_id: str) -> str:
    """Key of the head of a dataset."""
    return f"{_dataset(dataset_id)}/head"


def versions_prefix(dataset_id: str) -> str:
    """Prefix of the records of a dataset's versions."""
    return f"{_dataset(dataset_id)}/versions/"


def version_key(dataset_id: str, number: int) -> str:
    """Key of the record of one version."""
    return f"{versions_prefix(dataset_id)}{number}"


def version_number(key: str) -> int:
    """Return the number of the version that this key names."""
    digits = key.rpartition("/")[2]
    if not digits.isascii() or not digits.isdigit() or digits.startswith("0") or len(digits) > _MAX_DIGITS:
        raise FormatError(f"{key} does not name a version")
    return int(digits)


def new_id() -> str:
    """Return a fresh random id of a lease or of a record of what is being deleted: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def is_id(text: str) -> bool:
    """Whether this is an id of ``new_id``."""
    return _RANDOM_ID.match(text) is not None


def lease_key(lease_id: str) -> str:
    """Key of a lease."""
    return LEASES + _random_id(lease_id)


def incoming_key(incoming_id: str) -> str:
    """Key of what a client of a server has put into the bucket."""
    return INCOMING + _random_id(incoming_id)


def trash_key(trash_id: str) -> str:
    """Key of a record of what is being deleted."""
    return TRASH + _random_id(trash_id)


def random_id(key: str) -> str:
    """Return the id in the key of a lease or of a record of what is being deleted; ``FormatError`` for another key."""
    return _random_id(key.rpartition("/")[2])


def _random_id(text: str) -> str:
    if not _RANDOM_ID.match(text):
        raise FormatError(f"illegal id {text[:40]!r}")
    return text
