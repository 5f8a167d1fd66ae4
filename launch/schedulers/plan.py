"""From a run's configuration to the machines that its job asks for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

from rlserve.config import RunConfig
from rlserve.errors import UserError
from rlserve.launch.config import LaunchConfig
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.pool.discovery import SPOT_RESOURCE
from rlserve.roofline.accelerators import SPOT_SUFFIX, is_cpu, is_spot

PRICES_FILE = "prices.yaml"
"""Copied beside the run file, where machines do not see what ``cost.prices`` names here."""
_LONGEST_NAME = 40
_LONGEST_MARK = 6
_NO_NAME = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Like machines, which hold the slots of one group of the pool."""

    name: str
    """Lower case, without anything but letters, digits and dashes; of no other group."""
    type: str
    """Of the slots: ``H100-spot`` on spot machines."""
    is_gpu: bool
    num_nodes: int
    slots_per_node: int
    cpus_per_node: int
    prefer: Literal["train", "rollout"] | None

    @property
    def is_spot(self) -> bool:
        """Whether they are spot machines."""
        return is_spot(self.type)

    @property
    def accelerator(self) -> str:
        """What the market of its machine has no part in: ``H100``."""
        return self.type.removesuffix(SPOT_SUFFIX)

    @property
    def resources(self) -> Mapping[str, int]:
        """What Ray cannot see of a machine and is told: CPU slots, and that its GPUs are on a spot machine."""
        if not self.is_gpu:
            return {self.type: self.slots_per_node}
        return {SPOT_RESOURCE: 1} if self.is_spot else {}


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """Everything that templates may use."""

    name: str
    folder: Path
    """Of the run, absolute, on this machine."""
    python: str
    """Interpreter that has rlserve, where no image is named."""
    config: RunConfig
    run_file: str
    """The run's whole configuration as YAML, with the run's name."""
    sweep: str | None = None
    """Name of the sweep that the run is of; None where it is of none."""

    @property
    def groups(self) -> tuple[NodeGroup, ...]:
        """The machines that the job asks for.

        Raises:
            UserError: as :func:`node_groups`.
        """
        return node_groups(self.config.pool, self.config.launch)

    @property
    def prices(self) -> str | None:
        """What is in the file that ``cost.prices`` names here: machines that do not see it get a copy.

        Raises:
            UserError: it cannot be read.
        """
        source = self.config.cost.prices
        if source is None:
            return None
        try:
            return Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"cost.prices={source} cannot be read: {error.strerror}") from error

    @property
    def launch(self) -> LaunchConfig:
        return self.config.launch

    @property
    def job_name(self) -> str:
        """The run's name as schedulers allow it."""
        return plain_name(self.name)

    @property
    def sweep_label(self) -> str | None:
        """The sweep's name as schedulers allow it."""
        return None if self.sweep is None else plain_name(self.sweep)


def with_prices_in(config: RunConfig, folder: str) -> RunConfig:
    """The configuration for a machine that has a copy of the run's prices, if it has any, in ``folder``."""
    if config.cost.prices is None:
        return config
    return replace(config, cost=replace(config.cost, prices=f"{folder}/{PRICES_FILE}"))


def plain_name(text: str) -> str:
    """Lower-case letters, digits and single dashes, 40 at most, beginning with a letter. What a longer name ends with
    becomes a hash, so that the runs of a sweep keep names of their own."""
    plain = _NO_NAME.sub("-", text.lower()).strip("-")
    plain = (plain if plain[:1].isalpha() else f"run-{plain}").strip("-")
    if len(plain) <= _LONGEST_NAME:
        return plain
    mark = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_LONGEST_MARK]
    return f"{plain[: _LONGEST_NAME - _LONGEST_MARK - 1].strip('-')}-{mark}"


def node_groups(pool: PoolConfig, launch: LaunchConfig) -> tuple[NodeGroup, ...]:
    """The machines of each group of slots.

    Raises:
        UserError: ``pool.slots`` does not say which slots, or they do not fill machines.
    """
    if pool.slots == "auto":
        raise UserError(
            "pool.slots=auto takes what is there, and a scheduler must be told what to give: name the slots, "
            "for instance pool=h100_h200, or 'pool.slots=[{type: H100, count: 8}]'"
        )
    return tuple(node_group(number, group, launch) for number, group in enumerate(pool.slots))


def node_group(number: int, group: SlotGroupConfig, launch: LaunchConfig) -> NodeGroup:
    """The machines of one group of slots, which is the ``number``-th.

    Raises:
        UserError: the slots do not fill machines.
    """
    is_gpu = not is_cpu(group.type)
    per_node = min(group.count, launch.gpus_per_node) if is_gpu else group.count
    if group.count % per_node:
        raise UserError(
            f"launch.gpus_per_node={launch.gpus_per_node} leaves a machine with fewer of the {group.count} "
            f"{group.type} of pool.slots: choose a multiple of it, or another launch.gpus_per_node"
        )
    return NodeGroup(
        name=f"{plain_name(group.type)}-{number}",
        type=group.type,
        is_gpu=is_gpu,
        num_nodes=group.count // per_node,
        slots_per_node=per_node,
        cpus_per_node=per_node * (launch.cpus_per_gpu if is_gpu else group.num_threads),
        prefer=group.prefer,
    )
