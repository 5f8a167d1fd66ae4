"""Why a request cannot be served. Pure; the answer becomes the request's error output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import get_args

import numpy as np

from rlserve.engine.requests.generated_tokens import NO_TOKENS, GeneratedTokens
from rlserve.engine.requests.request import FinishReason, Request, SampleOutput, SamplingParams
from rlserve.engine.requests.structured_output import StructuredOutput, StructuredOutputKind
from rlserve.engine.requests.thinking_budget import ThinkingBudget

MAX_SAMPLES = 4096
"""Most samples of one request; more is surely a mistake, and each takes memory before it runs."""
MAX_STOP_TOKEN_IDS = 256
MAX_SALT_CHARS = 1024
MAX_TEMPERATURE = 1e6
MAX_TOP_LOG_PROBS = 1024
MAX_LIKELY_TOKENS = 2**20
MAX_STRUCTURED_OUTPUT_BYTES = 2**18
"""Of a schema, an expression or a grammar; the largest that are possible take about half a second to compile."""
MAX_PENALTY = 2.0
MAX_LOGIT_BIAS = 100.0
"""OpenAI's ranges; the logits stay finite."""
REPETITION_PENALTIES = (1e-3, 1e3)
"""Logits divided by less, or multiplied by more, could overflow."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the engine can take."""

    vocab_size: int
    max_model_len: int
    """Longest prompt plus answer: the model's limit, or what the whole KV cache can hold."""
    eos_token_ids: tuple[int, ...] = ()


def find_problem(request: Request, limits: Limits) -> str | None:
    """The first thing wrong with a request, or None. Trusts no type: requests come from other people."""
    try:
        return next(_problems(request, limits), None)
    except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        # A value of a type nobody thought of must cost its own request only, never the engine.
        return f"malformed request: {error}"


def output_id(request: Request) -> str:
    """The id that the output of a request goes by: its own, as far as it is one."""
    return request.id if isinstance(request.id, str) else shown(request.id)


def shown(value: object) -> str:
    """A value of any type and size, short enough for a message."""
    try:
        return shortened(value)
    except ValueError:  # Python writes no number of more than a few thousand digits
        return f"a huge {type(value).__name__}"


def forbids_all(sampling: SamplingParams, limits: Limits, others: set[int]) -> bool:
    """Whether no token is left to draw where ``others`` are forbidden too."""
    forbidden = {*sampling.bad_token_ids, *others}
    if sampling.min_tokens:
        forbidden.update(sampling.stop_token_ids, () if sampling.ignore_eos else limits.eos_token_ids)
    allowed = set(sampling.allowed_token_ids)
    return allowed <= forbidden if allowed else len(forbidden) == limits.vocab_size


def _problems(request: Request, limits: Limits) -> Iterator[str]:
    prompt = request.prompt_token_ids
    if not isinstance(prompt, tuple | list) or not prompt:
        yield "prompt_token_ids must be a tuple of at least one token id"
        return
    if len(prompt) >= limits.max_model_len:
        yield (
            f"the prompt has {len(prompt)} tokens, and prompt plus answer may have {limits.max_model_len} "
            "(the model's limit, or the size of the KV cache)"
        )
        return
    yield from _token_problems("prompt_token_ids", prompt, limits.vocab_size)
    _must_be_list("resumed", request.resumed)
    if not _is_integer(request.priority, -(2**31), 2**31):
        yield f"priority must be a whole number, got {shown(request.priority)}"
    if not isinstance(request.cache_salt, str) or len(request.cache_salt) > MAX_SALT_CHARS:
        yield f"cache_salt must be a text of at most {MAX_SALT_CHARS} characters, got {shown(request.cache_salt)}"
    if request.adapter is not None and not isinstance(request.adapter, str):
        yield f"adapter must be a text or None, got {shown(request.adapter)}"
    if not isinstance(request.sampling, SamplingParams):
        yield f"sampling must be SamplingParams, got {type(request.sampling).__name__}"
        return
    for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids", "log_prob_token_ids"):
        _must_be_list(name, getattr(request.sampling, name))
    yield from _sampling_problems(request.sampling, limits)
    yield from _logit_rule_problems(request.sampling, limits)
    yield from _thinking_budget_problems(request.sampling, limits)
    yield from _structured_output_problems(request.sampling, limits)
    yield from _detail_problems(request.sampling, limits)
    yield from _amount_problems(request)
    yield from _resumed_problems(request, limits)


def _sampling_problems(sampling: SamplingParams, limits: Limits) -> Iterator[str]:
    if not _is_integer(sampling.n, 1, MAX_SAMPLES + 1):
        yield f"n must be a whole number from 1 to {MAX_SAMPLES}, got {shown(sampling.n)}"
    if not _is_integer(sampling.max_tokens, 1, 2**31):
        yield f"max_tokens must be a whole number of at least 1, got {shown(sampling.max_tokens)}"
    yield from _sample_length_problems(sampling)
    if not _is_number(sampling.temperature, 0, MAX_TEMPERATURE):
        yield f"temperature must be from 0 to {MAX_TEMPERATURE:g}, got {shown(sampling.temperature)}"
    if not _is_integer(sampling.num_greedy, 0, MAX_SAMPLES) or sampling.num_greedy > sampling.n:
        yield f"num_greedy must be a whole number from 0 to n, got {shown(sampling.num_greedy)}"
    if not _is_integer(sampling.top_k, -1, 2**31):
        yield f"top_k must be a whole number of at least -1, got {shown(sampling.top_k)}"
    if not _is_number(sampling.top_p, 0, 1) or sampling.top_p == 0:
        yield f"top_p must be greater than 0 and at most 1, got {shown(sampling.top_p)}"
    if not _is_number(sampling.min_p, 0, 1):
        yield f"min_p must be from 0 to 1, got {shown(sampling.min_p)}"
    if sampling.seed is not None and not _is_integer(sampling.seed, -(2**63), 2**64):
        yield f"seed must be None or a whole number of 64 bits, got {shown(sampling.seed)}"
    if not isinstance(sampling.stop, tuple | list) or not all(isinstance(s, str) and s for s in sampling.stop):
        yield f"stop must be a tuple of strings that are not empty, got {shown(sampling.stop)}"
    if not isinstance(sampling.ignore_eos, bool):
        yield f"ignore_eos must be True or False, got {shown(sampling.ignore_eos)}"
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        yield f"stop_token_ids can be at most {MAX_STOP_TOKEN_IDS}, got {len(sampling.stop_token_ids)}"
    yield from _token_problems("stop_token_ids", sampling.stop_token_ids, limits.vocab_size)


def _sample_length_problems(sampling: SamplingParams) -> Iterator[str]:
    lengths = sampling.sample_max_tokens
    if not isinstance(lengths, tuple | list) or (lengths and len(lengths) != sampling.n):
        yield f"sample_max_tokens must be empty or have one number for each of the {shown(sampling.n)} samples"
        return
    for number in lengths:
        if not _is_integer(number, 1, 2**31) or number > sampling.max_tokens:
            yield f"sample_max_tokens must be whole numbers from 1 to max_tokens, got {shown(number)}"


def _logit_rule_problems(sampling: SamplingParams, limits: Limits) -> Iterator[str]:
    penalty, (smallest, largest) = sampling.repetition_penalty, REPETITION_PENALTIES
    if not _is_number(penalty, smallest, largest):
        yield f"repetition_penalty must be from {smallest:g} to {largest:g}, got {shown(penalty)}"
    for name in ("presence_penalty", "frequency_penalty"):
        if not _is_number(value := getattr(sampling, name), -MAX_PENALTY, MAX_PENALTY):
            yield f"{name} must be from -{MAX_PENALTY} to {MAX_PENALTY}, got {shown(value)}"
    if not _is_integer(sampling.min_tokens, 0, sampling.max_tokens + 1):
        yield f"min_tokens must be a whole number from 0 to max_tokens, got {shown(sampling.min_tokens)}"
    yield from _token_problems("logit_bias", tuple(sampling.logit_bias), limits.vocab_size)
    for token_id, bias in sampling.logit_bias.items():
        if not _is_number(bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS):
            yield f"logit_bias must be from -{MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}, got {shown(bias)} for {token_id}"
    yield from _token_problems("allowed_token_ids", sampling.allowed_token_ids, limits.vocab_size)
    yield from _token_problems("bad_token_ids", sampling.bad_token_ids, limits.vocab_size)
    # Half of a surrogate pair raises, which is found to be malformed.
    if not isinstance(words := sampling.bad_words, tuple | list) or not all(
        isinstance(word, str) and word.strip().encode() for word in words
    ):
        yield f"bad_words must be a tuple of strings that are not blank, got {shown(words)}"
    if forbids_all(sampling, limits, set()):
        yield "no token can be drawn: allowed_token_ids, bad_token_ids and min_tokens forbid all"


def _structured_output_problems(sampling: SamplingParams, limits: Limits) -> Iterator[str]:
    """The text is read when it is compiled."""
    if (wanted := sampling.structured_output) is None:
        return
    if not isinstance(wanted, StructuredOutput):
        yield f"structured_output must be a StructuredOutput, got {shown(wanted)}"
        return
    if wanted.kind not in get_args(StructuredOutputKind):
        kinds = ", ".join(get_args(StructuredOutputKind))
        yield f"the kind of structured_output must be one of {kinds}, got {shown(wanted.kind)}"
    # Half of a surrogate pair raises, which is found to be malformed.
    if not isinstance(wanted.text, str) or len(wanted.text.encode()) > MAX_STRUCTURED_OUTPUT_BYTES:
        yield f"the text of structured_output must be a string of at most {MAX_STRUCTURED_OUTPUT_BYTES} bytes"
    if sampling.ignore_eos or not limits.eos_token_ids:
        yield "structured_output needs an end-of-sequence token in the model, and ignore_eos=False"


def _thinking_budget_problems(sampling: SamplingParams, limits: Limits) -> Iterator[str]:
    if (budget := sampling.thinking_budget) is None:
        return
    if not isinstance(budget, ThinkingBudget):
        yield f"thinking_budget must be a ThinkingBudget, got {shown(budget)}"
        return
    if not _is_integer(budget.num_tokens, 0, 2**31):
        yield f"thinking_budget must have a whole number of tokens, 0 at least, got {shown(budget.num_tokens)}"
    tags = (budget.opening_token_id, budget.closing_token_id)
    yield from _token_problems("thinking_budget", tags, limits.vocab_size)
    if sampling.structured_output is not None:
        yield "thinking_budget cannot be had beside a structured_output, whose form begins with the first token"


def _detail_problems(sampling: SamplingParams, limits: Limits) -> Iterator[str]:
    end = limits.vocab_size + 1
    if not _is_integer(sampling.num_top_log_probs, 0, end):
        yield f"num_top_log_probs must be a whole number from 0 to {end - 1}, got {shown(sampling.num_top_log_probs)}"
    if (num_top := sampling.prompt_log_probs) is not None and not _is_integer(num_top, 0, end):
        yield f"prompt_log_probs must be None or a whole number from 0 to {end - 1}, got {shown(num_top)}"
    named = sampling.log_prob_token_ids
    yield from _token_problems("log_prob_token_ids", named, limits.vocab_size)
    if len(named) > MAX_TOP_LOG_PROBS or len(set(named)) < len(named):
        yield f"log_prob_token_ids must be at most {MAX_TOP_LOG_PROBS} tokens, each once"
    if named and sampling.num_top_log_probs:
        yield "log_prob_token_ids are told in place of the likeliest: num_top_log_probs must be 0 beside them"
    if not isinstance(sampling.kept_support, bool):
        yield f"kept_support must be True or False, got {shown(sampling.kept_support)}"


def _amount_problems(request: Request) -> Iterator[str]:
    """Up to ``MAX_TOP_LOG_PROBS`` likeliest tokens can be told of any number of tokens; of more, so many in all."""
    sampling, num_top = request.sampling, request.sampling.prompt_log_probs or 0
    asked = {
        "num_top_log_probs": (sampling.num_top_log_probs, sampling.n * sampling.max_tokens),
        "prompt_log_probs": (num_top, len(request.prompt_token_ids)),
    }
    for name, (count, num_tokens) in asked.items():
        if count > MAX_TOP_LOG_PROBS and count * num_tokens > MAX_LIKELY_TOKENS:
            yield (
                f"{name} of {count} for {num_tokens} tokens is {count * num_tokens} log-probabilities, more than the "
                f"{MAX_LIKELY_TOKENS} that can be told: ask for fewer of either, or for {MAX_TOP_LOG_PROBS} at most"
            )


def _resumed_problems(request: Request, limits: Limits) -> Iterator[str]:
    seen: set[int] = set()
    for sample in request.resumed:
        if not isinstance(sample, SampleOutput) or not _is_integer(sample.index, 0, request.sampling.n):
            yield f"resumed must hold samples with an index from 0 to {request.sampling.n - 1}"
            return
        if sample.index in seen:
            yield f"resumed has sample {sample.index} twice"
        seen.add(sample.index)
        yield from _partial_problems(sample, limits)
        num_tokens = len(sample.tokens)
        if request.sampling.tells_top_log_probs and len(sample.top_log_probs) != num_tokens:
            yield f"resumed sample {sample.index} must have top_log_probs for each token, as the request wants them"
        if request.sampling.kept_support and len(sample.kept_support) != num_tokens:
            yield f"resumed sample {sample.index} must have a kept_support for each token, as the request wants them"
        if len(request.prompt_token_ids) + num_tokens > limits.max_model_len:
            yield f"resumed sample {sample.index} is longer than the {limits.max_model_len} tokens that fit"


def _partial_problems(sample: SampleOutput, limits: Limits) -> Iterator[str]:
    """What is wrong with the tokens of a partial sample."""
    name, tokens = f"resumed sample {sample.index}", sample.tokens
    if not isinstance(tokens, GeneratedTokens):
        raise TypeError(f"tokens of {name} must be GeneratedTokens, got {type(tokens).__name__}")
    for column in ("token_ids", "log_probs", "behaviour_log_probs", "weight_versions"):
        values, dtype = getattr(tokens, column), getattr(NO_TOKENS, column).dtype
        if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype != dtype:
            raise TypeError(f"{column} of {name} must be a one-dimensional array of {dtype}")
        if len(values) != len(tokens.token_ids):
            yield f"{name} must have a log-probability and a version for each token"
            return
    for column in ("log_probs", "behaviour_log_probs"):
        values = getattr(tokens, column)
        for value in values[~np.isfinite(values)].tolist():
            yield f"{name} has {value} in {column}, must be a finite number"
    for version in tokens.weight_versions[tokens.weight_versions < 0].tolist():
        yield f"{name} has the weight version {version}, must be a whole number from 0"
    for token in tokens.token_ids[(tokens.token_ids < 0) | (tokens.token_ids >= limits.vocab_size)].tolist():
        yield f"{name} has {token}, {_token_rule(limits.vocab_size)}"
    for column in ("top_log_probs", "kept_support"):
        _must_be_list(f"{column} of {name}", getattr(sample, column))
    if sample.finish_reason is not None and not isinstance(sample.finish_reason, FinishReason):
        yield f"{name} has the finish_reason {shown(sample.finish_reason)}, which is none"


def _must_be_list(name: str, value: object) -> None:
    """What is walked more than once, in order. Another type is found to be malformed."""
    if not isinstance(value, tuple | list):
        raise TypeError(f"{name} must be a tuple or a list, got {type(value).__name__}")


def _token_problems(name: str, token_ids: tuple[int, ...], vocab_size: int) -> Iterator[str]:
    """Types first and at once: a prompt can have a hundred thousand tokens."""
    if not token_ids or (set(map(type, token_ids)) == {int} and min(token_ids) >= 0 and max(token_ids) < vocab_size):
        return
    bad = next(token for token in token_ids if type(token) is not int or not 0 <= token < vocab_size)
    yield f"{name} has {shown(bad)}, {_token_rule(vocab_size)}"


def _token_rule(vocab_size: int) -> str:
    return f"token ids are whole numbers from 0 to {vocab_size - 1}: it is out of vocabulary, of {vocab_size} tokens"


def _is_integer(value: object, low: int, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < end


def _is_number(value: object, low: float, high: float) -> bool:
    """False for NaN too, which compares with nothing."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
