"""Plain builders for the tests of the manager."""

from __future__ import annotations

from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.policies.base import Admission, GangFigures, GangView, Observation
from rlserve.manager.roles import Role

H100 = GangFigures(memory_bandwidth_gb_s=3350, flops_tflops=989)
H200 = GangFigures(memory_bandwidth_gb_s=4800, flops_tflops=989)
H20 = GangFigures(memory_bandwidth_gb_s=4000, flops_tflops=148)


def make_gang(
    gang_id: str,
    role: Role | None = None,
    *,
    figures: GangFigures = H100,
    prefer: Role | None = None,
    alive: bool = True,
    idle: bool = False,
    leaving: bool = False,
    num_slots: int = 1,
) -> GangView:
    """One gang."""
    return GangView(
        id=gang_id,
        type="test",
        num_slots=num_slots,
        figures=figures,
        prefer=prefer,
        role=role,
        idle=idle,
        alive=alive,
        leaving=leaving,
    )


def make_pool(num_train: int, num_rollout: int) -> tuple[GangView, ...]:
    """Like gangs, ``t0``… in training and ``r0``… in rollout."""
    train = (make_gang(f"t{number}", Role.TRAIN) for number in range(num_train))
    rollout = (make_gang(f"r{number}", Role.ROLLOUT) for number in range(num_rollout))
    return (*train, *rollout)


def make_observation(
    gangs: tuple[GangView, ...],
    queue_length: int | None,
    *,
    time_s: float = 1000.0,
    moving: bool = False,
    last_move_end_s: float | None = None,
    legal_trainer_sizes: tuple[int, ...] | None = None,
) -> Observation:
    """What the controller would show a policy."""
    return Observation(
        time_s=time_s,
        queue_length=queue_length,
        num_buffered=0,
        num_in_flight=0,
        trainer_waiting=False,
        num_steps_left=None,
        admission=Admission(prompts_per_step=16, samples_per_prompt=8, max_live_groups=32, max_samples_per_replica=64),
        measured=Measurements(),
        gangs=gangs,
        legal_trainer_sizes=tuple(range(1, len(gangs))) if legal_trainer_sizes is None else legal_trainer_sizes,
        moving=moving,
        last_move_end_s=last_move_end_s,
    )
