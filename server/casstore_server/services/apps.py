"""What the server does with apps.

Decided here and only here: what is checked of a workflow file before it becomes an app (that it can be cut into its
sections; its values come with each submission), and the limits of a page.
"""

from __future__ import annotations

from collections.abc import Sequence

from casstore.errors import UsageError
from casstore.wire.app import (
    MAX_DESCRIPTION,
    AppDeleted,
    AppEdit,
    AppList,
    AppReply,
    AppSummary,
    AppVersion,
    check_app_name,
)
from casstore.wire.protocol import to_iso
from casstore_orchestrator.loader import split
from casstore_server.db.apps import App, Apps, Version
from casstore_server.services.context import Caller, Services
from casstore_server.services.workflows import MAX_PAGE

__all__ = ["create", "delete", "get", "list_apps", "rename", "spec", "update"]


def create(services: Services, caller: Caller, name: str, *, description: str, text: str) -> AppEdit:
    """Make an app."""
    check_app_name(name)
    if len(description) > MAX_DESCRIPTION:
        raise UsageError(f"The description is longer than {MAX_DESCRIPTION} characters")
    split(text)
    return _edit(
        *Apps(services.database).create(name, owner=caller.user, description=description, text=text), created=True
    )


def update(services: Services, caller: Caller, name: str, *, text: str) -> AppEdit:
    """Give an app another version, unless nothing changed."""
    split(text)
    app, version, created = Apps(services.database).update(
        check_app_name(name), user=caller.user, text=text, manages=caller.may("app:Manage")
    )
    return _edit(app, version, created=created)


def get(services: Services, name: str, *, number: int | None, limit: int, oldest_first: bool) -> AppReply:
    """One app."""
    app, versions = Apps(services.database).find(
        check_app_name(name), number=number, limit=min(limit, MAX_PAGE), oldest_first=oldest_first
    )
    return AppReply(
        uuid=app.uuid,
        name=app.name,
        description=app.description,
        created_date=to_iso(app.at) or "",
        owner=app.owner,
        versions=[
            AppVersion(
                version=found.number,
                created_by=found.user,
                created_date=to_iso(found.at) or "",
                status=found.status,
            )
            for found in versions
        ],
    )


def spec(services: Services, name: str, number: int | None) -> str:
    """The workflow file of a version."""
    return Apps(services.database).text(check_app_name(name), number)


def list_apps(
    services: Services, *, owners: Sequence[str], name: str | None, limit: int, offset: int, oldest_first: bool
) -> AppList:
    """A page of apps."""
    limit = min(limit, MAX_PAGE)
    found = Apps(services.database).page(
        owners=owners, name=name, limit=limit + 1, offset=offset, oldest_first=oldest_first
    )
    return AppList(
        apps=[
            AppSummary(
                uuid=app.uuid,
                owner=app.owner,
                name=app.name,
                description=app.description,
                created_date=to_iso(app.at) or "",
                latest_version=app.latest,
            )
            for app in found[:limit]
        ],
        more_entries=len(found) > limit,
    )


def delete(services: Services, caller: Caller, name: str, *, number: int | None, everything: bool) -> AppDeleted:
    """Delete a version of an app, or with ``everything`` the app."""
    if (number is None) != everything:
        raise UsageError("Which version is to be deleted?", hint=f"Name one, as {name}:1, or give --all.")
    return AppDeleted(
        versions=Apps(services.database).delete(
            check_app_name(name), user=caller.user, number=number, manages=caller.may("app:Manage")
        )
    )


def rename(services: Services, caller: Caller, name: str, new: str) -> str:
    """Give an app another name."""
    Apps(services.database).rename(
        check_app_name(name), check_app_name(new), user=caller.user, manages=caller.may("app:Manage")
    )
    return new


def _edit(app: App, version: Version, *, created: bool) -> AppEdit:
    return AppEdit(
        uuid=app.uuid,
        name=app.name,
        version=version.number,
        created_by=version.user,
        created_date=to_iso(version.at) or "",
        created=created,
    )
