"""``osmo dataset``: versioned datasets.

Decided here and only here: which commands there are. Each family has a module of its own, imported when it is used.
"""

from __future__ import annotations

import click

from casstore_cli.lazy import LazyGroup, Table

_HERE = "casstore_cli.commands.dataset"

COMMANDS: Table = {
    "upload": (f"{_HERE}.transfer", "upload", "Upload files as a new version."),
    "download": (f"{_HERE}.transfer", "download", "Download a version."),
    "status": (f"{_HERE}.checkout", "status", "Show what a downloaded folder is, and what was changed there."),
    "update": (f"{_HERE}.transfer", "update", "Make a new version from an existing one."),
    "mount": (f"{_HERE}.mount", "mount", "Show a version as a folder, without downloading it."),
    "umount": (f"{_HERE}.mount", "umount", "Unmount a version."),
    "commit": (f"{_HERE}.commit", "commit", "Make a version of the changes in a writable mount."),
    "list": (f"{_HERE}.show", "list_", "List datasets and collections."),
    "info": (f"{_HERE}.show", "info", "Show a dataset and its versions."),
    "inspect": (f"{_HERE}.inspect", "inspect", "List the files of a version."),
    "diff": (f"{_HERE}.inspect", "diff", "Compare two versions."),
    "tag": (f"{_HERE}.attributes", "tag", "Set and delete the tags of a version."),
    "label": (f"{_HERE}.attributes", "label", "Set and delete the labels of a dataset."),
    "metadata": (f"{_HERE}.attributes", "metadata", "Set and delete the metadata of a version."),
    "rename": (f"{_HERE}.attributes", "rename", "Rename a dataset or collection."),
    "delete": (f"{_HERE}.delete", "delete", "Delete versions, a dataset or a collection."),
    "retention": (f"{_HERE}.retention", "retention", "Show and change which versions are kept."),
    "collect": (f"{_HERE}.members", "collect", "Make a collection of datasets."),
    "recollect": (f"{_HERE}.members", "recollect", "Change the members of a collection."),
    "query": (f"{_HERE}.search", "query", "Search datasets with the query language."),
    "migrate": (f"{_HERE}.migrate", "migrate", "Take over datasets from a bucket of OSMO 6.3 or older."),
    "adopt": (f"{_HERE}.adopt", "adopt", "Make a version of data that is kept elsewhere."),
    "checksum": (f"{_HERE}.checks", "checksum", "Compute the checksum that local files would have."),
    "verify": (f"{_HERE}.checks", "verify", "Read everything and compare it with its digests."),
    "check": (f"{_HERE}.checks", "check", "Probe what may be done with a bucket."),
}


@click.group("dataset", cls=LazyGroup, table=COMMANDS)
def cli() -> None:
    """Versioned, deduplicated datasets.

    A dataset is named [BUCKET/]NAME[:TAG or :VERSION]; without a bucket the default one is meant, without a tag the
    latest version.
    """
