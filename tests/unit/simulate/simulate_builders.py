"""Small scenarios whose outcome follows from a formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlserve.manager.policies.base import GangFigures, GangView
from rlserve.rollout.workload.lengths import Lengths
from rlserve.rollout.workload.trace import Trace
from rlserve.rollout.workload.workload import Workload
from rlserve.simulate.scenario import Scenario

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

    def prefill_step_s(self, type_name: str, num_samples: int, num_kv_tokens: int, num_prefill_tokens: int) -> float:
        decoding_s = self.decode_step_s(type_name, num_samples, num_kv_tokens)
        return decoding_s + self.prefill_token_s * num_prefill_tokens

    @property
    def block_size(self) -> int:
        return 1

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


@dataclass(frozen=True)
class EqualLengths(Lengths):
    """All answers are of one length."""

    length: int = 100

    def of(self, position: int, num_samples: int, *, seed: int, progress: float) -> list[float]:
        return [float(self.length)] * num_samples

    def mean(self, progress: float, *, cap: float) -> float:
        return float(self.length)

    def median(self) -> float:
        return float(self.length)


def equal_work(*, drop_every: int = 0) -> Workload:
    """All answers have 100 tokens; every so-many-th group is dropped."""
    kept = tuple(position > 0 for position in range(drop_every))
    says_kept = Trace(groups=((100.0,),) * drop_every, kept=kept) if drop_every else None
    return Workload(lengths=EqualLengths(), says_kept=says_kept, seed=0)


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
        "workload": equal_work(),
        "num_prompt_tokens": 10,
        "costs": PlainCosts(),
        "prompts_per_step": 4,
        "samples_per_prompt": 2,
        "max_staleness": 1,
        "max_num_sequences": 8,
        "num_initial_rollout": 2,
        "duration_s": 200.0,
    }
    return Scenario(**{**defaults, **changes})  # type: ignore[arg-type]
