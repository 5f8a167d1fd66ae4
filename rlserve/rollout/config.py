"""Configuration of the rollout side: prompts, sampling, rewards. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

from rlserve.engine.config import EngineConfig
from rlserve.errors import check_fields
from rlserve.rollout.rewards.config import (
    CodeRewardConfig,
    HttpRewardConfig,
    MathVerifyRewardConfig,
    RewardPartConfig,
    RewardSourceConfig,
)
from rlserve.rollout.workload.config import WorkloadConfig
from rlserve.serving.run_server_config import RunServerConfig

_NUM_FUNCTION_WORKERS = 2
_OWN_TEMPLATE_ARGUMENTS = frozenset(
    ("conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict")
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the prompts come from."""

    path: str
    """A JSONL, JSON or Parquet file, a folder of them, a data set's name on the hub (``NAME``, or ``NAME:SUBSET`` as
    in ``openai/gsm8k:main``), ``builtin:NAME``, or the ``verifiers:ID`` of ``environment.name``. A path is taken as it
    is: no character in it is a wildcard."""
    split: str = "train"
    """Of a folder or a hub data set."""
    prompt_field: str = "prompt"
    """Column of the prompts: text, or lists of chat messages with ``apply_chat_template``. Dots lead into nested
    columns, as in ``extra_info.question``."""
    answer_field: str | None = "answer"
    """Column handed to the reward as the reference answer; None where the data has none. Dots lead into nested
    columns, as in ``reward_model.ground_truth``."""
    held_out_path: str | None = None
    """Prompts that the policy is scored on before and after; None sets ``num_held_out`` of the data aside."""
    held_out_split: str = "test"
    """Of a ``held_out_path`` that is a folder or on the hub."""
    num_held_out: int | None = None
    """Held-out prompts: set aside from the data, or the first of ``held_out_path``. None takes 512, or a tenth of the
    data where that is less; so does a number that would leave nothing to train on."""
    shuffle: bool = True
    """Hand out the prompts of each epoch in an order of its own; False keeps that of the data."""
    apply_chat_template: bool = False
    """Render the prompt with the tokenizer's chat template: a text as a user's message, a list of chat messages as it
    is."""
    system_prompt: str | None = None
    """Put in front of conversations that have no system message; needs ``apply_chat_template``."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the chat template, as in ``{enable_thinking: false}``; needs ``apply_chat_template``."""
    max_prompt_tokens: int | None = None
    """Prompts longer than this are dropped, counted by reason; None takes the model's length less the answer's."""
    completion_field: str = "completion"
    """For supervised fine-tuning: column of what is learned to be said after the prompt; text or, with
    ``apply_chat_template``, chat messages."""
    messages_field: str = "messages"
    """For supervised fine-tuning: column of whole conversations, of which the assistant's part is learned; rows that
    have it need neither prompt nor completion."""
    chosen_field: str = "chosen"
    """For reward models: column of the answer that is preferred; text or, with ``apply_chat_template``, chat messages,
    which may have the prompt before them."""
    rejected_field: str = "rejected"
    """For reward models: column of the other answer."""
    margin_field: str | None = None
    """For reward models: column of the number by which the score of the chosen answer should be above the other's, at
    least. None: 0."""
    max_length: int | None = None
    """For algorithms that learn from a data set: rows longer than this, in tokens, are left out; None takes the model's
    length."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "num_held_out": self.num_held_out is None or self.num_held_out >= 1 or "must be at least 1",
                "system_prompt": self.system_prompt is None
                or self.apply_chat_template
                or "needs data.apply_chat_template=true",
                "chat_template_kwargs": self._problem_of_template_arguments() or True,
                "max_prompt_tokens": self.max_prompt_tokens is None
                or self.max_prompt_tokens >= 1
                or "must be at least 1",
                "max_length": self.max_length is None or self.max_length >= 2 or "must be at least 2",
            },
        )

    def _problem_of_template_arguments(self) -> str | None:
        if self.chat_template_kwargs and not self.apply_chat_template:
            return "needs data.apply_chat_template=true"
        taken = sorted(_OWN_TEMPLATE_ARGUMENTS & set(self.chat_template_kwargs))
        return f"must not have {taken[0]}, which is set by the run" if taken else None


@dataclass(frozen=True, kw_only=True)
class RewardConfig(RewardSourceConfig):
    """What scores an answer: exactly one of ``function``, ``url``, ``model_path`` and ``parts``; none where an
    environment gives all rewards."""

    parts: dict[str, RewardPartConfig] = field(default_factory=dict)
    """Several rewards by name. Their weighted sum is trained on, each is a metric ``reward/NAME/mean``."""
    http: HttpRewardConfig = field(default_factory=HttpRewardConfig)
    code: CodeRewardConfig = field(default_factory=CodeRewardConfig)
    math_verify: MathVerifyRewardConfig = field(default_factory=MathVerifyRewardConfig)
    num_workers: int | None = None
    """Processes that score, each one prompt group at a time; None takes 1 where a model is among what
    scores, else 2."""
    num_cpus: float = 0.0
    """CPUs that Ray sets aside for each of them; 0 sets none aside."""
    num_gpus: float = 0.0
    """GPUs that Ray sets aside for each of them, which no slot then has; 0 hides all GPUs from them."""
    device: str | None = None
    """Where a reward model computes, ``cpu`` or ``cuda``; None takes ``cuda`` where ``num_gpus`` is above 0."""
    skip_special_tokens: bool = True
    """Show the reward answers without their special tokens. False keeps those such as ``<think>`` where they are
    special; the end token is never shown."""
    timeout_s: float = 60.0
    """Deadline of scoring one prompt group; held-out answers are scored in groups of the same size."""
    max_failure_share: float = 0.25
    """Share of the last 32 prompt groups whose reward may fail; more stops the run."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "function": self._problem_of_sources() or True,
                "parts": self._problem_of_names() or True,
                "num_workers": self.num_workers is None or self.num_workers >= 1 or "must be at least 1",
                "num_cpus": self.num_cpus >= 0 or "must be at least 0",
                "num_gpus": (self.num_gpus >= 0 and (self.num_gpus <= 1 or self.num_gpus % 1 == 0))
                or "must be at least 0, and whole where it is above 1",
                "device": self._problem_of_device() or True,
                "timeout_s": self.timeout_s > 0 or "must be above 0",
                "max_failure_share": 0 <= self.max_failure_share <= 1 or "must be between 0 and 1",
            },
        )

    def _problem_of_sources(self) -> str | None:
        num_sources = len(list(self._sources()))
        if num_sources > 1:
            return self._problem_of_several("reward.")
        return f"{self.source} cannot stand beside reward.parts" if num_sources and self.parts else None

    def _problem_of_names(self) -> str | None:
        wrong = next((name for name in self.parts if not re.fullmatch(r"\w+", name)), None)
        return None if wrong is None else f"a name has letters, digits and _ alone: {wrong!r}"

    def _problem_of_device(self) -> str | None:
        if self.device not in (None, "cpu", "cuda"):
            return "must be cpu or cuda"
        if self.device == "cuda" and self.num_gpus == 0:
            return "needs reward.num_gpus above 0, so that no slot has the same GPU"
        return None

    @property
    def is_named(self) -> bool:
        """Whether there is a reward: with an environment there need not be one."""
        return bool(self.parts) or next(self._sources(), None) is not None

    @property
    def model_device(self) -> str:
        """``device``, or what it stands for."""
        return self.device or ("cuda" if self.num_gpus > 0 else "cpu")

    @property
    def num_processes(self) -> int:
        """``num_workers``, or what it stands for."""
        if self.num_workers is not None:
            return self.num_workers
        return 1 if self.has_model else _NUM_FUNCTION_WORKERS

    @property
    def model_paths(self) -> tuple[str, ...]:
        """Of the models that score, alone or among the parts."""
        return tuple(source.model_path for source in (self, *self.parts.values()) if source.model_path is not None)

    @property
    def has_model(self) -> bool:
        """Whether a model is what scores, or is among the parts."""
        return bool(self.model_paths)

    @property
    def without_models(self) -> RewardConfig | None:
        """The same without those parts that are models; None where nothing else scores."""
        others = {name: part for name, part in self.parts.items() if part.model_path is None}
        return None if self.has_model and not others else replace(self, parts=others)

    @property
    def title(self) -> str:
        """What scores, for messages: ``reward.function=my.py:score``, or the names of the parts."""
        return f"reward.parts={{{', '.join(self.parts)}}}" if self.parts else f"reward.{self.source}"

    def of_part(self, name: str) -> RewardConfig:
        """The configuration of one of the parts as if it were alone."""
        part = self.parts[name]
        return replace(self, parts={}, **{each.name: getattr(part, each.name) for each in fields(RewardSourceConfig)})


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers are made, and how far generation may run ahead of training."""

    prompts_per_step: int = 16
    """Prompt groups in the batch of one training step."""
    samples_per_prompt: int = 8
    """Answers to each prompt; together they are a prompt group."""
    max_staleness: int = 1
    """Steps that a token may be older than the policy it trains; bounds what is in flight and buffered to
    ``(max_staleness + 1) * prompts_per_step`` prompt groups."""
    max_tokens: int = 256
    """Longest answer."""
    temperature: float = 1.0
    """Of sampling; the policy that is trained is softmax(logits / temperature)."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 takes all, and so does -1, as in vLLM and verl."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches this; 1 takes all."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer. On the command line ``[`` and ``]`` enclose a list, and ``\\n``, ``\\t``, ``\\r`` and
    ``\\\\`` are a line's end, a tab, a return and a backslash; a YAML file says them in double quotes."""
    request_timeout_s: float = 300.0
    """Longest that a replica with work may make no step; past it the replica is taken for lost."""
    filter_groups: bool = False
    """Train on no prompt whose answers all have the same reward, but on another in its place (DAPO's dynamic sampling,
    arXiv 2503.14476)."""
    max_num_gen_batches: int = 10
    """For ``filter_groups``: so many times ``prompts_per_step`` prompts are answered for a step at most; the rest is
    trained on as it comes."""
    max_refusal_share: float = 0.25
    """Share of the last 32 prompt groups that the engine may refuse; more stops the run."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    server: RunServerConfig = field(default_factory=RunServerConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "prompts_per_step": self.prompts_per_step >= 1 or "must be at least 1",
                "samples_per_prompt": self.samples_per_prompt >= 1 or "must be at least 1",
                "max_staleness": self.max_staleness >= 0 or "must be at least 0",
                "max_tokens": self.max_tokens >= 1 or "must be at least 1",
                "temperature": self.temperature > 0
                or "must be above 0: greedy answers are all alike and teach nothing",
                "top_k": self.top_k >= -1 or "must be at least 0 (0 and -1 take all)",
                "top_p": 0 < self.top_p <= 1 or "must be in (0, 1]",
                "max_num_gen_batches": self.max_num_gen_batches >= 1 or "must be at least 1",
                "max_refusal_share": 0 <= self.max_refusal_share <= 1 or "must be between 0 and 1",
                "request_timeout_s": self.request_timeout_s > 0 or "must be above 0",
            },
        )
