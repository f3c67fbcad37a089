"""``osmo bucket``: the places that hold datasets.

Decided here and only here: how buckets are declared and shown. A declaration is a name for a URL in
``config.yaml``; removing it leaves the data alone.
"""

from __future__ import annotations

from typing import Any

import click

from casstore.config import BUCKET_NAME, DEFAULT_BUCKET, MODES, BucketConfig, load_config
from casstore.errors import ConflictError, NotFoundError, ServiceError, UsageError
from casstore_cli import output
from casstore_cli.config import change_config
from casstore_cli.lazy import LazyGroup
from casstore_cli.multi import Command


@click.group("bucket", cls=LazyGroup)
def cli() -> None:
    """Declare and list the places that hold datasets."""


@cli.command("list", cls=Command)
@output.format_option("text", "json")
def list_(format_type: str) -> None:
    """List the buckets: those of the server that you are logged in to, and those of config.yaml."""
    from casstore_cli.remote import visible

    config = load_config()
    try:
        config = visible(config)
    except ServiceError as error:
        output.warn(f"without those of the server: {output.escape(error.message)}")
    buckets = sorted(config.buckets.values())
    if format_type == "json":
        output.document(
            {
                "default": config.default_bucket,
                "buckets": {
                    b.name: {
                        "path": b.url,
                        "description": b.description,
                        "mode": b.mode,
                        "default_cred": False,
                    }
                    for b in buckets
                },
            }
        )
        return
    rows = [
        (
            b.name + (" (default)" if b.name == config.default_bucket else ""),
            b.description,
            b.url,
            b.mode,
            "No",
        )
        for b in buckets
    ]
    output.text(output.table(("Bucket", "Description", "Location", "Mode", "Default Cred"), rows))


@cli.command("add", cls=Command)
@click.argument("name")
@click.argument("url")
@click.option("-d", "--description", default="", help="What the bucket is for.")
@click.option("--mode", type=click.Choice(MODES), default=MODES[0], show_default=True, help="What is allowed.")
@click.option("--default", "default", is_flag=True, help="Use it where no bucket is named.")
def add(name: str, url: str, description: str, mode: str, default: bool) -> None:
    """Declare the bucket NAME at URL, a URL or the path of a folder.

    A read-write bucket gets a store if there is none yet; a read-only one must have one. What a storage service really
    does is tried first, and told.
    """
    from casstore_cli.stores import normal_url, open_store, probe_store

    if not BUCKET_NAME.fullmatch(name):
        raise UsageError(f"{name!r} can't be a bucket's name: letters, digits, '_' and '-' only")
    bucket = BucketConfig(name, normal_url(url), description, mode)
    if bucket.url.lower().startswith("memory:"):
        raise UsageError("a store in memory ends with its process: it can't be a bucket", hint="name a folder")
    declared = load_config().raw.get("casstore") or {}
    _refuse_twice(declared, bucket)
    with open_store(bucket, create=mode == MODES[0]) as store:
        store_id = store.id
        lines = probe_store(store) if mode == MODES[0] else []

    def change(own: dict[str, Any]) -> None:
        _refuse_twice(own, bucket)
        entry = {"url": bucket.url, "mode": mode} | ({"description": description} if description else {})
        own["buckets"] = (own.get("buckets") or {}) | {name: entry}
        if default:
            own["default_bucket"] = name

    change_config(change)
    for line in lines:
        output.text(output.escape(line))
    output.text(f"Bucket {name} is at {bucket.url} (store {output.escape(store_id)}).")


@cli.command("remove", cls=Command)
@click.argument("name")
def remove(name: str) -> None:
    """Forget the bucket NAME. What is stored in it stays."""
    if name == DEFAULT_BUCKET and name not in _declared(load_config().raw.get("casstore") or {}):
        raise UsageError(f"bucket {name!r} is always there", hint="choose another default: osmo bucket default")

    def change(own: dict[str, Any]) -> None:
        buckets = dict(_declared(own))
        if buckets.pop(name, None) is None:
            raise NotFoundError(f"there is no bucket {name!r}", hint="see: osmo bucket list")
        own["buckets"] = buckets
        if own.get("default_bucket") == name:
            del own["default_bucket"]

    config = change_config(change)
    output.text(f"Bucket {name} was removed from {config.paths.config_file}; its data was not touched.")


@cli.command("default", cls=Command)
@click.argument("name")
def default_(name: str) -> None:
    """Use the bucket NAME where none is named."""

    def change(own: dict[str, Any]) -> None:
        if name != DEFAULT_BUCKET and name not in _declared(own):
            raise NotFoundError(f"there is no bucket {name!r}", hint="see: osmo bucket list")
        own["default_bucket"] = name

    change_config(change)
    output.text(f"The default bucket is {name}.")


def _declared(own: dict[str, Any]) -> dict[str, Any]:
    return own.get("buckets") or {}


def _refuse_twice(own: dict[str, Any], bucket: BucketConfig) -> None:
    old = _declared(own).get(bucket.name)
    if old is not None:
        raise ConflictError(
            f"bucket {bucket.name!r} is declared already, at {old['url']}",
            hint=f"remove that first: osmo bucket remove {bucket.name}",
        )
