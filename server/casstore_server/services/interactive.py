"""Interactive access to running tasks: who may have it, when, and by which keys.

Decided here and only here: what is said while a task can't be entered yet or any more. Whose tasks somebody may enter
is decided in ``rights``.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from casstore.errors import ConflictError, NotFoundError, ServiceError, UsageError
from casstore.wire.router import PluginsReply, RouterReply, RsyncModule, RsyncPlugin
from casstore_orchestrator.agent.attach import MODULES, Request
from casstore_orchestrator.ports import RunKey
from casstore_orchestrator.records import GroupRecord, TaskRecord, WorkflowRecord
from casstore_orchestrator.status import TaskPhase, TaskStatus
from casstore_server.identity.urls import is_loopback
from casstore_server.services.context import Caller, Services
from casstore_server.services.reasons import visible_text
from casstore_server.services.rights import changeable
from casstore_server.services.sessions import Session, Use
from casstore_server.services.workflows import check_task

__all__ = [
    "GoneError",
    "TooEarlyError",
    "forward",
    "plugins",
    "program",
    "programs",
    "sync",
    "web",
]

_MAX_COMMAND = 32 * 1024


class TooEarlyError(ConflictError):
    """It does not run yet; asking again may help."""

    @property
    def http_status(self) -> int:
        """425, for which OSMO's clients ask again."""
        return 425


class GoneError(ConflictError):
    """It does not run any more."""

    @property
    def http_status(self) -> int:
        """410."""
        return 410


def program(services: Services, caller: Caller, workflow_id: str, task: str, command: str) -> RouterReply:
    """Run a program (one string, split as a shell would) in a task."""
    record = _load(services, caller, workflow_id)
    return _program(services, caller, record, task, _split(command))


def programs(services: Services, caller: Caller, workflow_id: str, group: str, command: str) -> dict[str, RouterReply]:
    """Run a program in every task of a group that runs."""
    record = _load(services, caller, workflow_id)
    argv = _split(command)
    found = next((known for known in record.groups if known.name == group), None)
    if found is None:
        names = ", ".join(known.name for known in record.groups)
        raise NotFoundError(f"Workflow {record.id} has no group {group}", hint=f"Its groups: {names}")
    problems: list[ConflictError] = []
    replies: dict[str, RouterReply] = {}
    for task in found.current():
        try:
            replies[task.name] = _program(services, caller, record, task.name, argv)
        except ConflictError as error:
            problems.append(error)
    if not replies and problems:
        raise problems[0]
    return replies


def _program(
    services: Services, caller: Caller, record: WorkflowRecord, task: str, argv: tuple[str, ...]
) -> RouterReply:
    reply = _open(services, caller, record, "exec", Request(attach="exec", task=task, argv=argv))
    reply.pipes = True
    return reply


def forward(
    services: Services, caller: Caller, workflow_id: str, task: str, ports: Sequence[int], *, udp: bool
) -> list[RouterReply]:
    """Reach ports of a task, in their order."""
    most = services.config.current().workflow.max_num_ports_per_task
    if not ports or len(ports) > most:
        raise UsageError(f"Between 1 and {most} ports can be forwarded at a time, not {len(ports)}")
    record = _load(services, caller, workflow_id)
    for port in ports:
        if not 0 < port < 65536:
            raise UsageError(f"{port} is not a port")
    kind: Literal["tcp", "udp"] = "udp" if udp else "tcp"
    return [
        _open(services, caller, record, "portforward", Request(attach=kind, task=task, port=port)) for port in ports
    ]


def sync(services: Services, caller: Caller, workflow_id: str, task: str) -> RouterReply:
    """Speak to the rsync daemon of a task."""
    if not services.config.current().workflow.plugins_config.rsync.enabled:
        raise ConflictError(
            "rsync is switched off on this server", hint="See: osmo config show WORKFLOW plugins_config"
        )
    record = _load(services, caller, workflow_id)
    return _open(services, caller, record, "rsync", Request(attach="rsync", task=task))


def web(services: Services, caller: Caller, workflow_id: str, task: str, port: int) -> RouterReply:
    """Reach a port of a task from a browser."""
    if not 0 < port < 65536:
        raise UsageError(f"{port} is not a port")
    base = urlsplit(caller.links.base)
    if not is_loopback(base.hostname):
        raise UsageError(
            "This server has no address for browsers: the pages of tasks have names below localhost",
            hint=f"osmo workflow port-forward {workflow_id} {task} --port {port}",
        )
    record = _load(services, caller, workflow_id)
    reply = _open(services, caller, record, "webserver", Request(attach="tcp", task=task, port=port))
    reply.url = f"{base.scheme}://{reply.key}.localhost:{base.port or 80}/"
    return reply


def plugins(services: Services) -> PluginsReply:
    """What OSMO's clients ask before they use rsync: which folders there are besides the workspace."""
    more = list(MODULES.items())[1:]
    config = services.config.current().workflow.plugins_config.rsync
    return PluginsReply(
        rsync=RsyncPlugin(
            enabled=config.enabled,
            allowed_paths={name: RsyncModule(path=folder, writable=writable) for name, (folder, writable) in more},
            client_upload_rate_limit=config.client_upload_rate_limit,
            daemon_debounce_delay=config.daemon_debounce_delay,
            daemon_poll_interval=config.daemon_poll_interval,
            daemon_reconcile_interval=config.daemon_reconcile_interval,
        )
    )


def _split(command: str) -> tuple[str, ...]:
    if len(command) > _MAX_COMMAND or "\0" in command:
        raise UsageError(f"The command is too long: at most {_MAX_COMMAND} characters, without NUL")
    try:
        argv = tuple(shlex.split(command))
    except ValueError as error:
        raise UsageError(f"The command can't be split into words: {error}", hint="Are all quotes closed?") from None
    if not argv or not argv[0]:
        raise UsageError("The command is empty")
    return argv


def _load(services: Services, caller: Caller, workflow_id: str) -> WorkflowRecord:
    return changeable(services, caller, workflow_id, "workflow:Exec")


def _open(services: Services, caller: Caller, record: WorkflowRecord, use: Use, request: Request) -> RouterReply:
    check_task(record, request.task)
    group, task = next(
        (group, task) for group in record.groups for task in group.current() if task.name == request.task
    )
    check_enterable(services, caller, record, group, task)
    if services.agents is None:
        raise ServiceError("This server can't reach running tasks")
    run = RunKey(record.id, group.name, group.placements)
    session = Session(use, record.id, caller.user, run, msgspec.structs.replace(request, retry_id=task.retry_id))
    key = services.sessions.add_page(session) if use == "webserver" else services.sessions.add(session)
    base = caller.links.base
    return RouterReply(router_address=base.replace("http", "ws", 1) if base else "", key=key)


def check_enterable(
    services: Services, caller: Caller, record: WorkflowRecord, group: GroupRecord, task: TaskRecord
) -> None:
    """Raise ``GoneError`` or ``TooEarlyError`` with the reason why a task can't be entered now."""
    what = f"Task {task.name} of {record.id}"
    if task.status.finished or task.phase is TaskPhase.OUTPUTS:
        state = "its outputs are being stored" if task.phase is TaskPhase.OUTPUTS else str(task.status)
        raise GoneError(f"{what} has ended: {state}", hint=f"What it said: osmo workflow logs {record.id}")
    if task.status is TaskStatus.RUNNING and task.phase is TaskPhase.COMMAND:
        return
    hint = f"Watch it with: osmo workflow logs {record.id} --task {task.name}"
    if task.phase is TaskPhase.INPUTS:
        raise TooEarlyError(f"{what} can't be entered yet: its inputs are being put in place", hint=hint)
    if task.phase is TaskPhase.READY:
        raise TooEarlyError(
            f"{what} can't be entered yet: it waits for the other tasks of group {group.name}", hint=hint
        )
    why = visible_text(services, caller, services.scheduler.why_pending(record.id))
    raise TooEarlyError(f"{what} does not run yet: {task.status}" + (f" ({why})" if why else ""), hint=hint)
