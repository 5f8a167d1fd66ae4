"""Checks across parts, which no part can make alone. Pure functions; they read no file and no machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, floor

from rlserve.config.colocated_checks import check_colocated
from rlserve.config.pacing_checks import check_pacing
from rlserve.config.pool_split import find_groups, gang_views, split_groups
from rlserve.config.scale_out_checks import check_scale_out
from rlserve.config.sharing_checks import check_sharing
from rlserve.config.supervised_checks import check_data_columns, check_supervised
from rlserve.config.thresholds import check_thresholds
from rlserve.config.tree import RunConfig
from rlserve.errors import PoolError, Problem
from rlserve.manager.config import StaticConfig
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.pool.gangs import check_gangs, cut_gangs
from rlserve.pool.nvidia import is_slice
from rlserve.rollout.environments.verifiers.names import is_verifiers
from rlserve.roofline.accelerators import is_cpu
from rlserve.trainers.backends.config import SAME_BITS_BLOCK_SIZES, TorchTrainerConfig
from rlserve.weights.config import CudaIpcConfig, NcclConfig

_GANG_SIZE = "rollout.engine.tensor_parallel_size"
_OF_CRITIC = {
    "critic_model_path": None,
    "critic_head_learning_rate": None,
    "critic_warmup_steps": 0,
    "critic_trunk": "separate",
}
"""What of a trainer's configuration only a critic reads, and what it is without one."""


def check_parts(config: RunConfig, discovered: Mapping[str, int]) -> tuple[Problem, ...]:
    """Problems between the parts of a configuration; ``discovered`` counts this machine's accelerators by type."""
    of_all = (
        *_check_pool(config, discovered),
        *_check_learning_rates(config),
        *_check_keep_best(config),
        *_check_launch(config),
        *check_sharing(config),
        *check_data_columns(config),
        *check_scale_out(config),
    )
    if not config.algorithm.needs.rollouts:
        return (*of_all, *check_supervised(config))
    return (
        *of_all,
        *_check_reward(config),
        *_check_reward_gpus(config, discovered),
        *_check_environment(config),
        *_check_lengths(config),
        *_check_batch(config),
        *_check_groups(config),
        *_check_deterministic_training(config, discovered),
        *_check_weights(config, discovered),
        *check_pacing(config),
        *check_colocated(config),
        *check_thresholds(config.deciding, config.rollout),
    )


def _check_pool(config: RunConfig, discovered: Mapping[str, int]) -> Iterator[Problem]:
    try:
        groups = find_groups(config, discovered)
    except PoolError as error:
        advice = "ask for what there is (pool=auto), or join a cluster (launch=cluster)"
        yield Problem("pool.slots", f"{str(error).removeprefix('pool.slots ')}; {advice}")
        return
    if groups is None or config.pool.placement == "colocated" or not config.algorithm.needs.rollouts:
        return
    size, wanted = config.rollout.engine.tensor_parallel_size, config.pool.num_initial_rollout
    cut = cut_gangs(groups, size)
    num_gangs, unit = len(cut.gangs), "slot" if size == 1 else "gang"
    fewest, most = rollout_bounds(config.deciding, gang_views(cut.gangs, config.pool))
    try:
        check_gangs(cut, size)
    except PoolError as error:
        yield Problem(_GANG_SIZE, str(error).removeprefix(f"{_GANG_SIZE}={size} "))
        return
    if num_gangs < 2:
        message = "must hold at least 2 slots: one to train and one to roll out; or take pool.placement=colocated"
        yield Problem("pool.slots", f"{message}, got {num_gangs}")
    elif fewest > most and not isinstance(config.deciding, StaticConfig):
        shares = f"{config.deciding.min_rollout_share} and {config.deciding.max_rollout_share}"
        message = f"no split of {num_gangs} {unit}s has a rollout share between {shares} and a {unit} left to train"
        yield Problem("manager.max_rollout_share", message)
    elif wanted is not None and not fewest <= wanted <= most:
        message = (
            f"must be between {fewest} and {most} of the {num_gangs} {unit}s ({config.deciding.policy}), got {wanted}"
        )
        yield Problem("pool.num_initial_rollout", message)
    else:
        try:
            split_groups(groups, config.pool, size)
        except PoolError as error:
            yield Problem("pool.slots", str(error))


def _check_reward(config: RunConfig) -> Iterator[Problem]:
    if not config.reward.is_named and config.environment.name is None:
        message = "name a reward: reward.function, reward.url, reward.model_path or reward.parts; or an environment"
        yield Problem("reward.function", f"{message} that gives rewards (environment.name)")


def _check_environment(config: RunConfig) -> Iterator[Problem]:
    """A paced run has its lengths and waits from its workload; an environment of verifiers brings its prompts."""
    name, data = config.environment.name, config.data
    if is_verifiers(data.path) and data.path != name:
        yield Problem("data.path", f"is the data set of an environment: set environment.name={data.path}")
    if name is not None and is_verifiers(name):
        if data.path != name:
            yield Problem("data.path", f"must be {name} (data=verifiers): its rows are its prompts, got {data.path}")
        if not data.apply_chat_template:
            yield Problem("data.apply_chat_template", f"must be true for {name}, whose prompts are chat messages")
        if data.system_prompt is not None:
            yield Problem("data.system_prompt", f"is not for {name}, which has its own; see environment.options")
    if config.environment.name is not None and config.pool.is_paced:
        message = "is not for slots that stand for others (pool.slots of a paced type): rollout.workload has tool calls"
        yield Problem("environment.name", f"{message}, got {config.environment.name}")


def _check_reward_gpus(config: RunConfig, discovered: Mapping[str, int]) -> Iterator[Problem]:
    """GPUs of the reward are not those of slots: on this machine there must be enough for both."""
    reward = config.reward
    if reward.num_gpus == 0 or config.launch.kind != "local":
        return
    try:
        groups = find_groups(config, discovered) or ()
    except PoolError:
        return  # told by _check_pool
    share, num_workers = reward.num_gpus, reward.num_processes
    num_wanted = ceil(num_workers / floor(1 / share)) if share < 1 else int(num_workers * share)
    num_gpus = sum(count for name, count in discovered.items() if not is_cpu(name))
    num_taken = sum(group.count for group in groups if not is_cpu(group.type))
    if num_taken + num_wanted > num_gpus:
        advice = (
            "leave some to the reward by naming fewer slots in pool.slots" if num_taken else "0 computes on the CPU"
        )
        message = (
            f"needs {num_wanted} of the machine's {num_gpus} GPUs for {num_workers} reward workers, but the "
            f"slots take {num_taken}: {advice}, got {share:g}"
        )
        yield Problem("reward.num_gpus", message)


def _check_lengths(config: RunConfig) -> Iterator[Problem]:
    max_model_len, max_tokens = config.rollout.engine.max_model_len, config.rollout.max_tokens
    if max_model_len is not None and max_tokens >= max_model_len:
        message = f"must be below engine.max_model_len ({max_model_len}) to leave room for a prompt, got {max_tokens}"
        yield Problem("rollout.max_tokens", message)


def _check_batch(config: RunConfig) -> Iterator[Problem]:
    num_samples = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    num_mini_batches = config.algorithm.num_mini_batches
    if num_mini_batches > num_samples:
        message = f"must be at most the {num_samples} samples of a step, got {num_mini_batches}"
        yield Problem("algorithm.num_mini_batches", message)


def _check_groups(config: RunConfig) -> Iterator[Problem]:
    if config.algorithm.needs.groups and config.rollout.samples_per_prompt < 2:
        message = (
            f"must be at least 2 with algorithm.name={config.algorithm.name}, which compares the answers to a prompt"
        )
        yield Problem("rollout.samples_per_prompt", f"{message}, got {config.rollout.samples_per_prompt}")
    elif config.rollout.filter_groups and config.num_answers_per_prompt < 2:
        message = "must be false with rollout.samples_per_prompt=1: a single answer has the same reward as itself"
        yield Problem("rollout.filter_groups", f"{message}, got true")


def _check_learning_rates(config: RunConfig) -> Iterator[Problem]:
    trainer = config.scheduled_trainer
    if not config.algorithm.needs.critic:
        for name, without_critic in _OF_CRITIC.items():
            if (value := getattr(trainer, name)) != without_critic:
                must_be = "null" if without_critic is None else without_critic
                yield Problem(
                    f"trainer.{name}",
                    f"must be {must_be} with algorithm.name={config.algorithm.name}, which has no critic, got {value}",
                )
    num_before = trainer.critic_warmup_steps + trainer.num_warmup_steps
    if trainer.learning_rate_schedule != "constant" and num_before >= (trainer.num_schedule_steps or 0):
        yield Problem(
            "trainer.num_schedule_steps",
            f"must be more than the {num_before} of critic_warmup_steps and num_warmup_steps, after which learning "
            f"rates fall, got {trainer.num_schedule_steps}",
        )


def _check_keep_best(config: RunConfig) -> Iterator[Problem]:
    checkpoint, evaluation = config.checkpoint, config.evaluation
    is_scored = checkpoint.every_steps > 0 and evaluation.every_steps > 0
    if checkpoint.keep_best and not is_scored:
        message = "needs checkpoints with scores: set checkpoint.every_steps and evaluation.every_steps, got"
        yield Problem("checkpoint.keep_best", f"{message} {checkpoint.keep_best}")


def _check_deterministic_training(config: RunConfig, discovered: Mapping[str, int]) -> Iterator[Problem]:
    """Engines must compute as the trainer's kernels do."""
    if not (isinstance(config.trainer, TorchTrainerConfig) and config.trainer.deterministic):
        return
    engine = config.rollout.engine
    wanted = {
        "dtype": ("float32",),
        "kv_cache_dtype": ("auto",),
        "weight_dtype": ("auto",),
        "attention_backend": ("auto", "cpu"),
        "tensor_parallel_size": (1,),
        "block_size": SAME_BITS_BLOCK_SIZES,
    }
    for name, values in wanted.items():
        if (value := getattr(engine, name)) not in values:
            message = f"must be {' or '.join(map(str, values))} with trainer.deterministic=true, got {value}"
            yield Problem(f"rollout.engine.{name}", message)
    slots = config.pool.slots
    gpus = [name for name in (discovered if slots == "auto" else [group.type for group in slots]) if not is_cpu(name)]
    if gpus:
        message = f"is only for slots that are CPU processes (pool.slots of a type that begins with cpu), got {gpus[0]}"
        yield Problem("trainer.deterministic", message)


def _check_launch(config: RunConfig) -> Iterator[Problem]:
    if config.launch.address is not None and config.launch.kind == "local":
        message = f"has no effect with launch.kind=local: say launch=cluster, got {config.launch.address!r}"
        yield Problem("launch.address", message)


def _check_weights(config: RunConfig, discovered: Mapping[str, int]) -> Iterator[Problem]:
    """NCCL and CUDA IPC are between GPUs; trainers and engines that are one process need neither."""
    weights, slots = config.weights, config.pool.slots
    if config.pool.placement == "colocated" or not isinstance(weights, NcclConfig | CudaIpcConfig):
        return
    if slots == "auto":
        names = list(discovered) or ["cpu"] * (config.launch.kind == "local")
    else:
        names = [group.type for group in slots]
    on_cpu = next(filter(is_cpu, names), None)
    if isinstance(weights, NcclConfig):
        if on_cpu is not None and weights.backend == "nccl":
            yield Problem("weights.backend", f"must be gloo with slots that are CPU processes ({on_cpu}), got nccl")
    elif on_cpu is not None:
        message = f"is only for slots that are GPUs, and {on_cpu} is a CPU process: say weights=object_store"
        yield Problem("weights.transport", f"{message}, got cuda_ipc")
    elif (slices := next(filter(is_slice, names), None)) is not None:
        message = f"is only for slots that are whole GPUs, and {slices} cannot reach another's memory"
        yield Problem("weights.transport", f"{message}: say weights=object_store, got cuda_ipc")
