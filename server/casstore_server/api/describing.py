"""What people read in the OpenAPI document: about the whole, about parameters and errors, and examples.

Decided here and only here: these words, the tags that operations are sorted by, and the ways to say who one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from casstore.wire.app import AppEdit
from casstore.wire.cluster import ProfileChange, VersionReply
from casstore.wire.credentials import CredentialBody
from casstore.wire.dataset import AttributeBody, CollectBody, RecollectBody, UploadBody, UploadReply
from casstore.wire.protocol import MAX_REQUEST_BYTES, USER_HEADER
from casstore.wire.router import RouterReply
from casstore.wire.workflow import CancelReply, SubmitReply, SubmitRequest

__all__ = [
    "ABOUT",
    "ERRORS",
    "EXAMPLES",
    "LINKS",
    "PARAMETERS",
    "SECURITY",
    "TAGS",
    "WEBSOCKETS",
    "error_example",
    "may",
    "parameter",
    "tag_of",
]

ABOUT: Final = f"""\
The routes of an `osmo` server: those of OSMO 6.2, which its clients use, and under `/api/v1` our own.

* A list in a query is its name repeated: `pools=a&pools=b`; an empty one is left out. `True` and `False` are booleans.
* Times in replies are ISO 8601 in UTC, without a zone; those in requests may be dates, or have a zone.
* Slashes that follow each other are one. Fields of a body that are not known are skipped, unless it says otherwise.
* Every error has the same body, `ErrorBody`. `error_code` is OSMO's, `kind` and `hint` are ours.
* A body is JSON of at most {MAX_REQUEST_BYTES >> 20} MiB. Where it is a text, it is a JSON string.
* A method that a path does not have, `HEAD` and `OPTIONS` too, is answered with 405 and `Allow`.
* Over the server's Unix socket the user is the server's own, and needs no name.
"""

WEBSOCKETS: Final = """
## Websockets

Their address is `router_address` of the reply that gives the key, then the path; headers are those of every request. A
key is good for one connection. An error closes a websocket with 4000 plus the status that a reply would have, and its
text as the reason; 4000 itself says that nobody was at the other side within the time, 1011 that the server failed.

"""

SECURITY: Final[Mapping[str, Any]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token of this server's, or of the identity provider that it trusts.",
    },
    "dev": {
        "type": "apiKey",
        "in": "header",
        "name": USER_HEADER,
        "description": "The name of a user, on servers that take everybody's word for it: by default those that only "
        "their own machine reaches.",
    },
}

TAGS: Final[Mapping[str, str]] = {
    "apps": "Workflow files that the server keeps under a name.",
    "audit": "Who did what.",
    "auth": "Logging in, tokens, users and their roles.",
    "configs": "What administrators set, with its history.",
    "credentials": "A user's secrets, for storage, registries and tasks.",
    "datasets": "Buckets, and the datasets, versions and collections in them.",
    "interactive": "Programs, ports and pages of running tasks.",
    "pools": "Pools, nodes, and how much of them is in use.",
    "profile": "A user's own settings.",
    "server": "The server itself.",
    "v1": "What OSMO has nothing for: the contents of versions.",
    "workflows": "Workflows, tasks, their logs and events.",
}
_PREFIXES: Final = (
    ("/api/app", "apps"),
    ("/api/v1/audit", "audit"),
    ("/api/auth", "auth"),
    ("/api/configs/backend", "pools"),
    ("/api/configs", "configs"),
    ("/api/credentials", "credentials"),
    ("/api/bucket", "datasets"),
    ("/api/router", "interactive"),
    ("/api/plugins", "interactive"),
    ("/api/workflow/{workflow_id}/exec", "interactive"),
    ("/api/workflow/{workflow_id}/portforward", "interactive"),
    ("/api/workflow/{workflow_id}/rsync", "interactive"),
    ("/api/workflow/{workflow_id}/webserver", "interactive"),
    ("/api/pool/{pool}/workflow", "workflows"),
    ("/api/pool", "pools"),
    ("/api/resources", "pools"),
    ("/api/profile", "profile"),
    ("/api/workflow", "workflows"),
    ("/api/task", "workflows"),
    ("/api/tag", "workflows"),
    ("/api/users", "workflows"),
    ("/api/v1/server", "server"),
    ("/api/v1/pool", "workflows"),
    ("/api/v1/workflow", "workflows"),
    ("/api/v1", "v1"),
)


def tag_of(path: str) -> str:
    """What an operation is sorted under."""
    return next((tag for prefix, tag in _PREFIXES if path.startswith(prefix)), "server")


def may(action: str) -> str:
    """What whoever calls it needs."""
    return f"Needs the right `{action}`."


ERRORS: Final[Mapping[int, str]] = {
    400: "The request can't be understood, or asks for what can't be.",
    401: "The token is no good, or not any more.",
    403: "The user is not known, or lacks a right.",
    404: "What is named does not exist, or is nothing that the user may know of.",
    409: "Somebody else was faster, or it exists already.",
    410: "It has ended.",
    413: "The request is too large.",
    415: "The body is not written in a way that is read here.",
    416: "The file has no such part.",
    422: "A parameter is missing, or is not what it must be.",
    425: "It is not that far yet: ask again.",
    429: "Too many requests: ask again after `Retry-After` seconds.",
    499: "The request was given up.",
    500: "The server failed; its log says why.",
    502: "The storage behind it failed.",
    503: "It can't be done now: the server ends, has too much to do, or what it needs can't be reached.",
    504: "What it needs did not answer in time.",
    507: "There is no space left.",
}
_CODES: Final[Mapping[int, tuple[str, str]]] = {
    401: ("CREDENTIAL", "access"),
    403: ("CREDENTIAL", "access"),
    404: ("NOTFOUND", "not_found"),
    409: ("USER", "conflict"),
    410: ("USER", "conflict"),
    422: ("SCHEMA", "usage"),
    425: ("USER", "conflict"),
    500: ("SERVER", "service"),
    502: ("DATA_STORAGE", "storage"),
    503: ("SERVER", "service"),
    507: ("DATA_STORAGE", "out_of_space"),
}


def error_example(status: int) -> dict[str, Any]:
    """What a reply with this status looks like."""
    code, kind = _CODES.get(status, ("USER", "usage"))
    return {"message": ERRORS[status], "error_code": code, "workflow_id": None, "hint": None, "kind": kind}


EXAMPLES: Final[Mapping[Any, Any]] = {
    SubmitRequest: {
        "file": "workflow:\n  name: hello\n  tasks:\n  - name: one\n    image: ubuntu\n    command: [echo, hi]\n",
        "set_variables": ["n=3"],
        "set_string_variables": [],
        "uploaded_templated_spec": None,
    },
    SubmitReply: {
        "name": "hello-1",
        "overview": "http://127.0.0.1:8000/workflows/hello-1",
        "logs": None,
        "spec": None,
        "dashboard_url": None,
    },
    CancelReply: {"name": "hello-1"},
    CredentialBody: {"generic_credential": {"credential": {"token": "..."}}},
    ProfileChange: {"pool": "default"},
    VersionReply: {"major": "6", "minor": "2", "revision": "0", "hash": "casstore-0.1.0"},
    UploadBody: {"metadata": {"quality": {"score": 0.9}}},
    UploadReply: {
        "version_id": "1",
        "region": "us-east-1",
        "storage_path": "s3://robots/.exchange/1/hashes",
        "manifest_path": "s3://robots/.exchange/1/manifest.json",
    },
    AttributeBody: {"set_label": {"team": "arms"}},
    CollectBody: {"datasets": [{"name": "robots", "tag": "golden"}]},
    RecollectBody: {"add_datasets": [{"name": "arms", "tag": ""}], "remove_datasets": []},
    AppEdit: {
        "uuid": "0b9a5a9e6b1f4f0c8f0e7d1c2b3a4958",
        "name": "train",
        "version": 1,
        "created_by": "ada",
        "created_date": "2026-01-01T00:00:00.000000",
        "created": True,
    },
    RouterReply: {
        "router_address": "ws://127.0.0.1:8000",
        "key": "1b1a4f0e9f0c4b7c8f3e2d1c0b9a8f7e",
        "cookie": "",
        "pipes": True,
        "url": None,
    },
    str: "workflow:\n  name: hello\n",
}
"""By the type that is sent or answered; tests decode each of them as it."""

PARAMETERS: Final[Mapping[str, str]] = {
    "access_token": "A personal token.",
    "action": "Those by this right.",
    "add": "Tags that the workflow gets.",
    "after": "Those after this one.",
    "aggregate_by_workflow": "Sums for each workflow.",
    "all_flag": "All versions.",
    "all_pools": "Pools of any name.",
    "all_users": "Of all users.",
    "all_versions": "All versions.",
    "app": "Those of this app: `NAME` or `NAME:VERSION`.",
    "app_uuid": "The app that it is from.",
    "app_version": "The version of that app.",
    "at_timestamp": "What was in force then.",
    "before": "Those before this time.",
    "bucket": "The name of a bucket.",
    "buckets": "Those in these buckets; in all without any.",
    "by": "The id of the key that the address is signed with.",
    "cache": "Take over what an earlier workflow made in the same way.",
    "checksum": "What all its files and ETags give together.",
    "command": "A query, in the language of datasets.",
    "config_type": "A type of configs, such as `POOL`.",
    "config_types": "Those of these types.",
    "count": "How many at most.",
    "created_after": "Those that were made later.",
    "created_before": "Those that were made earlier.",
    "cursor": "Where the page before ended, as it said.",
    "dataset_type": "Only datasets, or only collections.",
    "default_only": "Only the one that is used without naming any.",
    "delete_label": "Labels that go: paths with dots.",
    "delete_metadata": "Metadata that goes: paths with dots.",
    "delete_tag": "Tags that go from the version.",
    "description": "A text for people.",
    "download": "For a browser: to be kept, not to be shown.",
    "dry_run": "Only fill in the template, and answer with the outcome.",
    "entry_command": "The program with its arguments, written as for a shell.",
    "env_vars": "Environment of every task: `NAME=VALUE`.",
    "expires_at": "The day on which the token is no good any more: `YYYY-MM-DD`.",
    "finish": "It is the second of two requests.",
    "first_revision": "The revision that is compared.",
    "for": "What the address was signed for.",
    "force": "Whatever state it is in.",
    "grace": "Seconds for which what nobody uses is kept.",
    "group": "The name of a group.",
    "id_prefix": "Those whose names begin with this.",
    "if-match": "Only if the object still has this ETag.",
    "if-none-match": "Only if there is nothing (`*`), or not this ETag.",
    "if-range": "The range only if the content still has this ETag; otherwise all of it.",
    "key": "What an earlier reply gave.",
    "kind": "A type of configs, such as `pool`.",
    "label": "Labels, which clients of OSMO 6.4 know: here no workflow has any.",
    "last_n_lines": "So many lines at the end.",
    "latest_after": "Those whose latest version is younger.",
    "latest_before": "Those whose latest version is older.",
    "limit": "How many at most; never more than 1000 at a time.",
    "message": "Why; tasks are told.",
    "name": "Its name.",
    "new": "The later version: `NAME[:TAG]`.",
    "new_name": "The name that it gets.",
    "node": "The name of a node.",
    "no_label": "Those without these labels, which all are.",
    "nodes": "Those on these nodes.",
    "offset": "How many to pass over.",
    "old": "The earlier version: `NAME[:TAG]`.",
    "older_than": "Those before the entry with this number: where the page before ended.",
    "omit_data": "Without the configs themselves.",
    "order": "Which comes first: `ASC` the oldest, `DESC` the youngest.",
    "outcome": "Those that ended in this way.",
    "path": "A file or folder of the version.",
    "platform": "The name of a platform.",
    "platforms": "Those of these platforms.",
    "pool": "The name of a pool.",
    "pools": "Those in these pools; in all without any.",
    "prefix": "Those whose names begin with this.",
    "priority": "HIGH, NORMAL or LOW, in any case.",
    "range": "Which bytes: `bytes=FIRST-LAST`.",
    "raw": "The path in base64, where it is not UTF-8.",
    "recursive": "Everything below it.",
    "remove": "Tags that the workflow loses.",
    "repack_below": "Packs are written anew of which less than this part is used.",
    "resource": "The beginning of a path.",
    "resume": "Go on with the upload that was begun.",
    "retry_id": "The attempt, from 0; without it the last, or all.",
    "revision": "The number of a revision.",
    "role": "The name of a role.",
    "roles": "Names of roles.",
    "second_revision": "The revision that it is compared with.",
    "set_tag": "Tags that the version gets.",
    "sig": "The signature of the address.",
    "skip_groups": "Without groups and tasks.",
    "start_index": "The first of the page, from 1.",
    "started_after": "Those that were started later.",
    "started_before": "Those that were started earlier.",
    "statuses": "Those with these statuses.",
    "submitted_after": "Those that were submitted later.",
    "submitted_before": "Those that were submitted earlier.",
    "summary": "Sums instead of tasks.",
    "tag": "A version or a tag; empty is as none.",
    "tags": "Those that have one of these tags.",
    "task": "The name of a task.",
    "task_name": "The name of a task.",
    "task_port": "The port that it listens on.",
    "task_ports": "The ports that it listens on.",
    "until": "Until when the address is good, in seconds since the epoch.",
    "use_template": "As it was before its template was filled in.",
    "use_udp": "Datagrams instead of connections.",
    "user": "Those of these users.",
    "users": "Those of these users.",
    "validate": "Try it before it is kept.",
    "validation_only": "Only check it.",
    "verbose": "Every attempt of every task.",
    "version": "A version; the latest without one.",
    "version_id": "The version that the first request gave.",
    "workflow_id": "The ID of a workflow, or its UUID.",
    "x-casstore-places": "Anything: the text then has marks, lines that begin with the byte 30, from where to go on.",
}
LINKS: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    operation: dict.fromkeys(targets, (parameter, expression))
    for operation, targets, parameter, expression in (
        (
            "workflows_submit",
            ("workflows_query_workflow", "workflows_cancel", "workflows_tag", "workflows_spec", "following_logs"),
            "workflow_id",
            "$response.body#/name",
        ),
        ("workflows_restart", ("workflows_query_workflow", "workflows_cancel"), "workflow_id", "$response.body#/name"),
        ("apps_create", ("apps_get", "apps_spec", "apps_update", "apps_delete"), "name", "$response.body#/name"),
        ("auth_create_user", ("auth_get_user", "auth_give_role", "auth_delete_user"), "user", "$response.body#/id"),
        ("auth_create_own_token", ("auth_own_token_roles", "auth_delete_own_token"), "name", "$request.path.name"),
        ("credentials_put", ("credentials_delete",), "name", "$request.path.name"),
    )
}
"""What can be asked next: by operation, other operations with the parameter that is known then, and from where."""
_SPECIAL: Final[Mapping[tuple[str, str], str]] = {
    ("apps_list_apps", "name"): "Those whose name contains this.",
    ("datasets_list_datasets", "name"): "Those whose name contains this.",
    ("workflows_list_workflows", "name"): "Those whose name contains this.",
    ("audit_entries", "after"): "Those after this time.",
    ("audit_entries", "user"): "Those of this user.",
    ("auth_list_users", "roles"): "Those who have one of these roles.",
    ("configs_history", "name"): "Those of the config with this name.",
    ("configs_history", "tags"): "Those that have one of these tags.",
    ("versions_files", "path"): "A folder of the version; without it all of it.",
    ("workflows_submit", "workflow_id"): "Submit this one again; then there is no body.",
}


def parameter(operation: str, name: str) -> str:
    """What a parameter is for; empty when nobody has said it."""
    return _SPECIAL.get((operation, name)) or PARAMETERS.get(name, "")
