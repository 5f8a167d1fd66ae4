"""The events of a streamed answer, for both of OpenAI's APIs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from rlserve.engine.requests.delta import RequestDelta
from rlserve.serving.answers.choice import Choice, ChoiceNews, ChoiceOptions
from rlserve.serving.answers.usage import usage
from rlserve.serving.front.event_stream import DONE, event
from rlserve.serving.front.generation import Generation, find_error
from rlserve.serving.protocol.sampling import SamplingFields
from rlserve.serving.text.vocabulary import Vocabulary


class AnswerStream(ABC):
    """Turns news of the engine into chunks. The choices of the first prompt come before those of the second."""

    def __init__(
        self, generation: Generation, asked: SamplingFields, options: ChoiceOptions, base: dict[str, Any]
    ) -> None:
        """``base``: what all chunks have."""
        self.vocabulary: Vocabulary = generation.context.vocabulary
        self.options = options
        self._generation = generation
        self._asked = asked
        self._base = base
        num_samples = asked.num_samples
        self._choices = [
            Choice(position * num_samples + index, self.vocabulary, options, request.prompt_token_ids)
            for position, request in enumerate(generation.requests)
            for index in range(num_samples)
        ]
        self._num_cached_tokens = 0

    @abstractmethod
    def first_chunks(self) -> Iterator[dict[str, Any]]:
        """What comes before anything was generated."""

    @abstractmethod
    def choice_chunk(self, news: ChoiceNews) -> dict[str, Any] | None:
        """The one choice of a chunk; None where there is nothing to tell."""

    @property
    def num_choices(self) -> int:
        """Of all prompts."""
        return len(self._choices)

    async def events(self) -> AsyncGenerator[bytes]:
        """The whole stream. What goes wrong after its beginning is told in it."""
        if first := b"".join(map(event, self.first_chunks())):
            yield first
        async with aclosing(self._generation.news()) as news:
            async for each in news:
                if (error := find_error(each)) is not None:
                    yield event(error.content) + DONE
                    return
                if content := b"".join(self._chunks(each)):
                    yield content
        usage = event({**self._base, "choices": [], "usage": self.usage()}) if self._asked.tells_usage else b""
        yield usage + DONE

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A chunk with one choice."""
        content = {**self._base, "choices": [choice]}
        if self._asked.tells_usage_always:
            content["usage"] = self.usage()
        elif self._asked.tells_usage:
            content["usage"] = None
        return content

    def usage(self) -> dict[str, Any]:
        """So far."""
        return usage(
            num_prompt_tokens=sum(len(request.prompt_token_ids) for request in self._generation.requests),
            num_generated_tokens=sum(choice.num_tokens for choice in self._choices),
            num_cached_tokens=self._num_cached_tokens,
        )

    def _chunks(self, news: Sequence[tuple[int, RequestDelta]]) -> Iterator[bytes]:
        for position, delta in news:
            if delta.output is not None:
                self._num_cached_tokens += delta.output.num_cached_tokens
            for sample in delta.samples:
                told = self._choices[position * self._asked.num_samples + sample.index].take(sample)
                if told.is_first or told.is_worth_telling(self.options):
                    choice = self.choice_chunk(told)
                    if choice is not None:
                        yield event(self.chunk(choice))
