"""A run as a managed job of SkyPilot: a task for each group of slots, which are started and ended together.

::

    PENDING ──► STARTING ──► RUNNING ──► SUCCEEDED
                   ▲            │ a machine is lost, or the run was interrupted
                   └─RECOVERING─┘

The first group that may not be on spot machines has the run's controller. Others join its Ray cluster, as often as they
are recovered.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rlserve.config import to_yaml
from rlserve.errors import UserError
from rlserve.launch.config import SkyPilotConfig
from rlserve.launch.schedulers.base import JobState, Scheduler
from rlserve.launch.schedulers.growth import refuse_growth
from rlserve.launch.schedulers.plan import PRICES_FILE, JobPlan, NodeGroup, with_prices_in
from rlserve.launch.schedulers.programs import ask, pass_on
from rlserve.launch.schedulers.ray_token import TOKEN_FILE, write_ray_token
from rlserve.launch.schedulers.templates import render_templates
from rlserve.roofline.accelerators import SPOT_SUFFIX
from rlserve.tracking.job_record import JobRecord

JOB_FILE = "job.yaml"
LAUNCH_TIMEOUT_S = 1800.0
"""The first job of all waits for SkyPilot's own controller, a machine that is begun for it."""
ACCELERATORS = {
    "A100": "A100-80GB",
    "A100-40G": "A100",
    "GeForce-RTX-3090": "RTX3090",
    "GeForce-RTX-4090": "RTX4090",
    "GeForce-RTX-5090": "RTX5090",
    "RTX-A6000": "RTXA6000",
    "RTX-PRO-6000": "RTXPRO6000",
}
"""Names that SkyPilot has for types of slots, where they differ."""
_JOB_ID = re.compile(r"Managed Job ID: (\d+)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_STAGES = {
    "PENDING": "waiting",
    "SUBMITTED": "waiting",
    "STARTING": "waiting",
    "RECOVERING": "waiting",
    "RUNNING": "running",
    "WINDING_DOWN": "running",
    "CANCELLING": "running",
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a group of slots becomes."""

    group: NodeGroup
    choices: tuple[Mapping[str, Any], ...]
    """Machines, any of which will do; SkyPilot takes the cheapest that is to be had."""
    types: tuple[str, ...]
    """Of slots that they may have."""
    amount: str
    """Of slots in each machine, as ``ray start`` is told."""


class SkyPilotScheduler(Scheduler):
    """By SkyPilot's own command ``sky``, with whatever clouds it is set up for."""

    name = "skypilot"

    def render(self, plan: JobPlan) -> Mapping[str, str]:
        skypilot = plan.launch.skypilot
        refuse_growth(plan.config, "SkyPilot")
        if plan.launch.image is None:
            raise UserError("launch.image must name a container image with rlserve in it")
        if (skypilot.bucket is None) == (skypilot.volume is None):
            raise UserError("runs are kept on launch.skypilot.bucket or on launch.skypilot.volume: name one of them")
        config = with_prices_in(replace(plan.config, output_dir=skypilot.mount_point), "~/rlserve")
        if skypilot.rollout_types:  # nobody knows which of them come
            prefer = preferences(plan.groups, skypilot)
            config = replace(config, pool=replace(config.pool, slots="auto", auto_prefer=prefer))
        rendered = render_templates(Path(__file__).parent, plan, tasks=tasks_of(plan.groups, skypilot))
        prices = {} if plan.prices is None else {PRICES_FILE: plan.prices}
        return {**rendered, "run.yaml": to_yaml(config), **prices}

    def submit_command(self, plan: JobPlan, folder: Path) -> Sequence[str]:
        secrets = [] if plan.launch.env_file is None else ["--secret-file", plan.launch.env_file]
        return ("sky", "jobs", "launch", "--yes", "--detach-run", *secrets, str(folder / JOB_FILE))

    def submit(self, plan: JobPlan, folder: Path) -> JobRecord:
        write_ray_token(folder / TOKEN_FILE)
        said = ask(*self.submit_command(plan, folder), timeout_s=LAUNCH_TIMEOUT_S)
        found = _JOB_ID.search(_COLOURS.sub("", said))
        if found is None:
            raise UserError(f"sky jobs launch does not say which job it has begun (see sky jobs queue): {said.strip()}")
        return JobRecord(scheduler=self.name, id=found[1], place="")

    def state(self, job: JobRecord) -> JobState | None:
        return read_state(ask("sky", "jobs", "queue", "--all", "--output", "json"), job.id)

    def print_logs(self, job: JobRecord, *, follow: bool) -> int:
        return pass_on(["sky", "jobs", "logs", "--follow" if follow else "--no-follow", "--tail", "0", job.id])

    def cancel(self, job: JobRecord) -> None:
        # Graceful is what waits until the bucket has what the run has saved.
        ask("sky", "jobs", "cancel", "--yes", "--graceful", job.id)


def tasks_of(groups: Sequence[NodeGroup], config: SkyPilotConfig) -> tuple[Task, ...]:
    """The task of each group, that with the controller first: the first on demand that does not prefer rollout, else
    the first on demand, else the first."""
    on_demand = [group for group in groups if not group.is_spot] or groups
    head = next((group for group in on_demand if group.prefer != "rollout"), on_demand[0])
    ordered = [head, *(group for group in groups if group is not head)]
    return tuple(_task(group, is_head=group is head, config=config) for group in ordered)


def preferences(groups: Sequence[NodeGroup], config: SkyPilotConfig) -> dict[str, Literal["train", "rollout"]]:
    """The role that slots of a type prefer, where none of the groups that may have such slots prefers another."""
    wishes: dict[str, set[Literal["train", "rollout"] | None]] = {}
    for task in tasks_of(groups, config):
        for name in task.types:
            wishes.setdefault(name, set()).add(task.group.prefer)
    return {name: role for name, roles in wishes.items() if len(roles) == 1 and (role := next(iter(roles))) is not None}


def read_state(found: str, job_id: str) -> JobState | None:
    """From what ``sky jobs queue --output json`` prints, an entry for each task; None where it has none of the job.

    A job stands as the task of the run's controller does.
    """
    start = found.find("[")
    tasks = [each for each in json.loads(found[start:] if start >= 0 else "[]") if str(each["job_id"]) == job_id]
    if not tasks:
        return None
    tasks.sort(key=lambda each: each.get("task_id") or 0)
    states = [str(each["status"]) for each in tasks]
    first = tasks[0]  # that of the controller
    stage = _STAGES.get(states[0], "ended")
    detail = (
        states[0]
        if len(set(states)) == 1
        else ", ".join(
            f"{each.get('task_name') or each.get('task_id')} {state}" for each, state in zip(tasks, states, strict=True)
        )
    )
    if restarts := sum(each.get("recovery_count") or 0 for each in tasks):
        detail += f", recovered {restarts}×"
    if reason := first.get("failure_reason"):
        detail += f" ({reason})"
    return JobState(stage=stage, detail=detail)  # type: ignore[arg-type]


def _task(group: NodeGroup, *, is_head: bool, config: SkyPilotConfig) -> Task:
    rolls_out = not is_head and (group.is_spot or group.prefer == "rollout")
    types = [group.accelerator, *(config.rollout_types if rolls_out else ())] if group.is_gpu else [None]
    choices = tuple(
        {
            **({} if infra is None else {"infra": infra}),
            **({} if type_ is None else {"accelerators": f"{ACCELERATORS.get(type_, type_)}:{group.slots_per_node}"}),
            "use_spot": group.is_spot,
        }
        for infra in config.infra or (None,)
        for type_ in types
    )
    amount = f"--num-cpus={group.cpus_per_node} --num-gpus={group.slots_per_node if group.is_gpu else 0}"
    if group.resources:
        amount += f" --resources={shlex.quote(json.dumps(group.resources))}"
    suffix = SPOT_SUFFIX if group.is_spot else ""
    return Task(
        group=group,
        choices=choices,
        types=tuple(f"{name}{suffix}" for name in types) if group.is_gpu else (group.type,),
        amount=amount,
    )
