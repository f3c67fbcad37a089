"""What a workflow is, once its YAML has been read: names, units and forms are settled.

Decided here and only here: the fields of a workflow, its groups, tasks, inputs, outputs, files and resources,
under the names that OSMO 6.2 gives them, and their defaults. ``loader`` makes these values from text; nothing
here reads text.

After loading, the ``tasks:`` form has become groups of one task (``<task>-group``), quantities are bytes,
durations are seconds, and special tokens such as ``{{output}}`` are still in the strings (``tokens.resolve``
replaces them).
"""

from __future__ import annotations

import base64
from typing import Literal

import msgspec
from msgspec import field

__all__ = [
    "Checkpoint",
    "DatasetInput",
    "DatasetOutput",
    "FileSpec",
    "GroupSpec",
    "Input",
    "Kpi",
    "Output",
    "ResourceSpec",
    "TaskInput",
    "TaskSpec",
    "Timeout",
    "Topology",
    "UpdateDatasetOutput",
    "UrlInput",
    "UrlOutput",
    "WorkflowSpec",
]


class TaskInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="task"):
    """The outputs of another task: of this workflow (an edge between groups), or ``<workflow id>:<task>``.

    ``optional`` is for restarts alone: the task of the earlier workflow ended with its lead, and may have left nothing.
    """

    task: str
    regex: str | None = None
    optional: bool = False

    @property
    def external(self) -> bool:
        """Whether the task belongs to an earlier workflow."""
        return ":" in self.task

    @property
    def task_name(self) -> str:
        """The bare name of the task, as ``{{input:<task>}}`` names it."""
        return self.task.rpartition(":")[2]


class UrlInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="url"):
    """Objects under a storage URL; ``regex`` is matched against the path relative to the URL."""

    url: str
    regex: str | None = None


class DatasetInput(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="dataset"
):
    """A version of a dataset, or a collection: ``[bucket/]name[:tag]``, found under ``{{input:i}}/<name>``.

    ``localpath`` is set only before the client has uploaded it: a file or folder beside the YAML file.
    """

    name: str
    regex: str | None = None
    path: str | None = None
    metadata: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    localpath: str | None = None


class UrlOutput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="url"):
    """The contents of the output folder, copied under a storage URL."""

    url: str
    regex: str | None = None


class DatasetOutput(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="dataset"
):
    """A new version of a dataset, from ``{{output}}/<path>`` or all of the output folder.

    ``metadata`` and ``labels`` are paths of YAML files relative to the output folder. ``localpath`` is
    accepted by upstream's model and means nothing on an output.
    """

    name: str
    regex: str | None = None
    path: str | None = None
    metadata: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    localpath: str | None = None


class UpdateDatasetOutput(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="update_dataset",
):
    """A new version made of the old one and ``paths``, each ``src[:dst]`` with src relative to the output
    folder.
    """

    name: str
    paths: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


Input = TaskInput | UrlInput | DatasetInput
Output = UrlOutput | DatasetOutput | UpdateDatasetOutput


class FileSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file that is in place before the command starts.

    ``contents`` is text, or base64 when ``base64`` is set (binary, and never templated). ``localpath`` is set
    only before the client has read it.
    """

    path: str
    contents: str | None = None
    base64: bool = False
    localpath: str | None = None

    def data(self) -> bytes:
        """The bytes of the file. The loader has checked that base64 text decodes."""
        text = self.contents or ""
        return base64.b64decode(text) if self.base64 else text.encode("utf-8", "surrogateescape")


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder stored while the command runs, with ``frequency`` seconds between the end of one time and the next.

    It goes to a storage URL, or becomes a version of ``dataset`` (``[bucket/]name[:tag]``): exactly one is given.
    """

    path: str
    frequency: float
    url: str | None = None
    dataset: str | None = None
    regex: str | None = None

    @property
    def target(self) -> str:
        """Where it goes, for people to read."""
        return self.url or f"dataset {self.dataset}"


class Kpi(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the output folder that is kept apart as a result."""

    index: str
    path: str


class Topology(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tasks with equal (key, group) are placed on nodes with the same value of the pool's topology key."""

    key: str
    group: str = "default"
    requirement_type: Literal["required", "preferred"] = field(default="required", name="requirementType")


class ResourceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a task asks of a node; None is the platform's default.

    ``memory`` and ``storage`` in bytes, ``cpu`` in cores. ``extras`` counts what the operator declared
    besides.
    """

    cpu: float | None = None
    memory: int | None = None
    storage: int | None = None
    gpu: int | None = None
    platform: str | None = None
    nodes_excluded: tuple[str, ...] = field(default=(), name="nodesExcluded")
    topology: tuple[Topology, ...] = ()
    extras: dict[str, int] = {}


class Timeout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits in seconds; None: the pool's default."""

    exec_timeout: float | None = None
    queue_timeout: float | None = None


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One command and everything it needs.

    ``command`` is empty only when the YAML had none: the image's own entry point is meant. ``resource`` names
    an entry of ``WorkflowSpec.resources``. Keys of ``exit_actions`` are COMPLETE, FAIL and RESCHEDULE. Without a
    ``download_type`` inputs are mounted. ``outputs_on_failure`` stores the outputs of a failed command, too.
    ``cache`` says whether the result of an equal task may be taken (see ``reuse``); None: where that is safe.
    """

    name: str
    image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    lead: bool = False
    environment: dict[str, str] = {}
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    files: tuple[FileSpec, ...] = ()
    credentials: dict[str, str | dict[str, str]] = {}
    resource: str = "default"
    volume_mounts: tuple[str, ...] = field(default=(), name="volumeMounts")
    privileged: bool = False
    host_network: bool = field(default=False, name="hostNetwork")
    exit_actions: dict[str, str] = field(default_factory=dict, name="exitActions")
    checkpoint: tuple[Checkpoint, ...] = ()
    download_type: Literal["mount", "download"] | None = field(default=None, name="downloadType")
    cache_size: int | None = field(default=None, name="cacheSize")
    outputs_on_failure: bool = field(default=False, name="outputsOnFailure")
    cache: bool | None = None
    kpis: tuple[Kpi, ...] = ()
    backend: str | None = None


class GroupSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tasks that are placed and started together, or not at all. Exactly one of them is the lead.

    ``wait_for_nonlead``: seconds that the others may go on after the lead completed, to finish and to store their
    outputs; True: until they end. Limits in ``timeout`` come before those of the workflow.
    """

    name: str
    tasks: tuple[TaskSpec, ...]
    barrier: bool = True
    ignore_nonlead_status: bool = field(default=True, name="ignoreNonleadStatus")
    wait_for_nonlead: float | bool = field(default=False, name="waitForNonlead")
    timeout: Timeout = Timeout()

    @property
    def lead(self) -> TaskSpec:
        """The task whose end ends the group."""
        return next(task for task in self.tasks if task.lead)


class WorkflowSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole workflow. ``groups`` are in the order of the file; ``plan.make_plan`` orders them."""

    name: str
    groups: tuple[GroupSpec, ...]
    pool: str | None = None
    backend: str | None = None
    timeout: Timeout = Timeout()
    resources: dict[str, ResourceSpec] = {}
    labels: dict[str, str] = {}

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """All tasks, group by group."""
        return tuple(task for group in self.groups for task in group.tasks)

    def group(self, name: str) -> GroupSpec:
        """The group of this name; KeyError when there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def task(self, name: str) -> TaskSpec:
        """The task of this name; KeyError when there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(name)

    def group_of(self, task: str) -> GroupSpec:
        """The group that holds the task of this name; KeyError when there is none."""
        for group in self.groups:
            if any(member.name == task for member in group.tasks):
                return group
        raise KeyError(task)

    def resource_of(self, task: TaskSpec) -> ResourceSpec:
        """What the task asks for; the loader has checked that the entry exists."""
        return self.resources.get(task.resource, ResourceSpec())
