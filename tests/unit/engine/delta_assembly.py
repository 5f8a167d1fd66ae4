"""Answers put together from the deltas that tell of them."""

from __future__ import annotations

import numpy as np

from rlserve.engine import FinishReason, GeneratedTokens, Request, RequestDelta, RequestOutput


class Assembly:
    """Puts deltas together again, and checks each on the way."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[str, int], list[GeneratedTokens]] = {}
        self.ends: dict[tuple[str, int], FinishReason] = {}
        self.outputs: dict[str, RequestOutput] = {}

    def take(self, deltas: tuple[RequestDelta, ...], requests: dict[str, Request]) -> None:
        for delta in deltas:
            assert delta.request_id not in self.outputs, "something came after the end"
            for sample in delta.samples:
                key = (delta.request_id, sample.index)
                resumed = {old.index: old.tokens for old in requests[delta.request_id].resumed}
                before = self.tokens.setdefault(key, [resumed[sample.index]] if sample.index in resumed else [])
                assert sample.start == sum(map(len, before)), "a token is missing, or came twice"
                assert key not in self.ends
                assert len(sample.tokens) or sample.finish_reason is not None
                before.append(sample.tokens)
                if sample.finish_reason is not None:
                    self.ends[key] = sample.finish_reason
            if delta.output is not None:
                self.outputs[delta.request_id] = delta.output

    def check_whole(self) -> None:
        for request_id, output in self.outputs.items():
            for sample in output.samples:
                key = (request_id, sample.index)
                assert self.ends[key] is sample.finish_reason
                assert joined(self.tokens[key]) == sample.tokens


def joined(parts: list[GeneratedTokens]) -> GeneratedTokens:
    """One after the other."""
    names = ("token_ids", "log_probs", "behaviour_log_probs", "weight_versions")
    return GeneratedTokens(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
