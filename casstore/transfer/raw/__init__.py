"""Files to and from object storage as they are: no store, no versions, one object for each file."""

from casstore.transfer.raw.access import ACCESS_TYPES, check_access, check_credential
from casstore.transfer.raw.crew import DEFAULT_THREADS
from casstore.transfer.raw.delete import Doomed, delete_objects, look_before_deleting
from casstore.transfer.raw.fetch import download
from casstore.transfer.raw.listing import Found, Place, open_place
from casstore.transfer.raw.result import Failure, Result
from casstore.transfer.raw.send import upload
from casstore.transfer.raw.sources import Source, parse_sources

__all__ = [
    "ACCESS_TYPES",
    "DEFAULT_THREADS",
    "Doomed",
    "Failure",
    "Found",
    "Place",
    "Result",
    "Source",
    "check_access",
    "check_credential",
    "delete_objects",
    "download",
    "look_before_deleting",
    "open_place",
    "parse_sources",
    "upload",
]
