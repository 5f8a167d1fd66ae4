"""What a run is given before it starts, and what follows from its configuration for workers and sampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rlserve.config.tree import RunConfig
from rlserve.controller.checkpoint import SavedRun
from rlserve.controller.clock import RunClock
from rlserve.controller.preparation.prepare import Preparation
from rlserve.controller.preparation.supervised import SupervisedPreparation
from rlserve.distributed.addresses import LOOPBACK
from rlserve.engine.requests.request import SamplingParams
from rlserve.manager.roles import Role
from rlserve.pool.base import WorkerSpec
from rlserve.pool.gangs import Gang
from rlserve.pool.pacing.base import Pacing
from rlserve.pool.pacing.factory import paced_engine, run_costs
from rlserve.pool.sharing.member import Member
from rlserve.pool.slots import Slot
from rlserve.rollout.end_tokens import EndTokens
from rlserve.rollout.workload.factory import create_workload
from rlserve.rollout.workload.workload import Workload
from rlserve.roofline.accelerators import is_paced
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.progress import Progress
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.tracker import Tracker
from rlserve.weights.config import NcclConfig, SharedFolderConfig, WeightsConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class RunSetup:
    """What a run is given: decided, found and made before it starts."""

    config: RunConfig
    preparation: Preparation | SupervisedPreparation
    gangs: tuple[Gang, ...]
    roles: dict[str, Role]
    """Role of each gang at the start."""
    folder: RunFolder
    tracker: Tracker
    progress: Progress
    clock: RunClock
    saved: SavedRun | None
    """To go on from; None begins anew."""
    worker_python: str | None = None
    """What Ray starts workers with, in place of Python; None for Python itself."""
    workload: Workload | None = None
    """The load of a paced run."""
    prices: Prices | None = None
    """Of slots; None where the user gave none."""
    sharing: Member | None = None
    """Of a cluster that other runs share; None where it is not shared."""

    @property
    def dilation(self) -> float | None:
        """Seconds of this machine that a second of a paced run takes; None where nothing is paced."""
        return self.config.pool.pacing.dilation if self.config.pool.is_paced else None


def worker_spec(setup: RunSetup, slot: Slot) -> WorkerSpec:
    """What the worker of a slot is told."""
    config, pacing = setup.config, slot_pacing(setup.config, slot)
    engine = config.rollout.engine
    return WorkerSpec(
        slot_id=slot.id,
        device=slot.type.device,
        num_threads=slot.num_threads,
        model_path=setup.preparation.model_path,
        seed=config.seed,
        temperature=config.rollout.temperature,
        engine=engine if pacing is None else paced_engine(engine, pacing),
        trainer=config.scheduled_trainer,
        algorithm=config.algorithm,
        weights=weights_config(setup),
        canary=setup.preparation.canary,
        switch_timeout_s=config.pool.switch_timeout_s,
        engine_memory_share=_engine_memory_share(setup, slot),
        offloads_trainer=config.pool.placement == "colocated" and config.pool.colocated.offload_trainer,
        notice_probe=config.pool.notice_probe,
        log_path=setup.folder.path / "logs" / f"{slot.id.replace('/', '-')}.log",
        log_format=config.tracking.log_format,
        pacing=pacing,
    )


def _engine_memory_share(setup: RunSetup, slot: Slot) -> float | None:
    """CPU slots of one machine share its memory."""
    pool = setup.config.pool
    share = pool.colocated.rollout_memory_share if pool.placement == "colocated" else None
    if share is None or slot.type.device == "cuda":
        return share
    return share / sum(each.node_id == slot.node_id for gang in setup.gangs for each in gang.slots)


def slot_pacing(config: RunConfig, slot: Slot) -> Pacing | None:
    """The accelerator that a slot stands for; None where it is what it is.

    Raises:
        UserError: ``pool.pacing.model`` is not a model.
    """
    if not is_paced(slot.type.name):
        return None
    pacing, size = config.pool.pacing, config.rollout.engine.tensor_parallel_size
    costs = run_costs(pacing, config.algorithm, config.trainer, tensor_parallel_size=size)
    return Pacing(slot_type=slot.type, costs=costs, dilation=pacing.dilation)


def run_workload(config: RunConfig) -> Workload | None:
    """The load that a paced run is put under; None where slots are what they are.

    Raises:
        DataError: ``rollout.workload.trace`` has no lengths.
    """
    if not config.pool.is_paced:
        return None
    return create_workload(
        config.rollout.workload,
        seed=config.seed,
        num_steps=config.num_steps,
        tokens_scale=config.pool.pacing.tokens_scale,
    )


def weights_config(setup: RunSetup) -> WeightsConfig:
    """How weights travel in this run: a transport through a folder has one that no other run uses, and one through the
    network stays on a machine that is alone."""
    config = setup.config.weights
    if isinstance(config, NcclConfig) and not config.host and setup.config.launch.kind == "local":
        return replace(config, host=LOOPBACK)
    if not isinstance(config, SharedFolderConfig):
        return config
    folder = Path(config.folder) / setup.folder.name if config.folder else setup.folder.path / "weights"
    return replace(config, folder=str(folder.absolute()))


def sampling_params(config: RunConfig, end_tokens: EndTokens) -> SamplingParams:
    """How every prompt group is sampled; the router gives each its own seed. With an environment that is one turn."""
    max_turn_tokens = config.environment.max_turn_tokens or config.rollout.max_tokens
    return SamplingParams(
        n=config.num_answers_per_prompt,
        num_greedy=int(config.algorithm.needs.greedy_answer),
        temperature=config.rollout.temperature,
        top_k=config.rollout.top_k,
        top_p=config.rollout.top_p,
        max_tokens=min(max_turn_tokens, config.rollout.max_tokens),
        seed=config.seed,
        stop=config.rollout.stop,
        stop_token_ids=end_tokens.added,
    )
