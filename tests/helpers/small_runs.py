"""Folders of small runs, written through the tracker as a real run writes them."""

from __future__ import annotations

from pathlib import Path

from rlserve.tracking import names
from rlserve.tracking.config import TrackingConfig, WandbConfig
from rlserve.tracking.events import Decision, RunEvent, SlotEvent
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.summary import RunSummary, write_summary
from rlserve.tracking.tracker import Tracker, create_tracker

FILES_ONLY = TrackingConfig(wandb=WandbConfig(enabled=False), tensorboard=False)


def slot_event(time_s: float, slot_id: str, owner: str, state: str = "") -> SlotEvent:
    """A slot that is a gang by itself changes hands; it is named after its type."""
    return SlotEvent(
        time_s=time_s,
        slot_id=slot_id,
        slot_type=slot_id.split("/")[0],
        gang_id=slot_id,
        owner=owner,  # type: ignore[arg-type]
        state=state or {"moving": "starting"}.get(owner, owner),
    )


def begin_run(output_dir: Path, name: str, *, num_steps: int = 4, config: str = "") -> tuple[RunFolder, Tracker]:
    """A run that has just begun."""
    folder = RunFolder.create(output_dir, name)
    folder.write_config(f"num_steps: {num_steps}\nname: {name}\n{config}")
    tracker = create_tracker(FILES_ONLY, folder, {})
    tracker.record(RunEvent(time_s=0.0, begin_s=0.0, resumed=False, step=0))
    for slot_id, owner in (("cpu-a/0", "train"), ("cpu-b/0", "rollout")):
        tracker.record(slot_event(1.0, slot_id, owner))
    tracker.log(0, {names.HELD_OUT: 0.25})
    return folder, tracker


def do_steps(tracker: Tracker, first: int, last: int) -> None:
    """Training steps of two seconds."""
    for step in range(first, last + 1):
        tracker.record(
            Decision(
                time_s=2.0 * step,
                step=step,
                action="to_train" if step == 2 else "hold",
                slot_id="cpu-b/1" if step == 2 else None,
                queue_length=step + 4,
                num_train=2,
                num_rollout=1,
                reason="queue is short" if step == 2 else "rests",
            )
        )
        tracker.log(
            step,
            {
                names.TIME: 2.0 * step,
                names.STEP_S: 2.0,
                names.WAIT_S: 0.5,
                names.REWARD: 0.2 * step,
                names.KL: 0.01,
                names.ENTROPY: 0.5,
                names.RESPONSE_LENGTH: 20.0,
                "pool/num_train": 2,
                "pool/num_rollout": 1,
                "pool/num_moving": 0,
                "pool/num_dead": 0,
            },
        )


def end_run(folder: RunFolder, tracker: Tracker, *, num_steps: int, exit_code: int = 0, score: float = 0.75) -> None:
    """Score, sum up and close."""
    tracker.log(num_steps, {names.HELD_OUT: score, names.TIME: 2.0 * num_steps})
    tracker.close(exit_code)
    write_summary(
        folder,
        RunSummary(
            held_out_before=0.25,
            held_out_after=score,
            num_steps=num_steps,
            groups_admitted=8,
            groups_trained=8,
            groups_dropped={},
            moves_to_rollout=0,
            moves_to_train=1,
            engine_restarts=0,
            worker_failures=0,
            final_weight_version=num_steps,
            seconds_to_first_step=2.0,
            seconds_total=2.0 * num_steps,
            rollout_tokens_per_s=100.0,
            trained_tokens_per_s=90.0,
            max_staleness=1,
            mean_abs_log_prob_difference=1e-6,
        ),
    )


def finished_run(
    output_dir: Path, name: str, *, num_steps: int = 4, config: str = "", score: float = 0.75
) -> RunFolder:
    """A run that did all its steps."""
    folder, tracker = begin_run(output_dir, name, num_steps=num_steps, config=config)
    do_steps(tracker, 1, num_steps)
    end_run(folder, tracker, num_steps=num_steps, score=score)
    return folder
