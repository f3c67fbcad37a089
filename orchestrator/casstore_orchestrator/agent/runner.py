"""Running one placed group: everything that happens between its placement and its end.

Decided here and only here: the order of a task's steps (prepare, inputs, release, command, outputs) and the threads
that take them. What follows from a step is decided by ``state``: steps are reported as events, orders come back as
effects. Orders are carried out by one thread, in the order in which they came; inputs, waiting and outputs have a
thread for each run of an attempt, which ends as soon as that run is stopped.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from casstore.errors import AccessError, CancelledError, CasstoreError, ConflictError, NotFoundError, UsageError
from casstore_orchestrator.agent.storing import Made, Storing, error_text
from casstore_orchestrator.credentials import task_credentials
from casstore_orchestrator.events import (
    Attempt,
    CloseGroup,
    CommandExited,
    Effect,
    Event,
    GroupFailed,
    InputsFailed,
    InputsReady,
    KillTask,
    NewAttempt,
    ReleaseTasks,
    RestartInPlace,
    StartGroup,
    TaskExited,
    TaskFailed,
    TaskRunning,
)
from casstore_orchestrator.folders import remove_tree
from casstore_orchestrator.homes import Homes
from casstore_orchestrator.inputs import InputFetcher
from casstore_orchestrator.logs import TaskLog
from casstore_orchestrator.logwriter import LogWriter
from casstore_orchestrator.pools import Resources
from casstore_orchestrator.ports import (
    Credentials,
    DataStore,
    Executor,
    Gang,
    PlacedFile,
    RunningTask,
    TaskLaunch,
    UrlStore,
    VersionMounts,
)
from casstore_orchestrator.provenance import InputNote
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.spec import TaskSpec
from casstore_orchestrator.status import ExitCode, TaskStatus
from casstore_orchestrator.tokens import TokenValues, expand_vars, names_in, resolve
from casstore_orchestrator.transfers import Say, Stop
from casstore_orchestrator.views import Views

__all__ = ["GroupRunner", "Services"]

_log = logging.getLogger(__name__)
_POLL = 1.0
"""Seconds after which a waiting run looks whether it was stopped, should nobody wake it."""
_JOIN = 30.0
"""Seconds that a closing group waits for its transfers to notice that they were stopped."""


@dataclass(frozen=True, slots=True)
class Services:
    """What every group needs; see ``ports``."""

    executor: Executor
    data: DataStore
    homes: Homes
    logs: LogWriter
    credentials: Credentials
    file_urls: bool
    urls: UrlStore | None = None
    mounts: VersionMounts | None = None
    default_mounts: Callable[[str, str], tuple[str, ...]] = lambda *_: ()
    """What every task of a platform (the second name) of a pool gets mounted, as ``volumeMounts`` have it."""


class _Run:
    """One run of one attempt, with the thread that follows it."""

    def __init__(self, attempt: Attempt, spec: TaskSpec, home: Path, task: RunningTask) -> None:
        self.attempt = attempt
        self.spec = spec
        self.home = home
        self.task = task
        self.stop = Stop()
        self.wake = threading.Event()
        self.released = False
        self.thread: threading.Thread | None = None

    def end(self, why: str) -> None:
        self.stop.set(why)
        self.wake.set()


class GroupRunner:
    """One placed group of one workflow.

    ``order`` takes the effects of ``state`` and never blocks. ``report`` is called from the runner's threads with
    what happened. ``freed`` is called once, when nothing of the group runs any more, ``ended`` after that, when its
    homes are gone and its last line is in the log. ``placement`` is its number, if it is not that of the record.
    """

    def __init__(
        self,
        services: Services,
        record: WorkflowRecord,
        group: str,
        limits: dict[str, Resources],
        *,
        report: Callable[[Event], None],
        ended: Callable[[GroupRunner], None],
        freed: Callable[[], None] = lambda: None,
        placement: int | None = None,
    ) -> None:
        self._services = services
        self._record = record
        self._group = group
        self._spec = record.spec.group(group)
        self._limits = limits
        self._report = report
        self._freed = freed
        self._ended = ended
        self._log = TaskLog(services.logs, record.id)
        mounts = services.homes.mounts(
            record.id, group, record.group(group).placements if placement is None else placement
        )
        self._views = Views(services.executor, services.mounts, mounts)
        self._fetcher = InputFetcher.make(
            services.data,
            services.homes,
            record.id,
            record.user,
            file_urls=services.file_urls,
            urls=services.urls,
            views=self._views,
        )
        self._storing = Storing(
            record,
            group,
            data=services.data,
            homes=services.homes,
            executor=services.executor,
            urls=services.urls,
            file_urls=services.file_urls,
        )
        self._orders: queue.SimpleQueue[Effect] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closing = False
        self._stop = Stop()
        self._gang: Gang | None = None
        self._runs: dict[str, _Run] = {}
        self._threads: list[threading.Thread] = []
        self._homes: list[Path] = []
        self._mounters: list[Attempt] = []
        self._notes: dict[tuple[str, int], tuple[InputNote, ...]] = {}
        self._thread = threading.Thread(target=self._control, name=f"group {record.id} {group}", daemon=True)
        self._thread.start()

    def order(self, effect: Effect) -> None:
        """Have an effect carried out, after those that came before. Work that it ends is told so at once."""
        with self._lock:
            if isinstance(effect, CloseGroup):
                self._closing = True
                self._stop.set("the group ended")
                for run in self._runs.values():
                    run.end("the group ended")
            elif isinstance(effect, KillTask):
                run_ = self._runs.get(effect.attempt.task)
                if run_ is not None and run_.attempt.retry_id == effect.attempt.retry_id:
                    run_.end(effect.why)
        self._orders.put(effect)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the group has been closed; whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def task(self, name: str, retry_id: int | None = None) -> RunningTask:
        """The newest run of a task, for interactive use. ``NotFoundError``, ``ConflictError`` when it does not run."""
        if all(task.name != name for task in self._spec.tasks):
            msg = f"there is no task {name} in group {self._group}"
            raise NotFoundError(msg)
        with self._lock:
            run = self._runs.get(name)
        if run is None or run.task.poll() is not None or retry_id not in {None, run.attempt.retry_id}:
            attempt = "" if retry_id is None else f" (attempt {retry_id})"
            msg = f"task {name}{attempt} does not run now"
            raise ConflictError(msg)
        return run.task

    def note(self, task: str, text: str) -> None:
        """A line of our own in the log of a task's newest attempt."""
        self._log.say(task, text)

    # The controlling thread.

    def _control(self) -> None:
        while True:
            effect = self._orders.get()
            try:
                if isinstance(effect, CloseGroup):
                    break
                self._carry_out(effect)
            except CasstoreError as error:
                self._failed(effect, error_text(error), TaskStatus.FAILED_START_ERROR)
            except Exception as error:  # noqa: BLE001 - becomes the end of the group
                _log.exception("an order of group %s of %s failed", self._group, self._record.id)
                self._failed(effect, f"{type(error).__name__}: {error}", TaskStatus.FAILED_SERVER_ERROR)
        try:
            self._close()
        except Exception:  # noqa: BLE001 - nobody is left who could be told
            _log.exception("group %s of %s could not be closed", self._group, self._record.id)
        finally:
            self._ended(self)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, StartGroup):
            self._start(effect.attempts)
        elif isinstance(effect, ReleaseTasks):
            self._release(effect)
        elif isinstance(effect, KillTask):
            run = self._runs.get(effect.attempt.task)
            if run is not None and run.attempt.retry_id == effect.attempt.retry_id:
                run.end(effect.why)  # again: it may have begun after the order was given
                self._sayer(run)(f"Task ended: {effect.why}")
                run.task.kill()
        elif isinstance(effect, RestartInPlace | NewAttempt):
            self._again(effect.attempt, in_place=isinstance(effect, RestartInPlace))

    def _failed(self, effect: Effect, message: str, status: TaskStatus) -> None:
        if self._closing:
            return
        # Who stores the failure also logs its message, for each task that it ends.
        if isinstance(effect, NewAttempt | RestartInPlace | KillTask):
            self._report(TaskFailed(effect.attempt, status, message))
            return
        self._report(GroupFailed(self._group, message, status))

    def _start(self, attempts: tuple[Attempt, ...]) -> None:
        launches: list[tuple[Attempt, TaskSpec, TaskLaunch]] = []
        for attempt in attempts:
            self._log.attempt(attempt.task, attempt.retry_id)
            launches.append((attempt, *self._launch(attempt, in_place=False)))
        executor = self._services.executor
        gang = executor.prepare(f"{self._record.id}/{self._group}", [launch for _, _, launch in launches], self._log)
        self._gang = gang
        for attempt, spec, launch in launches:
            self._follow(_Run(attempt, spec, launch.home, gang.tasks[attempt.task]), fetch=True)

    def _again(self, attempt: Attempt, *, in_place: bool) -> None:
        gang = self._gang
        if gang is None:
            msg = "the group was never prepared"
            raise UsageError(msg)
        before = self._runs.get(attempt.task)
        if before is not None:
            before.end("the command is run again")
            before.task.kill()
            before.task.wait()
        self._log.attempt(attempt.task, attempt.retry_id)
        spec, launch = self._launch(attempt, in_place=in_place)
        self._say(
            attempt.task,
            "Running the command again in place" if in_place else f"Attempt {attempt.retry_id} begins",
        )
        task = gang.restart(launch)
        self._follow(_Run(attempt, spec, launch.home, task), fetch=not in_place)

    def _follow(self, run: _Run, *, fetch: bool) -> None:
        """Start the thread of a run."""
        with self._lock:
            if self._closing:
                return
            self._runs[run.attempt.task] = run
            run.thread = threading.Thread(
                target=self._run_attempt,
                args=(run,),
                kwargs={"fetch": fetch},
                name=f"task {self._record.id} {run.attempt.task} {run.attempt.retry_id}",
                daemon=True,
            )
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(run.thread)
        run.thread.start()

    def _release(self, effect: ReleaseTasks) -> None:
        gang = self._gang
        if gang is None:
            return
        runs = [self._runs[attempt.task] for attempt in effect.attempts if attempt.task in self._runs]
        if effect.whole_group and len(runs) == len(gang.tasks):
            if len(runs) > 1:
                for run in runs:
                    self._sayer(run)("Group ready")
            gang.release()
        else:
            for run in runs:
                gang.release_task(run.attempt.task)
        for run in runs:
            run.released = True
            run.wake.set()

    def _close(self) -> None:
        try:
            try:
                if self._gang is not None:
                    self._gang.close()
            finally:
                self._freed()
            for thread in self._threads:
                thread.join(_JOIN)
        finally:
            problems = self._views.close()
        for attempt in self._mounters:
            for problem in problems:
                self._services.logs.say(self._record.id, attempt.task, attempt.retry_id, f"A mounted input: {problem}")
        for home in self._homes:
            remove_tree(home)

    def _launch(self, attempt: Attempt, *, in_place: bool) -> tuple[TaskSpec, TaskLaunch]:
        """The task with its tokens resolved, and what the executor needs; makes the home of a new attempt."""
        record, services = self._record, self._services
        raw = record.spec.task(attempt.task)
        homes = services.homes
        if in_place:
            home = homes.attempt(record.id, raw.name, attempt.retry_id)
        else:
            home = homes.make(record.id, raw.name, attempt.retry_id, len(raw.inputs))
            self._homes.append(home)
        layout = services.executor.layout(home)
        key = f"{record.id}/{self._group}"
        task = resolve(
            raw,
            TokenValues(
                workflow_id=record.id,
                uuid=record.uuid,
                output=layout.output,
                inputs=tuple(f"{layout.input}/{index}" for index in range(len(raw.inputs))),
                hosts={peer.name: services.executor.host(key, peer.name) for peer in self._spec.tasks},
            ),
        )
        if not task.command:
            msg = f"task {task.name} has no command, and the entry point of its image can't be run without images."
            raise UsageError(msg, hint="Give the task a 'command:'.")
        place = record.group(self._group).task(task.name)
        wanted = [*task.volume_mounts, *services.default_mounts(record.pool, place.platform or "")]
        volumes = tuple(dict.fromkeys((mount.partition(":")[0], mount.rpartition(":")[2]) for mount in wanted))
        secrets, secret_files = task_credentials(task, record.user, services.credentials)
        # Now, and not only when the workflow began: the credentials may be others since.
        services.logs.mask(record.id, [*secrets.values(), *(file.data.decode() for file in secret_files)])
        for name in names_in((*task.command, *task.args)) & (secrets.keys() - task.environment.keys()):
            self._say(task.name, f"$({name}) in the command puts a secret where every user of the machine sees it")
        environment = {**secrets, **task.environment}
        layers = self._views.layers(home) if in_place else self._fetcher.lay(task, home, self._stop)
        if layers and attempt not in self._mounters:
            self._mounters.append(attempt)
        limits = self._limits.get(task.name, Resources())
        launch = TaskLaunch(
            name=task.name,
            argv=tuple(expand_vars((*task.command, *task.args), environment)),
            environment=environment,
            files=(*(PlacedFile(file.path, file.data()) for file in task.files), *secret_files),
            home=home,
            cpu=limits.cpu,
            memory=limits.memory,
            gpu=limits.gpu,
            layers=layers,
            image=task.image,
            volumes=volumes,
            host_network=task.host_network,
            privileged=task.privileged,
            storage=limits.storage,
        )
        return task, launch

    def _say(self, task: str, text: str) -> None:
        self._log.say(task, text)

    # The thread of a run.

    def _run_attempt(self, run: _Run, *, fetch: bool) -> None:
        try:
            self._steps(run, self._sayer(run), fetch=fetch)
        except CancelledError:
            if not run.stop():
                self._report(TaskFailed(run.attempt, TaskStatus.FAILED_SERVER_ERROR, "a transfer was interrupted"))
        except Exception as error:  # noqa: BLE001 - becomes the end of the attempt
            if run.stop():
                return
            _log.exception("attempt %s of %s failed", run.attempt, self._record.id)
            message = f"{type(error).__name__}: {error}"
            self._report(TaskFailed(run.attempt, TaskStatus.FAILED_SERVER_ERROR, message))

    def _steps(self, run: _Run, say: Say, *, fetch: bool) -> None:
        attempt = run.attempt
        if fetch:
            self._report(TaskRunning(attempt))
            if not self._fetch(run, say):
                return
        made = Made(attempt, run.spec, run.home, self._notes.get((attempt.task, attempt.retry_id), ()))
        reused = self._storing.reused(made, say) if fetch else None
        if reused is not None:
            run.task.kill()  # it waits for a release that will not come
            self._report(TaskExited(attempt, reused))
            return
        if self._spec.barrier and len(self._spec.tasks) > 1:
            say("Waiting for group ready")
        self._report(InputsReady(attempt))
        while not run.released:
            run.wake.wait(_POLL)
            run.stop.check()
        checkpoints = self._storing.checkpoints(made, say)
        checkpoints.start()
        try:
            code: int | None = None
            while code is None:
                code = run.task.wait(_POLL)
                run.stop.check()
        finally:
            checkpoints.stop()
        self._report(CommandExited(attempt, code))
        evicted = run.task.evicted
        say(f"The command ended with exit code {code}" + (f": {evicted}" if evicted else ""))
        problem = self._storing.store(made, code, checkpoints, say, run.stop, oom=bool(evicted))
        if problem is None:
            run.stop.check()
        self._report(problem or TaskExited(attempt, code, message=evicted or None, oom=bool(evicted)))

    def _sayer(self, run: _Run) -> Say:
        return partial(self._services.logs.say, self._record.id, run.attempt.task, run.attempt.retry_id)

    def _fetch(self, run: _Run, say: Say) -> bool:
        try:
            notes = self._fetcher.fetch(run.spec, run.home, say, run.stop)
        except CancelledError:
            raise
        except (CasstoreError, OSError) as error:
            code = ExitCode.DATA_UNAUTHORIZED if isinstance(error, AccessError) else ExitCode.DOWNLOAD_FAILED
            message = f"The inputs can't be had: {error_text(error)}"
            say(message)
            run.task.kill()  # it waits for a release that must not come
            self._report(InputsFailed(run.attempt, message, code))
            return False
        self._notes[run.attempt.task, run.attempt.retry_id] = notes
        return True
