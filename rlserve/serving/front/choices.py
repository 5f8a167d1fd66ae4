"""All answers to a client's request, as they are generated: whole, or piece by piece."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from rlserve.engine.requests.delta import RequestDelta, SampleDelta, each_token, rest_of
from rlserve.engine.requests.request import RequestOutput, SampleOutput
from rlserve.serving.answers.choice import Choice, ChoiceNews, ChoiceOptions
from rlserve.serving.answers.timings import timings
from rlserve.serving.answers.usage import usage
from rlserve.serving.front.context import ServerContext
from rlserve.serving.front.filters import filter_of, filtered_outputs, note_refused_answer, nothing_follows
from rlserve.serving.front.generation import Generation, find_error
from rlserve.serving.front.masks import mask_of
from rlserve.serving.protocol.sampling import SamplingFields


class Choices:
    """The answers to the first prompt come before those to the second."""

    def __init__(self, generation: Generation, options: ChoiceOptions) -> None:
        self.generation = generation
        self.options = options
        self.vocabulary = generation.context.vocabulary
        self.num_cached_tokens = 0
        self._ended: list[RequestOutput] = []
        self._num_samples = generation.requests[0].sampling.n
        self._choices = [self._new_choice(index) for index in range(len(generation.requests) * self._num_samples)]
        self._refused = frozenset[int]()
        """Of the answers in :meth:`outputs`, those that a filter ended."""

    def __len__(self) -> int:
        return len(self._choices)

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts, each once."""
        return sum(len(request.prompt_token_ids) for request in self.generation.requests)

    @property
    def num_generated_tokens(self) -> int:
        """So far."""
        return sum(choice.num_tokens for choice in self._choices)

    def usage(self) -> dict[str, Any]:
        """So far."""
        return usage(
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=self.num_generated_tokens,
            num_cached_tokens=self.num_cached_tokens,
        )

    def timings(self) -> dict[str, Any]:
        """At the end, as the field that tells them; nothing where the server does not."""
        return {"metrics": timings(self._ended)} if self.generation.context.config.answers.timings else {}

    async def outputs(self) -> list[RequestOutput]:
        """The whole answers, for :meth:`whole` or :meth:`tokens`; what is refused is not generated to its end.

        Raises:
            ApiError: the engine refused a request, or no replica could answer it.
        """
        if self.options.new_filter is None or not self.generation.has_news:
            return await self.generation.outputs()
        probes = [self._new_choice(index) for index in range(len(self._choices))]
        outputs = await filtered_outputs(self.generation, probes)
        self._refused = frozenset(probe.index for probe in probes if probe.refused_for is not None)
        return outputs

    def whole(self, outputs: Sequence[RequestOutput]) -> list[ChoiceNews]:
        """All of each answer."""
        return [self._take(choice, rest_of(sample, 0)) for choice, sample in self._samples(outputs)]

    def tokens(self, outputs: Sequence[RequestOutput]) -> Iterator[ChoiceNews]:
        """The same, token by token; of what is refused the text alone."""
        for choice, sample in self._samples(outputs):
            if choice.index in self._refused:
                yield self._take(choice, rest_of(sample, 0))
            else:
                yield from (choice.take(delta) for delta in each_token(sample))

    async def news(self) -> AsyncGenerator[list[ChoiceNews]]:
        """What there is to tell, as it comes. Close it to abort the rest.

        Raises:
            ApiError: the engine refused a request, or no replica could answer it.
        """
        async with aclosing(self.generation.news()) as news:
            async for each in news:
                if (error := find_error(each)) is not None:
                    raise error
                yield list(self._told(each))
                if nothing_follows(self._choices):
                    return

    def _samples(self, outputs: Sequence[RequestOutput]) -> Iterator[tuple[Choice, SampleOutput]]:
        self._ended += outputs
        self.num_cached_tokens += sum(output.num_cached_tokens for output in outputs)
        samples = [sample for output in outputs for sample in output.samples]
        return zip(self._choices, samples, strict=True)

    def _told(self, news: Sequence[tuple[int, RequestDelta]]) -> Iterator[ChoiceNews]:
        for position, delta in news:
            if delta.output is not None:
                self._ended.append(delta.output)
                self.num_cached_tokens += delta.output.num_cached_tokens
            for sample in delta.samples:
                choice = self._choices[position * self._num_samples + sample.index]
                if choice.has_ended:  # it was refused, and others of its request go on
                    continue
                told = self._take(choice, sample)
                if told.is_first or told.is_worth_telling(self.options):
                    yield told

    def _take(self, choice: Choice, delta: SampleDelta) -> ChoiceNews:
        told = choice.take(delta)
        if choice.refused_for is not None:
            note_refused_answer(self.generation, choice.refused_for)
        return told

    def _new_choice(self, index: int) -> Choice:
        request = self.generation.requests[index // self._num_samples]
        return Choice(index, self.vocabulary, self.options, request.prompt_token_ids)


def choice_options(
    context: ServerContext, asked: SamplingFields, num_logprobs: int | None, *, streams: bool
) -> ChoiceOptions:
    """What a request wants to be told of each answer.

    Raises:
        ApiError: that tells what is masked, or held back.
    """
    return ChoiceOptions(
        num_logprobs=num_logprobs,
        stop=asked.stop_strings,
        include_stop=asked.include_stop_str_in_output or False,
        skip_special_tokens=asked.skip_special_tokens is not False,
        returns_token_ids=asked.return_token_ids or False,
        names_tokens_by_number=context.config.answers.tokens_as_token_ids
        if asked.return_tokens_as_token_ids is None
        else asked.return_tokens_as_token_ids,
        returns_weight_versions=asked.return_weight_versions or False,
        end_token_ids=frozenset((*context.pool.limits.eos_token_ids, *context.end_token_ids)),
        new_mask=mask_of(context, asked, num_logprobs),
        new_filter=filter_of(context, asked, num_logprobs, streams=streams),
    )
