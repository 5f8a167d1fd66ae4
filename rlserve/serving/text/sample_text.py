"""The text of one sample as its tokens come, cut where a stop string begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenizers.decoders import DecodeStream

from rlserve.serving.text.vocabulary import Vocabulary

_NUM_CONTEXT_TOKENS = 8
"""Of the prompt: some decoders drop the space that a text begins with."""


class SampleText:
    """Gives out text as soon as it is certain: whole characters, and nothing that a stop string might begin with.

    The engine finds stop strings; here they are only cut off.

    Args:
        prompt_token_ids: their last ones give the decoder its context.
        stop: strings that may end the sample.
        include_stop: leave the one that does in the text.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt_token_ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._vocabulary = vocabulary
        self._skip_special_tokens = skip_special_tokens
        self._stop = () if include_stop else tuple(stop)
        context = list(prompt_token_ids[-_NUM_CONTEXT_TOKENS:])
        self._decoding = DecodeStream(ids=context, skip_special_tokens=skip_special_tokens)
        self._undecoded: list[int] = []
        """Tokens that end within a character."""
        self._held = ""
        self._num_last = 0
        """Characters of the last token's text."""

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain with these tokens."""
        for token_id in token_ids:
            self._append(self._step(token_id))
        certain = len(self._held) - self._num_possible()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def end(self, stop_string: str | None) -> str:
        """The rest, without the stop string that ended the sample if one did."""
        if self._undecoded:
            self._append(self._vocabulary.decode(self._undecoded, skip_special_tokens=self._skip_special_tokens))
            self._undecoded = []
        text, self._held = self._held, ""
        if stop_string is None or stop_string not in self._stop:
            return text
        # The last token completed it, so it ends within that token's text.
        start = text.find(stop_string, max(0, len(text) - self._num_last - len(stop_string) + 1))
        return text if start < 0 else text[:start]

    def _append(self, text: str | None) -> None:
        if text is not None:
            self._held += text
            self._num_last = len(text)

    def _step(self, token_id: int) -> str | None:
        try:
            text: str | None = self._decoding.step(self._vocabulary.backend, token_id)
        except Exception:  # the library's own type: what was decoded before reads otherwise with this token
            self._decoding = DecodeStream(skip_special_tokens=self._skip_special_tokens)
            text = self._decoding.step(self._vocabulary.backend, token_id)
        self._undecoded = [] if text is not None else [*self._undecoded, token_id]
        return text

    def _num_possible(self) -> int:
        """Characters at the end that a stop string may begin with, or that are all of one."""
        return max((length for length in self._possible()), default=0)

    def _possible(self) -> Iterator[int]:
        for stop in self._stop:
            longest = min(len(stop), len(self._held))
            yield from (length for length in range(longest, 0, -1) if self._held.endswith(stop[:length]))
