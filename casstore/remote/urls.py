"""URLs of object storage, read strictly.

Decided here and only here: which URLs there are, how they are spelled, and under which profile the credentials of one
are kept (OSMO's rules). A URL is input: it comes from specifications, from configuration and from other people's
commands, and what it names must never become more than it looks like. Nothing is decoded but the path of a ``file:``
URL; what can't be meant literally is refused.

    s3://bucket[/path]                          profile s3://bucket
    gs://bucket[/path]                          profile gs://bucket
    azure://account/container[/path]            profile azure://account
    tos://endpoint/bucket[/path]                profile tos://endpoint/bucket
    swift://endpoint/account/container[/path]   profile swift://endpoint/account
    file:///absolute/path                       profile file://
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

import msgspec

from casstore.errors import UsageError

__all__ = ["MAX_PATH", "REMOTE_SCHEMES", "StorageUrl", "file_path", "parse_url", "scheme_of", "shown"]

MAX_PATH = 1024
"""Bytes of the path in a bucket, at most: no service takes longer keys."""

_HEAD = {"s3": ("bucket",), "gs": ("bucket",), "azure": ("account", "container")} | {
    "tos": ("endpoint", "bucket"),
    "swift": ("endpoint", "account", "container"),
}
_IN_PROFILE = {"s3": 1, "gs": 1, "azure": 1, "tos": 2, "swift": 2}
REMOTE_SCHEMES = frozenset(_HEAD)
"""The schemes of services; ``file`` is the one besides."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/", re.ASCII)
_BUCKET = re.compile(r"[A-Za-z0-9_$](?:[A-Za-z0-9_.$-]{0,253}[A-Za-z0-9_-])?\Z", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(?::[0-9]{1,5})?\Z", re.ASCII)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NO_USER = "a URL of storage holds no user name and no password"
_NOT_IN_URLS = (
    (re.compile(r"[?#]"), "a URL of storage has no query and no fragment"),
    (re.compile(r"%[0-9A-Fa-f]{2}"), "a URL of storage is written without percent-encoding"),
    (re.compile(r"[,;*\\]"), "a URL of storage holds no comma, semicolon, asterisk or backslash"),
    (re.compile(r"\A[^/]*:.*@|\A[^/]*@"), _NO_USER),
)
_SPELLED = {scheme: f"{scheme}://" + "/".join(map(str.upper, parts)) + "[/PATH]" for scheme, parts in _HEAD.items()}
_SUPPORTED = "supported are s3, gs, azure, tos, swift and file URLs"


class StorageUrl(msgspec.Struct, frozen=True, kw_only=True):
    """A URL that was found sound. ``prefix`` is the path in the bucket, without a slash at either end."""

    scheme: str
    profile: str
    """Key of the credential: OSMO's ``auth.data.<profile>``."""
    bucket: str
    """Bucket or container; empty for ``file``."""
    prefix: str
    account: str = ""
    """The account of ``azure`` and ``swift``."""
    endpoint: str = ""
    """``host[:port]`` of ``tos`` and ``swift``."""

    @property
    def bucket_url(self) -> str:
        """The bucket as a URL, without the path and without a slash at its end."""
        if self.scheme == "file":
            return "file://"
        return f"{self.scheme}://" + "/".join(filter(None, (self.endpoint, self.account, self.bucket)))

    @property
    def url(self) -> str:
        """The whole URL in its normal form."""
        if self.scheme == "file":
            return "file:///" + quote(self.prefix, errors="surrogateescape")
        return self.bucket_url + (f"/{self.prefix}" if self.prefix else "")


def scheme_of(text: str) -> str | None:
    """Return the scheme of a URL in small letters, or None when ``text`` is no URL but a path."""
    match = _SCHEME.match(text)
    return match[1].lower() if match else None


def parse_url(text: str) -> StorageUrl:
    """Return what a URL names; ``UsageError``, one clear line without secrets, for anything that is not sound."""
    scheme = scheme_of(text)
    if scheme == "file":
        path = file_path(text)
        parts = [part for part in path.split("/") if part]
        if not set(parts).isdisjoint({".", ".."}) or "\0" in path:
            raise UsageError(f"a URL has no '.', '..' or NUL in its path: {shown(text)}")
        return StorageUrl(scheme="file", profile="file://", bucket="", prefix="/".join(parts))
    if scheme is None:
        raise UsageError(f"not a URL of storage: {shown(text)}", hint=_SUPPORTED)
    if scheme not in _HEAD:
        raise UsageError(f"unknown scheme {scheme}:// of storage: {shown(text)}", hint=_SUPPORTED)
    problem = _problem(text, scheme)
    if problem:
        raise UsageError(f"{problem}: {shown(text)}", hint=f"write {_SPELLED[scheme]}")
    parts = text[len(scheme) + 3 :].removesuffix("/").split("/")
    named = dict(zip(_HEAD[scheme], parts, strict=False))
    profile = f"{scheme}://" + "/".join(parts[: _IN_PROFILE[scheme]])
    return StorageUrl(
        scheme=scheme,
        profile=profile,
        bucket=named.get("bucket") or named["container"],
        prefix="/".join(parts[len(_HEAD[scheme]) :]),
        account=named.get("account", ""),
        endpoint=named.get("endpoint", ""),
    )


def _problem(text: str, scheme: str) -> str | None:
    """Say what is wrong with the URL of a service, or None."""
    rest = text[len(scheme) + 3 :]
    if not text[len(scheme) :].startswith("://"):
        return "a URL has two slashes after its scheme"
    if not rest.isprintable():
        return "a URL has no control characters"
    for pattern, problem in _NOT_IN_URLS:
        if pattern.search(rest):
            return problem
    parts, heads = rest.removesuffix("/").split("/"), _HEAD[scheme]
    if len(parts) < len(heads):
        return f"the URL names no {heads[len(parts)]}"
    if not set(parts).isdisjoint({"", ".", ".."}):
        return "a part of the URL is empty, '.' or '..'"
    for what, part in zip(heads, parts, strict=False):
        if not (_HOST if what == "endpoint" else _BUCKET).match(part) or ".." in part:
            return f"{part[:80]!r} can't be the name of the {what}"
    return "the path is too long" if len("/".join(parts[len(heads) :]).encode()) > MAX_PATH else None


def file_path(url: str) -> str:
    """Return the absolute path of a ``file:`` URL, percent-decoded; ``UsageError`` for another form."""
    rest = url[len("file:") :]
    if not rest.startswith("///"):
        raise UsageError(
            f"not a URL of a local folder: {shown(url)}",
            hint="a file URL has no host and three slashes: file:///absolute/path",
        )
    if "?" in rest or "#" in rest:
        raise UsageError(
            f"a file URL has no query and no fragment: {shown(url)}",
            hint="write %3F for a question mark and %23 for a hash sign in a name",
        )
    if _BAD_ESCAPE.search(rest):
        raise UsageError(f"bad percent-encoding in {shown(url)}", hint="write %25 for a percent sign")
    return unquote(rest[2:], errors="surrogateescape")


def shown(text: str) -> str:
    """The text for a message: one printable line without a password and without a query."""
    if scheme_of(text) not in {None, "file"}:
        # Secret keys may hold slashes: everything up to the last @ goes.
        text = re.sub(r":/+.*@", "://", text, flags=re.DOTALL).partition("?")[0]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:200])
