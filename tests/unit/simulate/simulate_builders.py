"""Small scenarios whose outcome follows from a formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlserve.manager.policies.base import GangFigures, GangView
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.workload.base import GroupWork, Workload

NO_LIMIT = 10**12


@dataclass(frozen=True, kw_only=True)
class PlainCosts:
    """A step of a replica takes ``base_s + sample_s * samples + token_s * tokens``; all else is free unless said."""

    base_s: float = 0.01
    sample_s: float = 0.0
    token_s: float = 0.0
    train_token_s: float = 0.001
    prefill_token_s: float = 0.0
    cache_tokens: int = NO_LIMIT
    move_s: float = 0.0
    pause_s: float = 0.0
    transfer_s: float = 0.0

    def decode_step_s(self, type_name: str, num_samples: int, num_kv_tokens: int) -> float:
        speed = 2.0 if type_name == "fast" else 1.0
        return (self.base_s + self.sample_s * num_samples + self.token_s * num_kv_tokens) / speed

    def prefill_s(self, type_name: str, num_tokens: int) -> float:
        return self.prefill_token_s * num_tokens

    def num_kv_tokens(self, type_name: str) -> int:
        return self.cache_tokens

    def train_step_s(self, type_names: Sequence[str], num_tokens: int) -> float:
        return self.train_token_s * num_tokens / len(type_names)

    def snapshot_s(self, type_name: str) -> float:
        return 0.0

    def weights_s(self, type_name: str) -> float:
        return self.transfer_s

    def swap_s(self, type_name: str) -> float:
        return 0.0

    def sleep_s(self, type_name: str) -> float:
        return self.move_s

    def wake_s(self, type_name: str) -> float:
        return self.move_s

    def reshard_s(self, type_names: Sequence[str], num_before: int) -> float:
        return self.pause_s


@dataclass(frozen=True, kw_only=True)
class EqualWork(Workload):
    """All answers are of one length; every so-many-th group is dropped."""

    length: int = 100
    num_prompt_tokens: int = 10
    samples: int = 2
    drop_every: int = 0

    def group(self, position: int, share: float) -> GroupWork:
        is_dropped = self.drop_every > 0 and position % self.drop_every == 0
        return GroupWork(
            num_prompt_tokens=self.num_prompt_tokens,
            lengths=(self.length,) * self.samples,
            kept_up_to=1.0 if is_dropped else 0.0,
        )

    def kept_share(self, share: float) -> float:
        return 0.5

    def mean_kept_share(self, share: float) -> float:
        return 1 - 1 / self.drop_every if self.drop_every else 1.0

    def mean_length(self, share: float) -> float:
        return float(self.length)

    def seeded(self, seed: int) -> EqualWork:
        return self


def gangs(**counts: int) -> tuple[GangView, ...]:
    """So many gangs of each type; ``fast`` has twice the bandwidth."""
    return tuple(
        GangView(
            id=f"{name}/{number}",
            type=name,
            figures=GangFigures(memory_bandwidth_gb_s=2000 if name == "fast" else 1000, flops_tflops=100),
        )
        for name, count in counts.items()
        for number in range(count)
    )


def scenario(**changes: object) -> Scenario:
    """Four even gangs and equal work, changed as asked."""
    defaults: dict[str, object] = {
        "gangs": gangs(even=4),
        "workload": EqualWork(),
        "costs": PlainCosts(),
        "prompts_per_step": 4,
        "samples_per_prompt": 2,
        "max_staleness": 1,
        "max_num_sequences": 8,
        "num_initial_rollout": 2,
        "duration_s": 200.0,
    }
    return Scenario(**{**defaults, **changes})  # type: ignore[arg-type]
