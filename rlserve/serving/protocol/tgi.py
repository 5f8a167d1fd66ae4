"""``/generate`` and ``/generate_stream``, as Hugging Face's Text Generation Inference has them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from rlserve.engine.requests.request import SamplingParams
from rlserve.serving.config import LimitsConfig
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import ApiModel, OnlyFalse, OnlyOne, Texts, check_num_logprobs

DEFAULT_MAX_NEW_TOKENS = 100


class GenerateParameters(ApiModel):
    """How to generate; greedy unless something of it asks for sampling."""

    max_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    top_k: Annotated[int, Field(gt=0)] | None = None
    top_p: Annotated[float, Field(gt=0, lt=1)] | None = None
    seed: int | None = None
    stop: Texts | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    top_n_tokens: int | None = None
    truncate: Annotated[int, Field(ge=1)] | None = None
    # For which only the value that changes nothing is taken.
    best_of: OnlyOne | None = None
    typical_p: OnlyOne | None = None
    watermark: OnlyFalse | None = None
    grammar: None = None
    adapter_id: None = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        changed = (self.temperature not in (None, 1.0), self.top_k is not None, self.top_p is not None)
        return bool(self.do_sample) or any(changed)


class GenerateRequest(ApiModel):
    """A prompt."""

    inputs: str
    parameters: GenerateParameters = GenerateParameters()
    stream: bool | None = None

    def check(self, limits: LimitsConfig) -> None:
        """Raise ``ApiError`` where a limit is passed."""
        stop = self.parameters.stop or []
        if len(stop) > limits.max_stop or any(not 0 < len(text) <= limits.max_stop_chars for text in stop):
            message = f"at most {limits.max_stop} stop strings of 1 to {limits.max_stop_chars} characters can be given"
            raise ApiError(422, message, "stop")
        check_num_logprobs("top_n_tokens", self.parameters.top_n_tokens, limits)

    def sampling(self, *, max_tokens: int, end_token_ids: tuple[int, ...]) -> SamplingParams:
        """What the engine is told."""
        asked = self.parameters
        temperature = 1.0 if asked.temperature is None else asked.temperature
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature if asked.samples else 0.0,
            top_k=asked.top_k or 0,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            seed=asked.seed,
            stop=tuple(asked.stop or ()),
            stop_token_ids=end_token_ids,
            repetition_penalty=1.0 if asked.repetition_penalty is None else asked.repetition_penalty,
            frequency_penalty=asked.frequency_penalty or 0.0,
            num_top_log_probs=asked.top_n_tokens or 0,
            prompt_log_probs=0 if asked.decoder_input_details else None,
        )


def tgi_error(error: ApiError) -> dict[str, Any]:
    """An error as this API's clients read it."""
    kind = {503: "overloaded", 500: "generation", 424: "generation", 401: "authentication"}.get(
        error.status, "validation"
    )
    return {"error": error.message, "error_type": kind}
