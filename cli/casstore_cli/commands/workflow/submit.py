"""``osmo workflow submit``, ``validate`` and ``restart``, and what ``osmo app submit`` shares with them.

Decided here and only here: the options and the steps of a submission. A file without local paths is sent as it is and
rendered by the server. One with local paths is rendered first (a dry run), because the paths may be templated; then its
files are put in, it is validated, local folders are uploaded, and the result is sent, not to be rendered again.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click
import msgspec

from casstore.config import Config, load_config
from casstore.errors import CancelledError, NotFoundError, SourceError, UsageError
from casstore.wire.cluster import ProfileReply
from casstore.wire.protocol import MAX_REQUEST_BYTES
from casstore.wire.workflow import SubmitReply, SubmitRequest, WorkflowReply
from casstore_cli import output
from casstore_cli.client import Client, ConnectionLostError, ReplyLostError, Value, quoted
from casstore_cli.commands.workflow.localfiles import Document, mentions_localpath
from casstore_cli.following import follow
from casstore_cli.login import connect
from casstore_cli.multi import Command, ManyOption
from casstore_cli.patience import persistently
from casstore_cli.terminal import copy_lines

F = TypeVar("F", bound=Callable[..., Any])
_ID = re.compile(r"[a-zA-Z](?:[a-zA-Z0-9_-]*[a-zA-Z0-9])?-\d+|[0-9a-f]{32}", re.ASCII)
_PRIORITIES = ("HIGH", "NORMAL", "LOW")
_MAX_QUERY = 10_000
_pool_option = click.option("-p", "--pool", help="Pool to run in; without it that of your profile.")
_set_option = click.option("--set", "set_values", cls=ManyOption, metavar="KEY=VALUE", help="Values of templates.")
_set_string_option = click.option(
    "--set-string", "set_strings", cls=ManyOption, metavar="KEY=VALUE", help="As --set, but always text."
)
_outside_option = click.option(
    "--allow-outside-paths", is_flag=True, help="Let a localpath leave the folder of the workflow file."
)
_render_option = click.option(
    "--render-localpath-files",
    is_flag=True,
    help="Render templates and tokens inside files given by localpath too (text only).",
)


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a workflow and what was said about it; ``base`` is the folder of its local paths."""

    text: str
    base: str
    set_values: Sequence[str]
    set_strings: Sequence[str]
    environment: Sequence[str] = ()

    @classmethod
    def of(cls, text: str, base: str, options: Mapping[str, Any]) -> Source:
        """With the values that ``submission_options`` took."""
        return cls(text, base, options["set_values"], options["set_strings"])

    def request(self, text: str | None = None) -> SubmitRequest:
        """The body of a submission."""
        return SubmitRequest(
            file=self.text if text is None else text,
            set_variables=list(self.set_values),
            set_string_variables=list(self.set_strings),
            env_vars=list(self.environment),
        )


_SUBMISSION: Final = (
    _set_option,
    _set_string_option,
    click.option("--set-env", "set_env", cls=ManyOption, metavar="KEY=VALUE", help="Environment of every task."),
    click.option("--dry-run", is_flag=True, help="Print the workflow after its templates and stop."),
    _pool_option,
    click.option(
        "--priority", type=click.Choice(_PRIORITIES, case_sensitive=False), help="How it competes for the pool."
    ),
    click.option("--cache", is_flag=True, help="Take the results of equal tasks that completed before."),
    click.option("-f", "--follow", is_flag=True, help="Follow the log to the end; fail when the workflow does."),
    _render_option,
    _outside_option,
    output.format_option("text", "json"),
)


def submission_options(function: F) -> F:
    """Give a command the options of a submission; ``submit_source`` takes their values."""
    for option in reversed(_SUBMISSION):
        function = option(function)
    return function


@click.command("submit", cls=Command)
@click.argument("workflow_file")
@submission_options
def submit(*, workflow_file: str, **options: Any) -> int:
    """Run the workflow in WORKFLOW_FILE ('-' reads standard input), or one that ran before, given by its ID."""
    config = load_config()
    if not os.path.exists(workflow_file) and workflow_file != "-" and _ID.fullmatch(workflow_file):
        return _submit_again(config, workflow_file, options)
    text, base = read_text(workflow_file)
    return submit_source(connect(config), config, Source.of(text, base, options), options)


def submit_source(
    client: Client,
    config: Config,
    source: Source,
    options: Mapping[str, Any],
    extra: Mapping[str, Value] | None = None,
) -> int:
    """Submit (or render) what was read, as ``submission_options`` say; gives the exit code.

    ``extra`` is added to the query of the submission itself.
    """
    as_json = _check_options(options)
    pool, set_env = options["pool"], options["set_env"]
    if options["dry_run"]:
        reply = client.post(_route(client, pool or "default"), SubmitReply, {"dry_run": True}, source.request())
        if as_json:
            output.document(msgspec.to_builtins(reply), indent=2)
        else:
            sys.stdout.write(reply.spec or "")
        return 0
    route = _route(client, pool)
    query: dict[str, Value] = {"priority": options["priority"], **_cache(options), **(extra or {})}
    # In the body where they are too long for a URL; only a server of ours reads them there.
    long = sum(map(len, set_env)) > _MAX_QUERY
    if not long:
        query["env_vars"] = list(set_env)
    source = dataclasses.replace(source, environment=set_env if long else ())
    if mentions_localpath(source.text):
        render, outside = options["render_localpath_files"], options["allow_outside_paths"]
        document = _with_files(client, source, render=render, outside=outside)
        request = _final(source, document, render=render)
        if document.has_datasets():
            client.post(route, SubmitReply, query | {"validation_only": True}, request)
            document.upload_datasets(config, quiet=as_json)
            request = _final(source, document, render=render)
    else:
        request = source.request()
    return _sent(client, _post_once(client, route, query, request), as_json, options["follow"])


def _post_once(client: Client, route: str, query: Mapping[str, Value], request: SubmitRequest) -> SubmitReply:
    """Submit it, once, whatever becomes of the server meanwhile; only a server of ours can be asked again."""
    request = msgspec.structs.replace(request, uuid=uuid.uuid4().hex)
    look = "Look whether it was submitted: osmo workflow list"
    try:
        return client.post(route, SubmitReply, query, request)
    except ReplyLostError as lost:
        again = route.replace("api/", "api/v1/", 1)
        try:
            return persistently(client, lambda: client.post(again, SubmitReply, query, request), hint=look)
        except NotFoundError:
            raise ReplyLostError(lost.message, hint=look) from lost


def _submit_again(config: Config, workflow_id: str, options: Mapping[str, Any]) -> int:
    as_json = _check_options(options)
    if any(options[name] for name in ("set_values", "set_strings", "set_env", "dry_run")):
        raise UsageError("A workflow is submitted again as it was: --set and --dry-run need a file")
    client = connect(config)
    again: dict[str, Value] = {"workflow_id": workflow_id, "priority": options["priority"], **_cache(options)}
    reply = client.post(_route(client, options["pool"]), SubmitReply, again)
    return _sent(client, reply, as_json, options["follow"])


def _cache(options: Mapping[str, Any]) -> dict[str, Value]:
    """Only where it was asked for: OSMO's own server does not know it."""
    return {"cache": True} if options["cache"] else {}


def _check_options(options: Mapping[str, Any]) -> bool:
    """Whether the result is to be JSON; ``UsageError`` for options that can't be."""
    as_json: bool = options["format_type"] == "json"
    if options["follow"] and as_json:
        raise UsageError("--follow prints the log, which is not JSON", hint="Leave out one of the two.")
    for pair in (*options["set_values"], *options["set_strings"], *options["set_env"]):
        if "=" not in pair.lstrip("="):
            raise UsageError(f"'{pair}' is not KEY=VALUE")
    return as_json


@click.command("validate", cls=Command)
@click.argument("workflow_file")
@_set_option
@_set_string_option
@_pool_option
@_render_option
@_outside_option
@output.format_option("text", "json")
def validate(
    *,
    workflow_file: str,
    set_values: Sequence[str],
    set_strings: Sequence[str],
    pool: str | None,
    render_localpath_files: bool,
    allow_outside_paths: bool,
    format_type: str,
) -> None:
    """Check WORKFLOW_FILE as a submission would, without running it."""
    text, base = read_text(workflow_file)
    source = Source(text, base, set_values, set_strings)
    client = connect()
    request = source.request()
    if mentions_localpath(source.text):
        document = _with_files(client, source, render=render_localpath_files, outside=allow_outside_paths)
        document.has_datasets()
        request = _final(source, document, render=render_localpath_files)
    reply = client.post(_route(client, pool), SubmitReply, {"validation_only": True}, request)
    if format_type == "json":
        output.document(msgspec.to_builtins(reply), indent=2)
        return
    output.text(reply.logs or "Workflow validation succeeded.")


@click.command("restart", cls=Command)
@click.argument("workflow_id")
@_pool_option
@output.format_option("text", "json")
def restart(workflow_id: str, pool: str | None, format_type: str) -> None:
    """Run the groups of a failed workflow that did not complete again, as a new workflow."""
    client = connect()
    wanted = pool
    if wanted is None:
        found = client.get(f"api/workflow/{quoted(workflow_id)}", WorkflowReply, {"skip_groups": True})
        wanted = found.pool
    route = f"{_route(client, wanted)}/{quoted(workflow_id)}/restart"
    _print(client.post(route, SubmitReply), format_type == "json", f"Workflow {output.escape(workflow_id)} restarted.")


def read_text(path: str) -> tuple[str, str]:
    """The text of a workflow file ('-' is standard input) and the folder it lies in. ``SourceError``."""
    try:
        if path == "-":
            data, base = sys.stdin.buffer.read(MAX_REQUEST_BYTES + 1), os.getcwd()
        else:
            base = os.path.dirname(os.path.abspath(path))
            with open(path, "rb") as file:
                data = file.read(MAX_REQUEST_BYTES + 1)
    except FileNotFoundError:
        raise SourceError(
            f"{path} does not exist", hint="Give the path of a workflow file, or a workflow ID."
        ) from None
    except OSError as exc:
        raise SourceError(f"can't read {path}: {exc.strerror}") from None
    if len(data) > MAX_REQUEST_BYTES:
        raise SourceError(
            f"{path} is larger than the {MAX_REQUEST_BYTES} bytes that a workflow may have",
            hint="Put large files into a dataset and use it as an input.",
        )
    try:
        return data.decode("utf-8-sig"), base
    except UnicodeDecodeError as exc:
        raise SourceError(f"{path} is not UTF-8 text (byte {exc.start})") from None


def local_base(folder: str | None) -> str:
    """The folder that local paths are relative to when there is no workflow file. ``SourceError``."""
    base = os.path.abspath(folder or ".")
    if not os.path.isdir(base):
        raise SourceError(f"{base} is not a folder", hint="Give --local-path the folder of the local files.")
    return base


def _with_files(client: Client, source: Source, *, render: bool, outside: bool) -> Document:
    reply = client.post("api/pool/default/workflow", SubmitReply, {"dry_run": True}, source.request())
    document = Document(reply.spec or "", source.base, outside=outside)
    document.inline_files(as_text=render)
    return document


def _final(source: Source, document: Document, *, render: bool) -> SubmitRequest:
    text = document.text()
    if render:  # the server renders what was put in, with the same values
        from casstore_orchestrator.loader import split

        defaults = split(source.text).defaults_text or ""
        return msgspec.structs.replace(source.request(text + defaults), uploaded_templated_spec=source.text)
    return SubmitRequest(
        file=text, rendered=True, uploaded_templated_spec=source.text, env_vars=list(source.environment)
    )


def _route(client: Client, pool: str | None) -> str:
    if pool is None:
        pool = client.get("api/profile/settings", ProfileReply).profile.pool
        if not pool:
            raise UsageError("You have no default pool", hint="Name one with --pool, or: osmo profile set pool NAME")
    return f"api/pool/{quoted(pool)}/workflow"


def _sent(client: Client, reply: SubmitReply, as_json: bool, to_the_end: bool) -> int:
    _print(reply, as_json, "Workflow submit successful.")
    if not to_the_end:
        return 0
    workflow_id = reply.name or ""
    try:
        copy_lines(follow(client, workflow_id, "logs"))
        found = _ended(client, workflow_id)
    except KeyboardInterrupt:
        name = output.escape(workflow_id)
        raise CancelledError(
            f"interrupted; the workflow goes on: osmo workflow logs {name}, osmo workflow cancel {name}"
        ) from None
    output.text(f"Workflow {output.escape(found.name)} is {found.status}.")
    if found.failure_message:
        output.text(output.escape(found.failure_message))
    return 0 if found.status == "COMPLETED" else 1


def _ended(client: Client, workflow_id: str) -> WorkflowReply:
    def ask() -> WorkflowReply:
        return client.get(f"api/workflow/{quoted(workflow_id)}", WorkflowReply)

    try:
        return ask()
    except ConnectionLostError:
        return persistently(client, ask, hint=f"Look how it ended: osmo workflow query {workflow_id}")


def _print(reply: SubmitReply, as_json: bool, headline: str) -> None:
    if as_json:
        output.document(msgspec.to_builtins(reply), indent=2)
        return
    output.text(headline)
    output.text(f"Workflow ID        - {output.escape(reply.name or '')}")
    output.text(f"Workflow Overview  - {output.escape(reply.overview or '')}")
    if reply.dashboard_url:
        output.text(f"Workflow Dashboard - {output.escape(reply.dashboard_url)}")
