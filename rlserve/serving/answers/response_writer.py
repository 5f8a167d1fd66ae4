"""``/v1/responses``: an answer as items and as the typed events that tell of them.

::

    begin ──► created, in_progress
    take ───► for each item: output_item.added ─► content_part.added ─► …delta, again and again
              ─► …done ─► content_part.done ─► output_item.done        (calls have no content parts)
    end ────► completed or incomplete
    fail ───► failed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlserve.engine.requests.request import FinishReason
from rlserve.serving.answers.message import MessageNews
from rlserve.serving.answers.parts import Part, PartNews, Parts
from rlserve.serving.content.base import CONTENT_FILTER

Event = dict[str, Any]
_ID_PREFIXES = {"reasoning": "rs_", "text": "msg_", "call": "fc_"}
_CUT_OFF: Mapping[str | None, str] = {FinishReason.LENGTH: "max_output_tokens", CONTENT_FILTER: CONTENT_FILTER}
"""What the API calls the ends that are not the model's."""
_CONTENT_TYPES = {"reasoning": "reasoning_text", "text": "output_text"}


class ResponseWriter:
    """
    Args:
        base: of the response: what is known before its answer.
        new_id: names an item, given the beginning of its name.
    """

    def __init__(self, base: Mapping[str, Any], new_id: Callable[[str], str]) -> None:
        self.response: dict[str, Any] = {**base, "status": "in_progress", "output": []}
        self.parts = Parts()
        self._new_id = new_id
        self._items: list[dict[str, Any]] = []
        """One for each part."""
        self._new_log_probs: list[dict[str, Any]] = []
        """Of tokens whose text is not told yet."""
        self._log_probs: list[dict[str, Any]] = []
        """Of the text that goes on."""
        self._is_cut = False
        self._num_events = 0

    def begin(self) -> list[Event]:
        """Before anything was generated."""
        return [self._event("response.created", response=self.response), self._of_response("in_progress")]

    def take(self, news: MessageNews, log_probs: Sequence[dict[str, Any]] = ()) -> list[Event]:
        """A piece of the answer.

        Args:
            log_probs: of its tokens, in the form of the API.
        """
        goes_on = self.parts.current is None or self.parts.current.kind == "text"
        self._new_log_probs = [*(self._new_log_probs if goes_on else ()), *log_probs]
        events = [event for each in self.parts.take(news) for event in self._of_part(each)]
        if news.reasoning or news.calls:
            self._new_log_probs = []
        return events

    def end(self, finish_reason: str | None, usage: Mapping[str, Any], ended_s: int) -> list[Event]:
        """Nothing follows.

        Args:
            usage: of tokens.
            ended_s: Unix time.
        """
        cause = _CUT_OFF.get(finish_reason)
        self._is_cut = cause is not None
        events = [event for each in self.parts.end() for event in self._of_part(each)]
        self.response |= {"output": self._items, "usage": usage}
        if cause is not None:
            self.response |= {"status": "incomplete", "incomplete_details": {"reason": cause}}
        else:
            self.response |= {"status": "completed", "completed_at": ended_s}
        return [*events, self._of_response(self.response["status"])]

    def fail(self, code: str, message: str) -> list[Event]:
        """There is no more of the answer, and what there is does not count."""
        self.response |= {"status": "failed", "error": {"code": code, "message": message}, "output": self._items}
        return [self._of_response("failed")]

    def _of_part(self, news: PartNews) -> Iterator[Event]:
        part = news.part
        match news.what:
            case "begin":
                self._items.append(self._new_item(part))
                yield self._event("response.output_item.added", output_index=part.index, item=dict(self._items[-1]))
                if part.kind != "call":
                    yield self._of_content(part, "response.content_part.added", part=self._content(part))
            case "piece":
                yield self._piece(part, news.piece)
            case "end":
                yield from self._end(part)

    def _new_item(self, part: Part) -> dict[str, Any]:
        identity = {"id": self._new_id(_ID_PREFIXES[part.kind]), "status": "in_progress"}
        match part.kind:
            case "reasoning":
                return {**identity, "type": "reasoning", "summary": [], "content": []}
            case "text":
                return {**identity, "type": "message", "role": "assistant", "content": []}
            case "call":
                called = {"call_id": part.call_id, "name": part.name, "arguments": ""}
                return {**identity, "type": "function_call", **called}

    def _piece(self, part: Part, piece: str) -> Event:
        match part.kind:
            case "reasoning":
                return self._of_content(part, "response.reasoning_text.delta", delta=piece)
            case "text":
                new, self._new_log_probs = self._new_log_probs, []
                self._log_probs = [*self._log_probs, *new]
                return self._of_content(part, "response.output_text.delta", delta=piece, logprobs=new)
            case "call":
                return self._of_item(part, "response.function_call_arguments.delta", delta=piece)

    def _end(self, part: Part) -> Iterator[Event]:
        item = self._items[part.index]
        item["status"] = "incomplete" if self._is_cut else "completed"
        if part.kind == "call":
            item["arguments"] = part.text
            yield self._of_item(part, "response.function_call_arguments.done", name=part.name, arguments=part.text)
        else:
            if part.kind == "text":
                self._log_probs, self._new_log_probs = [*self._log_probs, *self._new_log_probs], []
            content = self._content(part)
            item["content"] = [content]
            if part.kind == "text":
                yield self._of_content(part, "response.output_text.done", text=part.text, logprobs=self._log_probs)
            else:
                yield self._of_content(part, "response.reasoning_text.done", text=part.text)
            self._log_probs = []
            yield self._of_content(part, "response.content_part.done", part=content)
        yield self._event("response.output_item.done", output_index=part.index, item=dict(item))

    def _content(self, part: Part) -> dict[str, Any]:
        content: dict[str, Any] = {"type": _CONTENT_TYPES[part.kind], "text": part.text}
        if part.kind == "text":
            content |= {"annotations": [], "logprobs": self._log_probs}
        return content

    def _of_content(self, item: Part, event: str, **said: Any) -> Event:
        return self._of_item(item, event, content_index=0, **said)

    def _of_item(self, item: Part, event: str, **said: Any) -> Event:
        return self._event(event, item_id=self._items[item.index]["id"], output_index=item.index, **said)

    def _of_response(self, status: str) -> Event:
        return self._event(f"response.{status}", response=self.response)

    def _event(self, kind: str, **said: Any) -> Event:
        number, self._num_events = self._num_events, self._num_events + 1
        return {"type": kind, "sequence_number": number, **said}
