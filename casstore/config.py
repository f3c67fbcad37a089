"""Where a user's files are, and what the user configured.

Decided here and only here: the folders, and the shape of ``config.yaml`` as far as it is ours. The file is shared with
OSMO (``auth: ...`` is its part). Our part:

    casstore:
      user: NAME                  # default: the login name
      default_bucket: NAME        # default: "default"
      buckets:
        NAME: {url: file:///..., description: TEXT, mode: read-write | read-only}
      references: [s3://bucket/prefix, ...]  # where references may lead without a credential
      pools: {...}                # read by the workflow commands

A bucket ``default`` at ``file://$XDG_DATA_HOME/casstore/store`` exists without being declared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from casstore.errors import NotFoundError, UsageError

__all__ = [
    "BUCKET_NAME",
    "DEFAULT_BUCKET",
    "MODES",
    "BucketConfig",
    "Config",
    "Paths",
    "find_paths",
    "given",
    "load_config",
    "login_name",
    "mapping_of",
    "parse_raw",
    "read_raw",
]

DEFAULT_BUCKET = "default"
MODES = ("read-write", "read-only")
BUCKET_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_BUCKET_KEYS = frozenset({"url", "description", "mode"})
_OWN_KEYS = frozenset({"user", "default_bucket", "buckets", "pools", "references", "server"})


class Paths(msgspec.Struct, frozen=True):
    """Folders of this user. None of them need exist."""

    config: str
    """Holds ``config.yaml``."""
    data: str
    """Holds the default store."""
    cache: str
    state: str
    """Journals of unfinished uploads."""
    runtime: str
    """Sockets and pid files of the background server."""
    logs: str
    """Holds ``client.log``."""

    @property
    def config_file(self) -> str:
        """Path of ``config.yaml``."""
        return os.path.join(self.config, "config.yaml")


class BucketConfig(msgspec.Struct, frozen=True, order=True):
    """One declared bucket. ``mode`` is one of ``MODES``."""

    name: str
    url: str
    description: str = ""
    mode: str = "read-write"


class Config(msgspec.Struct, frozen=True):
    """What ``load_config`` found. ``raw`` is the whole file."""

    paths: Paths
    user: str
    default_bucket: str
    buckets: Mapping[str, BucketConfig]
    pools: Mapping[str, Any] = {}
    references: tuple[str, ...] = ()
    """URLs below which everything may be read that a store refers to. Not checked yet."""
    raw: Mapping[str, Any] = {}

    @property
    def has_own_default(self) -> bool:
        """Whether the bucket ``default`` is one that the user declared."""
        return DEFAULT_BUCKET in ((self.raw.get("casstore") or {}).get("buckets") or {})

    def bucket(self, name: str | None = None) -> BucketConfig:
        """The bucket called ``name``, or the default one. ``NotFoundError`` when it is not declared."""
        wanted = self.default_bucket if name is None else name
        found = self.buckets.get(wanted)
        if found is None:
            raise NotFoundError(
                f"there is no bucket {wanted!r} in {self.paths.config_file}",
                hint=f"declared buckets: {', '.join(sorted(self.buckets))}; add one with: osmo bucket add",
            )
        return found


def find_paths() -> Paths:
    """The folders, from the environment. Relative XDG values are ignored, as the XDG specification asks."""
    env = os.environ
    home = env.get("HOME", "")
    if not os.path.isabs(home):
        home = _home_of_user()

    def xdg(variable: str, fallback: str) -> str:
        value = env.get(variable, "")
        return value if os.path.isabs(value) else os.path.join(home, fallback)

    state = xdg("XDG_STATE_HOME", ".local/state")
    runtime = env.get("XDG_RUNTIME_DIR", "")
    own_config = env.get("OSMO_CONFIG_FILE_DIR") or env.get("OSMO_CONFIG_DIR")
    return Paths(
        config=os.path.abspath(own_config) if own_config else os.path.join(xdg("XDG_CONFIG_HOME", ".config"), "osmo"),
        data=os.path.join(xdg("XDG_DATA_HOME", ".local/share"), "casstore"),
        cache=os.path.join(xdg("XDG_CACHE_HOME", ".cache"), "casstore"),
        state=os.path.join(state, "casstore"),
        runtime=os.path.join(runtime, "casstore") if os.path.isabs(runtime) else os.path.join(state, "casstore", "run"),
        logs=os.path.abspath(env["OSMO_LOG_FILE_DIR"]) if env.get("OSMO_LOG_FILE_DIR") else os.path.join(state, "osmo"),
    )


def _home_of_user() -> str:
    """The home folder that the system has for this user; ``UsageError`` without one."""
    import pwd  # noqa: PLC0415 - rarely needed

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise UsageError("this user has no home folder", hint="set HOME to a folder that you may write to") from None


def load_config(file: str | None = None) -> Config:
    """Read ``config.yaml``, or another ``file`` of its kind, which must exist.

    A missing file is an empty one; a wrong one is a ``UsageError`` naming file and key.
    """
    paths = find_paths()
    if file is not None and not os.path.isfile(file):
        raise UsageError(f"there is no file {file}")
    return parse_raw(read_raw(file or paths.config_file), paths, file or paths.config_file)


def read_raw(path: str) -> dict[str, Any]:
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UsageError(f"{path} is not a file")  # a pipe would never end
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    from casstore import safeyaml  # noqa: PLC0415 - slow to load, and a user may have no file

    raw = safeyaml.load(text, what=path)
    return {} if raw is None else mapping_of(raw, path, "the file")


def parse_raw(raw: dict[str, Any], paths: Paths, file: str) -> Config:
    own = mapping_of(given(raw, "casstore"), file, "casstore")
    unknown = sorted(set(map(str, own)) - _OWN_KEYS)
    if unknown:
        raise UsageError(f"{file}: unknown key casstore.{unknown[0]}", hint=f"known: {', '.join(sorted(_OWN_KEYS))}")
    buckets = {DEFAULT_BUCKET: BucketConfig(DEFAULT_BUCKET, _file_url(os.path.join(paths.data, "store")))}
    for name, value in mapping_of(given(own, "buckets"), file, "casstore.buckets").items():
        buckets[str(name)] = _bucket(name, value, file)
    default = own.get("default_bucket", DEFAULT_BUCKET)
    if not isinstance(default, str) or default not in buckets:
        raise UsageError(f"{file}: casstore.default_bucket names {default!r}, which is not in casstore.buckets")
    user = own.get("user", "")
    if not isinstance(user, str):
        raise UsageError(f"{file}: casstore.user must be a text")
    references = own.get("references") or []
    if not isinstance(references, list) or not all(isinstance(url, str) for url in references):
        raise UsageError(f"{file}: casstore.references must be a list of URLs such as s3://bucket/prefix")
    return Config(
        paths=paths,
        user=user or login_name(),
        default_bucket=default,
        buckets=buckets,
        pools=mapping_of(given(own, "pools"), file, "casstore.pools"),
        references=tuple(references),
        raw=raw,
    )


def _bucket(name: object, value: object, file: str) -> BucketConfig:
    where = f"casstore.buckets.{name}"
    if not isinstance(name, str) or not BUCKET_NAME.fullmatch(name):
        raise UsageError(f"{file}: {where}: a bucket's name has letters, digits, '_' and '-' only")
    fields = mapping_of(value, file, where)
    unknown = sorted(set(map(str, fields)) - _BUCKET_KEYS)
    if unknown:
        raise UsageError(f"{file}: unknown key {where}.{unknown[0]}", hint=f"known: {', '.join(sorted(_BUCKET_KEYS))}")
    for key, item in fields.items():
        if not isinstance(item, str):
            raise UsageError(f"{file}: {where}.{key} must be a text")
    if "://" not in fields.get("url", ""):
        raise UsageError(f"{file}: {where}.url must be a URL such as file:///srv/data")
    if fields.get("mode", MODES[0]) not in MODES:
        raise UsageError(f"{file}: {where}.mode must be one of: {', '.join(MODES)}")
    return BucketConfig(name, **fields)


def mapping_of(value: object, file: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{file}: {where} must be a mapping of keys to values")
    return value


def given(mapping: Mapping[str, Any], key: str) -> Any:
    """The value of a key; an empty mapping where the key is missing or has nothing after its colon."""
    value = mapping.get(key)
    return {} if value is None else value


def _file_url(path: str) -> str:
    from urllib.parse import quote  # noqa: PLC0415 - slow to load

    return "file://" + quote(path)


def login_name() -> str:
    """The user's login name, or their number where there is no name."""
    for variable in ("LOGNAME", "USER"):
        if os.environ.get(variable):
            return os.environ[variable]
    import pwd  # noqa: PLC0415

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
