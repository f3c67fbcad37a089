"""The lines of ``osmo workflow events``."""

from __future__ import annotations

from casstore_orchestrator.events import (
    Attempt,
    CommandExited,
    Event,
    GroupLost,
    GroupPlaced,
    InputsReady,
    Placed,
    Submitted,
    TaskExited,
    TaskRunning,
    TimedOut,
)
from casstore_orchestrator.notes import notes
from casstore_orchestrator.pools import Machine, Resources, parse_pools
from casstore_orchestrator.spec import GroupSpec, TaskInput, TaskSpec, WorkflowSpec
from casstore_orchestrator.state import apply, new_workflow, with_number

POOL = parse_pools({"p": {"default_exec_timeout": 1000}}, Machine("m", Resources(cpu=4, memory=1 << 34, storage=1)))[
    "p"
]
SPEC = WorkflowSpec(
    name="w",
    groups=(
        GroupSpec(
            name="g",
            ignore_nonlead_status=False,
            tasks=(
                TaskSpec(name="a", command=("x",), lead=True),
                TaskSpec(name="b", command=("x",), exit_actions={"RESCHEDULE": "5"}),
            ),
        ),
        GroupSpec(name="h", tasks=(TaskSpec(name="c", command=("x",), lead=True, inputs=(TaskInput(task="a"),)),)),
    ),
)
PLACED = GroupPlaced("g", {"a": Placed("x86", "n1"), "b": Placed("x86", "n2")})


def lines(*events: tuple[float, Event]) -> list[str]:
    record = with_number(new_workflow(SPEC, uuid="0f", user="u", pool=POOL), 1)
    told: list[str] = []
    for at, event in events:
        after, _ = apply(record, event, at)
        told += [
            f"{note.at:g} {note.task} {note.retry_id} {note.reason}" + (f": {note.message}" if note.message else "")
            for note in notes(record, after, at)
        ]
        record = after
    return told


def test_every_attempt_has_all_of_its_lines() -> None:
    a, b, b1 = Attempt("a", 0, 0), Attempt("b", 0, 0), Attempt("b", 1, 0)
    found = lines(
        (1, Submitted()),
        (2, PLACED),
        (3, TaskRunning(a)),
        (4, InputsReady(a)),
        (5, InputsReady(b)),
        (6, CommandExited(b, 5)),
        (7, TaskExited(b, 5)),
        (8, InputsReady(b1)),
        (9, GroupLost("g", "The machine went away.")),
        (10, PLACED),
        (2000, TimedOut("exec", "g")),
    )
    assert found == [
        "1 a 0 SCHEDULING",
        "1 b 0 SCHEDULING",
        "1 c 0 WAITING: Waits for g",
        "2 a 0 INITIALIZING: On node n1, platform x86",
        "2 b 0 INITIALIZING: On node n2, platform x86",
        "3 a 0 RUNNING",
        "5 a 0 STARTED: The inputs are in place, and the command was started",
        "5 b 0 RUNNING",
        "5 b 0 STARTED: The inputs are in place, and the command was started",
        "6 b 0 STORING: The command ended, and what it left is being stored",
        "7 a 0 RESTARTED: Run 2 of the command, in place, together with the group",
        "7 b 0 RESCHEDULED",
        "7 b 1 INITIALIZING: On node n2, platform x86",
        "8 a 0 STARTED: The inputs are in place, and the command was started",
        "8 b 1 RUNNING",
        "8 b 1 STARTED: The inputs are in place, and the command was started",
        "9 a 0 RESCHEDULED: The machine went away.",
        "9 a 1 SCHEDULING",
        "9 b 1 RESCHEDULED: The machine went away.",
        "9 b 2 SCHEDULING",
        "10 a 1 INITIALIZING: On node n1, platform x86",
        "10 b 2 INITIALIZING: On node n2, platform x86",
    ]


def test_a_limit_is_told_to_everyone_it_ends() -> None:
    found = lines((1, Submitted()), (2, PLACED), (3, TaskRunning(Attempt("a", 0, 0))), (1003, TimedOut("exec", "g")))
    assert found[-3:] == [
        "1003 a 0 FAILED_EXEC_TIMEOUT: The group ran for longer than its limit of 1000 s.",
        "1003 b 0 FAILED_EXEC_TIMEOUT: The group ran for longer than its limit of 1000 s.",
        "1003 c 0 FAILED_UPSTREAM: Group 'g', which this one needs, failed.",
    ]
