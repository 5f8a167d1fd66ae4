"""The events of a streamed answer, for completions and chats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from rlserve.serving.answers.choice import ChoiceNews
from rlserve.serving.front.choices import Choices
from rlserve.serving.front.event_stream import DONE, event
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.protocol.sampling import SamplingFields


class AnswerStream(ABC):
    """Turns news of answers into chunks."""

    def __init__(self, choices: Choices, asked: SamplingFields, base: dict[str, Any]) -> None:
        """``base``: what all chunks have."""
        self.choices = choices
        self._base = base
        always = choices.generation.context.config.answers.stream_usage
        self._tells_usage, self._tells_usage_always = asked.tells_usage or always, asked.tells_usage_always or always

    @abstractmethod
    def first_chunks(self) -> Iterator[dict[str, Any]]:
        """What comes before anything was generated."""

    @abstractmethod
    def choice_chunk(self, news: ChoiceNews) -> dict[str, Any] | None:
        """The one choice of a chunk; None where there is nothing to tell."""

    def last_usage(self) -> dict[str, Any]:
        """Of all that there was."""
        return self.choices.usage()

    async def events(self) -> AsyncGenerator[bytes]:
        """The whole stream. What goes wrong after its beginning is told in it."""
        if first := b"".join(map(event, self.first_chunks())):
            yield first
        try:
            async with aclosing(self.choices.news()) as news:
                async for each in news:
                    if content := b"".join(self._chunks(each)):
                        yield content
        except ApiError as error:
            yield event(error.content) + DONE
            return
        if self._tells_usage:
            usage = {"usage": self.last_usage(), **self.choices.timings()}
            yield event({**self._base, "choices": [], **usage}) + DONE
        else:
            yield DONE

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A chunk with one choice."""
        content = {**self._base, "choices": [choice]}
        if self._tells_usage_always:
            content["usage"] = self.choices.usage()
        elif self._tells_usage:
            content["usage"] = None
        return content

    def _chunks(self, news: Sequence[ChoiceNews]) -> Iterator[bytes]:
        for told in news:
            choice = self.choice_chunk(told)
            if choice is not None:
                yield event(self.chunk(choice))
