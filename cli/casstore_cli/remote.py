"""The buckets of the server that was logged in to, as if they were declared here.

Decided here and only here: the rule of names. Logged in, a name means the server's bucket; one that only
``config.yaml`` has means that; and where no bucket is named it is the server's default one, never one of this machine.
Logged out, names are those of ``config.yaml`` alone. The same commands then work on a ``ServedBackend``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from casstore.config import DEFAULT_BUCKET, BucketConfig, Config, load_config
from casstore.errors import NotFoundError, ServiceError, UsageError

if TYPE_CHECKING:
    from casstore.repo.store import Store
    from casstore.wire.v1 import BucketInfo
    from casstore_cli.client import Client

__all__ = ["find", "is_served", "open_served", "require_local", "visible"]


def visible(config: Config | None = None) -> Config:
    """The configuration with the buckets of the server in it, if there is a login.

    ``ServiceError`` when the server does not answer.
    """
    from casstore_cli import login

    config = config or load_config()
    found = login.read(config.paths)
    if found is None or any(is_served(bucket) for bucket in config.buckets.values()):
        return config
    from casstore.wire.cluster import BucketsReply

    client = login.client_of(found, config.paths)
    reply = client.get("api/bucket", BucketsReply)
    served = {
        name: BucketConfig(name, f"{found.url}/{name}", bucket.description, bucket.mode or "read-write")
        for name, bucket in reply.buckets.items()
    }
    # The store in the home folder that nobody has declared would take what was meant for the team.
    own = {name: bucket for name, bucket in config.buckets.items() if name != DEFAULT_BUCKET or config.has_own_default}
    default = reply.default if reply.default in served else ""
    user = found.user or config.user
    return msgspec.structs.replace(config, buckets={**own, **served}, default_bucket=default or "", user=user)


def find(config: Config, name: str | None) -> BucketConfig:
    """The bucket called ``name``, or the default one. ``NotFoundError``, which says where it was looked for."""
    if name is None and not config.default_bucket:
        raise NotFoundError(
            "the server has no default bucket for you",
            hint=f"Name one, as BUCKET/NAME: {', '.join(sorted(config.buckets))}",
        )
    if name is None or name in config.buckets or not any(map(is_served, config.buckets.values())):
        return config.bucket(name)
    raise NotFoundError(
        f"there is no bucket {name!r}, neither on the server nor in {config.paths.config_file}",
        hint=f"There are: {', '.join(sorted(config.buckets))}",
    )


def is_served(bucket: BucketConfig) -> bool:
    """Whether a bucket is a server's."""
    return bucket.url.startswith(("http://", "https://"))


def require_local(bucket: BucketConfig, what: str) -> None:
    """Refuse what only somebody with credentials of the bucket can do."""
    if is_served(bucket):
        raise UsageError(
            f"{what} works on a bucket itself, and {bucket.name!r} is the server's at {bucket.url}",
            hint="Do it where the server runs, or with credentials of the bucket: osmo bucket add OTHER-NAME URL",
        )


def open_served(bucket: BucketConfig, config: Config) -> tuple[Store, BucketInfo]:
    """The store of a server's bucket, and what we are and may do there. Close the store."""
    from casstore.backend.served import Http, ServedBackend
    from casstore.repo.store import Store
    from casstore.wire.v1 import BucketInfo

    client = _client(config)
    base = bucket.url.removesuffix(f"/{bucket.name}")
    try:
        info = client.get(f"api/v1/bucket/{bucket.name}", BucketInfo)
    except NotFoundError as error:
        if "no such route" not in error.message:
            raise
        raise ServiceError(
            f"the server at {base} has no way to the data of its buckets: it is not casstore's, or older",
            hint="Use its buckets with credentials of your own, logged out: osmo bucket add NAME URL",
        ) from None
    backend = ServedBackend(Http(base, client.headers, renewed=client.renewed), bucket.name)
    try:
        return Store.open(backend), info
    except BaseException:
        backend.close()
        raise


def _client(config: Config) -> Client:
    from casstore_cli import login

    found = login.read(config.paths)
    if found is None:
        raise UsageError("not logged in to a server", hint="osmo login URL")
    return login.client_of(found, config.paths)
