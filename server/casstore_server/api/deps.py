"""What routes are given.

Decided here and only here: the spelling of parameters that several routes share, and that no text of a body has a NUL,
which PostgreSQL stores nowhere.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, Path, Query, Request

from casstore.errors import AccessError, UsageError
from casstore.structs import from_json
from casstore_server.services.context import Caller, Services

__all__ = ["Body", "CallerDep", "Limit", "Names", "Offset", "Order", "ServicesDep", "WorkflowId", "decode"]

T = TypeVar("T")


def _services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


def _caller(request: Request) -> Caller:
    found: Caller | None = request.state.caller
    if found is None:
        raise AccessError("This route needs a user")
    return found


async def _body(request: Request) -> bytes:
    return await request.body()


def decode(body: bytes, kind: type[T]) -> T:
    """The body as ``kind``. Raises ``UsageError`` naming the field that is wrong."""
    try:
        if b"\\u0000" in body and _has_nul(from_json(body, Any)):
            raise UsageError("The body of the request has a text with a NUL character", hint="No text may have one.")
        return from_json(body, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise UsageError(f"The body of the request can't be understood: {exc}") from exc
    except RecursionError:
        raise UsageError("The body of the request can't be understood: it is nested too deeply") from None


def _has_nul(value: Any) -> bool:
    """Whether a text of it has a character that databases don't take."""
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(one) for key, one in value.items())
    return any(map(_has_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\0" in value


ServicesDep = Annotated[Services, Depends(_services)]
CallerDep = Annotated[Caller, Depends(_caller)]
Body = Annotated[bytes, Depends(_body)]
WorkflowId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,95}$")]
Names = Annotated[list[str], Query(max_length=200)]
Limit = Annotated[int, Query(ge=0)]
Offset = Annotated[int, Query(ge=0, le=2**31)]
Order = Annotated[str, Query(pattern="^(ASC|DESC|asc|desc)$")]
