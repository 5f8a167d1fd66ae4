"""Write ``metrics.md`` from ``rlserve.tracking.names``.

python docs/generate_metrics.py
"""

from __future__ import annotations

from pathlib import Path

from rlserve.tracking.names import METRICS

TARGET = Path(__file__).with_name("metrics.md")
HEADER = """\
# Metrics

Every metric of a run: one line a step in `metrics.jsonl`, and the same names in wandb and TensorBoard. Written by
`docs/generate_metrics.py` from `rlserve/tracking/names.py`: change them there. Braces list alternatives:
`critic/score/{mean,max,min}` are three metrics. Training has verl's names and the engine vLLM's; TRL's name for the
same quantity follows in brackets. The rest is named by rlserve. (PPO) and (GRPO) stand before metrics that only
[that algorithm](algorithms.md) has; without a critic `critic/` holds what verl puts there for every algorithm.

With `tracking.prometheus_port=9400`, Prometheus finds the newest of them at `http://127.0.0.1:9400/metrics`, as
`rlserve_critic_score_mean` and so on, and live the numbers of each engine under vLLM's names and labels, `model_name`
and `engine` (the slot): `vllm:num_requests_running`, `vllm:num_requests_waiting`, `vllm:kv_cache_usage_perc`, the
counters `vllm:prefix_cache_queries_total`, `vllm:prefix_cache_hits_total`, `vllm:num_preemptions_total`,
`vllm:prompt_tokens_total`, `vllm:generation_tokens_total`, and the histograms `vllm:time_to_first_token_seconds`,
`vllm:inter_token_latency_seconds`, `vllm:request_queue_time_seconds`, `vllm:e2e_request_latency_seconds`.

| metric | meaning |
|---|---|
"""


def render() -> str:
    """The whole page."""
    return HEADER + "".join(f"| `{name}` | {meaning} |\n" for name, meaning in METRICS.items())


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
