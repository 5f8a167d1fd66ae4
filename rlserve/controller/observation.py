"""The controller's own numbers, read from the parts that own them: metrics of a step and the progress display."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from rlserve.controller.clock import RunClock
from rlserve.controller.context import Books, RunContext
from rlserve.controller.measuring import Measuring
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.replicas import Replicas
from rlserve.controller.rollout_loop import ENVIRONMENT_ERROR
from rlserve.manager.gang_table import SERVING, GangState
from rlserve.manager.measurement.figures import Measurements
from rlserve.rollout.ledger import GroupState, Ledger
from rlserve.rollout.requests.base import RequestKind
from rlserve.tracking import names
from rlserve.tracking.share_event import ShareEvent

_SETTLED = (GangState.TRAIN, *SERVING, GangState.DEAD, GangState.GONE)


class Rate:
    """How fast a total grows: per second, since it was last asked."""

    def __init__(self, clock: RunClock) -> None:
        self._clock = clock
        self._last: tuple[float, float] | None = None

    def update(self, total: float) -> float | None:
        """``total`` since the run began; None the first time."""
        now, last = self._clock.now(), self._last
        self._last = (now, total)
        return None if last is None or now <= last[0] else (total - last[1]) / (now - last[0])


class RolloutRates:
    """What the replicas did since it was last asked: tokens per second, and the share of their time that they
    computed."""

    def __init__(self, clock: RunClock) -> None:
        self._tokens = Rate(clock)
        self._busy_s = Rate(clock)

    def update(self, *, num_tokens: int, busy_s: float, num_replicas: int) -> Mapping[str, float]:
        """Metrics from totals since the run began; nothing the first time."""
        tokens_per_s, num_busy = self._tokens.update(num_tokens), self._busy_s.update(busy_s)
        metrics = {} if tokens_per_s is None else {names.ROLLOUT_TOKENS_PER_S: tokens_per_s}
        if num_busy is not None and num_replicas:
            metrics[names.ROLLOUT_BUSY] = min(num_busy / num_replicas, 1.0)
        return metrics


def num_moving(reallocation: Reallocation) -> int:
    """Slots that start, idle or change roles."""
    return sum(reallocation.table.count(state) for state in GangState if state not in _SETTLED)


def _of_share(share: ShareEvent) -> dict[str, float]:
    return {
        "pool/num_lent": share.num_lent,
        "pool/num_borrowed": share.num_borrowed,
        "pool/num_owed": share.num_owed,
    }


class PoolMetrics:
    """Reads the metrics of the pool; names are documented in ``rlserve.tracking.names``."""

    def __init__(self, run: RunContext, reallocation: Reallocation) -> None:
        self._run = run
        self._reallocation = reallocation
        self._share: ShareEvent | None = None
        run.events.subscribe(ShareEvent, self._note_share)

    def read(self) -> dict[str, float]:
        """The metrics now."""
        table, share = self._reallocation.table, self._share
        return {
            **({} if share is None else _of_share(share)),
            "pool/num_train": table.count(GangState.TRAIN),
            "pool/num_rollout": table.count(*SERVING),
            "pool/num_moving": num_moving(self._reallocation),
            "pool/num_dead": table.count(GangState.DEAD),
            "pool/num_worker_failures": self._run.counters.worker_failures,
        }

    def _note_share(self, event: ShareEvent) -> None:
        self._share = event


class RolloutMetrics(PoolMetrics):
    """Reads those of the rollout side and the manager too."""

    def __init__(
        self,
        run: RunContext,
        books: Books,
        replicas: Replicas,
        reallocation: Reallocation,
        measuring: Measuring,
    ) -> None:
        super().__init__(run, reallocation)
        self._books = books
        self._replicas = replicas
        self._measuring = measuring
        self._rates = RolloutRates(run.clock)

    def read(self) -> dict[str, float]:
        """The metrics now; rates since they were last read."""
        ledger, router, replicas = self._books.ledger, self._books.router, self._replicas
        counters = self._run.counters
        stats = list(replicas.stats.values())
        num_generated = counters.num_generated_tokens + replicas.num_generated_tokens
        metrics: dict[str, float] = {
            "vllm:num_requests_running": sum(stat.num_running for stat in stats),
            "vllm:num_requests_waiting": sum(stat.num_waiting for stat in stats),
            "vllm:num_preemptions": sum(stat.num_preemptions for stat in stats),
            "vllm:generation_tokens": num_generated,
            "rollout/num_pending": ledger.count(GroupState.PENDING),
            "rollout/num_running": ledger.count(GroupState.RUNNING),
            "rollout/num_buffered": len(self._books.buffer),
            "rollout/num_dropped": ledger.count(GroupState.DROPPED),
            **_environment_failures(ledger),
            **super().read(),
            "manager/queue_length": router.num_waiting(RequestKind.TRAINING),
            "manager/num_moves_to_train": counters.moves_to_train,
            "manager/num_moves_to_rollout": counters.moves_to_rollout,
            "manager/move_s": self._reallocation.move_s,
            "manager/trainer_pause_s": self._reallocation.trainer_pause_s,
        }
        if stats:
            metrics["vllm:kv_cache_usage_perc"] = sum(stat.kv_cache_usage for stat in stats) / len(stats)
            metrics["vllm:prefix_cache_hit_rate"] = sum(stat.prefix_cache_hit_rate for stat in stats) / len(stats)
        rates = self._rates.update(num_tokens=num_generated, busy_s=replicas.busy_s, num_replicas=len(stats))
        return {**metrics, **rates, **measured_metrics(self._measuring.figures())}


def _environment_failures(ledger: Ledger) -> Mapping[str, float]:
    number = ledger.num_dropped.get(ENVIRONMENT_ERROR)
    return {} if number is None else {"rollout/num_environment_failures": number}


def measured_metrics(measured: Measurements) -> Mapping[str, float]:
    """What policies are shown of the run's own speed, as far as it has been measured."""
    batches = [rate.mean_running for rate in measured.replicas if rate.mean_running is not None]
    found = {
        names.KEPT_SHARE: measured.kept_share,
        names.WAIT_SHARE: measured.wait_share,
        names.MEAN_BATCH: fmean(batches) if batches else None,
        names.SYNC_S: measured.sync_s,
        names.HOST_BUSY: measured.host_busy_share,
    }
    return {name: value for name, value in found.items() if value is not None}
