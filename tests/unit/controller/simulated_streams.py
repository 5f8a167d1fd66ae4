"""The streams of a simulated worker: what its engine made since somebody asked last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rlserve.engine.requests.delta import RequestDelta, SampleDelta, rest_of
from rlserve.engine.requests.request import FinishReason, Request, RequestOutput


class SimulatedStreams:
    """Follows requests by id; ``read`` gives the tokens that one has now."""

    def __init__(self, read: Callable[[str], RequestOutput | None]) -> None:
        self._read = read
        self._num_told: dict[str, int] = {}
        self._ended: list[RequestDelta] = []

    def follow(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._num_told[request.id] = len(request.resumed[0].tokens) if request.resumed else 0

    def end(self, output: RequestOutput) -> bool:
        """Whether the request is one that is followed; its rest is told then."""
        start = self._num_told.pop(output.request_id, None)
        if start is not None:
            self._ended.append(RequestDelta(request_id=output.request_id, samples=_rest(output, start), output=output))
        return start is not None

    def break_off(self, outputs: Sequence[RequestOutput]) -> None:
        """They go on elsewhere."""
        for output in outputs:
            start = self._num_told.pop(output.request_id, None)
            if start is not None and (samples := _rest(output, start)):
                self._ended.append(RequestDelta(request_id=output.request_id, samples=samples))

    def news(self) -> tuple[RequestDelta, ...]:
        """Since the last call."""
        deltas, self._ended = self._ended, []
        for request_id, start in self._num_told.items():
            output = self._read(request_id)
            if output is not None and (samples := _rest(output, start)):
                deltas.append(RequestDelta(request_id=request_id, samples=samples))
                self._num_told[request_id] = start + len(samples[0].tokens)
        return tuple(deltas)


def _rest(output: RequestOutput, start: int) -> tuple[SampleDelta, ...]:
    rests = (rest_of(sample, start) for sample in output.samples)
    goes_on = (
        replace(rest, finish_reason=None) if rest.finish_reason is FinishReason.ABORT else rest for rest in rests
    )
    return tuple(rest for rest in goes_on if len(rest.tokens) or rest.finish_reason is not None)
