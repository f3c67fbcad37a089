"""Getting tokens: from an identity provider by OAuth 2 and OpenID Connect, or from the server for a personal token.

Decided here and only here: what is sent for each way to log in (RFC 6749, 7636, 8628), what of a reply is believed,
and which error each refusal is. Secrets are sent in bodies, to where nobody on the way can read them, and no message
has them.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from casstore.errors import AccessError, CasstoreError, NotFoundError, ServiceError, UsageError
from casstore.structs import from_json
from casstore.wire.auth import JWT_PATH, LOGIN_PATH, Jwt, LoginReply, TokenRequest
from casstore.wire.protocol import to_exception
from casstore_cli import output, web
from casstore_cli.login import Tokens

__all__ = [
    "Grant",
    "by_code",
    "by_device",
    "by_password",
    "by_personal_token",
    "claims_of",
    "name_in",
    "offer",
    "refusal",
    "renewed",
]

SCOPE = "openid offline_access profile"
PROVIDER = "the identity provider"
_DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
_SLOWER_S = 5.0
_INTERVAL_S = (1.0, 60.0)
_LONGEST_S = 3600.0
_MAX_TEXT = 300

T = TypeVar("T")


class Grant(msgspec.Struct):
    """A reply of a token endpoint: tokens, or why there are none."""

    id_token: str | None = None
    refresh_token: str | None = None
    error: str | None = None
    error_description: str | None = None


class _Device(msgspec.Struct):
    """The reply of a device endpoint (RFC 8628 §3.2); ``message`` is Microsoft's."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str | None = None
    expires_in: float = 600.0
    interval: float = 5.0
    message: str | None = None


def offer(url: str) -> LoginReply:
    """Which identity provider the server names. One that knows no such route names none."""
    answer = web.ask(f"{url}/{LOGIN_PATH}", "the server")
    if answer.status != 200:
        error = to_exception(max(answer.status, 400), answer.body)
        if isinstance(error, (AccessError, NotFoundError)):
            return LoginReply()
        raise error
    return _decode(answer.body, LoginReply, f"{url} as a server of workflows")


def by_personal_token(url: str, token: str) -> Tokens:
    """The tokens for one that was made by ``osmo token set``. ``AccessError`` when it is not valid (any more)."""
    return _personal(f"{url}/{JWT_PATH}", token, None)


def by_password(endpoint: str, client_id: str | None, user: str, password: str) -> Tokens:
    """The tokens for a name and a password that the identity provider knows."""
    form = {"grant_type": "password", "username": user, "password": password, "scope": SCOPE}
    return _tokens(_grant(endpoint, client_id, form), endpoint, client_id)


def by_code(endpoint: str, client_id: str | None, *, code: str, verifier: str, redirect_uri: str) -> Tokens:
    """The tokens for a code that came back from the browser."""
    form = {"grant_type": "authorization_code", "code": code, "code_verifier": verifier, "redirect_uri": redirect_uri}
    return _tokens(_grant(endpoint, client_id, form), endpoint, client_id)


def by_device(
    device_endpoint: str,
    endpoint: str,
    client_id: str | None,
    *,
    tell: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> Tokens:
    """The tokens, once somebody has confirmed the code that ``tell`` shows, in a browser anywhere."""
    web.check_private(device_endpoint, "The device endpoint")
    form = {"scope": SCOPE} | ({"client_id": client_id} if client_id else {})
    answer = web.ask(device_endpoint, PROVIDER, form=form)
    if answer.status != 200:
        raise _refused(answer, hint="The identity provider may not offer this way: --method pkce")
    found = _decode(answer.body, _Device, PROVIDER)
    tell(_instruction(found))
    ends = time.monotonic() + min(found.expires_in, _LONGEST_S)
    interval = min(max(found.interval, _INTERVAL_S[0]), _INTERVAL_S[1])
    while True:
        pause(interval)
        if time.monotonic() > ends:
            raise AccessError("The code was not confirmed in time", hint="Log in again for a new one.")
        poll = {"grant_type": _DEVICE, "device_code": found.device_code}
        try:
            grant = _grant(endpoint, client_id, poll)
        except ServiceError as exc:  # a moment without a network does not end it
            output.warn(f"{output.escape(exc.message)}; trying again")
            interval = min(interval + _SLOWER_S, _INTERVAL_S[1])
            continue
        if grant.error == "slow_down":
            interval = min(interval + _SLOWER_S, _INTERVAL_S[1])
        elif grant.error != "authorization_pending":
            return _tokens(grant, endpoint, client_id)


def renewed(tokens: Tokens, *, hint: str) -> Tokens:
    """New tokens for the refresh token. ``AccessError`` when it is not valid any more, with ``hint`` for what to do."""
    refresh, endpoint = tokens.refresh_token, tokens.refresh_url
    if refresh is None or endpoint is None:
        raise AccessError("Your login has ended", hint=hint)
    if tokens.personal:
        return _personal(endpoint, refresh, hint)
    form = {"grant_type": "refresh_token", "refresh_token": refresh}
    fresh = _tokens(_grant(endpoint, tokens.client_id, form), endpoint, tokens.client_id, hint=hint)
    return fresh if fresh.refresh_token else replace(fresh, refresh_token=refresh)


def claims_of(token: str) -> dict[str, Any]:
    """What a JWT says; nothing is verified: that is the server's part. ``UsageError`` when it is none."""
    parts = token.split(".")
    try:
        if len(parts) != 3 or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError
        found = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, msgspec.MsgspecError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError("The token of your login is not a JWT", hint="Log in again: osmo login URL")
    return found


def name_in(tokens: Tokens) -> str:
    """The name that an identity provider gives to a person."""
    claims = claims_of(tokens.id_token)
    for key in ("name", "preferred_username", "email", "sub"):
        if isinstance(claims.get(key), str) and claims[key]:
            return str(claims[key])
    return ""


def _personal(url: str, token: str, hint: str | None) -> Tokens:
    web.check_private(url, "The server")
    answer = web.ask(url, "the server", body=TokenRequest(token=token))
    if answer.status != 200:
        error = to_exception(max(answer.status, 400), answer.body)
        raise error if error.hint or hint is None else type(error)(error.message, hint=hint)
    found = _decode(answer.body, Jwt, "the server")
    if not found.token:
        raise ServiceError("The server gave no token")
    claims_of(found.token)
    return Tokens(found.token, token, url, personal=True)


def _grant(endpoint: str, client_id: str | None, form: dict[str, str]) -> Grant:
    """What a token endpoint says, also where it refuses. ``ServiceError`` when it can't be asked."""
    web.check_private(endpoint, "The token endpoint")
    answer = web.ask(endpoint, PROVIDER, form=form | ({"client_id": client_id} if client_id else {}))
    if answer.status >= 500 or answer.status == 429:
        raise ServiceError(f"The identity provider failed: it answered with status {answer.status}")
    grant = _decode(answer.body, Grant, PROVIDER)
    if answer.status != 200 and grant.error is None:
        raise _refused(answer)
    return grant


def _tokens(grant: Grant, endpoint: str, client_id: str | None, *, hint: str | None = None) -> Tokens:
    if grant.error is not None:
        raise refusal(grant, hint)
    if grant.id_token is None:
        raise ServiceError("The identity provider gave no id_token", hint="Its client must have the scope openid.")
    claims_of(grant.id_token)
    if grant.refresh_token is not None and not (grant.refresh_token.isascii() and grant.refresh_token.isprintable()):
        raise ServiceError("The identity provider gave a refresh token that is none")
    return Tokens(grant.id_token, grant.refresh_token, endpoint, client_id)


def refusal(grant: Grant, hint: str | None = None) -> CasstoreError:
    """The error that a reply of an identity provider is."""
    said = " ".join((grant.error_description or "").split())[:_MAX_TEXT]
    known = {
        "access_denied": "The login was denied",
        "expired_token": "The code was not confirmed in time",
        "invalid_grant": "The identity provider does not accept this login (any more)",
    }
    message = known.get(grant.error or "", f"The identity provider refused: {(grant.error or '')[:_MAX_TEXT]}")
    return AccessError(f"{message}: {said}" if said else message, hint=hint)


def _refused(answer: web.Answer, *, hint: str | None = None) -> CasstoreError:
    try:
        grant = from_json(answer.body, Grant)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        grant = Grant()
    if grant.error is not None:
        return refusal(grant, hint)
    return ServiceError(f"The identity provider answered with status {answer.status}", hint=hint)


def _instruction(found: _Device) -> str:
    if found.message:
        return output.escape(found.message)
    if found.verification_uri_complete:
        return (
            f"Visit {output.escape(found.verification_uri_complete)} and complete authentication. "
            f"The code there must be: {output.escape(found.user_code)}"
        )
    return (
        f"Visit {output.escape(found.verification_uri)} and enter the following code: {output.escape(found.user_code)}"
    )


def _decode(body: bytes, kind: type[T], whose: str) -> T:
    try:
        return from_json(body, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ServiceError(f"The reply of {whose} can't be understood", hint="Is the URL right?") from None
