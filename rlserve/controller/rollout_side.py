"""The side of a run that learns from what its replicas generate: rollouts, batches of them, held-out prompts."""

from __future__ import annotations

from rlserve.controller.answer_log import AnswerLog
from rlserve.controller.answer_stages import AnswerStages
from rlserve.controller.batches.rollouts import RolloutBatches
from rlserve.controller.clients.desk import ClientDesk
from rlserve.controller.context import Books, RunContext
from rlserve.controller.data_side import DataSide
from rlserve.controller.evaluation import Evaluation
from rlserve.controller.events import GroupsTrained, HeldOutAnswered
from rlserve.controller.ports import Ports
from rlserve.controller.preparation.prepare import Preparation
from rlserve.controller.replicas import Replicas
from rlserve.controller.request_desk import RequestDesk
from rlserve.controller.rollout_loop import FailureLimits, RolloutLoop
from rlserve.controller.setup import RunSetup, sampling_params
from rlserve.controller.turns.base import Turns
from rlserve.engine.requests.request import SamplingParams
from rlserve.rollout.conversations.factory import create_player
from rlserve.rollout.requests.training import TrainingRequests


def rollout_side(
    run: RunContext,
    setup: RunSetup,
    preparation: Preparation,
    ports: Ports,
    books: Books,
    replicas: Replicas,
    turns: Turns,
) -> DataSide:
    """All that is built on replicas and buffer."""
    config = setup.config
    _log_answers(run, setup, preparation)
    sampling = sampling_params(config, preparation.end_tokens)
    desk = RequestDesk(run, books.router, replicas)
    stages = _answer_stages(setup, preparation, ports, desk)
    clients = ClientDesk(run, desk, replicas, timeout_s=config.rollout.server.wait_timeout_s)
    return DataSide(
        batches=RolloutBatches(run, num_steps=config.num_steps, turns=turns, buffer=books.buffer),
        evaluation=_evaluation(run, setup, preparation, sampling, desk, stages),
        rollouts=_rollouts(run, setup, preparation, books, sampling, replicas, stages),
        front=None if ports.front is None else ports.front(clients),
    )


def _log_answers(run: RunContext, setup: RunSetup, preparation: Preparation) -> None:
    answers = AnswerLog(setup.tracker, setup.config.tracking.samples, preparation.decode)
    run.events.subscribe(GroupsTrained, answers.note_trained)
    run.events.subscribe(HeldOutAnswered, answers.note_held_out)


def _answer_stages(setup: RunSetup, preparation: Preparation, ports: Ports, desk: RequestDesk) -> AnswerStages:
    config, conversations = setup.config, None
    assert ports.scorer is not None, "answers are scored"
    if ports.environments is not None:
        conversations = create_player(
            config.environment,
            config.data,
            ports.environments,
            ask=desk.answer,
            decode=preparation.decode,
            max_tokens=config.rollout.max_tokens,
        )
    return AnswerStages(conversations=conversations, decode=preparation.decode, scorer=ports.scorer)


def _rollouts(
    run: RunContext,
    setup: RunSetup,
    preparation: Preparation,
    books: Books,
    sampling: SamplingParams,
    replicas: Replicas,
    stages: AnswerStages,
) -> RolloutLoop:
    config = setup.config
    return RolloutLoop(
        run,
        books,
        source=preparation.source,
        requests=TrainingRequests(sampling=sampling, run_seed=config.seed, workload=setup.workload),
        replicas=replicas,
        stages=stages,
        limits=FailureLimits(
            max_refusal_share=config.rollout.max_refusal_share,
            max_reward_failure_share=config.reward.max_failure_share,
            max_environment_failure_share=config.environment.max_failure_share,
        ),
    )


def _evaluation(
    run: RunContext,
    setup: RunSetup,
    preparation: Preparation,
    sampling: SamplingParams,
    desk: RequestDesk,
    stages: AnswerStages,
) -> Evaluation:
    config = setup.config
    return Evaluation(
        config.evaluation,
        preparation.held_out,
        desk=desk,
        stages=stages,
        sampling=sampling if setup.workload is None else setup.workload.held_out(sampling),
        request_timeout_s=config.rollout.request_timeout_s,
        max_failure_share=config.reward.max_failure_share,
        events=run.events,
    )
