"""``/v1/completions``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlserve.serving.config import LimitsConfig
from rlserve.serving.protocol.beam_search import check_beam_search
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import FirstOnly, SamplingFields, Texts, Tokens, check_num_logprobs

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(SamplingFields):
    """A prompt, or several: each text or token ids."""

    prompt: str | Tokens | Texts | Annotated[list[Tokens], FirstOnly()]
    logprobs: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    """Keep so many tokens of a prompt."""
    truncation_side: Literal["left", "right"] | None = None
    """Where it is cut: on the left, so that the last ones stay, if nothing is said."""

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return self.prompt  # type: ignore[return-value]  # a list of ids was looked for before

    def check(self, limits: LimitsConfig) -> None:
        super().check(limits)
        check_num_logprobs("logprobs", self.logprobs, limits, or_all=True)
        self.check_named_tokens(self.logprobs, limits)
        if not 1 <= len(self.prompts) <= limits.max_prompts:
            raise ApiError(
                400, f"from 1 to {limits.max_prompts} prompts can be given, got {len(self.prompts)}", "prompt"
            )
        check_beam_search(self)
        if self.use_beam_search and self.echo and self.logprobs is not None:
            raise ApiError(400, "echo: a beam search tells no log-probabilities of a prompt: leave out either", "echo")
        if self.echo and self.stream and self.logprobs is not None:
            raise ApiError(400, "echo with logprobs cannot be streamed: leave out stream", "echo")
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens=0 is only for echo=true", "max_tokens")
        if self.max_tokens == 0 and self.logprob_token_ids is not None:
            raise ApiError(400, "logprob_token_ids are told of generated tokens, and max_tokens=0", "logprob_token_ids")
