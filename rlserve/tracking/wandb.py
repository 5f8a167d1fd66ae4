"""Weights & Biases, with project, group, tags, configuration and resuming by run id, as its users know it.

Without a key the run is written offline below the run's folder, and ``wandb sync`` uploads it later. The run id is
kept in the folder, so a resumed run goes on as the same run.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence

import wandb

from rlserve.tracking.answers import Answer, Kind, MakeAnswers, worst_and_best
from rlserve.tracking.base import Sink
from rlserve.tracking.config import WandbConfig
from rlserve.tracking.run_folder import RunFolder, write_atomically
from rlserve.tracking.wandb_settings import Mode, Surroundings, choose_names

logger = logging.getLogger(__name__)

STEP_METRIC = "training/global_step"
NUM_ANSWERS = 4
"""Of the worst, and again of the best, in a table."""
COLUMNS = ("step", "reward", "prompt", "reference", "response", "finish_reason", "tokens", "staleness", "group")
INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 60.0


class WandbSink(Sink):
    """One run of Weights & Biases. Opening it waits at most ``INIT_TIMEOUT_S``, closing ``FINISH_TIMEOUT_S``.

    The step is logged as a metric of its own that all others are drawn over, not as wandb's internal step, which may
    never go back: a resumed run repeats the steps after its checkpoint.

    Args:
        config: project, name, entity, group and tags; what it leaves open, the environment or wandb's settings may say.
        mode: from :func:`~rlserve.tracking.wandb_settings.choose_mode`.
        folder: of the run; its name is the run's, if nobody gives another.
        run_config: the resolved configuration, shown with the run.
    """

    name = "wandb"

    def __init__(self, config: WandbConfig, mode: Mode, folder: RunFolder, run_config: Mapping[str, object]) -> None:
        if "WANDB_MODE" in os.environ:
            os.environ["WANDB_MODE"] = mode  # wandb takes one spelling of each only
        project, name = choose_names(config, Surroundings.read(os.environ), folder.name)
        self._run = wandb.init(
            project=project,
            name=name,
            entity=config.entity,
            group=config.group,
            tags=config.tags or None,
            id=_run_id(folder),
            resume="allow",
            config=dict(run_config),
            allow_val_change=True,
            dir=str(folder.path),
            mode=mode,
            force=True,  # without a valid key: an error, never a question at the terminal
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=FINISH_TIMEOUT_S,
                finish_timeout_raises=True,
            ),
        )
        self._may_alert = config.alerts
        self._samples_every_steps = config.samples_every_steps
        self._run.define_metric(STEP_METRIC)
        self._run.define_metric("*", step_metric=STEP_METRIC)
        if mode == "offline":
            logger.info("wandb: the run is kept offline; upload it with: %s", folder.wandb_sync_command())
        elif mode == "online":
            logger.info("wandb: %s", self._run.url)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({STEP_METRIC: step, **metrics})

    def log_answers(self, step: int, kind: Kind, make: MakeAnswers) -> None:
        every = self._samples_every_steps
        if every and (kind == "held_out" or step == 1 or step % every == 0):
            table = wandb.Table(columns=list(COLUMNS), data=answer_rows(make()))
            self._run.log({STEP_METRIC: step, f"samples/{kind}": table})

    def alert(self, title: str, text: str) -> None:
        if self._may_alert:
            self._run.alert(title=title, text=text, level="ERROR")

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def open_wandb(config: WandbConfig, mode: Mode, folder: RunFolder, run_config: Mapping[str, object]) -> WandbSink:
    """Open the run; where the server does not take it, keep it offline instead."""
    try:
        return WandbSink(config, mode, folder, run_config)
    except wandb.Error as error:
        if mode != "online":
            raise
        logger.warning("wandb: the server could not be reached or refused the run: %s", error)
        wandb.teardown()  # its service still holds the run's id
        return WandbSink(config, "offline", folder, run_config)


def answer_rows(answers: Sequence[Answer]) -> list[list[object]]:
    """The worst and the best answers as rows of ``COLUMNS``, all of one type a column, as wandb demands."""
    return [
        [
            answer.step,
            answer.reward,
            answer.prompt,
            answer.reference if isinstance(answer.reference, str) else json.dumps(answer.reference),
            answer.response,
            answer.finish_reason,
            answer.num_response_tokens,
            answer.staleness,
            answer.group_id,
        ]
        for answer in worst_and_best(answers, NUM_ANSWERS)
    ]


def _run_id(folder: RunFolder) -> str:
    if not folder.wandb_run_id_file.exists():
        write_atomically(folder.wandb_run_id_file, uuid.uuid4().hex[:8])
    return folder.wandb_run_id_file.read_text(encoding="utf-8").strip()
