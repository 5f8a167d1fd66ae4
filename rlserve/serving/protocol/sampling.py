"""The fields that all requests for text have, and the engine's parameters that they come to."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, WithJsonSchema

from rlserve.engine.requests.request import SamplingParams
from rlserve.engine.requests.structured_output import StructuredOutput
from rlserve.engine.requests.thinking_budget import ThinkingBudget
from rlserve.engine.requests.validation import MAX_SALT_CHARS
from rlserve.serving.config import LimitsConfig
from rlserve.serving.protocol.errors import ApiError, unsupported

_TOKEN_ID = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_MAX_TOLD = 8
MAX_LENGTH_PENALTY = 10.0
ALL_TOKENS = -1
"""As a number of likeliest tokens: all that there are."""


class ApiModel(BaseModel):
    """Of all bodies. Unknown parameters are refused, never passed over; numbers are numbers, and finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class FirstOnly(FailFast):
    """Of a list of wrong things the first is told, not each of a million. Hashable, as members of unions must be."""

    def __hash__(self) -> int:
        return hash(type(self))


def _only(value: bool | int) -> AfterValidator:
    """``Literal[False]`` would take 0 as well, and ``Literal[1]`` true: they are equal."""

    def check(given: bool | int) -> bool | int:
        if given != value:
            raise ValueError(f"only {json.dumps(value)} can be had")
        return given

    return AfterValidator(check)


def _with_token_ids(given: Any) -> Any:
    """Of ``logit_bias``: JSON has names alone; all that are no token ids are told at once."""
    if not isinstance(given, dict):
        return given
    wrong = [str(name)[:40] for name in given if not _TOKEN_ID.fullmatch(str(name))]
    if wrong:
        raise ValueError(f"logit_bias has names that are no token ids: {', '.join(wrong[:_MAX_TOLD])}")
    return {int(name): bias for name, bias in given.items()}


OnlyFalse = Annotated[bool, _only(False), WithJsonSchema({"type": "boolean", "const": False})]
OnlyOne = Annotated[int, _only(1), WithJsonSchema({"type": "integer", "const": 1})]
Texts = Annotated[list[str], FirstOnly()]
Tokens = Annotated[list[int], FirstOnly()]


class StreamOptions(ApiModel):
    """What a stream tells besides."""

    include_usage: bool | None = None
    """One more chunk at the end, with the usage and no choices."""
    continuous_usage_stats: bool | None = None
    """The usage so far in every chunk."""


class EngineFields(ApiModel):
    """What all of OpenAI's APIs call alike here: their own parameters, and vLLM's. ``null`` always stands for the
    default."""

    model: str | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Texts | None = None
    stop_token_ids: Tokens | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_with_token_ids)] | None = None
    bad_words: Texts | None = None
    allowed_token_ids: Tokens | None = None
    priority: int | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = None
    """Cached prompts are shared by requests with the same one alone."""
    stream: bool | None = None
    user: str | None = None
    """Requests of one user go to the same replica with ``routing.policy=consistent_hash``."""
    service_tier: Literal["auto", "default"] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None


class SamplingFields(EngineFields):
    """How to generate, for completions and chats."""

    n: int | None = None
    max_tokens: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: Annotated[list[int], FirstOnly(), Field(min_length=1)] | None = None
    """Log-probabilities of these tokens and of the chosen one are told, in place of the likeliest."""
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """Log-probabilities name tokens as ``token_id:7``, since two may read alike."""
    return_weight_versions: bool | None = None
    """Ours: which version of the weights made which tokens, as ``[version, first, end]``."""
    # The form of the answer: ``structured.py`` says what becomes of them.
    response_format: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None
    # Of OpenAI's and vLLM's, for which only the value that changes nothing is taken.
    best_of: int | None = None
    suffix: str | None = None
    store: OnlyFalse | None = None
    use_beam_search: bool | None = None
    """The answers are the ``n`` best that a search as wide finds; see ``beam_search.py``."""
    length_penalty: Annotated[float, Field(ge=-MAX_LENGTH_PENALTY, le=MAX_LENGTH_PENALTY)] | None = None
    """Of a beam search: above 0 longer answers gain by it, below 0 shorter ones; 1 if nothing is said."""

    @property
    def wanted_length_penalty(self) -> float:
        """Of a beam search."""
        return 1.0 if self.length_penalty is None else self.length_penalty

    @property
    def num_samples(self) -> int:
        """Answers to each prompt."""
        return 1 if self.n is None else self.n

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """As a tuple, whatever they were given as."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def tells_usage_always(self) -> bool:
        """Whether each chunk has the usage so far."""
        return (
            self.tells_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats is True
        )

    def check(self, limits: LimitsConfig) -> None:
        """What can be said before anything is computed.

        Raises:
            ApiError: a limit is passed, or something is asked for that cannot be had.
        """
        if not 1 <= self.num_samples <= limits.max_n:
            raise ApiError(400, f"n must be from 1 to {limits.max_n}, got {self.num_samples}", "n")
        if self.best_of is not None and self.best_of != self.num_samples:
            raise unsupported("best_of", "answers are not ranked; leave it out, or make it equal to n")
        if self.wanted_length_penalty != 1.0 and not self.use_beam_search:
            raise ApiError(400, "length_penalty is only for use_beam_search=true", "length_penalty")
        if self.suffix:
            raise unsupported("suffix", "the engine does not fill gaps in text")
        if len(self.stop_strings) > limits.max_stop:
            raise ApiError(
                400, f"at most {limits.max_stop} stop strings can be given, got {len(self.stop_strings)}", "stop"
            )
        if any(not 0 < len(stop) <= limits.max_stop_chars for stop in self.stop_strings):
            raise ApiError(400, f"stop strings have from 1 to {limits.max_stop_chars} characters", "stop")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options are only for stream=true", "stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise ApiError(400, "prompt_logprobs cannot be streamed: leave out stream", "prompt_logprobs")
        check_num_logprobs("prompt_logprobs", self.prompt_logprobs, limits, or_all=True)

    def check_named_tokens(self, num_logprobs: int | None, limits: LimitsConfig) -> None:
        """Raise ``ApiError`` for tokens whose log-probabilities cannot be told.

        Args:
            num_logprobs: likeliest tokens that are asked for; None where no log-probabilities are.
        """
        name, given = "logprob_token_ids", self.logprob_token_ids
        if given is None:
            return
        if num_logprobs is None:
            raise ApiError(400, f"{name} needs logprobs", name)
        if len(given) > limits.max_logprobs:
            raise ApiError(400, f"{name} can be at most {limits.max_logprobs}, got {len(given)}", name)
        if len(set(given)) < len(given):
            raise ApiError(400, f"{name} has a token twice", name)


def check_num_logprobs(name: str, value: int | None, limits: LimitsConfig, *, or_all: bool = False) -> None:
    """Raise ``ApiError`` for a number of likeliest tokens that is beyond the limit.

    Args:
        or_all: whether -1 may stand for the whole vocabulary, see :func:`count_logprobs`.
    """
    if value is None or (or_all and value == ALL_TOKENS):
        return
    if not 0 <= value <= limits.max_logprobs:
        raise ApiError(400, f"{name} must be from 0 to {limits.max_logprobs}, got {value}", name)


def count_logprobs(name: str, value: int | None, limits: LimitsConfig, vocab_size: int) -> int | None:
    """A number of likeliest tokens, with the whole vocabulary for -1.

    Raises:
        ApiError: that is more than this server tells.
    """
    if value != ALL_TOKENS:
        return value
    if vocab_size > limits.max_logprobs:
        message = (
            f"-1 is the whole vocabulary, {vocab_size} tokens, and this server tells {limits.max_logprobs} at most"
        )
        raise ApiError(400, f"{name}: {message} (limits.max_logprobs)", name)
    return vocab_size


def to_sampling_params(
    asked: SamplingFields,
    *,
    max_tokens: int,
    end_token_ids: tuple[int, ...],
    num_logprobs: int,
    prompt_logprobs: int | None,
    structured_output: StructuredOutput | None,
    thinking_budget: ThinkingBudget | None = None,
) -> SamplingParams:
    """What the engine is told. Its own check of the values follows.

    Args:
        max_tokens: of an answer.
        end_token_ids: that end an answer, beside those that the engine knows of.
        num_logprobs: likeliest tokens to tell for each token.
        prompt_logprobs: the same for the prompt; None tells nothing of it.
        structured_output: the form of the answers, if they are to have one.
        thinking_budget: of an answer, if it is to have one.
    """
    stop_token_ids = tuple(asked.stop_token_ids or ())
    return SamplingParams(
        n=asked.num_samples,
        max_tokens=max_tokens,
        min_tokens=asked.min_tokens or 0,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        top_k=asked.top_k or 0,
        min_p=asked.min_p or 0.0,
        seed=asked.seed,
        stop=asked.stop_strings,
        stop_token_ids=stop_token_ids if asked.ignore_eos else (*stop_token_ids, *end_token_ids),
        ignore_eos=asked.ignore_eos or False,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
        logit_bias=asked.logit_bias or {},
        bad_words=tuple(asked.bad_words or ()),
        allowed_token_ids=tuple(asked.allowed_token_ids or ()),
        num_top_log_probs=0 if asked.logprob_token_ids else num_logprobs,
        log_prob_token_ids=tuple(asked.logprob_token_ids or ()),
        prompt_log_probs=prompt_logprobs,
        structured_output=structured_output,
        thinking_budget=thinking_budget,
    )


def problem_error(problem: str) -> ApiError:
    """What the engine finds wrong with a request, by the names that clients know."""
    if "structured_output" in problem or problem.startswith("no token is left"):
        return ApiError(400, problem, "structured_outputs")
    name, _, rest = problem.partition(" ")
    known = {"num_top_log_probs": "logprobs", "prompt_log_probs": "prompt_logprobs", "prompt_token_ids": "prompt"}
    known["log_prob_token_ids"] = "logprob_token_ids"
    if name in known:
        return ApiError(400, f"{known[name]} {rest}", known[name])
    if name in SamplingFields.model_fields:
        return ApiError(400, problem, name)
    return ApiError(400, problem, "prompt" if problem.startswith("the prompt") else None)
